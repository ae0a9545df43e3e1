"""Batches: many requests, one await."""

import asyncio
from typing import Any

import pytest

import aioblk
from aioblk.errors import request_error
from aioblk.testing.storage_daemon import StorageDaemon

from ..support.devices import BLOCK, LATENCY, held, pattern, settled

BLOCKS = [pattern(BLOCK, seed) for seed in range(8)]


async def test_a_batch_writes_and_reads_every_item(device: aioblk.Device) -> None:
    await device.write_many([(i * BLOCK, block) for i, block in enumerate(BLOCKS)])
    assert await device.read_many([(i * BLOCK, BLOCK) for i in range(8)]) == BLOCKS
    buffers = [bytearray(BLOCK) for _ in range(8)]
    await device.read_into_many([(i * BLOCK, buffer) for i, buffer in enumerate(buffers)])
    assert buffers == BLOCKS


async def test_results_keep_the_order_of_the_items(device: aioblk.Device) -> None:
    await device.write_many([(i * BLOCK, block) for i, block in enumerate(BLOCKS)])
    order = [5, 0, 7, 7, 2]
    assert await device.read_many([(i * BLOCK, BLOCK) for i in order]) == [BLOCKS[i] for i in order]


async def test_items_can_come_from_any_iterable(device: aioblk.Device) -> None:
    await device.write_many((i * BLOCK, block) for i, block in enumerate(BLOCKS))
    assert await device.read_many(requests={(0, BLOCK): None}) == BLOCKS[:1]
    await device.write_many([[0, BLOCKS[1]]], fua=True)  # type: ignore[list-item]
    assert await device.read(0, BLOCK) == BLOCKS[1]


async def test_a_batch_may_be_larger_than_the_queue(device: aioblk.Device) -> None:
    items = [(i * 512, pattern(512, i)) for i in range(3000)]
    await device.write_many(items)
    assert await device.read_many([(offset, 512) for offset, _ in items]) == [data for _, data in items]


async def test_items_may_be_larger_than_a_request_of_the_device(device: aioblk.Device) -> None:
    data = pattern(3 << 20)
    await device.write_many([(0, data), (4 << 20, data[: 1 << 20])])
    assert await device.read_many([(0, 3 << 20), (4 << 20, 1 << 20)]) == [data, data[: 1 << 20]]


async def test_items_without_bytes_are_done_at_once(device: aioblk.Device) -> None:
    assert await device.read_many([(0, 0), (0, BLOCK), (BLOCK, 0)]) == [b"", bytes(BLOCK), b""]


async def test_a_refused_item_keeps_all_from_being_submitted(device: aioblk.Device) -> None:
    with pytest.raises(aioblk.OptionError):
        device.write_many([(0, BLOCKS[0]), (-BLOCK, BLOCKS[1])])
    with pytest.raises(TypeError):
        device.write_many([(0, BLOCKS[0]), (BLOCK, "text")])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="pair"):
        device.read_many([(0, BLOCK), (0, BLOCK, 0)])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="pair"):
        device.read_many([0])  # type: ignore[list-item]
    assert device.statistics().submitted == 0
    assert await device.read(0, BLOCK) == bytes(BLOCK)


async def test_the_first_error_is_raised_after_all_items_are_done(slow_device: aioblk.Device) -> None:
    end = slow_device.capacity
    with pytest.raises(aioblk.BlkioError) as caught:
        await slow_device.read_many([(0, BLOCK), (end, BLOCK), (end + BLOCK, BLOCK), (BLOCK, BLOCK)])
    assert caught.value.offset == end
    assert slow_device.statistics().in_flight == 0


async def test_errors_can_be_results(slow_device: aioblk.Device) -> None:
    end = slow_device.capacity
    good, past_the_end, refused = await slow_device.read_many(
        [(0, BLOCK), (end, BLOCK), (1, BLOCK)], return_exceptions=True
    )
    assert good == bytes(BLOCK)
    assert isinstance(past_the_end, aioblk.BlkioError)
    assert past_the_end.offset == end
    assert isinstance(refused, aioblk.AlignmentError)
    results = await slow_device.write_many([(0, bytes(BLOCK)), (end, bytes(BLOCK))], return_exceptions=True)
    assert results[0] is None
    assert isinstance(results[1], aioblk.BlkioError)


async def test_a_batch_that_is_cancelled_while_its_exceptions_are_made_stays_cancelled(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = []

    def cancel_and_make(*args: Any, **options: Any) -> aioblk.BlkioError:
        accepted.append(batch.cancel())
        return request_error(*args, **options)

    monkeypatch.setattr("aioblk._libblkio.refusals.request_error", cancel_and_make)
    with held(slow_daemon):
        batch = slow_device.read_many([(0, BLOCK), (slow_device.capacity, BLOCK)], return_exceptions=True)
    with pytest.raises(asyncio.CancelledError):
        await batch
    assert accepted == [True]
    assert batch.cancelled()


async def test_a_batch_counts_as_its_items(device: aioblk.Device) -> None:
    await device.write_many([(i * BLOCK, block) for i, block in enumerate(BLOCKS)])
    assert device.statistics().completed == 8


async def test_a_batch_is_one_request_for_asyncio(slow_device: aioblk.Device) -> None:
    first = slow_device.read_many([(0, BLOCK)] * 4)
    second = asyncio.create_task(slow_device.read_many([(0, BLOCK)] * 2))
    results = await asyncio.gather(first, second)
    assert [len(result) for result in results] == [4, 2]


async def test_a_cancelled_batch_of_private_memory_returns_at_once(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    with held(slow_daemon):
        task = asyncio.create_task(slow_device.read_many([(0, BLOCK)] * 4))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert slow_device.statistics().in_flight == 4


async def test_a_cancelled_batch_on_the_callers_memory_waits_for_the_device(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    async with slow_device.allocate(4 * BLOCK) as region:
        items = [(0, region[i * BLOCK : (i + 1) * BLOCK]) for i in range(4)]
        with held(slow_daemon):
            task = asyncio.create_task(slow_device.read_into_many(items))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task], timeout=LATENCY)
            assert not task.done()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert slow_device.statistics().in_flight == 0


async def test_an_error_of_a_batch_that_nobody_retrieves_is_reported_once(
    slow_device: aioblk.Device, loop_errors: list[dict[str, object]]
) -> None:
    batch = slow_device.read_many([(slow_device.capacity, BLOCK)] * 3)
    await settled(batch)
    del batch
    [context] = loop_errors
    assert isinstance(context["exception"], aioblk.BlkioError)
    loop_errors.clear()
