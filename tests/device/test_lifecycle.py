"""The life of a device: opening, closing, and every order in which the two may go wrong."""

import asyncio
import contextlib
import errno
import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import pytest

import aioblk
from aioblk.testing.storage_daemon import StorageDaemon

from ..conftest import StorageDaemonFactory
from ..support.devices import BLOCK, LATENCY, Target, held, pattern

PATIENCE = 20  # seconds

# --- opening and closing ------------------------------------------------------------------------------------


async def test_a_device_is_open_inside_its_block(target: Target) -> None:
    device = target.device()
    assert not device.closed
    async with device as entered:
        assert entered is device
        assert not device.closed
        assert device.capacity == 8 << 20
    assert device.closed


async def test_open_and_aclose_do_the_same(target: Target) -> None:
    device = target.device()
    assert await device.open() is device
    assert await device.read(0, BLOCK) == bytes(BLOCK)
    await device.aclose()
    assert device.closed


async def test_closing_is_idempotent(target: Target) -> None:
    async with target.device() as device:
        await device.aclose()
        await asyncio.gather(device.aclose(), device.aclose())
    await device.aclose()


async def test_a_device_that_was_never_opened_needs_no_closing(target: Target) -> None:
    device = target.device()
    with pytest.raises(aioblk.UsageError, match="not open"):
        device.read(0, BLOCK)
    with pytest.raises(aioblk.UsageError):
        _ = device.capacity
    await device.aclose()
    with pytest.raises(aioblk.DeviceClosedError):
        device.read(0, BLOCK)


async def test_a_device_is_opened_once(target: Target) -> None:
    async with target.device() as device:
        with pytest.raises(aioblk.UsageError):
            await device.open()
        assert await device.read(0, BLOCK) == bytes(BLOCK)
    with pytest.raises(aioblk.UsageError):
        await device.open()


async def test_a_closed_device_refuses_everything(target: Target) -> None:
    async with target.device() as device:
        pass
    buffer = bytearray(BLOCK)
    for call in (
        lambda: device.read(0, BLOCK),
        lambda: device.read_into(0, buffer),
        lambda: device.readv(0, [buffer]),
        lambda: device.write(0, buffer),
        lambda: device.writev(0, [buffer]),
        lambda: device.write_zeroes(0, BLOCK),
        lambda: device.discard(0, BLOCK),
        lambda: device.flush(),
        lambda: device.read_many([(0, BLOCK)]),
        lambda: device.write_many([(0, buffer)]),
        lambda: device.capacity,
        lambda: device.limits,
        lambda: device.properties,
        lambda: device.allocate(BLOCK),
        lambda: device.register(buffer),
    ):
        with pytest.raises(aioblk.DeviceClosedError) as caught:
            call()
        assert isinstance(caught.value, anyio.ClosedResourceError)


async def test_requests_are_refused_as_soon_as_closing_begins(slow_daemon: StorageDaemon) -> None:
    device = aioblk.VirtioBlkVhostUser(slow_daemon.socket)
    await device.open()
    request = device.read(0, BLOCK)
    closing = asyncio.create_task(device.aclose())
    await asyncio.sleep(0)
    assert device.closed
    with pytest.raises(aioblk.DeviceClosedError):
        device.read(0, BLOCK)
    assert await request == bytes(BLOCK)
    await closing


async def test_a_device_closes_when_its_block_is_left_by_an_error(target: Target) -> None:
    device = target.device()

    async def fail() -> None:
        async with device:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert device.closed


async def test_many_devices_on_one_file(scratch_file: Path) -> None:
    devices = [aioblk.IoUring(scratch_file) for _ in range(8)]
    await asyncio.gather(*(device.open() for device in devices))
    await asyncio.gather(*(device.write(i * BLOCK, pattern(BLOCK, i)) for i, device in enumerate(devices)))
    assert await devices[0].read(7 * BLOCK, BLOCK) == pattern(BLOCK, 7)
    await asyncio.gather(*(device.aclose() for device in devices))


async def test_devices_can_be_opened_and_closed_again_and_again(target: Target) -> None:
    for seed in range(10):
        async with target.device() as device:
            await device.write(seed * BLOCK, pattern(BLOCK, seed))
    async with target.device() as device:
        assert await device.read(9 * BLOCK, BLOCK) == pattern(BLOCK, 9)


async def test_a_device_of_a_callers_descriptor_leaves_it_open(scratch_file: Path) -> None:
    with scratch_file.open("r+b") as file:
        async with aioblk.IoUring(fd=file.fileno()) as device:
            await device.write(0, pattern(BLOCK))
        assert os.pread(file.fileno(), BLOCK, 0) == pattern(BLOCK)


# --- draining -----------------------------------------------------------------------------------------------


async def test_closing_waits_for_requests_in_flight(slow_daemon: StorageDaemon) -> None:
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket) as device:
        requests = [device.read(0, BLOCK) for _ in range(500)]
    assert [request.result() for request in requests] == [bytes(BLOCK)] * 500


async def test_closing_waits_for_what_nobody_awaits(target: Target) -> None:
    async with target.device() as device:
        for offset in range(0, 1 << 20, BLOCK):
            device.write(offset, pattern(BLOCK, offset))
    written = target.file.read_bytes()
    assert all(
        written[offset : offset + BLOCK] == pattern(BLOCK, offset) for offset in range(0, 1 << 20, BLOCK)
    )


async def test_closing_waits_for_cancelled_requests(slow_daemon: StorageDaemon) -> None:
    device = aioblk.VirtioBlkVhostUser(slow_daemon.socket)
    await device.open()
    await device.read(0, BLOCK)
    with held(slow_daemon):
        request = device.read(0, BLOCK)
        await asyncio.sleep(0)
        request.cancel()
        closing = asyncio.create_task(device.aclose())
        await asyncio.wait([closing], timeout=LATENCY)
        assert not closing.done()
    await closing


async def test_closing_from_a_callback_of_a_request(slow_daemon: StorageDaemon) -> None:
    device = aioblk.VirtioBlkVhostUser(slow_daemon.socket)
    await device.open()
    closing: list[asyncio.Task[None]] = []
    request = device.read(0, BLOCK)
    request.add_done_callback(lambda _: closing.append(asyncio.ensure_future(device.aclose())))
    await request
    await asyncio.sleep(0)
    await closing[0]
    assert device.closed


async def test_regions_are_given_back_when_the_device_closes_first(target: Target) -> None:
    device = target.device()
    await device.open()
    region = device.allocate(1 << 20)
    await region.__aenter__()
    await device.read_into(0, region)
    await device.aclose()
    await region.aclose()
    with pytest.raises(ValueError, match="closed"):
        region[0]


# --- opening that fails -------------------------------------------------------------------------------------


async def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(aioblk.BlkioError) as caught:
        await aioblk.IoUring(tmp_path / "missing").open()
    assert caught.value.errno == errno.ENOENT
    assert caught.value.filename == str(tmp_path / "missing")


async def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(aioblk.BlkioError):
        await aioblk.IoUring(tmp_path).open()


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(aioblk.BlkioError):
        await aioblk.VirtioBlkVhostUser(tmp_path / "missing").open()


async def test_more_queues_than_there_are(slow_daemon: StorageDaemon) -> None:
    with pytest.raises(aioblk.BlkioError):
        await aioblk.VirtioBlkVhostUser(slow_daemon.socket, num_queues=64).open()
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket) as device:
        assert await device.read(0, BLOCK) == bytes(BLOCK)


async def test_a_read_only_backend_opened_for_writing(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(writable=False)
    with pytest.raises(aioblk.BlkioError) as caught:
        await aioblk.VirtioBlkVhostUser(daemon.socket).open()
    assert caught.value.errno == errno.EROFS
    async with aioblk.VirtioBlkVhostUser(daemon.socket, read_only=True) as device:
        assert await device.read(0, BLOCK) == bytes(BLOCK)


async def test_a_closed_descriptor() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    with pytest.raises(aioblk.OptionError):
        await aioblk.IoUring(fd=reading).open()


async def test_a_device_that_could_not_be_opened_is_closed(tmp_path: Path) -> None:
    device = aioblk.IoUring(tmp_path / "missing")
    with pytest.raises(aioblk.BlkioError):
        await device.open()
    assert device.closed
    with pytest.raises(aioblk.DeviceClosedError):
        device.read(0, BLOCK)
    await device.aclose()


# --- while the device is being opened -----------------------------------------------------------------------


async def test_a_busy_device_waits_until_it_is_free_without_blocking_the_loop(
    slow_daemon: StorageDaemon,
) -> None:
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket) as first:
        second = aioblk.VirtioBlkVhostUser(slow_daemon.socket)
        opening = asyncio.create_task(second.open())
        assert await first.read(0, BLOCK) == bytes(BLOCK)
        assert not opening.done()
    await opening
    assert await second.read(0, BLOCK) == bytes(BLOCK)
    await second.aclose()


async def test_nothing_can_be_done_while_the_device_is_being_opened(slow_daemon: StorageDaemon) -> None:
    device = aioblk.VirtioBlkVhostUser(slow_daemon.socket)
    opening = asyncio.create_task(device.open())
    await asyncio.sleep(0)
    with pytest.raises(aioblk.UsageError, match="being opened"):
        device.read(0, BLOCK)
    with pytest.raises(aioblk.UsageError):
        await device.open()
    with pytest.raises(aioblk.UsageError):
        await device.aclose()
    await opening
    await device.aclose()


# --- threads, loops and processes ---------------------------------------------------------------------------


def in_a_thread(work: Callable[[], object]) -> BaseException | None:
    """What *work* raises in a thread of its own."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return errors[0] if errors else None


async def test_another_thread_is_refused(device: aioblk.Device) -> None:
    error = in_a_thread(lambda: device.read(0, BLOCK))
    assert isinstance(error, aioblk.UsageError)
    assert "thread" in str(error)
    assert await device.read(0, BLOCK) == bytes(BLOCK)


async def test_another_threads_loop_is_refused(device: aioblk.Device) -> None:
    async def read() -> bytes:
        return await device.read(0, BLOCK)

    async def close() -> None:
        await device.aclose()

    assert isinstance(in_a_thread(lambda: asyncio.run(read())), aioblk.UsageError)
    assert isinstance(in_a_thread(lambda: asyncio.run(close())), aioblk.UsageError)
    assert await device.read(0, BLOCK) == bytes(BLOCK)


def test_another_loop_is_refused_while_the_own_one_still_has_to_submit(scratch_file: Path) -> None:
    own, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    device = own.run_until_complete(aioblk.IoUring(scratch_file).open())
    pending: list[aioblk.Request[bytes]] = []
    own.call_soon(lambda: pending.extend(device.read(0, BLOCK) for _ in range(3)))
    own.call_soon(own.stop)
    own.run_forever()

    async def use() -> None:
        with pytest.raises(aioblk.UsageError, match="another event loop"):
            device.read(0, BLOCK)

    other.run_until_complete(use())
    own.run_until_complete(device.aclose())
    assert [request.result() for request in pending] == [bytes(BLOCK)] * 3
    own.close()
    other.close()


def test_another_loop_of_the_same_thread_is_refused(scratch_file: Path) -> None:
    own, other = asyncio.SelectorEventLoop(), asyncio.SelectorEventLoop()
    device = own.run_until_complete(aioblk.IoUring(scratch_file).open())

    async def use() -> None:
        with pytest.raises(aioblk.UsageError, match="loop"):
            device.read(0, BLOCK)
        with pytest.raises(aioblk.UsageError, match="loop"):
            await device.aclose()

    other.run_until_complete(use())
    with pytest.raises(aioblk.UsageError):
        device.read(0, BLOCK)
    own.run_until_complete(device.aclose())
    own.close()
    other.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
async def test_a_forked_child_is_refused_and_harms_nothing(device: aioblk.Device) -> None:
    request = device.write(0, pattern(BLOCK))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            device.read(0, BLOCK)
        except aioblk.UsageError as error:
            status = 0 if "fork" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0) == (pid, 0)  # noqa: ASYNC222 (the child ends at once)
    await request
    assert await device.read(0, BLOCK) == pattern(BLOCK)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("use", [aioblk.Device.attach, aioblk.Device.aclose])
def test_a_forked_child_does_not_take_a_device_that_is_detached(
    use: Callable[[aioblk.Device], Coroutine[Any, Any, object]], target: Target
) -> None:
    """It would end the connection that its parent goes on with."""
    device = target.device()

    async def open_and_detach() -> None:
        await device.open()
        await device.detach()

    async def attach_and_read() -> bytes:
        async with contextlib.aclosing(await device.attach()):
            return await device.read(0, BLOCK)

    asyncio.run(open_and_detach())
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            asyncio.run(use(device))
        except aioblk.UsageError as error:
            status = 0 if "fork" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0) == (pid, 0)
    assert asyncio.run(attach_and_read()) == bytes(BLOCK)


def test_a_device_whose_loop_is_closed_gives_everything_back(scratch_file: Path) -> None:
    loop = asyncio.SelectorEventLoop()
    device: aioblk.Device | None = loop.run_until_complete(aioblk.IoUring(scratch_file).open())
    loop.close()
    assert device is not None
    with pytest.raises(aioblk.UsageError):
        device.read(0, BLOCK)
    with pytest.warns(ResourceWarning, match="unclosed"):
        device = None


async def test_an_unclosed_device_warns_and_gives_everything_back(target: Target) -> None:
    device: aioblk.Device | None = target.device()
    assert device is not None
    await device.open()
    await device.read(0, BLOCK)
    with pytest.warns(ResourceWarning, match="unclosed"):
        device = None


async def test_a_device_that_is_dropped_while_it_is_closed_is_closed(target: Target) -> None:
    device = target.device()
    await device.open()
    closing = asyncio.create_task(device.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    ended = asyncio.Event()
    weakref.finalize(device, ended.set)
    del device, closing
    async with asyncio.timeout(PATIENCE):
        await ended.wait()  # no ResourceWarning


def test_a_device_that_was_never_opened_warns_of_nothing(scratch_file: Path) -> None:
    aioblk.IoUring(scratch_file)
    gc.collect()


# --- the end of the interpreter -----------------------------------------------------------------------------

EXITS = {
    "everything open": "await device.open(); await device.read(0, 4096)",
    "requests in flight": "await device.open(); requests = [device.read(0, 4096) for _ in range(500)]",
    "a region mapped": "await device.open(); await device.allocate(4096).__aenter__()",
    "tasks waiting": """
        await device.open()
        async def read():
            while True:
                await device.read(0, 4096)
        tasks = [asyncio.create_task(read()) for _ in range(4)]
        await asyncio.sleep(0)
    """,
    "tasks leaving their blocks": """
        opened = asyncio.Event()
        async def read():
            async with device:
                opened.set()
                while True:
                    await device.read(0, 4096)
        task = asyncio.create_task(read())
        await opened.wait()
    """,
    "an interrupt": "await device.open(); device.read(0, 4096); raise KeyboardInterrupt",
    "sys.exit": "await device.open(); device.read(0, 4096); sys.exit(3)",
    "never opened": "pass",
    "being opened": "opening = asyncio.create_task(device.open()); await asyncio.sleep(0)",
}


@pytest.mark.parametrize("how", EXITS)
def test_the_interpreter_ends_with_a_device(target: Target, how: str) -> None:
    body = textwrap.indent(textwrap.dedent(EXITS[how]).strip(), "    ")
    script = f"""
import asyncio, sys
import aioblk
device = aioblk.open({target.driver!r}, path={str(target.path)!r})
async def main():
{body}
asyncio.run(main())
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    expected = {"an interrupt": -2, "sys.exit": 3}.get(how, 0)
    assert result.returncode == expected, result.stderr


def test_modules_are_not_needed_any_more_when_requests_die_at_exit(scratch_file: Path) -> None:
    script = f"""
import asyncio, sys
import aioblk
kept = []
async def main():
    device = await aioblk.IoUring({str(scratch_file)!r}).open()
    kept.append(device.write(2**62, bytes(512)))
    await asyncio.wait(kept)
    kept.append(device)
asyncio.run(main())
sys.modules["kept"] = kept
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
