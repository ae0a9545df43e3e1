"""Addresses with layers: what they open, and that all of it is closed again, whatever happens."""

import asyncio
import os
import subprocess
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

import aioblk
from aioblk.testing.conformance import BlockDeviceConformance, Opener

MIB = 1 << 20


@pytest.fixture
def disk(scratch_file: Path) -> Path:
    """A disk of two partitions."""
    table = "label: gpt\nstart=1MiB, size=2MiB\nstart=4MiB, size=1MiB, name=second\n"
    subprocess.run(["sfdisk", "--quiet", scratch_file], input=table.encode(), check=True)
    return scratch_file


def content(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        return os.pread(file.fileno(), length, offset)


def make_file(path: Path) -> None:
    path.touch()


def open_files(path: Path) -> int:
    """How many descriptors of this process are open on it."""
    links = (Path("/proc/self/fd") / number for number in os.listdir("/proc/self/fd"))
    return sum(os.path.lexists(link) and os.readlink(link) == str(path) for link in links)


class TestSlice(BlockDeviceConformance):
    @pytest.fixture
    def opener(self, scratch_file: Path) -> Opener:
        return lambda *, read_only=False: aioblk.open(
            f"slice,offset=1M,length=2M:{scratch_file}", read_only=read_only
        )


class TestCopyOnWrite(BlockDeviceConformance):
    @pytest.fixture
    def opener(self, scratch_file: Path) -> Opener:
        return lambda *, read_only=False: aioblk.open(f"cow:{scratch_file}", read_only=read_only)


class TestThrottleOverSlice(BlockDeviceConformance):
    @pytest.fixture
    def opener(self, scratch_file: Path) -> Opener:
        address = f"throttle,operations=1M:slice,length=1M:{scratch_file}"
        return lambda *, read_only=False: aioblk.open(address, read_only=read_only)


async def test_a_slice_is_a_part_of_the_device(scratch_file: Path) -> None:
    async with aioblk.open(f"slice,offset=1M,length=1M:{scratch_file}") as part:
        assert part.capacity == MIB
        await part.write(0, b"here" * 128)
    assert content(scratch_file, MIB, 4) == b"here"


async def test_a_partition_is_found_by_its_number(disk: Path) -> None:
    async with aioblk.open(f"slice,partition=2:{disk}") as part:
        assert part.capacity == MIB
        await part.write(0, b"two!" * 128)
    assert content(disk, 4 * MIB, 4) == b"two!"
    with pytest.raises(aioblk.OptionError, match=r"no partition 3; there are 1, 2") as caught:
        await aioblk.open(f"slice,partition=3:{disk}").open()
    assert caught.value.filename == f"slice,partition=3:io_uring:{disk}"
    assert not open_files(disk)


async def test_where_there_is_no_table_there_is_no_partition(scratch_file: Path) -> None:
    with pytest.raises(aioblk.OptionError, match="no partition 1; there is no partition table"):
        await aioblk.open(f"slice,partition=1:{scratch_file}").open()


async def test_changes_over_a_copy_on_write_leave_the_base_as_it_is(
    scratch_file: Path, tmp_path: Path
) -> None:
    overlay = tmp_path / "over:lay"
    make_file(overlay)
    with_overlay = aioblk.Address("cow", {"overlay": str(overlay)}, aioblk.parse_address(scratch_file))
    for address in (f"cow:{scratch_file}", str(with_overlay)):
        async with aioblk.open(address) as device:
            await device.write(0, b"x" * 4096)
            assert await device.read(0, 4096) == b"x" * 4096
    assert content(scratch_file, 0, 4096) == bytes(4096)
    assert content(overlay, 0, 4096) == b"x" * 4096


async def test_what_is_opened_for_reading_is_so_below_all_layers(scratch_file: Path) -> None:
    for address in ("readonly:slice,length=1M:{}", "readonly:cow:{}", "cow,read-only=on:{}"):
        async with aioblk.open(address.format(scratch_file)) as device:
            assert device.read_only
            with pytest.raises(aioblk.BlkioError, match="Bad file descriptor"):
                device.write(0, bytes(512))


async def test_a_layered_device_says_what_it_is(scratch_file: Path) -> None:
    device: Any = aioblk.open(f"throttle,bytes=1G:slice,length=1M:{scratch_file}")
    text = f"throttle,bytes=1073741824:slice,length=1048576:io_uring:{scratch_file}"
    assert repr(device) == f"<aioblk device {text!r} new>"
    assert all(isinstance(device, kind) for kind in (aioblk.BlockDevice, aioblk.Openable))
    async with device:
        assert repr(device) == f"<aioblk device {text!r} open>"
        assert all(isinstance(device, kind) for kind in (aioblk.KnowsExtents, aioblk.MapsMemory))
        assert isinstance(device.base, aioblk.IoUring)
        assert isinstance(device.device, aioblk.Throttle)
        async with device.allocate(4096) as region:
            await device.read_into(0, region)
        assert sum([extent.length async for extent in device.extents()]) == MIB
    assert repr(device) == f"<aioblk device {text!r} closed>"
    assert device.base.closed
    assert device.closed


async def test_a_layered_device_is_opened_once(scratch_file: Path) -> None:
    device = aioblk.open(f"slice:{scratch_file}")
    with pytest.raises(aioblk.UsageError, match="the device is not open"):
        device.read(0, 512)
    await device.open()
    with pytest.raises(aioblk.UsageError, match="can be opened once; this one is open"):
        await device.open()
    await device.aclose()
    await device.aclose()
    with pytest.raises(aioblk.UsageError, match="can be opened once; this one is closed"):
        await device.open()
    with pytest.raises(aioblk.DeviceClosedError):
        device.read(0, 512)
    assert not open_files(scratch_file)


async def test_one_that_was_never_opened_can_be_closed(scratch_file: Path) -> None:
    device = aioblk.open(f"slice:{scratch_file}")
    await device.aclose()
    with pytest.raises(aioblk.DeviceClosedError):
        device.read(0, 512)


@pytest.mark.parametrize("layer", ["slice", "cow"])
async def test_what_cannot_be_opened_leaves_nothing_open(layer: str, scratch_file: Path) -> None:
    with pytest.raises(aioblk.BlkioError, match="No such file"):
        await aioblk.open(f"{layer}:{scratch_file}.not").open()
    with pytest.raises(aioblk.OptionError, match="beyond the device's capacity"):
        await aioblk.open(f"slice,length=1G:{layer}:{scratch_file}").open()
    with pytest.raises(aioblk.BlkioError, match="No such file"):
        await aioblk.open(f"cow,overlay={scratch_file}.not:{scratch_file}").open()
    assert not open_files(scratch_file)


async def test_who_is_cancelled_while_a_layer_is_put_over_leaves_nothing_open(
    scratch_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = asyncio.Event()

    async def never(base: aioblk.BlockDevice) -> Awaitable[None]:
        reached.set()
        return await asyncio.Future()

    monkeypatch.setattr("aioblk.layers.partitions.partitions", never)
    device = aioblk.open(f"slice,partition=1:{scratch_file}")
    opening = asyncio.create_task(device.open())
    await reached.wait()
    with pytest.raises(aioblk.UsageError, match="it is being opened"):
        await device.aclose()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert not open_files(scratch_file)
    await device.aclose()


async def test_closing_goes_on_without_who_is_cancelled(scratch_file: Path) -> None:
    device: Any = await aioblk.open(f"slice:{scratch_file}").open()
    closing = asyncio.create_task(device.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(aioblk.DeviceClosedError):
        device.read(0, 512)
    await device.aclose()
    assert device.base.closed
    assert not open_files(scratch_file)


async def test_closing_waits_for_changes_under_way(scratch_file: Path) -> None:
    device = await aioblk.open(f"throttle,operations=200:{scratch_file}").open()
    writes = [asyncio.ensure_future(device.write(512 * place, bytes([1]) * 512)) for place in range(30)]
    await device.aclose()
    assert all(write.done() for write in writes)
    assert content(scratch_file, 0, 512 * 30) == bytes([1]) * 512 * 30
