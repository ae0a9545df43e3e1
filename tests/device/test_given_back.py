"""Closed means given back: when ``async with`` ends, file, lock, memory and backend are free for others."""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import aioblk
from aioblk._libblkio import rings

from ..conftest import StorageDaemonFactory
from ..support.devices import BLOCK

ROUNDS = 10
PATIENCE = 30  # seconds; more than enough


def in_use(path: Path) -> bool:
    """Whether anybody but us has the file open: the kernel leases it to nobody then."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queues", [1, 3])
async def test_a_file_is_free_once_its_device_is_closed(scratch_file: Path, queues: int) -> None:
    for _ in range(ROUNDS):
        async with aioblk.IoUring(scratch_file, num_queues=queues) as device:
            await device.read(0, BLOCK)
            assert in_use(scratch_file)
        assert not in_use(scratch_file)


async def test_queues_that_came_and_went_hold_it_no_longer(scratch_file: Path) -> None:
    for _ in range(ROUNDS):
        async with aioblk.IoUring(scratch_file) as device:
            await device.add_queue()
            await device.remove_queue(await device.add_queue())
            await device.add_queue()
        assert not in_use(scratch_file)


async def test_a_device_that_was_given_up_lets_go_too(scratch_file: Path) -> None:
    for _ in range(ROUNDS):
        async with aioblk.IoUring(scratch_file) as device:
            await device.read(0, BLOCK)
            device.abandon()
        assert not in_use(scratch_file)


async def test_a_lock_on_the_callers_descriptor_ends_with_it(scratch_file: Path) -> None:
    for _ in range(ROUNDS):
        fd = os.open(scratch_file, os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            async with aioblk.IoUring(fd=fd) as device:
                await device.read(0, BLOCK)
        finally:
            os.close(fd)


async def test_rings_of_others_stay_theirs(scratch_file: Path) -> None:
    """They come and go in another thread while devices are opened: which are ours is not certain then."""
    stop = threading.Event()
    loops: list[int] = []

    def others() -> None:
        async def body() -> None:
            async with aioblk.IoUring(__file__, read_only=True) as device:
                await device.read(0, BLOCK)

        while not stop.is_set():
            asyncio.run(body())
            loops.append(1)

    thread = threading.Thread(target=others)
    thread.start()
    try:
        for _ in range(ROUNDS):
            async with aioblk.IoUring(scratch_file) as device:
                await device.read(0, BLOCK)
            assert not in_use(scratch_file)
    finally:
        stop.set()
        await asyncio.to_thread(thread.join)
    assert loops


async def test_where_it_is_not_certain_which_rings_are_ours_closing_waits(
    scratch_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[str] = []
    monkeypatch.setattr(rings, "_share_inodes", lambda rings: True)
    wait = rings.wait_for_the_kernel

    def wait_and_tell(since: float) -> None:
        waited.append("waited" if since > 0 else "had nothing to wait for")
        wait(since)

    monkeypatch.setattr("aioblk._libblkio.handle.wait_for_the_kernel", wait_and_tell)
    async with aioblk.IoUring(scratch_file) as device:
        await device.read(0, BLOCK)
    assert waited == ["waited"]
    async with asyncio.timeout(PATIENCE):  # how long a busy kernel takes is a guess here
        while in_use(scratch_file):  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.001)


def test_a_new_ring_is_certain_only_alone() -> None:
    made: list[int] = []

    def make() -> None:
        made.append(os.eventfd(0))

    try:
        assert rings.find_new(make, 0) == (None, frozenset())
        assert rings.find_new(make, 1) == (None, None)
    finally:
        for fd in made:
            os.close(fd)


# --- memory that may be locked ------------------------------------------------------------------------------


def test_rings_memory_can_be_used_again_and_again(tmp_path: Path) -> None:
    """By a user who may lock memory for two rings, but not for twenty."""
    path = tmp_path / "file"
    path.write_bytes(bytes(BLOCK))
    script = f"""if True:
        import asyncio, os, resource
        from aioblk import IoUring
        os.chmod({str(path)!r}, 0o666)
        fd = os.open({str(path)!r}, os.O_RDWR)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (40 << 10, 40 << 10))
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        async def main():
            for _ in range(20):
                async with IoUring(fd=fd) as device:
                    await device.read(0, 512)
        asyncio.run(main())
    """
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr


# --- backends -----------------------------------------------------------------------------------------------


async def test_a_forked_child_does_not_keep_a_backend_busy(storage_daemon: StorageDaemonFactory) -> None:
    """The child has a copy of the connection, and goes on when the parent closes the device."""
    daemon = storage_daemon()
    reading, writing = os.pipe()
    async with aioblk.VirtioBlkVhostUser(daemon.socket):
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
    try:
        async with asyncio.timeout(PATIENCE), aioblk.VirtioBlkVhostUser(daemon.socket) as device:
            await device.read(0, BLOCK)
    finally:
        os.close(writing)
        os.close(reading)
        await asyncio.to_thread(os.waitpid, child, 0)


async def test_subprocesses_inherit_nothing(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(num_queues=2)
    before = inheritable()
    async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=2) as device, device.allocate(BLOCK):
        await device.read(0, BLOCK)
        assert inheritable() == before


def inheritable() -> set[str]:
    found: set[str] = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.get_inheritable(int(name)):
                found.add(f"{name} of {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue  # the listing's own
    return found


# --- forks --------------------------------------------------------------------------------------------------


async def test_a_child_forked_while_a_ring_is_being_made_makes_its_own(scratch_file: Path) -> None:
    """By another thread, which the child does not have."""

    def fork() -> int:
        child = os.fork()
        if child == 0:
            signal.alarm(PATIENCE)
            try:
                rings.find_new(int, 0)
            finally:
                os._exit(0)
        return child

    child, _ring = await asyncio.to_thread(rings.find_new, fork, 0)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert status == 0
