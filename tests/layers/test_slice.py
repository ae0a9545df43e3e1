"""Slices: what is moved, what is refused, and what passes as it is."""

import errno
from pathlib import Path
from typing import Any

import pytest

import aioblk
from aioblk.testing import MemoryDevice, Recorder

from ..conftest import StorageDaemonFactory

BLOCK = 512
LIMITS = aioblk.Limits(
    request_alignment=BLOCK, optimal_io_alignment=8192, discard_alignment=4096, discard_alignment_offset=1024
)
SIZE = 64 << 10


@pytest.fixture
def device() -> MemoryDevice:
    return MemoryDevice(SIZE, limits=LIMITS)


@pytest.mark.parametrize(
    ("offset", "length", "words"),
    [
        (-BLOCK, BLOCK, "must not be negative"),
        (0, -BLOCK, "must not be negative"),
        (0, SIZE + BLOCK, f"the slice ends at {SIZE + BLOCK}, beyond the device's capacity of {SIZE} bytes"),
        (SIZE + BLOCK, None, f"ends at {SIZE + BLOCK}"),
        (1, BLOCK, "begins and ends at a multiple of 512 bytes"),
        (0, 1, "begins and ends at a multiple of 512 bytes"),
    ],
)
async def test_what_is_no_slice(device: MemoryDevice, offset: int, length: int | None, words: str) -> None:
    with pytest.raises(aioblk.OptionError, match=words):
        aioblk.Slice(device, offset, length)


async def test_its_limits_are_the_devices_seen_from_there(device: MemoryDevice) -> None:
    part = aioblk.Slice(device, 4096 + BLOCK)
    assert part.capacity == SIZE - 4096 - BLOCK
    assert part.offset == 4096 + BLOCK
    assert part.limits.optimal_io_alignment == BLOCK
    assert (part.limits.discard_alignment, part.limits.discard_alignment_offset) == (4096, BLOCK)
    assert not aioblk.Slice(MemoryDevice(1000, limits=aioblk.Limits(can_grow=True))).limits.can_grow
    await part.discard(BLOCK, 4096)
    with pytest.raises(aioblk.AlignmentError):
        await part.discard(0, 4096)
    assert aioblk.Slice(MemoryDevice(1000, limits=LIMITS)).capacity == BLOCK


async def test_nothing_outside_is_reached(device: MemoryDevice) -> None:
    part = aioblk.Slice(device, 8192, 8192)
    end = part.capacity
    for request, number in (
        (part.read(end, BLOCK), errno.EINVAL),
        (part.read_into(end - BLOCK, bytearray(2 * BLOCK)), errno.EINVAL),
        (part.readv(0, [bytearray(end), bytearray(BLOCK)]), errno.EINVAL),
        (part.write(end, bytes(BLOCK)), errno.ENOSPC),
        (part.writev(0, [bytes(end), bytes(BLOCK)]), errno.ENOSPC),
        (part.write_zeroes(end, BLOCK), errno.ENOSPC),
        (part.discard(1024, end), errno.ENOSPC),
        (part.write_many([(0, bytes(BLOCK)), (end, bytes(BLOCK))]), errno.ENOSPC),
    ):
        with pytest.raises(aioblk.BlkioError) as failed:
            await request
        assert failed.value.errno == number
        assert f"beyond the device's capacity of {end} bytes" in str(failed.value)
    for offset in (-BLOCK, -8192):
        with pytest.raises(aioblk.OptionError):
            part.read(offset, BLOCK)
    for wrong in ("0", None, 1.5):
        with pytest.raises(TypeError):
            part.read(wrong, BLOCK)  # type: ignore[arg-type]
    assert device.content() == bytes(SIZE)


async def test_batches_stay_batches(device: MemoryDevice) -> None:
    recorder = Recorder(device)

    class Batches(aioblk.Layer[Recorder]):
        batches = 0

        def write_many(self, requests, *, fua=False, return_exceptions=False):  # type: ignore[no-untyped-def]
            Batches.batches += 1
            return super().write_many(requests, fua=fua, return_exceptions=return_exceptions)

    part = aioblk.Slice(Batches(recorder), 4096)
    await part.write_many((place * BLOCK, bytes([place]) * BLOCK) for place in range(4))
    assert Batches.batches == 1
    assert [record.offset for record in recorder.records] == [4096 + place * BLOCK for place in range(4)]
    outcomes = await part.write_many(
        [(0, bytes(BLOCK)), (SIZE, bytes(BLOCK)), (1, bytes(BLOCK)), (0,)],  # type: ignore[list-item]
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [
        type(None),
        aioblk.BlkioError,
        aioblk.AlignmentError,
        ValueError,
    ]


async def test_a_read_only_slice_of_a_device_that_can_be_written(device: MemoryDevice) -> None:
    part = aioblk.Slice(device, read_only=True)
    assert part.read_only
    for call in (
        lambda: part.write(0, bytes(BLOCK)),
        lambda: part.writev(0, [b""]),
        lambda: part.write_zeroes(0, BLOCK),
        lambda: part.discard(1024, 4096),
        lambda: part.write_many([(0, bytes(BLOCK))]),
    ):
        with pytest.raises(aioblk.BlkioError) as refused:
            call()
        assert refused.value.errno == errno.EBADF
    assert await part.read(0, BLOCK) == bytes(BLOCK)


async def test_holes_are_where_they_are_in_the_slice(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 20)
        file.seek(512 << 10)
        file.write(b"x" * 4096)
    async with aioblk.IoUring(path) as device:
        part = aioblk.Slice(device, 256 << 10, 512 << 10)
        assert isinstance(part, aioblk.KnowsExtents)
        found = [extent async for extent in part.extents()]
        assert found == [
            aioblk.Extent(0, 256 << 10, aioblk.ExtentKind.HOLE),
            aioblk.Extent(256 << 10, 4096, aioblk.ExtentKind.DATA),
            aioblk.Extent((256 << 10) + 4096, (256 << 10) - 4096, aioblk.ExtentKind.HOLE),
        ]
        for offset, length in ((-1, 1), (0, (512 << 10) + 1), (1 << 20, None)):
            with pytest.raises(aioblk.OptionError):
                part.extents(offset, length)


async def test_a_slice_of_a_layer_that_is_closed_refuses_as_that_does(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    async with aioblk.IoUring(path) as device:
        layers = aioblk.Slice(device), aioblk.Layer(device), aioblk.Tracked(device), aioblk.ByteView(device)
        for layer in layers:
            part = aioblk.Slice(layer, BLOCK, BLOCK)
            assert await part.read(0, 4) == bytes(4)
            await layer.aclose()
            with pytest.raises(aioblk.DeviceClosedError):
                part.read(0, 4)
            with pytest.raises(aioblk.DeviceClosedError):
                part.read_into(0, bytearray(4))


async def test_registered_memory_passes(storage_daemon: StorageDaemonFactory) -> None:
    async with aioblk.VirtioBlkVhostUser(storage_daemon().socket) as device:
        part = aioblk.Slice(aioblk.Slice(device, 4096), 4096)
        known: object = part
        assert isinstance(known, aioblk.MapsMemory)
        async with known.allocate(8192) as region:
            await part.write(0, region[:4096])
            await part.read_into(0, region[4096:])
            await part.write_many([(0, region[:512])])
        assert device.statistics().bounced_bytes == 0
        assert not known.closed
    assert known.closed
    assert not isinstance(aioblk.Slice(Recorder(_Plain(8192))), aioblk.MapsMemory)


class _Plain(MemoryDevice):
    """That nobody can tell of memory."""

    register = allocate = None  # type: ignore[assignment]


async def test_what_layers_are_not_made_of_is_told() -> None:
    device = MemoryDevice(1 << 20)
    layers: list[Any] = [aioblk.ByteView, aioblk.Tracked, aioblk.Mirror, aioblk.Reader, aioblk.Writer]
    for layer in layers:
        with pytest.raises(TypeError, match=r"a BlockDevice is needed, not str: 'disk\.img'"):
            layer("disk.img")
    with pytest.raises(TypeError, match="a ThrottleGroup is needed, not None"):
        aioblk.Throttle(device, None)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    assert repr(aioblk.Reader(device, 512)) == f"<aioblk.Reader at 512 of {device!r}>"
    assert repr(aioblk.Writer(device, 512)) == f"<aioblk.Writer at 512, written to 512, on {device!r}>"
