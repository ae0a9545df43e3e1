"""Where the holes of a device are, and how large it is."""

import asyncio
import errno
import os
from pathlib import Path

import pytest

import aioblk
import aioblk._device.extents as extents_module
from aioblk import Extent, ExtentKind
from aioblk.testing.storage_daemon import StorageDaemon

from ..conftest import StorageDaemonFactory
from ..support.devices import SCRATCH_SIZE

HOLE, DATA = ExtentKind.HOLE, ExtentKind.DATA
BLOCK = 64 << 10


@pytest.fixture
def sparse_file(tmp_path: Path) -> Path:
    """A hole, data, and a hole."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.seek(BLOCK)
        file.write(b"x" * BLOCK)
        file.truncate(4 * BLOCK)
    return path


async def extents(device: aioblk.Device, *arguments: int) -> list[Extent]:
    return [extent async for extent in device.extents(*arguments)]


async def test_a_file_tells_its_holes(sparse_file: Path) -> None:
    async with aioblk.IoUring(sparse_file) as device:
        assert await extents(device) == [
            Extent(0, BLOCK, HOLE),
            Extent(BLOCK, BLOCK, DATA),
            Extent(2 * BLOCK, 2 * BLOCK, HOLE),
        ]
        assert await extents(device, BLOCK + 1, 10) == [Extent(BLOCK + 1, 10, DATA)]
        assert await extents(device, BLOCK // 2, BLOCK) == [
            Extent(BLOCK // 2, BLOCK // 2, HOLE),
            Extent(BLOCK, BLOCK // 2, DATA),
        ]
        assert await extents(device, 4 * BLOCK) == []
        assert await extents(device, 0, 0) == []
        await device.write(3 * BLOCK, b"y" * BLOCK)
        await device.discard(BLOCK, BLOCK)
        assert await extents(device) == [Extent(0, 3 * BLOCK, HOLE), Extent(3 * BLOCK, BLOCK, DATA)]


async def test_thousands_of_extents(tmp_path: Path) -> None:
    path = tmp_path / "comb"
    with path.open("wb") as file:
        for tooth in range(3000):
            file.seek(tooth * 8192)
            file.write(b"x" * 4096)
        file.truncate(3000 * 8192)
    async with aioblk.IoUring(path) as device:
        found = await extents(device)
    assert found == [
        Extent(offset, 4096, kind)
        for tooth in range(3000)
        for offset, kind in ((tooth * 8192, DATA), (tooth * 8192 + 4096, HOLE))
    ]


async def test_devices_that_cannot_tell_are_data(
    loop_device: Path, storage_daemon: StorageDaemonFactory, sparse_file: Path
) -> None:
    async with aioblk.IoUring(loop_device) as device:
        assert await extents(device) == [Extent(0, SCRATCH_SIZE, DATA)]
    async with aioblk.VirtioBlkVhostUser(storage_daemon(sparse_file).socket) as device:
        assert await extents(device) == [Extent(0, 4 * BLOCK, DATA)]
        assert await extents(device, 5, 6) == [Extent(5, 6, DATA)]


async def test_wrong_ranges_are_refused(sparse_file: Path) -> None:
    async with aioblk.IoUring(sparse_file) as device:
        for range_ in ((-1, 5), (0, -1), (4 * BLOCK, 1), (4 * BLOCK + 1,)):
            with pytest.raises(aioblk.OptionError, match=f"within the device's {4 * BLOCK} bytes"):
                device.extents(*range_)
        stream = device.extents(0, 10)
    with pytest.raises(aioblk.DeviceClosedError):
        await anext(stream)
    with pytest.raises(aioblk.DeviceClosedError):
        device.extents()


async def test_giving_up_leaves_nothing_open(sparse_file: Path) -> None:
    async with aioblk.IoUring(sparse_file) as device:
        task = asyncio.create_task(extents(device))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_block_discarded_between_two_looks_makes_no_empty_extent(
    sparse_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seek = extents_module._seek

    def seek_and_discard(file: int, offset: int, whence: int, end: int) -> int:
        answer = seek(file, offset, whence, end)
        if (offset, whence) == (BLOCK, os.SEEK_DATA):
            monkeypatch.undo()
            with sparse_file.open("r+b") as other:
                other.truncate(0)
                other.truncate(4 * BLOCK)
        return answer

    monkeypatch.setattr(extents_module, "_seek", seek_and_discard)
    async with aioblk.IoUring(sparse_file) as device:
        first, second, *rest = await extents(device)
        block = os.stat(sparse_file).st_blksize
        assert (first, second) == (Extent(0, BLOCK, HOLE), Extent(BLOCK, block, DATA))
        assert rest == [Extent(BLOCK + block, 3 * BLOCK - block, HOLE)]


async def test_a_file_that_cannot_be_opened_anew_is_data(
    sparse_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holes could only be found by moving the position of the caller's descriptor."""
    monkeypatch.setattr(extents_module, "_open_anew", lambda fd: None)
    fd = os.open(sparse_file, os.O_RDWR)
    try:
        async with aioblk.IoUring(fd=fd) as device:
            assert await extents(device) == [Extent(0, 4 * BLOCK, DATA)]
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    finally:
        os.close(fd)


async def test_a_look_that_fails_says_what_it_was(sparse_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: int) -> int:
        raise OSError(errno.EIO, "as an example")

    monkeypatch.setattr(extents_module, "_seek", fail)
    async with aioblk.IoUring(sparse_file) as device:
        with pytest.raises(aioblk.BlkioError, match="at offset 1, length 2") as caught:
            await extents(device, 1, 2)
        assert (caught.value.errno, caught.value.operation) == (errno.EIO, "extents")
        assert caught.value.filename == str(sparse_file)


# --- capacity -----------------------------------------------------------------------------------------------


async def test_the_capacity_of_a_file_is_the_present_one(sparse_file: Path) -> None:
    async with aioblk.IoUring(sparse_file) as device:
        os.truncate(sparse_file, BLOCK)
        assert device.capacity == BLOCK
        assert await device.refresh_capacity() == BLOCK


async def test_the_capacity_of_a_backend_is_asked_for_once(
    storage_daemon: StorageDaemonFactory, scratch_file: Path
) -> None:
    daemon: StorageDaemon = storage_daemon(scratch_file)
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        assert await device.refresh_capacity() == SCRATCH_SIZE
        daemon.pause()
        assert device.capacity == SCRATCH_SIZE  # nobody is asked
        daemon.kill()
        with pytest.raises(aioblk.DeviceLostError) as caught:
            await device.refresh_capacity()
        assert caught.value.operation == "refresh_capacity"
        with pytest.raises(aioblk.DeviceLostError):
            await device.refresh_capacity()
        assert device.capacity == SCRATCH_SIZE
    with pytest.raises(aioblk.DeviceClosedError):
        await device.refresh_capacity()
