"""What errors say: which device, which values, why, and what to do."""

import asyncio
import contextlib
import copy
import errno
import logging
import pickle
from pathlib import Path

import pytest
import trio

import aioblk
import aioblk._device.opening
from aioblk.testing.storage_daemon import StorageDaemon

from ..support.devices import BLOCK, Target, held

LARGEST = 2**63 - 1


# --- requests ----------------------------------------------------------------------------------------------


async def test_a_request_beyond_the_end_names_the_device_and_its_capacity(slow_device: aioblk.Device) -> None:
    end = slow_device.capacity
    with pytest.raises(aioblk.BlkioError) as caught:
        await slow_device.read(end, BLOCK)
    assert f"ends at {end + BLOCK}, beyond the device's capacity of {end} bytes" in str(caught.value)
    assert caught.value.filename is not None
    assert repr(caught.value.filename) in str(caught.value)
    assert (caught.value.offset, caught.value.length) == (end, BLOCK)


async def test_a_refusal_names_the_device(device: aioblk.Device, target: Target) -> None:
    with pytest.raises(aioblk.OptionError) as caught:
        device.read(-512, 512)
    assert caught.value.filename == str(target.path)


async def test_what_memory_refuses_names_the_device_and_the_call(target: Target) -> None:
    device = target.device()
    for refused, operation in ((device.allocate, "allocate"), (device.register, "register")):
        with pytest.raises(aioblk.UsageError, match="not open") as caught:
            refused(bytearray(BLOCK) if operation == "register" else BLOCK)  # type: ignore[arg-type]
        assert (caught.value.operation, caught.value.filename) == (operation, str(target.path))
    async with device:
        region = device.allocate(BLOCK)

        async def enter() -> None:
            await region.__aenter__()

        with pytest.raises(aioblk.UsageError, match="another event loop") as caught:
            await asyncio.to_thread(lambda: asyncio.run(enter()))
        assert caught.value.filename == str(target.path)
        async with region:
            pass


async def test_who_changes_the_size_elsewhere_is_told_of_that(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:

        async def truncate() -> None:
            await device.truncate(BLOCK)

        with pytest.raises(aioblk.UsageError, match="another event loop") as caught:
            await asyncio.to_thread(lambda: asyncio.run(truncate()))
    assert (caught.value.operation, caught.value.filename) == ("truncate", str(scratch_file))


async def test_a_device_opened_by_fd_is_called_by_its_file(scratch_file: Path) -> None:
    with scratch_file.open("r+b") as file:
        async with aioblk.IoUring(fd=file.fileno()) as device:
            with pytest.raises(aioblk.OptionError) as caught:
                device.read(-512, 512)
    assert caught.value.filename == str(scratch_file)


@pytest.mark.parametrize(
    ("offset", "length"), [(-512, 1024), (512, -1024), (1 << 70, 512), (0, 1 << 64), (LARGEST - 511, 1024)]
)
async def test_impossible_ranges_are_told_with_both_values(
    device: aioblk.Device, offset: int, length: int
) -> None:
    for refused in (device.read, device.write_zeroes, device.discard):
        with pytest.raises((aioblk.OptionError, aioblk.AlignmentError)) as caught:
            refused(offset, length)
        assert f"offset {offset}" in str(caught.value)
        assert f"length {length}" in str(caught.value)
        assert (caught.value.offset, caught.value.length) == (offset, length)
    with pytest.raises((aioblk.OptionError, aioblk.AlignmentError), match=f"length {length}"):
        device.read_many([(offset, length)])
    with pytest.raises(TypeError):
        device.read(-1, "512")  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [1 << 60, (1 << 63) - BLOCK])
async def test_bytes_that_there_is_no_memory_for_are_counted(device: aioblk.Device, length: int) -> None:
    for refused in (lambda: device.read(0, length), lambda: device.read_many([(0, BLOCK), (0, length)])):
        with pytest.raises(MemoryError, match=f"no memory for the {length} bytes of a read"):
            refused()
    assert len(await device.read(0, BLOCK)) == BLOCK


async def test_a_loss_says_why(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    with held(slow_daemon):
        request = slow_device.flush()
        await asyncio.sleep(0)
        slow_device.abandon("the cable was cut")
    with pytest.raises(aioblk.DeviceLostError, match="lost: the cable was cut"):
        await request
    with pytest.raises(aioblk.DeviceLostError, match="lost: the cable was cut"):
        slow_device.read(0, BLOCK)


# --- where there is no loop --------------------------------------------------------------------------------


def test_a_request_without_a_running_loop(scratch_file: Path) -> None:
    loop = asyncio.SelectorEventLoop()
    device = loop.run_until_complete(aioblk.IoUring(scratch_file).open())
    with pytest.raises(aioblk.UsageError, match="no event loop is running here"):
        loop.run_until_complete(device.read(0, BLOCK))
    loop.run_until_complete(device.aclose())
    loop.close()


def test_opening_without_a_running_loop_leaves_the_device_unopened(scratch_file: Path) -> None:
    device = aioblk.IoUring(scratch_file)
    with pytest.raises(aioblk.UsageError, match="no event loop is running here"):
        device.open().send(None)
    assert "not open" in repr(device)

    async def use() -> bytes:
        async with device:
            return await device.read(0, BLOCK)

    assert asyncio.run(use()) == bytes(BLOCK)


def test_attaching_without_a_running_loop_leaves_the_device_detached(scratch_file: Path) -> None:
    device = aioblk.IoUring(scratch_file)

    async def open_and_detach() -> None:
        await device.open()
        await device.detach()

    async def attach_and_close() -> None:
        async with contextlib.aclosing(await device.attach()):
            assert await device.read(0, BLOCK) == bytes(BLOCK)

    asyncio.run(open_and_detach())
    with pytest.raises(aioblk.UsageError, match="no event loop is running here"):
        device.attach().send(None)
    assert "detached" in repr(device)
    asyncio.run(attach_and_close())


def test_under_trio_the_device_says_what_it_needs(scratch_file: Path) -> None:
    device = aioblk.IoUring(scratch_file)
    with pytest.raises(aioblk.UsageError, match="trio is running here, and devices need asyncio"):
        trio.run(device.open)
    assert "not open" in repr(device)


# --- opening -----------------------------------------------------------------------------------------------


async def test_a_backend_that_is_busy_is_not_waited_for_longer_than_allowed(
    slow_daemon: StorageDaemon,
) -> None:
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket):
        second = aioblk.VirtioBlkVhostUser(slow_daemon.socket, connect_timeout=0.1)
        async with asyncio.timeout(60):
            with pytest.raises(aioblk.BlkioError, match="one client at a time") as caught:
                await second.open()
    assert caught.value.errno == errno.ETIMEDOUT
    assert caught.value.filename == str(slow_daemon.socket)
    assert second.closed


async def test_waiting_for_a_busy_backend_is_told(
    slow_daemon: StorageDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.put_nowait(record.getMessage())

    monkeypatch.setattr(aioblk._device.opening, "CONNECT_NOTICE", 0.01)
    listener, log = Listener(), logging.getLogger("aioblk")
    log.addHandler(listener)
    try:
        async with aioblk.VirtioBlkVhostUser(slow_daemon.socket) as first:
            second = asyncio.create_task(aioblk.VirtioBlkVhostUser(slow_daemon.socket).open())
            async with asyncio.timeout(60):
                while "may be busy" not in (text := await told.get()):
                    pass
                assert str(slow_daemon.socket) in text
                await first.aclose()
                await (await second).aclose()
    finally:
        log.removeHandler(listener)


@pytest.mark.parametrize("driver", ["io_uring", "virtio-blk-vhost-user"])
async def test_what_cannot_be_opened_is_a_blkio_error_with_its_path(tmp_path: Path, driver: str) -> None:
    for name in ("nothing", "nothing/below"):
        with pytest.raises(aioblk.BlkioError) as caught:
            await aioblk.open(driver, path=tmp_path / name).open()
        assert caught.value.filename == str(tmp_path / name)


# --- the exceptions themselves -----------------------------------------------------------------------------


def test_a_blkio_error_is_made_like_every_os_error() -> None:
    error = aioblk.BlkioError(errno.EIO, "broken", "disk.img")
    assert (error.errno, error.strerror, error.filename) == (errno.EIO, "broken", "disk.img")
    assert error.args == OSError(errno.EIO, "broken").args
    assert str(error) == "'disk.img': [Errno 5] broken"
    assert aioblk.BlkioError(errno.ENOSPC).errno == errno.ENOSPC
    with pytest.raises(TypeError):
        aioblk.BlkioError(errno.EIO, "broken", errno=errno.EIO)


class DerivedError(aioblk.BlkioError):
    def __init__(self, number: float) -> None:
        super().__init__(f"no {number}", offset=7)


def test_copies_and_representations_keep_every_detail() -> None:
    error = aioblk.AlignmentError(
        "why", driver="io_uring", operation="read", offset=0, length=3, filename="f"
    )
    assert repr(error) == (
        "AlignmentError(message='why', errno=22, driver='io_uring', operation='read', offset=0, length=3,"
        " filename='f')"
    )
    for original in (error, aioblk.BlkioError(errno.EIO, "broken", "disk.img"), DerivedError(0.5)):
        for twin in (copy.copy(original), copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
            assert type(twin) is type(original)
            assert (repr(twin), str(twin), twin.args) == (repr(original), str(original), original.args)


# --- names -------------------------------------------------------------------------------------------------


def test_completion_offers_what_is_for_users() -> None:
    assert sorted(aioblk.__all__) == sorted(set(dir(aioblk)) - {"__version__"})
