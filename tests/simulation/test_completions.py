"""Completions in every order and number, and what comes with them: aioblk's callers see none of it."""

import asyncio
import errno
import os
import random
from typing import Any

import pytest

import aioblk

from .devices import BLOCK, device_on, pattern, until, until_held
from .library import Disk, Simulator

HELD = 40


# --- step by step -------------------------------------------------------------------------------------------


async def test_a_request_completes_when_the_device_says_so(disk: Disk, simulator: Simulator) -> None:
    async with device_on(disk) as dev:
        await dev.write(0, pattern(1))
        simulator.configure(hold=1)
        read = asyncio.ensure_future(dev.read(0, BLOCK))
        (held,) = await until_held(simulator, 1)
        assert (held.operation, held.start, held.length) == ("read", 0, BLOCK)
        assert not read.done()
        assert simulator.complete(held) == 1
        assert await read == pattern(1)


async def test_completions_in_any_order_go_to_their_own_requests(backend: Disk, simulator: Simulator) -> None:
    async with device_on(backend) as dev:
        await asyncio.gather(*(dev.write(i * BLOCK, pattern(i)) for i in range(HELD)))
        simulator.configure(hold=1)
        reads = [asyncio.ensure_future(dev.read(i * BLOCK, BLOCK)) for i in range(HELD)]
        held = await until_held(simulator, HELD)
        random.Random(3).shuffle(held)
        for request in held:
            simulator.complete(request)
            read = reads[request.start // BLOCK]
            assert await read == pattern(request.start // BLOCK)
    assert simulator.counts["overtake"] > 0


async def test_many_at_once(backend: Disk, simulator: Simulator) -> None:
    async with device_on(backend) as dev:
        await asyncio.gather(*(dev.write(i * BLOCK, pattern(i)) for i in range(HELD)))
        simulator.configure(hold=1)
        reads = [asyncio.ensure_future(dev.read(i * BLOCK, BLOCK)) for i in range(HELD)]
        await until_held(simulator, HELD)
        events = simulator.counts["event"]
        assert simulator.complete() == HELD
        assert await asyncio.gather(*reads) == [pattern(i) for i in range(HELD)]
        assert simulator.counts["event"] == events + 1


async def test_events_for_nothing_are_harmless(backend: Disk, simulator: Simulator) -> None:
    async with device_on(backend) as dev:
        await dev.read(0, BLOCK)
        simulator.configure(hold=1)
        read = asyncio.ensure_future(dev.read(0, BLOCK))
        await until_held(simulator, 1)
        calls = dev.statistics().do_io_calls
        for _ in range(5):
            simulator.signal()
        await until(lambda: dev.statistics().do_io_calls > calls)
        assert not read.done()
        assert simulator.counts["merged event"] == 4
        simulator.complete()
        assert await read == bytes(BLOCK)


@pytest.mark.parametrize("way", ["one", "several", "batch"])
async def test_what_an_interrupted_call_did_not_submit_is_submitted_by_the_next(
    way: str, backend: Disk, simulator: Simulator
) -> None:
    async with device_on(backend) as dev:
        await dev.write(0, pattern(1, 3 * BLOCK))
        for turn, number in enumerate((errno.EINTR, errno.EAGAIN, errno.EBUSY), 1):
            simulator.fail("do_io", number, times=3)
            if way == "one":
                assert await dev.read(0, BLOCK) == pattern(1)
            elif way == "several":
                assert await asyncio.gather(*(dev.read(0, BLOCK) for _ in range(3))) == [pattern(1)] * 3
            else:
                assert await dev.read_many([(i * BLOCK, BLOCK) for i in range(3)]) == [pattern(1)] * 3
            assert simulator.counts["call fails"] == 3 * turn


async def test_a_request_fails_with_the_errno_that_the_device_gives(
    backend: Disk, simulator: Simulator
) -> None:
    async with device_on(backend) as dev:
        await dev.read(0, BLOCK)
        for number in (errno.EIO, errno.ENOSPC, errno.EINTR, errno.EAGAIN, errno.ENODEV, 132):
            simulator.configure(hold=1)
            requests = [
                dev.read(0, BLOCK),
                dev.write(BLOCK, bytes(BLOCK)),
                dev.write_zeroes(0, BLOCK),
                dev.discard(0, BLOCK),
                dev.flush(),
            ]
            tasks = [asyncio.ensure_future(request) for request in requests]
            await until_held(simulator, len(tasks))
            simulator.complete(errno=number)
            for task in tasks:
                with pytest.raises(aioblk.BlkioError, match="the simulated device has failed") as caught:
                    await task
                assert caught.value.errno == number
            simulator.configure(hold=0)
            assert len(await dev.read(0, BLOCK)) == BLOCK


async def test_a_failed_part_fails_the_request_once_all_parts_are_over(
    backend: Disk, simulator: Simulator
) -> None:
    backend.override(max_transfer=BLOCK)
    async with device_on(backend) as dev:
        await dev.read(0, BLOCK)
        simulator.configure(hold=1)
        read = asyncio.ensure_future(dev.read(0, 4 * BLOCK))
        held = await until_held(simulator, 4)
        assert [request.length for request in held] == [BLOCK] * 4
        simulator.complete(held[2], errno=errno.EIO)
        for request in held[:2]:
            simulator.complete(request)
        await asyncio.sleep(0)
        assert not read.done()
        simulator.complete(held[3])
        with pytest.raises(aioblk.BlkioError) as caught:
            await read
        assert caught.value.errno == errno.EIO


async def test_once_a_part_has_failed_those_that_wait_for_memory_are_not_made(
    backend: Disk, simulator: Simulator
) -> None:
    async with device_on(backend, bounce_pool_size=1 << 16) as dev:
        await dev.read(0, BLOCK)
        simulator.configure(hold=1)
        read = asyncio.ensure_future(dev.read(0, 3 << 16))
        held = await until_held(simulator, 1)
        assert sum(request.length for request in held) < 3 << 16
        simulator.complete(errno=errno.EIO)
        with pytest.raises(aioblk.BlkioError, match="Input/output error"):
            await read
        assert dev.statistics().in_flight == 0
        assert not simulator.requests()


async def test_once_a_part_has_failed_those_that_wait_for_the_device_are_not_made(
    backend: Disk, simulator: Simulator
) -> None:
    backend.override(max_transfer=BLOCK)
    async with device_on(backend, queue_size=4) as dev:
        await dev.read(0, BLOCK)
        simulator.configure(hold=1)
        read = asyncio.ensure_future(dev.read(0, 3 * BLOCK))
        (held,) = await until_held(simulator, 1)
        simulator.complete(held, errno=errno.EIO)
        with pytest.raises(aioblk.BlkioError):
            await read
        assert not simulator.requests()


async def test_zeroes_that_the_device_refuses_are_written(virtio_disk: Disk, simulator: Simulator) -> None:
    async with device_on(virtio_disk) as dev:
        await dev.write(0, pattern(1, 4 * BLOCK))
        simulator.configure(hold=1)
        zeroes = [asyncio.ensure_future(dev.write_zeroes(i * BLOCK, BLOCK)) for i in (0, 2)]
        await until_held(simulator, 2)
        simulator.configure(hold=0)
        simulator.complete(errno=errno.EOPNOTSUPP)
        await asyncio.gather(*zeroes)
        assert await dev.read(0, BLOCK) == await dev.read(2 * BLOCK, BLOCK) == bytes(BLOCK)
        assert await dev.read(BLOCK, BLOCK) == pattern(1, 4 * BLOCK)[BLOCK : 2 * BLOCK]


async def test_zeroes_that_are_written_wait_behind_others(backend: Disk, simulator: Simulator) -> None:
    """They are given memory when it is their turn."""
    async with device_on(backend, queue_size=16) as dev:
        await dev.write(0, pattern(1, 8 * BLOCK))
        simulator.configure(hold=1)
        zeroes = asyncio.ensure_future(dev.write_zeroes(0, BLOCK))
        reads = [asyncio.ensure_future(dev.read(i * BLOCK, BLOCK)) for i in range(1, 5)]
        (first, *_) = await until_held(simulator, 5)
        assert first.operation == "write_zeroes"
        write = asyncio.ensure_future(dev.write(7 * BLOCK, pattern(2)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        simulator.configure(hold=0)
        assert len(simulator.requests()) == 5
        simulator.complete(first, errno=errno.EOPNOTSUPP)
        simulator.complete()
        await asyncio.gather(zeroes, write, *reads)
        assert await dev.read(0, BLOCK) == bytes(BLOCK)
        assert await dev.read(7 * BLOCK, BLOCK) == pattern(2)


@pytest.mark.parametrize("turns", [1, 2])
async def test_what_fails_while_the_memory_map_changes_is_made_again(
    turns: int, backend: Disk, simulator: Simulator
) -> None:
    """As requests of vDPA devices do; whatever fails later has failed."""
    async with device_on(backend) as dev:
        await dev.write(0, pattern(1))
        simulator.configure(hold=1)
        core = dev._session("core").core
        if turns == 1:
            core.map_turn()  # while it is submitted, the map is being changed
        reads = [asyncio.ensure_future(dev.read(0, BLOCK)) for _ in range(2)]
        await until_held(simulator, 2)
        if turns == 2:
            core.map_turn()
            core.map_turn()
        assert simulator.complete(errno=errno.EIO) == 2
        again = await until_held(simulator, 2)
        if turns == 1:
            core.map_turn()
            simulator.complete()
            assert await asyncio.gather(*reads) == [pattern(1)] * 2
            return
        simulator.complete(again[0], errno=errno.EIO)
        simulator.complete(again[1])
        found = await asyncio.gather(*reads, return_exceptions=True)
        assert {type(each) for each in found} == {bytes, aioblk.BlkioError}


async def test_flags_reach_the_device_as_given(disk: Disk, simulator: Simulator) -> None:
    fua, no_unmap, no_fallback = 1, 2, 4
    async with device_on(disk) as dev:
        await dev.read(0, BLOCK)
        simulator.configure(hold=1)
        work = asyncio.gather(
            dev.write(0, bytes(BLOCK)),
            dev.write(BLOCK, bytes(BLOCK), fua=True),
            dev.write_zeroes(2 * BLOCK, BLOCK, fua=True, no_unmap=True),
            dev.write_zeroes(3 * BLOCK, BLOCK, no_fallback=True),
        )
        held = await until_held(simulator, 4)
        assert [request.flags for request in held] == [0, fua, fua | no_unmap, no_fallback]
        simulator.complete()
        await work


# --- from a seed --------------------------------------------------------------------------------------------

WEATHERS = {
    "late": {"late": 5},
    "one by one": {"batch": 1},
    "in any order": {"late": 3, "reorder": 1},
    "with events for nothing": {"late": 2, "spurious": 300},
    "interrupted": {"late": 2, "transient": 300},
    "without room": {"late": 2, "full": 500},
    "all of it": {"late": 5, "batch": 4, "reorder": 1, "spurious": 200, "transient": 200, "full": 200},
}


@pytest.mark.parametrize("weather", WEATHERS)
async def test_every_request_is_answered_once_and_by_its_own_data(
    weather: str, backend: Disk, simulator: Simulator
) -> None:
    async with device_on(backend, queue_size=64) as dev:
        simulator.configure(seed=5, **WEATHERS[weather])
        for turn in range(4):
            await asyncio.gather(*(dev.write(i * BLOCK, pattern(i + turn)) for i in range(HELD)))
            found = await asyncio.gather(*(dev.read(i * BLOCK, BLOCK) for i in range(HELD)))
            assert found == [pattern(i + turn) for i in range(HELD)]
            await dev.flush()
    expected = {
        "late": ("late", "event"),
        "one by one": ("event",),
        "in any order": ("overtake", "many at once"),
        "with events for nothing": ("spurious event",),
        "interrupted": ("call fails",),
        "without room": ("queue full",),
        "all of it": ("late", "overtake", "spurious event", "call fails", "queue full", "merged event"),
    }
    for kind in expected[weather]:
        assert simulator.counts[kind] > 0, kind


async def test_every_driver_in_bad_weather(disk: Disk, simulator: Simulator) -> None:
    async with device_on(disk) as dev:
        simulator.configure(seed=6, **WEATHERS["all of it"])
        for turn in range(4):
            await asyncio.gather(*(dev.write(i * BLOCK, pattern(i + turn), fua=True) for i in range(HELD)))
            found = await asyncio.gather(*(dev.read(i * BLOCK, BLOCK) for i in range(HELD)))
            assert found == [pattern(i + turn) for i in range(HELD)]


async def test_requests_that_fail_at_random_say_so_and_the_others_hold(
    backend: Disk, simulator: Simulator
) -> None:
    async with device_on(backend) as dev:
        simulator.configure(seed=7, late=2, reorder=1, fail=300)
        results = await asyncio.gather(
            *(dev.write(i * BLOCK, pattern(i)) for i in range(200)), return_exceptions=True
        )
        simulator.configure(fail=0)
        failed = 0
        for i, result in enumerate(results):
            if result is None:
                assert await dev.read(i * BLOCK, BLOCK) == pattern(i)
            else:
                assert isinstance(result, aioblk.BlkioError)
                assert 1 <= (result.errno or 0) <= 133
                failed += 1
        assert 20 < failed < 120
        assert simulator.counts["fail"] >= failed


async def test_cancelled_requests_keep_their_memory_until_they_are_over(
    virtio_disk: Disk, simulator: Simulator
) -> None:
    """The simulator has scribbled over what is in use, and sees another request in it."""
    async with device_on(virtio_disk) as dev:
        await dev.write(0, pattern(1, 8 * BLOCK))
        simulator.configure(hold=1)
        cancelled: list[asyncio.Future[Any]] = []
        cancelled += [asyncio.ensure_future(dev.read(i * BLOCK, BLOCK)) for i in range(4)]
        cancelled += [asyncio.ensure_future(dev.write((10 + i) * BLOCK, pattern(2))) for i in range(4)]
        await until_held(simulator, 8)
        for task in cancelled:
            task.cancel()
        for task in cancelled:
            with pytest.raises(asyncio.CancelledError):
                await task
        reads = [asyncio.ensure_future(dev.read(i * BLOCK, BLOCK)) for i in range(8)]
        held = await until_held(simulator, 16)
        for request in reversed(held):
            simulator.complete(request)
        assert await asyncio.gather(*reads) == [pattern(1)] * 8
        simulator.configure(hold=0)


def test_a_blocking_queue_waits_for_completions(disk: Disk, simulator: Simulator) -> None:
    async def open_and_hand_over() -> None:
        options = {"num_queues": 2}
        async with device_on(disk, **options) as dev:
            await asyncio.to_thread(use, dev)

    def use(dev: aioblk.Device) -> None:
        with dev.blocking_queue(1) as queue:
            simulator.configure(seed=1, late=5, reorder=1, transient=200)
            for i in range(20):
                queue.wait(queue.write(i * BLOCK, pattern(i)))
                assert queue.wait(queue.read(i * BLOCK, BLOCK)) == pattern(i)

    asyncio.run(open_and_hand_over())
    assert simulator.counts["late"] > 0


async def test_poll_queues_are_asked_without_events(backend: Disk, simulator: Simulator) -> None:
    async with device_on(backend, num_queues=1, num_poll_queues=1) as dev, dev.poll_queue(0) as queue:
        simulator.configure(seed=1, late=5, reorder=1)
        await asyncio.gather(*(queue.write(i * BLOCK, pattern(i)) for i in range(HELD)))
        assert await asyncio.gather(*(queue.read(i * BLOCK, BLOCK) for i in range(HELD))) == [
            pattern(i) for i in range(HELD)
        ]
    assert simulator.counts["late"] > 0


def test_the_simulator_has_taken_the_place_of_libblkio() -> None:
    assert "simblkio" in os.environ["LD_PRELOAD"]


async def test_the_first_error_of_a_request_counts(virtio_disk: Disk, simulator: Simulator) -> None:
    """The device fails a part of it, and then the others are refused bounce memory."""
    largest = 64 << 10
    async with device_on(virtio_disk, bounce_pool_size=largest) as dev:
        await dev.read(0, largest)  # has the pool mapped
        core: Any = dev.queue()._compiled
        as_ever, core.on_bounce = core.on_bounce, lambda *_: None
        simulator.configure(hold=1)
        request = dev.write(0, bytes(2 * largest))
        (first,) = await until_held(simulator, 1)
        simulator.complete(first, errno=errno.EIO)
        await until(lambda: not simulator.requests())
        assert not request.done()
        core.refuse(request, OSError("no room"))
        core.on_bounce = as_ever
        with pytest.raises(aioblk.BlkioError) as caught:
            await request
        assert caught.value.errno == errno.EIO
