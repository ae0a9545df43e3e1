"""Regular files: making them, and making them longer or shorter."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aioblk
import aioblk._device.session
from aioblk._libblkio.handle import Blkio

from ..conftest import StorageDaemonFactory
from ..support.devices import BLOCK, SCRATCH_SIZE, pattern

# --- making them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True])
async def test_a_file_is_made_where_nothing_is(tmp_path: Path, direct: bool) -> None:
    path = tmp_path / "new"
    async with aioblk.IoUring(path, create=1 << 40, direct=direct) as device:
        assert device.capacity == 1 << 40
        assert await device.read((1 << 40) - BLOCK, BLOCK) == bytes(BLOCK)
        await device.write(0, pattern(BLOCK))
    assert os.stat(path).st_size == 1 << 40
    assert os.stat(path).st_blocks * 512 < 1 << 20


async def test_a_file_is_never_overwritten(tmp_path: Path, scratch_file: Path) -> None:
    for path in (scratch_file, tmp_path):
        with pytest.raises(aioblk.BlkioError, match="leave create out") as caught:
            await aioblk.IoUring(path, create=5).open()
        assert (caught.value.errno, caught.value.filename) == (errno.EEXIST, str(path))
        assert caught.value.operation == "create"
    assert os.stat(scratch_file).st_size == SCRATCH_SIZE


async def test_a_file_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(aioblk.BlkioError) as caught:
        await aioblk.IoUring(tmp_path / "no" / "where", create=5).open()
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(aioblk.BlkioError) as caught:
        await aioblk.IoUring(tmp_path / "huge", create=2**63 - 1).open()
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())  # noqa: ASYNC240


async def test_opening_that_fails_later_removes_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(aioblk.BlkioError, match="Poll queues"):
        await aioblk.IoUring(tmp_path / "new", create=5, num_poll_queues=1).open()

    def fail(_handle: Blkio) -> int:
        raise aioblk.BlkioError("as an example")

    with monkeypatch.context() as patch:
        patch.setattr(aioblk._device.session, "growing_file", fail)
        with pytest.raises(aioblk.BlkioError, match="as an example"):
            await aioblk.IoUring(tmp_path / "new", create=5).open()
    assert not list(tmp_path.iterdir())  # noqa: ASYNC240
    await (await aioblk.IoUring(tmp_path / "new", create=5).open()).aclose()


async def test_opening_that_is_cancelled_removes_the_file(tmp_path: Path) -> None:
    opening = asyncio.create_task(aioblk.IoUring(tmp_path / "new", create=5).open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    async with asyncio.timeout(30):
        while list(tmp_path.iterdir()):  # noqa: ASYNC110, ASYNC240 (a thread removes it)
            await asyncio.sleep(0.01)


async def test_coming_back_makes_nothing(tmp_path: Path) -> None:
    async with aioblk.IoUring(tmp_path / "new", create=BLOCK) as device:
        await device.write(0, pattern(BLOCK))
        device.abandon("as an example")
        await device.reconnect()
        assert await device.read(0, BLOCK) == pattern(BLOCK)


async def test_text_makes_a_file(tmp_path: Path) -> None:
    properties = aioblk.parse_properties("io_uring", [f"path={tmp_path}/new", "create=64K"])
    async with aioblk.open("io_uring", **properties) as device:
        assert device.capacity == 64 << 10


def test_impossible_files_are_refused() -> None:
    for wrong in (-1, 2**63, "big", True, 1.5):
        with pytest.raises(aioblk.OptionError, match="create must be"):
            aioblk.IoUring("new", create=wrong)  # type: ignore[arg-type]
    with pytest.raises(aioblk.OptionError, match="create and read_only"):
        aioblk.IoUring("new", create=1, read_only=True)
    with pytest.raises(aioblk.OptionError, match="create and fd"):
        aioblk.IoUring(fd=0, create=1)


# --- longer and shorter -------------------------------------------------------------------------------------


async def test_a_file_is_made_longer_and_shorter(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        await device.write(0, pattern(3 * BLOCK))
        await device.truncate(BLOCK + 1)
        assert device.capacity == BLOCK + 1
        await device.truncate(3 * BLOCK)
        assert device.capacity == 3 * BLOCK
        expected = pattern(3 * BLOCK)[: BLOCK + 1] + bytes(2 * BLOCK - 1)
        assert await device.read(0, 3 * BLOCK) == expected
        await device.truncate(0)
        assert device.capacity == 0


async def test_what_is_no_file_has_a_size_of_its_own(
    loop_device: Path, storage_daemon: StorageDaemonFactory
) -> None:
    async with aioblk.IoUring(loop_device) as device:
        with pytest.raises(aioblk.UnsupportedError, match="only a regular file"):
            await device.truncate(0)
    async with aioblk.VirtioBlkVhostUser(storage_daemon().socket) as device:
        with pytest.raises(aioblk.UnsupportedError, match="only a regular file"):
            await device.truncate(0)


async def test_impossible_sizes_are_refused(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        for wrong in (-1, 2**63):
            with pytest.raises(aioblk.OptionError, match="size must be"):
                await device.truncate(wrong)
        with pytest.raises(TypeError):
            await device.truncate("1G")  # type: ignore[arg-type]
        with pytest.raises(aioblk.BlkioError, match="truncate") as caught:
            await device.truncate(2**63 - 1)
        assert caught.value.errno == errno.EFBIG
        assert device.capacity == SCRATCH_SIZE
    with pytest.raises(aioblk.DeviceClosedError):
        await device.truncate(0)


async def test_the_right_to_write_is_needed(scratch_file: Path) -> None:
    fd = os.open(scratch_file, os.O_RDONLY)
    try:
        for opened in (aioblk.IoUring(scratch_file, read_only=True), aioblk.IoUring(fd=fd)):
            async with opened as device:
                with pytest.raises(aioblk.BlkioError, match="reading only") as caught:
                    await device.truncate(0)
                assert caught.value.errno == errno.EBADF
    finally:
        os.close(fd)
    assert os.stat(scratch_file).st_size == SCRATCH_SIZE


async def test_a_lost_device_is_not_made_shorter(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        device.abandon("as an example")
        with pytest.raises(aioblk.DeviceLostError):
            await device.truncate(0)
        await device.reconnect()
        await device.truncate(BLOCK)
        assert device.capacity == BLOCK


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (aioblk.Device.aclose, aioblk.DeviceClosedError),
        (aioblk.Device.detach, aioblk.UsageError),
        (aioblk.Device.abandon, aioblk.DeviceLostError),
    ],
)
async def test_what_is_not_there_any_more_is_not_made_shorter(
    how: Callable[[aioblk.Device], Any],
    error: type[aioblk.BlkioError],
    scratch_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Truncating waits for changes that were given up; the device may have gone in the meantime."""
    landed = asyncio.Event()
    monkeypatch.setattr(aioblk.IoUring, "_until_landed", lambda _: landed.wait())
    device = await aioblk.IoUring(scratch_file).open()
    truncating = asyncio.create_task(device.truncate(BLOCK))
    await asyncio.sleep(0)
    going = how(device)
    if going is not None:
        await going
    landed.set()
    with pytest.raises(error) as caught:
        await truncating
    assert type(caught.value) is error
    assert os.stat(scratch_file).st_size == SCRATCH_SIZE
    await device.aclose()


async def test_truncating_stops_no_loop(scratch_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a filesystem takes its time, others go on, and closing waits."""
    going_on, may_end = asyncio.Event(), asyncio.Event()
    loop, truncate = asyncio.get_running_loop(), os.ftruncate

    def slowly(fd: int, size: int) -> None:
        loop.call_soon_threadsafe(going_on.set)
        asyncio.run_coroutine_threadsafe(may_end.wait(), loop).result(30)
        truncate(fd, size)

    monkeypatch.setattr(os, "ftruncate", slowly)
    async with aioblk.IoUring(scratch_file) as device:
        truncating = asyncio.create_task(device.truncate(BLOCK))
        await going_on.wait()
        assert device.capacity == SCRATCH_SIZE
        assert await device.read(0, BLOCK) == bytes(BLOCK)
        truncating.cancel()
        closing = asyncio.create_task(device.aclose())
        await asyncio.wait([closing], timeout=0.05)
        assert not closing.done()
        may_end.set()
        await closing
    assert os.stat(scratch_file).st_size == BLOCK
