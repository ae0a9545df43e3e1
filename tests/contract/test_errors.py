"""What goes wrong, and that the device goes on afterwards."""

import asyncio
import os
import pickle
import threading

import pytest

import aioblk

from .drivers import Can

BLOCK = 4096


async def test_grows_or_ends_at_its_capacity(device: aioblk.Device, can: Can) -> None:
    end = device.capacity
    if can("growing"):
        assert await device.read(end, BLOCK) == bytes(BLOCK)
        await device.write(end + BLOCK, b"\x01" * BLOCK)
        assert device.capacity == end + 2 * BLOCK
        assert await device.read(end, 2 * BLOCK) == bytes(BLOCK) + b"\x01" * BLOCK
        return
    for submit in (
        lambda: device.read(end, BLOCK),
        lambda: device.read(end - BLOCK, 2 * BLOCK),
        lambda: device.read_into(end + (1 << 30), bytearray(BLOCK)),
        lambda: device.write(end, bytes(BLOCK)),
        lambda: device.write(end - BLOCK, bytes(2 * BLOCK)),
        lambda: device.write_zeroes(end, BLOCK),
    ):
        with pytest.raises(aioblk.BlkioError) as caught:
            await submit()
        assert caught.value.errno
    if device.driver == "nvme-io_uring":
        await device.discard(end, BLOCK)  # a hint to NVMe, which ignores what it cannot follow
    else:
        with pytest.raises(aioblk.BlkioError):
            await device.discard(end, BLOCK)
    assert device.capacity == end
    await device.write(0, b"\x02" * BLOCK)
    assert await device.read(0, BLOCK) == b"\x02" * BLOCK


async def test_an_error_says_what_failed(device: aioblk.Device) -> None:
    with pytest.raises(aioblk.BlkioError) as caught:
        await device.write(1 << 62, bytes(BLOCK))
    error = caught.value
    assert isinstance(error, OSError)
    assert (error.driver, error.operation, error.offset, error.length) == (
        device.driver,
        "write",
        1 << 62,
        BLOCK,
    )
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.errno, copy.offset) == (str(error), error.errno, error.offset)


async def test_refuses_impossible_ranges(device: aioblk.Device) -> None:
    for offset, length in (
        (-BLOCK, BLOCK),
        (0, -BLOCK),
        (1 << 63, BLOCK),
        ((1 << 63) - BLOCK, BLOCK),
        (1 << 80, BLOCK),
    ):
        with pytest.raises((ValueError, OverflowError)):
            device.read(offset, length)
        with pytest.raises((ValueError, OverflowError)):
            device.discard(offset, length)
    assert device.statistics().submitted == 0


async def test_errors_do_not_disturb_other_requests(device: aioblk.Device) -> None:
    data = os.urandom(64 * BLOCK)
    await device.write(0, data)
    mixed = [
        device.read(BLOCK * number, BLOCK) if number % 2 else device.write(1 << 62, bytes(BLOCK))
        for number in range(64)
    ]
    found = await asyncio.gather(*mixed, return_exceptions=True)
    for number, result in enumerate(found):
        if number % 2:
            assert result == data[BLOCK * number : BLOCK * (number + 1)]
        else:
            assert isinstance(result, aioblk.BlkioError)


async def test_refuses_another_thread(device: aioblk.Device) -> None:
    caught: list[BaseException] = []

    def misuse() -> None:
        try:
            device.read(0, BLOCK)
        except aioblk.UsageError as error:
            caught.append(error)

    thread = threading.Thread(target=misuse)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert caught
    await device.read(0, BLOCK)
