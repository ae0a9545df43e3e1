"""Use after the end: of a region, a buffer, an arena, a device, a loop, a fork, the interpreter.

Each row ends in a clear error or in a clean end, never in a crash: tests/campaigns/asan.sh runs them on
compiled code that is watched for accesses to freed memory.
"""

import asyncio
import gc
import mmap
import os
import subprocess
import sys
import textwrap
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import aioblk
from aioblk._native._core import View

from ..conftest import StorageDaemonFactory

PAGE = mmap.PAGESIZE
SLOW = 50_000_000  # nanoseconds


@pytest.fixture
async def device(storage_daemon: StorageDaemonFactory) -> AsyncIterator[aioblk.Device]:
    """A device that needs memory regions, and takes its time."""
    async with aioblk.VirtioBlkVhostUser(storage_daemon(latency_ns=SLOW).socket) as device:
        yield device


# --- a view after its region --------------------------------------------------------------------------------

USES: dict[str, Callable[[View], object]] = {
    "len": len,
    "item": lambda view: view[0],
    "slice": lambda view: view[1:2],
    "iteration": list,
    "assignment": lambda view: view.__setitem__(0, 1),
    "slice assignment": lambda view: view.__setitem__(slice(0, 1), b"x"),
    "comparison": lambda view: view == b"",
    "tobytes": lambda view: view.tobytes(),
    "bytes": bytes,
    "memoryview": memoryview,
    "address": lambda view: view.address,
    "nbytes": lambda view: view.nbytes,
    "readonly": lambda view: view.readonly,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_a_view_after_its_region(device: aioblk.Device, use: Callable[[View], object]) -> None:
    async with device.allocate(PAGE) as region:
        view = region[10:20]
        use(view)
    for closed in (view, region):
        with pytest.raises(ValueError, match="closed"):
            use(closed)
    assert "closed" in repr(view)
    assert "closed" in repr(region)
    assert view.memory.closed


async def test_a_request_on_a_view_after_its_region(device: aioblk.Device) -> None:
    async with device.allocate(PAGE) as region:
        view = region[:512]
    for request in (
        lambda: device.read_into(0, view),
        lambda: device.write(0, view),
        lambda: device.readv(0, [view]),
        lambda: device.write_many([(0, view)]),
    ):
        with pytest.raises(ValueError, match="closed"):
            await request()


async def test_an_export_after_its_region(device: aioblk.Device) -> None:
    async with device.allocate(PAGE) as region:
        export = memoryview(region)[100:200]
    export[:] = b"e" * 100
    assert not region.memory.released
    await device.write(0, bytes(412) + bytes(export))
    del export
    gc.collect()
    assert region.memory.released


async def test_a_request_in_flight_after_its_region(device: aioblk.Device) -> None:
    region = await device.allocate(PAGE).__aenter__()
    request = device.read_into(0, region[:512])
    leaving = asyncio.create_task(region.aclose())
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert not region.memory.released
    await request
    await region.aclose()  # waits for the unmapping, which has gone on by itself
    assert region.memory.released


# --- a buffer while it is registered ------------------------------------------------------------------------


async def test_a_buffer_resized_or_closed_while_registered(device: aioblk.Device) -> None:
    buffer, pages = bytearray(PAGE), mmap.mmap(-1, PAGE)
    async with device.register(buffer), device.register(pages):
        with pytest.raises(BufferError):
            buffer.extend(b"more")
        with pytest.raises(BufferError):
            buffer.clear()
        with pytest.raises(BufferError):
            pages.close()
        with pytest.raises(BufferError):
            pages.resize(2 * PAGE)
    buffer.clear()
    pages.close()


async def test_a_buffer_forgotten_while_registered(device: aioblk.Device) -> None:
    class Forgettable(bytearray):
        pass

    buffer = Forgettable(b"f" * PAGE)
    reference = weakref.ref(buffer)
    async with device.register(buffer) as region:
        del buffer
        gc.collect()
        assert reference() is not None
        assert region[:4] == b"ffff"
    gc.collect()
    assert reference() is None


# --- after the device, the arena ----------------------------------------------------------------------------


async def test_everything_of_a_device_after_it(storage_daemon: StorageDaemonFactory) -> None:
    async with aioblk.Arena(PAGE) as arena:
        async with aioblk.VirtioBlkVhostUser(storage_daemon().socket) as device:
            region = await device.allocate(PAGE).__aenter__()
            unentered = device.allocate(PAGE)
            view, export = region[:512], memoryview(region)[512:1024]
            byte_view = aioblk.ByteView(device)
            await arena.attach(device)
            buffer = arena.allocate(512)
        for use in USES.values():
            with pytest.raises(ValueError, match="closed"):
                use(view)
        export[:] = b"x" * 512
        for request in (
            lambda: device.read(0, 512),
            lambda: device.read_into(0, buffer),
            lambda: device.register(buffer),
            lambda: device.allocate(PAGE),
            lambda: byte_view.read(0, 1),
            lambda: arena.attach(device),
            unentered.__aenter__,
        ):
            with pytest.raises(aioblk.DeviceClosedError):
                await request()  # type: ignore[misc]
        with pytest.raises(aioblk.DeviceClosedError):
            _ = device.bounce_pool
        await region.aclose()
        await device.aclose()
        assert len(buffer) == 512
    with pytest.raises(ValueError, match="closed"):
        len(buffer)


# --- after the loop, a fork, the interpreter ----------------------------------------------------------------


def run_script(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run *script* in an interpreter of its own, which must end by itself and with status 0."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    result = subprocess.run(
        [
            sys.executable,
            "-X",
            "faulthandler",
            "-W",
            "default",
            "-c",
            PRELUDE + textwrap.dedent(script),
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    assert "Exception ignored" not in result.stderr
    assert "Fatal" not in result.stderr
    return result


PRELUDE = """
import asyncio, gc, mmap, os, sys, threading, aioblk

async def open_everything():
    global dev, region, shared, arena, buffer, requests, byte_view
    dev = await aioblk.VirtioBlkVhostUser(sys.argv[1], bounce_pool_size=65536).open()
    region = await dev.allocate(8192).__aenter__()
    shared = await dev.register(mmap.mmap(-1, 8192), required=True).__aenter__()
    arena = await aioblk.Arena(65536).__aenter__()
    await arena.attach(dev)
    buffer = arena.allocate(4096)
    byte_view = aioblk.ByteView(dev)

def start_requests():
    return [
        dev.read_into(0, region[:4096]), dev.read_into(0, shared[:4096]), dev.read_into(0, buffer),
        *(dev.read(0, 65536) for _ in range(5)),
    ]

def refused(call, *errors):
    try:
        call()
    except errors as error:
        print(type(error).__name__)
    else:
        sys.exit("not refused")

def run(work):
    return asyncio.new_event_loop().run_until_complete(work)
"""


def test_a_device_after_its_loop(storage_daemon: StorageDaemonFactory) -> None:
    result = run_script(
        """
        loop = asyncio.new_event_loop()
        loop.run_until_complete(open_everything())
        loop.close()

        async def use():
            refused(lambda: dev.read(0, 512), aioblk.UsageError)
            refused(lambda: dev.read_into(0, region[:512]), aioblk.UsageError)
            for work in (region.aclose, dev.aclose, dev.allocate(4096).__aenter__):
                try:
                    await work()
                except aioblk.UsageError as error:
                    print(type(error).__name__)
                else:
                    sys.exit("not refused")

        another = asyncio.new_event_loop()
        another.run_until_complete(use())
        another.close()
        region[0] = 1
        print(region[0], len(buffer))
        """,
        storage_daemon().socket,
    )
    assert result.stdout.split() == ["UsageError"] * 5 + ["1", "4096"]
    assert "ResourceWarning: unclosed <aioblk.VirtioBlkVhostUser" in result.stderr


def test_a_device_in_another_thread(storage_daemon: StorageDaemonFactory) -> None:
    result = run_script(
        """
        async def main():
            await open_everything()
            async def elsewhere():
                refused(lambda: dev.read(0, 512), aioblk.UsageError)
                refused(lambda: dev.flush(), aioblk.UsageError)
            await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
            await dev.read(0, 512)
            await arena.aclose()
            await dev.aclose()
        asyncio.run(main())
        """,
        storage_daemon().socket,
    )
    assert result.stdout.split() == ["UsageError"] * 2
    assert result.stderr == ""


def test_a_device_after_fork(storage_daemon: StorageDaemonFactory) -> None:
    result = run_script(
        """
        async def main():
            await open_everything()
            requests = start_requests()
            region[4096] = 7
            child = os.fork()
            if child == 0:
                refused(lambda: dev.read(0, 512), aioblk.UsageError)
                refused(lambda: dev.write(0, region[:512]), aioblk.UsageError)
                assert region[4096] == 7
                assert len(buffer) == 4096
                sys.stdout.flush()
                os._exit(0)  # as multiprocessing does; closing the shared loop would break the parent's
            _, status = os.waitpid(child, 0)
            assert status == 0, status
            await asyncio.gather(*requests)
            await dev.read_into(0, region[:512])
            await region.aclose()
            await arena.aclose()
            await dev.aclose()
            print("parent")
        asyncio.run(main())
        """,
        storage_daemon(latency_ns=SLOW).socket,
    )
    assert result.stdout.split() == ["UsageError"] * 2 + ["parent"]


@pytest.mark.parametrize("loop", ["asyncio.run", "run", "__import__('uvloop').run"])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("keep", [False, True], ids=["forgotten", "kept"])
def test_the_interpreter_ends_with_everything_open(
    storage_daemon: StorageDaemonFactory, loop: str, busy: bool, keep: bool
) -> None:
    run_script(
        f"""
        async def main():
            await open_everything()
            if {busy}:
                global requests
                requests = start_requests()
        {loop}(main())
        if not {keep}:
            del dev, region, shared, arena, buffer, byte_view
            requests = None
            gc.collect()
        print("end")
        """,
        storage_daemon(latency_ns=SLOW).socket,
    )


def test_the_interpreter_ends_inside_the_loop(
    storage_daemon: StorageDaemonFactory, scratch_file: Path
) -> None:
    run_script(
        """
        async def main():
            await open_everything()
            ring = await aioblk.IoUring(sys.argv[2]).open()
            global requests
            requests = [*start_requests(), ring.read(0, 1 << 20)]
            sys.exit(0)
        try:
            asyncio.run(main())
        finally:
            print("end")
        """,
        storage_daemon(latency_ns=SLOW).socket,
        str(scratch_file),
    )


def test_a_child_that_ends_within_a_turn_takes_no_event_of_its_parents(tmp_path: Path) -> None:
    """It was forked by a task that the queue had woken, and goes back through the queue as it ends."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    run_script(
        """
        import time, warnings

        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = None

        async def main():
            async with aioblk.IoUring(sys.argv[1]) as device:
                device.queue().spin = 0

                async def some(number):
                    global child
                    for again in range(40):
                        await device.read(0, 4096)
                        if number == 6 and again == 10:
                            reader, writer = os.pipe()
                            child = os.fork()
                            if child == 0:
                                os.close(writer)
                                os.read(reader, 1)  # until the parent has submitted
                                # From 3.14 on, no task of a loop that was forked comes to an end there.
                                os._exit(3) if sys.version_info >= (3, 14) else sys.exit(3)
                            os.close(reader)
                            ends.append(writer)

                ends = []
                await asyncio.gather(*(some(number) for number in range(8)))
                file = os.open(sys.argv[1], os.O_RDONLY)
                os.fsync(file)
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                reads = [device.read(at * 65536, 4096) for at in range(8)]
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                os.close(ends[0])
                _, status = os.waitpid(child, 0)  # the loop is busy meanwhile
                assert os.waitstatus_to_exitcode(status) == 3
                async with asyncio.timeout(20):
                    for read in reads:
                        assert await read == bytes(4096)

        try:
            asyncio.new_event_loop().run_until_complete(main())
        except SystemExit as end:
            if child == 0:
                os._exit(end.code)
            raise
        """,
        image,
    )
