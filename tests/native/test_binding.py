"""The cffi binding: complete, and able to do real I/O without anything above it."""

import mmap
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aioblk import _native
from aioblk._libblkio.handle import Blkio
from aioblk._native._blkio import ffi, lib

from ..conftest import StorageDaemonFactory
from ..support.blocking_io import BlockingQueue, queue_of

CDEFS = (Path(_native.__file__).parent / "_cdefs.h").read_text()
BLOCK = 4096
EINVAL, ENOTSUP, EINTR, ETIME = -22, -95, -4, -62


@contextmanager
def started(driver: str, path: Path, **settings: int) -> Iterator[Blkio]:
    """A device with the settings of its connected state."""
    with Blkio(driver) as device:
        device.set("path", str(path))
        device.connect()
        for name, value in settings.items():
            device.set(name.replace("_", "-"), value)
        device.start()
        yield device


def address_of(memory: mmap.mmap) -> int:
    return int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))


def test_every_declaration_is_bound() -> None:
    functions = set(re.findall(r"\b(blkioq?_\w+)\(", CDEFS))
    constants = set(re.findall(r"#define (BLKIO_\w+)", CDEFS))
    assert len(functions) == 43
    assert len(constants) == 13
    for name in functions | constants:
        assert hasattr(lib, name)


def test_structures_have_the_layout_of_the_header() -> None:
    assert ffi.sizeof("struct blkio_mem_region") == 40
    assert ffi.sizeof("struct blkio_completion") == 32
    assert ffi.sizeof("struct blkio_zone") == 64
    assert ffi.offsetof("struct blkio_completion", "ret") == 16


def test_a_file_is_written_read_zeroed_and_flushed(scratch_file: Path) -> None:
    with started("io_uring", scratch_file) as device, mmap.mmap(-1, 4 * BLOCK) as memory:
        queue, at = BlockingQueue(device), address_of(memory)
        memory[:BLOCK] = b"a" * BLOCK
        memory[BLOCK : 2 * BLOCK] = b"b" * BLOCK
        assert queue.write(0, at, BLOCK, lib.BLKIO_REQ_FUA) == 0
        assert queue.writev(BLOCK, [(at + BLOCK, BLOCK), (at, BLOCK)]) == 0
        assert scratch_file.read_bytes()[: 3 * BLOCK] == b"a" * BLOCK + b"b" * BLOCK + b"a" * BLOCK
        assert queue.readv(0, [(at + 2 * BLOCK, BLOCK), (at + 3 * BLOCK, BLOCK)]) == 0
        assert memory[2 * BLOCK :] == b"a" * BLOCK + b"b" * BLOCK
        assert queue.write_zeroes(BLOCK, BLOCK, lib.BLKIO_REQ_NO_UNMAP) == 0
        assert queue.read(BLOCK, at, BLOCK) == 0
        assert memory[:BLOCK] == bytes(BLOCK)
        assert queue.flush() == 0
        assert queue.flush(lib.BLKIO_REQ_FUA) == EINVAL


def test_a_block_device_is_written_and_read(loop_device: Path, scratch_file: Path) -> None:
    with started("io_uring", loop_device) as device, mmap.mmap(-1, BLOCK) as memory:
        queue, at = BlockingQueue(device), address_of(memory)
        memory[:] = b"x" * BLOCK
        assert queue.write(BLOCK, at, BLOCK) == 0
        assert queue.flush() == 0
        assert scratch_file.read_bytes()[BLOCK : 2 * BLOCK] == b"x" * BLOCK


def test_a_vhost_user_device_does_every_kind_of_request(
    storage_daemon: StorageDaemonFactory, scratch_file: Path
) -> None:
    daemon = storage_daemon(scratch_file)
    with started("virtio-blk-vhost-user", daemon.socket) as device:
        region = device.alloc_mem_region(2 * BLOCK)
        device.map_mem_region(region)
        memory = ffi.buffer(ffi.cast("void *", region.address), region.length)
        queue, at = BlockingQueue(device), region.address
        memory[:BLOCK] = b"q" * BLOCK
        assert queue.write(BLOCK, at, BLOCK, lib.BLKIO_REQ_FUA) == 0
        assert queue.readv(BLOCK, [(at + BLOCK, 512), (at + BLOCK + 512, BLOCK - 512)]) == 0
        assert memory[BLOCK:] == b"q" * BLOCK
        assert queue.write_zeroes(BLOCK, BLOCK) == 0
        assert queue.discard(0, BLOCK) == 0
        assert queue.flush() == 0
        assert queue.read(BLOCK, at, BLOCK) == 0
        assert memory[:BLOCK] == bytes(BLOCK)
        assert queue.write(100, at, 512) == EINVAL


def test_poll_queues_do_io_too(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(num_queues=2)
    with started("virtio-blk-vhost-user", daemon.socket, num_poll_queues=1) as device:
        region = device.alloc_mem_region(BLOCK)
        device.map_mem_region(region)
        assert BlockingQueue(device, poll=True).read(0, region.address, BLOCK) == 0
        poll_queue = queue_of(device, poll=True)
        assert lib.blkioq_get_completion_fd(poll_queue) == -1


def test_zone_requests_are_refused_where_there_are_no_zones(scratch_file: Path) -> None:
    with started("io_uring", scratch_file) as device:
        queue = queue_of(device)
        zones = ffi.new("struct blkio_zone[]", 1)
        lib.blkioq_report_zones(queue, 0, zones, 1, ffi.NULL, 0)
        for on_one_zone in ("close", "finish", "open", "reset"):
            getattr(lib, f"blkioq_{on_one_zone}_zone")(queue, 0, ffi.NULL, 0)
            getattr(lib, f"blkioq_{on_one_zone}_all_zones")(queue, ffi.NULL, 0)
        completions = ffi.new("struct blkio_completion[]", 9)
        assert lib.blkioq_do_io(queue, completions, 9, 9, ffi.NULL) == 9
        assert [completions[i].ret for i in range(9)] == [ENOTSUP] * 9


def test_a_wait_ends_with_a_time_limit_or_a_signal(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(latency_ns=30 * 10**9)
    with started("virtio-blk-vhost-user", daemon.socket) as device:
        region = device.alloc_mem_region(BLOCK)
        device.map_mem_region(region)
        queue = queue_of(device)
        lib.blkioq_read(queue, 0, ffi.cast("void *", region.address), BLOCK, ffi.NULL, 0)
        completions = ffi.new("struct blkio_completion[]", 1)
        at_once = ffi.new("struct timespec *", {"tv_nsec": 1})
        assert lib.blkioq_do_io(queue, completions, 1, 1, at_once) == ETIME

        nothing_blocked = ffi.new("sigset_t *")
        lib.sigemptyset(nothing_blocked)
        before = signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        signal.raise_signal(signal.SIGUSR1)  # pending until the wait unblocks it
        try:
            result = lib.blkioq_do_io_interruptible(queue, completions, 1, 1, ffi.NULL, nothing_blocked)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
            signal.signal(signal.SIGUSR1, before)
        assert result == EINTR
        daemon.kill()  # nothing writes to the region any more


@pytest.mark.parametrize("wanted", [1, 2])
def test_waiting_for_more_than_is_outstanding_is_refused(scratch_file: Path, wanted: int) -> None:
    with started("io_uring", scratch_file) as device:
        queue = queue_of(device)
        completions = ffi.new("struct blkio_completion[]", wanted)
        assert lib.blkioq_do_io(queue, completions, wanted, wanted, ffi.NULL) == EINVAL
