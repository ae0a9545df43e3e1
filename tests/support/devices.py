"""Open devices for the tests of the request path: one test, every driver that this machine can offer it.

Every device begins with 8 MiB of zeroes. ``slow_device`` answers each request after LATENCY, and not at all
while its daemon is held: what is in flight then stays in flight for as long as a test wants.
"""

import array
import asyncio
import functools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import aioblk
from aioblk.testing.storage_daemon import StorageDaemon

if TYPE_CHECKING:
    from ..conftest import StorageDaemonFactory

SCRATCH_SIZE = 8 << 20
LATENCY = 0.02  # seconds
BLOCK = 4096  # bytes; a multiple of what any device here asks for


@dataclass(frozen=True)
class Target:
    """What a device is opened on."""

    driver: str
    path: Path
    """The file or the socket."""
    file: Path
    """Where the bytes are, in the end."""

    def device(self, **options: Any) -> aioblk.Device:
        """A device that is not open yet."""
        device = aioblk.open(self.driver, path=self.path, **options)
        assert isinstance(device, aioblk.Device)
        return device

    @property
    def is_file(self) -> bool:
        return self.driver == "io_uring"


class LastingDaemons:
    """Daemons that serve one test after the other, since starting one takes longer than most tests. Each has
    a disk of its own. For tests that look at nothing of a daemon but what it answers."""

    def __init__(self, directory: Path) -> None:
        LASTING.append(self)
        self._directory = directory
        self._daemons: dict[tuple[int, bool], StorageDaemon] = {}

    def __call__(self, *, num_queues: int = 1, writable: bool = True) -> Target:
        """One with 8 MiB of zeroes, as new."""
        key = num_queues, writable
        file = self._directory / f"disk of {key}"
        if key not in self._daemons:
            make_scratch(file)
            blockdev = {
                "driver": "file",
                "filename": str(file),
                "discard": "unmap",
                "read-only": not writable,
            }
            self._daemons[key] = StorageDaemon(blockdev, num_queues=num_queues, writable=writable)
        elif writable:
            os.truncate(file, 0)
            make_scratch(file)
        return Target("virtio-blk-vhost-user", self._daemons[key].socket, file)

    def holds(self, held: str) -> bool:
        """Whether what Holdings names is for a daemon that goes on."""
        return any(daemon.holds(held) for daemon in self._daemons.values())

    def end(self) -> None:
        """Of those that there are; others may follow."""
        while self._daemons:
            self._daemons.popitem()[1].close()


LASTING: list[LastingDaemons] = []
"""Those of modules whose tests are going on."""


def make_scratch(path: Path) -> None:
    """A regular file of 8 MiB, its blocks allocated and its bytes zero."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.posix_fallocate(fd, 0, SCRATCH_SIZE)
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def daemons_of_the_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LastingDaemons]:
    daemons = LastingDaemons(tmp_path_factory.mktemp("daemons"))
    yield daemons
    daemons.end()
    LASTING.remove(daemons)


@pytest.fixture
def lasting_daemon(
    request: pytest.FixtureRequest, daemons_of_the_module: LastingDaemons
) -> Iterator[LastingDaemons]:
    """Gives daemons that the module's tests share. What a failed test has left of one, or a test that may
    leave a client behind, serves no other."""
    failed = request.session.testsfailed
    if request.node.get_closest_marker("abandons_memory"):
        daemons_of_the_module.end()
        failed = -1
    yield daemons_of_the_module
    if request.session.testsfailed != failed:
        daemons_of_the_module.end()


@pytest.fixture(params=["io_uring", "vhost_user"])
def target(request: pytest.FixtureRequest) -> Target:
    if request.param == "io_uring":
        file: Path = request.getfixturevalue("scratch_file")
        return Target("io_uring", file, file)
    daemon: LastingDaemons = request.getfixturevalue("lasting_daemon")
    return daemon()


@pytest.fixture
async def device(target: Target) -> AsyncIterator[aioblk.Device]:
    async with target.device() as device:
        yield device


@pytest.fixture
async def file_device(scratch_file: Path) -> AsyncIterator[aioblk.Device]:
    """io_uring on ``scratch_file``."""
    async with aioblk.IoUring(scratch_file) as device:
        yield device


@pytest.fixture
def slow_daemon(storage_daemon: "StorageDaemonFactory") -> StorageDaemon:
    return storage_daemon(latency_ns=int(LATENCY * 1e9))


@pytest.fixture
async def slow_device(slow_daemon: StorageDaemon) -> AsyncIterator[aioblk.Device]:
    """vhost-user, each request taking LATENCY; its bounce pool exists already."""
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket) as device:
        await device.read(0, BLOCK)
        yield device


@contextmanager
def held(daemon: StorageDaemon) -> Iterator[None]:
    """Inside the block no request completes."""
    daemon.pause()
    os.waitid(os.P_PID, daemon.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield
    finally:
        daemon.resume()


@functools.lru_cache(maxsize=64)  # most tests write the same few
def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes that differ from block to block and from seed to seed."""
    word, step, mask = seed * 0x9E3779B97F4A7C15, 0x2545F4914F6CDD1D, 2**64 - 1
    words = array.array("Q", ((word + index * step) & mask for index in range(-(-length // 8))))
    return words.tobytes()[:length]


async def settled(*requests: "aioblk.Request[Any]") -> None:
    """Wait until the requests are done, whatever their outcome."""
    await asyncio.wait(requests)  # type: ignore[type-var] # asyncio takes more than its types say
