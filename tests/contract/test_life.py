"""Opening, options, closing."""

import asyncio
import errno
import os

import pytest

import aioblk

from .drivers import Can, Opener


async def test_opens_and_closes(new_device: Opener) -> None:
    device = new_device()
    async with device:
        assert device.driver == new_device.driver.libblkio_name
        assert device.capacity >= 8 << 20
        assert not device.closed
    assert device.closed
    await device.aclose()
    with pytest.raises(aioblk.DeviceClosedError):
        device.read(0, 4096)
    with pytest.raises(aioblk.UsageError):
        await device.open()


async def test_opens_again_after_closing(new_device: Opener) -> None:
    async with new_device() as device:
        await device.write(4096, b"\x11" * 4096)
    async with new_device() as device:
        assert await device.read(4096, 4096) == b"\x11" * 4096


async def test_opens_by_descriptor(new_device: Opener, can: Can) -> None:
    if not can("opening by descriptor"):
        with pytest.raises(aioblk.OptionError, match="fd"):
            aioblk.open(new_device.driver.libblkio_name, fd=0)
        return
    fd = os.open(new_device.path, os.O_RDWR | (os.O_DIRECT if "direct" in new_device.driver.options else 0))
    try:
        async with aioblk.open(new_device.driver.libblkio_name, fd=fd) as device:
            await device.write(0, b"\x22" * 4096)
            assert await device.read(0, 4096) == b"\x22" * 4096
        os.fstat(fd)  # still the caller's
    finally:
        os.close(fd)


async def test_chooses_the_page_cache_or_not(new_device: Opener, can: Can) -> None:
    if not can("page cache"):
        with pytest.raises(aioblk.OptionError, match="direct"):
            aioblk.open(new_device.driver.libblkio_name, path=str(new_device.path), direct=True)
        return
    for direct in (False, True):
        async with new_device(direct=direct) as device:
            assert device.properties["direct"] is direct
            await device.write(0, b"\x33" * 4096)
            assert await device.read(0, 4096) == b"\x33" * 4096


async def test_names_an_option_it_does_not_know(new_device: Opener) -> None:
    with pytest.raises(aioblk.OptionError, match=r"num[-_]quues"):
        new_device(num_quues=1)


async def test_names_an_option_it_needs(new_device: Opener) -> None:
    with pytest.raises(aioblk.OptionError, match="path"):
        aioblk.open(new_device.driver.libblkio_name)


async def test_says_which_device_is_missing(new_device: Opener) -> None:
    missing = f"{new_device.path}-missing"
    with pytest.raises(aioblk.BlkioError) as caught:
        await new_device(path=missing).open()
    assert caught.value.filename == missing
    assert caught.value.errno in (errno.ENOENT, errno.EINVAL)


async def test_writes_nothing_when_read_only(new_device: Opener) -> None:
    async with new_device() as device:
        await device.write(0, b"\x44" * 4096)
        await device.flush()
    async with new_device(read_only=True) as device:
        for submit in (
            lambda: device.write(0, bytes(4096)),
            lambda: device.writev(0, [bytes(4096)]),
            lambda: device.write_zeroes(0, 4096),
            lambda: device.discard(0, 4096),
            lambda: device.write_many([(0, bytes(4096))]),
        ):
            with pytest.raises(aioblk.BlkioError) as caught:
                await submit()
            assert caught.value.errno == errno.EBADF
        assert await device.read(0, 4096) == b"\x44" * 4096


async def test_has_zones_or_says_no(device: aioblk.Device, can: Can) -> None:
    assert not can("zones")  # the guest's zoned namespace has tests of its own
    with pytest.raises(aioblk.UnsupportedError, match="zones"):
        aioblk.Zones(device)


async def test_closing_waits_for_what_is_in_flight(new_device: Opener) -> None:
    device = await new_device().open()
    written = [device.write(4096 * i, bytes([i]) * 4096) for i in range(64)]
    await device.aclose()
    assert all(request.done() for request in written)
    await asyncio.gather(*written)
    async with new_device() as device:
        assert await device.read(0, 4096 * 64) == b"".join(bytes([i]) * 4096 for i in range(64))


async def test_several_can_open_it_or_only_one(new_device: Opener, can: Can) -> None:
    async with new_device() as first:
        await first.write(0, b"\x55" * 4096)
        await first.flush()
        if can("sharing"):
            async with new_device() as second:
                assert await second.read(0, 4096) == b"\x55" * 4096
        else:
            # vhost-user lets the second one wait, the others refuse it.
            with pytest.raises((aioblk.BlkioError, TimeoutError)):
                await asyncio.wait_for(new_device().open(), 1)
        assert await first.read(0, 4096) == b"\x55" * 4096
    async with new_device() as device:
        assert await device.read(0, 4096) == b"\x55" * 4096
