"""Several queues, other threads, other loops, and polling."""

import asyncio
import os
from collections.abc import Awaitable, Callable

import pytest

import aioblk

from .drivers import Can, Opener

BLOCK = 4096
COUNT = 64


async def in_another_thread(work: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine on a loop of its own, in a thread of its own."""

    async def main() -> None:
        await work()

    await asyncio.to_thread(asyncio.run, main())


async def test_two_threads_share_the_device(new_device: Opener) -> None:
    data = os.urandom(2 * COUNT * BLOCK)

    async def copy(queue: aioblk.Device | aioblk.Queue, start: int) -> None:
        offsets = range(start, start + COUNT * BLOCK, BLOCK)
        for _ in range(5):
            await asyncio.gather(*(queue.write(at, data[at : at + BLOCK]) for at in offsets))
            assert await queue.read(start, COUNT * BLOCK) == data[start : start + COUNT * BLOCK]

    async with new_device(num_queues=2) as device:

        async def second() -> None:
            async with device.queue(1) as queue:
                await copy(queue, COUNT * BLOCK)

        for failed in await asyncio.gather(
            copy(device, 0), in_another_thread(second), return_exceptions=True
        ):
            assert failed is None
        assert await device.read(0, 2 * COUNT * BLOCK) == data


async def test_two_queues_on_one_loop(new_device: Opener) -> None:
    async with new_device(num_queues=2) as device, device.queue(1) as queue:
        await asyncio.gather(*(queue.write(BLOCK * n, bytes([n]) * BLOCK) for n in range(COUNT)))
        found = await asyncio.gather(*(device.read(BLOCK * n, BLOCK) for n in range(COUNT)))
        assert found == [bytes([n]) * BLOCK for n in range(COUNT)]


async def test_a_thread_without_a_loop_blocks(new_device: Opener) -> None:
    async with new_device(num_queues=2) as device:

        def work() -> bytes:
            with device.blocking_queue(1) as queue:
                queue.wait(queue.write_many([(BLOCK * n, bytes([n]) * BLOCK) for n in range(COUNT)]))
                queue.wait(queue.flush())
                return queue.wait(queue.read(0, COUNT * BLOCK))

        data = await asyncio.to_thread(work)
        assert (
            data == await device.read(0, COUNT * BLOCK) == b"".join(bytes([n]) * BLOCK for n in range(COUNT))
        )


async def test_adds_and_removes_queues(device: aioblk.Device, can: Can) -> None:
    if not can("adding queues"):
        with pytest.raises(aioblk.UnsupportedError):
            await device.add_queue()
        assert await device.read(0, 0) == b""
        return
    index = await device.add_queue()
    async with device.queue(index) as queue:
        await queue.write(0, b"\x01" * BLOCK)
        with pytest.raises(aioblk.UsageError):
            await device.remove_queue(index)
    await device.remove_queue(index)
    with pytest.raises(aioblk.BlkioError):
        device.queue(index)
    assert await device.read(0, BLOCK) == b"\x01" * BLOCK


async def test_refuses_queues_that_are_not_there(device: aioblk.Device) -> None:
    for index in (-1, 1, 1000):
        with pytest.raises(aioblk.BlkioError):
            device.queue(index)
    with pytest.raises(aioblk.BlkioError):
        device.poll_queue(0)


async def test_refuses_another_threads_queue(new_device: Opener) -> None:
    async with new_device(num_queues=2) as device, device.queue(1) as queue:

        async def misuse() -> None:
            with pytest.raises(aioblk.UsageError):
                queue.read(0, BLOCK)
            with pytest.raises(aioblk.UsageError):
                device.queue(1)

        await in_another_thread(misuse)
        await queue.read(0, BLOCK)


async def test_polls_or_says_why_not(new_device: Opener, can: Can) -> None:
    async def poll() -> None:
        async with new_device(num_poll_queues=1) as device, device.poll_queue() as queue:
            await asyncio.gather(*(queue.write(BLOCK * n, bytes([n]) * BLOCK) for n in range(COUNT)))
            found = await queue.read_many([(BLOCK * n, BLOCK) for n in range(COUNT)])
            assert found == [bytes([n]) * BLOCK for n in range(COUNT)]

    if can("polling"):
        await poll()
    else:
        with pytest.raises(aioblk.BlkioError):
            await poll()


async def test_moves_to_another_loop(new_device: Opener) -> None:
    device = await new_device().open()
    await device.write(0, b"\x02" * BLOCK)
    await device.detach()

    async def elsewhere() -> None:
        await device.attach()
        assert await device.read(0, BLOCK) == b"\x02" * BLOCK
        await device.detach()

    await in_another_thread(elsewhere)
    await device.attach()
    assert await device.read(0, BLOCK) == b"\x02" * BLOCK
    await device.aclose()


async def test_a_loop_that_spins_is_no_different(device: aioblk.Device) -> None:
    device.queue(0).spin = 0.0001
    await device.write(0, b"\x03" * BLOCK)
    for _ in range(COUNT):
        assert await device.read(0, BLOCK) == b"\x03" * BLOCK
