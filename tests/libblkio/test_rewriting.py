"""rewrite(): what is there is written once more."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aioblk._libblkio.handle import Blkio
from aioblk._libblkio.rewriting import rewrite
from aioblk.errors import BlkioError
from aioblk.testing.storage_daemon import StorageDaemon

from ..conftest import StorageDaemonFactory
from ..durability.daemon import LoggedDaemon
from ..support.devices import BLOCK, pattern


class GivenUpError(Exception):
    """Nobody waits any longer."""


def give_up() -> None:
    raise GivenUpError


@contextmanager
def started(daemon: StorageDaemon) -> Iterator[Blkio]:
    with Blkio("virtio-blk-vhost-user") as handle:
        handle.set("path", str(daemon.socket))
        handle.connect()
        handle.start()
        yield handle


def test_it_is_a_write_that_changes_nothing(tmp_path: Path) -> None:
    with LoggedDaemon(tmp_path, 2 * BLOCK) as daemon:
        (tmp_path / "disk.img").write_bytes(pattern(2 * BLOCK))
        with started(daemon) as handle:
            rewrite(handle, 512, 1024, give_up)
            assert not handle.mapped_regions
            handle.take_queue(0)  # which nobody else has
            handle.give_queue(0)
    [(_, entry)] = daemon.logged()
    assert (entry.sector, entry.count, entry.flags) == (1, 2, 0)
    assert entry.data == pattern(2 * BLOCK)[512:1536]
    assert (tmp_path / "disk.img").read_bytes() == pattern(2 * BLOCK)


def test_it_waits_for_as_long_as_somebody_wants(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(latency_ns=60_000_000_000)
    looks = 0

    def go_on() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise GivenUpError

    with started(daemon) as handle:
        with pytest.raises(GivenUpError):
            rewrite(handle, 0, BLOCK, go_on)
        daemon.kill()
    assert looks == 3


@pytest.mark.parametrize("operation", ["read", "write"])
def test_what_the_device_answers_is_raised(operation: str, scratch_file: Path) -> None:
    node = {
        "driver": "blkdebug",
        "image": {"driver": "file", "filename": str(scratch_file)},
        "inject-error": [{"event": "none", "iotype": operation, "errno": errno.EIO}],
    }
    with StorageDaemon(node) as daemon, started(daemon) as handle, pytest.raises(BlkioError) as caught:
        rewrite(handle, BLOCK, 512, give_up)
    assert (caught.value.errno, caught.value.operation, caught.value.offset) == (errno.EIO, operation, BLOCK)
