"""Arrays of numpy's wherever memory is given, also such as may not be written to."""

import importlib
import mmap
import os
from collections.abc import Iterator
from typing import Any

import pytest

import aioblk
from aioblk._native.buffers import SupportsArrayInterface

from ..support.devices import BLOCK, pattern

np: Any = importlib.import_module("numpy")  # its types are not needed to check these


def read_only(data: bytes) -> Any:
    array = np.frombuffer(bytearray(data), dtype=np.uint8)
    array.flags.writeable = False
    return array


def types(dev: aioblk.Device, view: aioblk.ByteView, array: SupportsArrayInterface) -> list[object]:
    """For type checkers: what numpy declares on Python 3.11, where no type speaks of buffers."""
    requests: list[object] = [dev.read_into(0, array), dev.readv(0, [array, bytearray(1)])]
    requests += [dev.write(0, array), dev.writev(0, [array, b"x"])]
    requests += [dev.read_into_many([(0, array)]), dev.write_many([(0, array)])]
    requests += [view.read_into(0, array), view.write(0, array), view.readv(0, [array])]
    return [*requests, view.writev(0, [array]), dev.register(array)]


async def test_arrays_are_read_into_and_written(device: aioblk.Device) -> None:
    source = np.frombuffer(pattern(BLOCK), dtype=np.uint32)
    target = np.zeros_like(source)
    await device.write(0, source)
    await device.read_into(0, target)
    assert (source == target).all()


async def test_a_read_only_array_is_written_from_registered_or_not(device: aioblk.Device) -> None:
    array = read_only(pattern(BLOCK))
    await device.write(0, array)
    assert await device.read(0, BLOCK) == pattern(BLOCK)
    array = read_only(pattern(BLOCK, 2))
    async with device.register(array) as region:
        assert region.readonly
        await device.write(0, region)
        await device.write_many([(BLOCK, region[:512])])
    assert await device.read(0, BLOCK) == pattern(BLOCK, 2)


@pytest.fixture
def shared_pages() -> Iterator[mmap.mmap]:
    """Pages of a file, which this process may not write to."""
    fd = os.memfd_create("pages")
    os.write(fd, pattern(BLOCK, 3))
    with mmap.mmap(fd, BLOCK, prot=mmap.PROT_READ) as pages:
        os.close(fd)
        yield pages


async def test_read_only_pages_can_be_registered(device: aioblk.Device, shared_pages: mmap.mmap) -> None:
    async with device.register(np.frombuffer(shared_pages, dtype=np.uint8)) as region:
        await device.write(0, region)
    assert await device.read(0, BLOCK) == pattern(BLOCK, 3)


async def test_the_device_does_not_write_to_what_is_read_only(device: aioblk.Device) -> None:
    refused = "the buffer is read-only, and the device would write to it"
    array = read_only(bytes(BLOCK))
    async with device.register(array) as region:
        for buffer in (array, region, region[:512], bytes(512), memoryview(bytes(512))):
            with pytest.raises(BufferError, match=refused):
                device.read_into(0, buffer)
            with pytest.raises(BufferError, match=refused):
                device.readv(0, [bytearray(512), buffer])
            with pytest.raises(BufferError, match=refused):
                device.read_into_many([(0, buffer)])
    assert not array.any()


async def test_a_region_is_an_array_without_a_copy(device: aioblk.Device) -> None:
    async with device.allocate(BLOCK) as region:
        array = np.frombuffer(memoryview(region), dtype=np.uint32)
        array[:] = 0x01020304
        await device.write(0, array)
        assert (await device.read(0, BLOCK))[:4] == array[:1].tobytes()
        array[:] = 0
        await device.read_into(0, region)
        assert (array == 0x01020304).all()


async def test_an_array_with_gaps_is_refused(device: aioblk.Device) -> None:
    gaps = np.zeros(2 * BLOCK, dtype=np.uint8)[::2]
    for refused in (device.read_into, device.write):
        with pytest.raises((ValueError, BufferError), match="contiguous"):
            refused(0, gaps)
    with pytest.raises((ValueError, BufferError), match="contiguous"):
        device.register(gaps)
