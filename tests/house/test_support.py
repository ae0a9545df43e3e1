"""The tests' own tools: what they promise to notice and to clean up."""

import asyncio
import errno
import os
import select
import subprocess
import sys
import threading
from dataclasses import replace
from mmap import mmap
from pathlib import Path

import pytest

import aioblk
from aioblk.testing import Fault, Faulty, MemoryDevice

from ..conftest import StorageDaemonFactory
from ..support.injector import preloaded
from ..support.leaks import Holdings, join_threads
from ..support.loop_device import LoopDevice
from ..support.verified_load import BLOCK, SIZE, VerifiedLoad


def test_a_descriptor_a_mapping_and_a_thread_are_noticed() -> None:
    before = Holdings.now()
    assert Holdings.now().added_since(before) == []
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="late")
    thread.start()
    fd = os.memfd_create("left-over")
    os.ftruncate(fd, 4096)
    with mmap(fd, 4096):
        left = Holdings.now().added_since(before)
        assert [entry.split()[0] for entry in left] == ["descriptor", "descriptor", "mapping", "thread"]
        assert "left-over" in left[0]
    os.close(fd)
    release.set()
    join_threads(before)
    assert Holdings.now().added_since(before) == []


def test_a_loop_device_is_gone_when_it_is_closed(loop_device: Path, tmp_path: Path) -> None:
    backing = Path(f"/sys/block/{loop_device.name}/loop/backing_file")
    assert backing.read_text().strip() == str(tmp_path / "scratch")
    other = tmp_path / "other"
    other.write_bytes(bytes(1 << 20))
    with LoopDevice(other, block_size=4096) as device:
        assert device.path != loop_device
        size = Path(f"/sys/block/{device.path.name}/queue/logical_block_size")
        assert size.read_text().strip() == "4096"
    with pytest.raises(FileNotFoundError):
        Path(f"/sys/block/{device.path.name}/loop/backing_file").read_text()


def test_a_storage_daemon_answers_pauses_and_dies(
    storage_daemon: StorageDaemonFactory, scratch_file: Path
) -> None:
    daemon = storage_daemon(scratch_file)
    assert [export["type"] for export in daemon.qmp("query-block-exports")] == ["vhost-user-blk"]
    daemon.pause()
    assert Path(f"/proc/{daemon.pid}/stat").read_text().split()[2] == "T"
    daemon.resume()
    assert daemon.alive
    daemon.kill()
    assert not daemon.alive
    with pytest.raises(RuntimeError, match="qemu-storage-daemon is gone, status 1"):
        storage_daemon(Path("/no/such/file"))


def test_a_storage_daemon_dies_with_whoever_started_it() -> None:
    script = """if True:
        import os, sys
        from aioblk.testing.storage_daemon import StorageDaemon
        daemon = StorageDaemon({"driver": "null-co", "size": 4096})
        print(daemon.pid, flush=True)
        sys.stdin.readline()
        os._exit(1)
    """
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        daemon = os.pidfd_open(int(starter.stdout.readline()))
        try:
            starter.communicate("end", timeout=30)
            assert select.select([daemon], [], [], 30)[0], "the daemon lives on"
        finally:
            os.close(daemon)


def test_the_injector_refuses_what_it_is_armed_for(tmp_path: Path) -> None:
    script = """if True:
        import os, threading
        from aioblk._native._core import Memory
        from tests.support.injector import FOR_EVER, Injector, Kind
        injector = Injector()

        def outcome(act):
            try:
                with injector:
                    act()
            except (OSError, RuntimeError) as error:
                return type(error).__name__

        for kind, act in (
            (Kind.DESCRIPTOR, lambda: os.close(os.dup(0))),
            (Kind.MEMORY, lambda: os.ftruncate(memory, 4096)),
            (Kind.THREAD, lambda: threading.Thread(target=int).start()),
        ):
            memory = os.memfd_create("memory")
            injector.arm(kind, 2)
            print(kind, *(outcome(act) for _ in range(3)), injector.calls, injector.refusals)
            injector.arm(kind, 1, FOR_EVER)
            act()
            print(kind, *(outcome(act) for _ in range(2)), injector.refused)
            injector.disarm()
        memory_of = Memory.from_buffer
        for number in (1, 2):
            injector.arm(Kind.PYTHON, number)
            try:
                print(number, len(injector.call(memory_of, bytearray(100))))
            except MemoryError:
                print(number, injector.refused)
    """
    done = subprocess.run(
        [sys.executable, "-c", script], env=preloaded(), capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == [
        "descriptor None OSError None 3 1",
        "descriptor OSError OSError fcntl(F_DUPFD)",
        "memory None OSError None 3 1",
        "memory OSError OSError ftruncate64",
        "thread None RuntimeError None 3 1",
        "thread RuntimeError RuntimeError pthread_create",
        "1 Python's allocator",
        "2 100",  # no more are needed
    ], done.stderr


# --- the load that is verified ------------------------------------------------------------------------------

NEVER = 1 << 30  # writes


async def test_a_load_knows_what_every_block_holds(tmp_path: Path) -> None:
    async with MemoryDevice(SIZE) as device:
        async with VerifiedLoad(device, workers=8) as load:
            await load.progress(2 * SIZE // BLOCK)
            earlier = await device.read(0, SIZE)
            await load.progress(2 * SIZE // BLOCK)
        content = await device.read(0, SIZE)
    load.check(content)
    (tmp_path / "copy").write_bytes(content + b"what is behind")
    load.check_file(tmp_path / "copy")
    another = b"\xff" + content[1:]
    for wrong in (earlier, bytes(SIZE), content[BLOCK:] + content[:BLOCK], another, content[:-1]):
        with pytest.raises(AssertionError, match=r"block \d+ begins with .*, and was written"):
            load.check(wrong)


async def test_a_load_begins_with_zeroes() -> None:
    async with MemoryDevice(SIZE) as device:
        await device.write(0, b"x" * SIZE)
        with pytest.raises(AssertionError, match=r"block \d+ begins with b.x+., and was written 0 to 0"):
            await VerifiedLoad(device, workers=1).run()
        async with VerifiedLoad(device, workers=1, zeroes_first=True) as load:
            await load.progress(SIZE // BLOCK)


@pytest.mark.parametrize(
    ("fault", "met"),
    [
        (Fault(operations={"write"}, after=100, error=errno.EIO), aioblk.BlkioError),
        (Fault(operations={"read"}, after=100, error=errno.EIO), aioblk.BlkioError),
        (Fault(operations={"flush"}, after=10, error=errno.EIO), aioblk.BlkioError),
        (Fault(operations={"write"}, after=100, corrupt=True), AssertionError),
        (Fault(operations={"read"}, after=100, corrupt=True), AssertionError),
    ],
    ids=["write", "read", "flush", "wrong write", "wrong read"],
)
async def test_what_a_load_meets_is_raised(fault: Fault, met: type[Exception]) -> None:
    def device() -> Faulty:
        return Faulty(MemoryDevice(SIZE), replace(fault, hits=0))

    with pytest.raises(met):
        await VerifiedLoad(device()).run()
    with pytest.raises(met):
        async with VerifiedLoad(device()) as load:
            await load.progress(NEVER)
    with pytest.raises(met):
        async with VerifiedLoad(device()) as load:
            await asyncio.wait(load.tasks, return_when=asyncio.FIRST_EXCEPTION)
