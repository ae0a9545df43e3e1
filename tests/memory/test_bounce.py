"""BouncePool: who waits for bounce memory, in which order, and how large the pool is."""

import asyncio
import itertools
import mmap
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import aioblk
from aioblk._memory.bounce import BouncePool

from ..conftest import StorageDaemonFactory
from ..support.fake_bounce import FakeDeviceMemory, FakeHandle, FakeQueueCore, FakeRequest
from ..support.turns import DrivenLoop

KIB = 1 << 10
MIB = 1 << 20
SLOW = 20_000_000  # nanoseconds

# --- on a device that needs memory regions ------------------------------------------------------------------


@pytest.fixture
async def device(storage_daemon: StorageDaemonFactory, scratch_file: Path) -> AsyncIterator[aioblk.Device]:
    path = storage_daemon(scratch_file).socket
    async with aioblk.VirtioBlkVhostUser(path, bounce_pool_size=256 * KIB) as device:
        yield device


async def test_the_pool_is_empty_until_it_is_needed(device: aioblk.Device) -> None:
    assert device.bounce_pool.statistics().size == 0
    async with device.allocate(4096) as region:
        await device.read_into(0, region)
    assert device.bounce_pool.statistics().size == 0
    assert await device.read(0, 4096) == bytes(4096)
    statistics = device.bounce_pool.statistics()
    assert (statistics.grows, statistics.high_water, statistics.in_use) == (1, 4096, 0)
    assert 0 < statistics.size <= statistics.maximum == 256 * KIB


async def test_bytes_arrive_where_they_belong(device: aioblk.Device) -> None:
    blocks = [bytes([number]) * 4096 for number in range(200)]
    await asyncio.gather(*(device.write(4096 * n, block) for n, block in enumerate(blocks)))
    assert await asyncio.gather(*(device.read(4096 * n, 4096) for n in range(200))) == blocks


async def test_a_request_larger_than_the_pool_is_split(device: aioblk.Device) -> None:
    data = bytes(range(256)) * (2 * MIB // 256)
    await device.write(0, data)
    assert await device.read(0, len(data)) == data
    assert device.bounce_pool.statistics().maximum == 256 * KIB


async def test_only_what_the_device_cannot_reach_is_copied(device: aioblk.Device) -> None:
    async with device.allocate(1 * MIB) as region:
        region[:512] = b"z" * 512
        await device.writev(0, [region[: 512 * KIB], bytes(512), region[512 * KIB :]])
        assert device.statistics().bounced_bytes == 512


async def test_misaligned_memory_bounces_under_direct_io(loop_device: Path) -> None:
    async with aioblk.IoUring(loop_device, direct=True) as device:
        with memoryview(bytearray(b"x" * 4097))[1:] as odd:
            await device.write(0, odd)
            await device.read_into(4096, odd)
            assert bytes(odd) == bytes(4096)
        assert await device.read(0, 4096) == b"x" * 4096
        assert device.bounce_pool.statistics().grows == 1


# Where the memory of a request begins, how much of it there is, and how much of that is bounced.
ENDS = {
    "the end of a buffer": ([(0, MIB + 100), (0, 412)], 512),
    "two ends in one block": ([(0, MIB + 100), (0, 412), (0, MIB)], 512),
    "what follows, up to the next block": ([(0, MIB + 100), (100, MIB + 412)], 512),
    "the beginning": ([(1, 100), (100, MIB + 412)], 512),
    "all that lies elsewhere in its block": ([(0, MIB + 100), (0, MIB + 412)], MIB + 512),
    "what is not worth dividing": ([(0, 8 * KIB + 100), (0, 412)], 8 * KIB + 512),
}


@pytest.mark.parametrize(("pieces", "bounced"), ENDS.values(), ids=ENDS.keys())
async def test_no_more_than_unaligned_ends_is_bounced(
    loop_device: Path, pieces: list[tuple[int, int]], bounced: int
) -> None:
    async with aioblk.IoUring(loop_device, direct=True) as device:
        memory = [memoryview(mmap.mmap(-1, 2 * MIB))[at : at + length] for at, length in pieces]
        data = random.Random(1).randbytes(sum(map(len, memory)))
        await device.write(0, data)
        before = device.statistics().bounced_bytes
        await device.readv(0, memory)
        assert device.statistics().bounced_bytes - before == bounced
        assert b"".join(memory) == data
        await device.writev(4 * MIB, memory)
        assert await device.read(4 * MIB, len(data)) == data


async def test_any_bytes_of_a_long_buffer_are_read_in_place(loop_device: Path) -> None:
    async with aioblk.IoUring(loop_device, direct=True) as device:
        await device.write(0, random.Random(2).randbytes(2 * MIB))
        buffer = memoryview(mmap.mmap(-1, 2 * MIB))[: MIB + 100]
        before = device.statistics().bounced_bytes
        await aioblk.ByteView(device).read_into(512, buffer)
        assert device.statistics().bounced_bytes - before == 512
        assert buffer == (await device.read(512, MIB + 512))[: MIB + 100]


async def test_ten_thousand_tasks_share_a_small_pool(storage_daemon: StorageDaemonFactory) -> None:
    path = storage_daemon().socket
    served = list[int]()
    async with aioblk.VirtioBlkVhostUser(path, bounce_pool_size=256 * KIB) as device:

        async def use(number: int) -> None:
            await device.read(0, 4096)
            served.append(number)

        async with asyncio.TaskGroup() as group:
            for number in range(10_000):
                group.create_task(use(number))
        statistics = device.bounce_pool.statistics()
    in_flight = 256 * KIB // 4096  # which the device may complete in any order
    assert all(abs(place - number) <= 2 * in_flight for place, number in enumerate(served))
    assert sorted(served) == list(range(10_000))
    assert statistics.high_water == 256 * KIB
    assert (statistics.waiting, statistics.in_use) == (0, 0)
    assert statistics.waits >= 10_000 - 64


async def test_waiting_requests_can_be_cancelled(storage_daemon: StorageDaemonFactory) -> None:
    path = storage_daemon(latency_ns=SLOW).socket
    async with aioblk.VirtioBlkVhostUser(path, bounce_pool_size=64 * KIB) as device:
        requests = [device.read(0, 32 * KIB) for _ in range(40)]
        await requests[0]
        for request in requests[4::2]:
            assert request.cancel()
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert [isinstance(result, bytes) for result in results] == [
            number < 4 or number % 2 == 1 for number in range(40)
        ]
        assert device.bounce_pool.statistics().waiting == 0
        assert len(await device.read(0, 64 * KIB)) == 64 * KIB


async def test_who_waited_behind_a_cancelled_request_goes_on(storage_daemon: StorageDaemonFactory) -> None:
    path = storage_daemon(latency_ns=10 * SLOW).socket
    async with aioblk.VirtioBlkVhostUser(path, bounce_pool_size=64 * KIB) as device:
        await device.read(0, 64 * KIB)  # the pool has its full size from here on
        running, large, small = device.read(0, 32 * KIB), device.read(0, 64 * KIB), device.read(0, 4 * KIB)
        assert device.bounce_pool.statistics().waiting == 2
        large.cancel()
        await turns()
        assert device.bounce_pool.statistics().waiting == 0
        assert device.bounce_pool.statistics().in_use == 36 * KIB
        await asyncio.gather(running, small)


async def test_closing_serves_who_waits(storage_daemon: StorageDaemonFactory) -> None:
    path = storage_daemon(latency_ns=SLOW).socket
    device = await aioblk.VirtioBlkVhostUser(path, bounce_pool_size=64 * KIB).open()
    requests = [device.read(0, 64 * KIB) for _ in range(5)]
    await device.aclose()
    assert [len(await request) for request in requests] == [64 * KIB] * 5


async def test_losing_the_device_refuses_who_waits(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(latency_ns=1000 * SLOW)
    async with aioblk.VirtioBlkVhostUser(daemon.socket, bounce_pool_size=64 * KIB) as device:
        requests = [device.read(0, 64 * KIB) for _ in range(5)]
        await asyncio.sleep(0.05)
        daemon.kill()
        for request in requests:
            with pytest.raises(aioblk.DeviceLostError):
                await request


async def test_no_room_for_the_pool_fails_the_request_clearly(
    device: aioblk.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise aioblk.RegistrationError("no more regions", operation="map_mem_region")

    with monkeypatch.context() as patch:
        patch.setattr(type(device.bounce_pool._handle), "map_mem_region", refuse)
        results = await asyncio.gather(device.read(0, 512), device.read(0, 512), return_exceptions=True)
    for result in results:
        assert isinstance(result, aioblk.BlkioError)
        assert result.message == "there is no bounce memory to be had: no more regions"
        assert (result.operation, result.offset, result.length) == ("read", 0, 512)
    assert results[0] is not results[1]
    assert len(await device.read(0, 512)) == 512


# --- growing and shrinking, step by step --------------------------------------------------------------------


class Bench:
    """A pool on fakes, in a running loop."""

    def __init__(self, *, maximum: int, first_size: int = 8192, idle_seconds: float = 3600) -> None:
        self.core = FakeQueueCore()
        self.handle = FakeHandle()
        self.memory = FakeDeviceMemory(asyncio.get_running_loop())
        self.pool = BouncePool(
            cast(Any, self.core),
            cast(Any, self.handle),
            cast(Any, self.memory),
            maximum=maximum,
            first_size=first_size,
            idle_seconds=idle_seconds,
        )
        self.numbers = itertools.count()

    def submit(self, *parts: int) -> FakeRequest:
        request = FakeRequest(next(self.numbers), list(parts))
        self.core.submit(request)
        return request

    async def work(self) -> None:
        """Let the worker thread finish what it was given."""
        await turns()
        self.memory.work()
        await turns()

    async def complete(self, *requests: FakeRequest) -> None:
        for request in requests:
            while request.in_flight:
                self.core.complete(request)
        self.core.finish_turn()
        await turns()

    async def close(self) -> None:
        closing = asyncio.create_task(self.pool._aclose())
        while not closing.done():
            await self.work()
        await closing
        assert not self.handle.allocated
        assert not self.handle.mapped
        assert self.core.on_bounce is None


async def turns() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


async def test_grows_only_when_empty_and_for_all_who_wait() -> None:
    bench = Bench(maximum=64 * MIB)
    first = bench.submit(4096)
    assert not first.all_admitted
    await bench.work()
    assert first.all_admitted
    size = bench.core.bounce_size
    assert size >= 4096
    second = bench.submit(size)
    others = [bench.submit(MIB) for _ in range(8)]
    assert bench.pool.statistics().waiting == 9
    assert bench.core.bounce_size == size  # the first one still uses it
    await bench.complete(first)
    await bench.work()
    assert bench.core.bounce_size >= size + 8 * MIB
    assert all(request.all_admitted for request in (second, *others))
    await bench.complete(second, *others)
    await bench.close()


async def test_nobody_is_served_while_the_pool_runs_empty_to_grow() -> None:
    bench = Bench(maximum=MIB)
    a = bench.submit(4096)
    await bench.work()
    size = bench.core.bounce_size
    b = bench.submit(size - 8192)
    c = bench.submit(8192)
    await bench.complete(a)
    assert not c.all_admitted  # though it would fit now
    await bench.complete(b)
    await bench.work()
    assert c.all_admitted
    assert bench.core.bounce_size >= 2 * size
    await bench.complete(c)
    await bench.close()


async def test_at_its_maximum_it_serves_as_many_as_fit() -> None:
    bench = Bench(maximum=64 * KIB, first_size=64 * KIB)
    big = bench.submit(64 * KIB)
    await bench.work()
    small = [bench.submit(16 * KIB) for _ in range(6)]
    await bench.complete(big)
    assert [request.all_admitted for request in small] == [True] * 4 + [False] * 2
    requeues = bench.pool.statistics().requeues
    await bench.complete(small[0])
    assert [request.all_admitted for request in small] == [True] * 5 + [False]
    assert bench.pool.statistics().requeues == requeues + 1
    await bench.complete(*small)
    await bench.complete(*small)
    assert bench.pool.statistics().waiting == 0
    await bench.close()


async def test_the_wait_grows_linearly_with_the_queue() -> None:
    bench = Bench(maximum=256 * KIB, first_size=256 * KIB)
    requests = [bench.submit(4 * KIB) for _ in range(10_000)]
    await bench.work()
    rounds, admitted_in_round = 0, list[int]()
    while len(admitted_in_round) < len(requests):
        now = sum(request.all_admitted for request in requests)
        admitted_in_round += [rounds] * (now - len(admitted_in_round))
        await bench.complete(*requests[now - 64 : now])
        rounds += 1
    assert admitted_in_round == [number // 64 for number in range(10_000)]
    await bench.close()


async def test_shrinks_back_when_idle() -> None:
    bench = Bench(maximum=4 * MIB, first_size=8192, idle_seconds=0)
    request = bench.submit(MIB)
    await bench.work()
    assert bench.core.bounce_size > MIB
    await turns()
    assert bench.pool.statistics().shrinks == 0
    await bench.complete(request)
    await turns()
    await bench.work()
    assert bench.core.bounce_size == 8192
    statistics = bench.pool.statistics()
    assert (statistics.grows, statistics.shrinks, statistics.high_water) == (1, 1, MIB)
    await bench.close()


async def test_a_request_that_comes_while_it_shrinks_waits() -> None:
    bench = Bench(maximum=4 * MIB, first_size=8192, idle_seconds=0)
    await bench.work()
    request = bench.submit(MIB)
    await bench.work()
    await bench.complete(request)
    await turns()
    late = bench.submit(4096)
    assert not late.all_admitted
    await bench.work()
    assert late.all_admitted
    await bench.complete(late)
    await bench.close()


async def test_closing_while_it_grows() -> None:
    bench = Bench(maximum=MIB)
    request = bench.submit(4096)
    assert bench.pool.statistics().waiting == 1
    request.cancelled = True
    assert bench.pool.statistics().waiting == 0
    await bench.close()


async def test_the_device_may_be_given_up_while_a_request_is_being_admitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its memory's release hook does that; the waiting requests fail, and the pool closes."""
    bench = Bench(maximum=MIB)
    dropped, other = bench.submit(4096), bench.submit(4096)
    dropped.cancelled = True
    admit = bench.core.admit

    def admit_and_give_up(request: FakeRequest) -> bool:
        admitted = admit(request)
        bench.pool._lose(OSError("given up"))
        return admitted

    monkeypatch.setattr(bench.core, "admit", admit_and_give_up)
    await bench.work()
    assert isinstance(other.error, OSError)
    assert bench.pool.statistics().waiting == 0
    await bench.close()


# --- against a model ----------------------------------------------------------------------------------------


class BounceMachine(RuleBasedStateMachine):
    """Requests come, complete and are cancelled, the worker thread dawdles and fails.

    What must hold, always: nobody overtakes (while a request waits, no later one is given memory), nobody is
    forgotten (who waits has somebody to wait for), nothing is handed out twice, and memory is mapped while in
    use.
    """

    loop_name = "asyncio"

    def __init__(self) -> None:
        super().__init__()
        self.driven = DrivenLoop(self.loop_name)
        self.core = FakeQueueCore()
        self.handle = FakeHandle()
        self.requests: list[FakeRequest] = []
        self.started = False

    @initialize(
        maximum=st.sampled_from([16 * KIB, 64 * KIB, MIB]),
        first_size=st.sampled_from([4 * KIB, 64 * KIB]),
        idle_seconds=st.sampled_from([0, 3600]),
        needs_mem_regions=st.booleans(),
    )
    def create(self, maximum: int, first_size: int, idle_seconds: float, needs_mem_regions: bool) -> None:
        self.maximum = maximum
        self.memory = FakeDeviceMemory(self.driven.loop, needs_mem_regions=needs_mem_regions)

        async def create() -> BouncePool:
            return BouncePool(
                cast(Any, self.core),
                cast(Any, self.handle),
                cast(Any, self.memory),
                maximum=maximum,
                first_size=first_size,
                idle_seconds=idle_seconds,
            )

        self.pool = self.driven.loop.run_until_complete(create())
        self.started = True

    def teardown(self) -> None:
        try:
            if self.started:
                self.drain_and_close()
        finally:
            self.driven.close()

    def drain_and_close(self) -> None:
        """Everybody is served or refused, and nothing is left."""
        self.handle.failing = None
        while any(not request.done() or request.in_flight for request in self.requests):
            before = self.progress()
            self.memory.work()
            self.driven.settle()
            for request in self.requests:
                while request.in_flight:
                    self.core.complete(request)
            self.core.finish_turn()
            self.driven.settle()
            assert self.progress() != before, "requests wait for ever"
        closing = self.driven.loop.create_task(self.pool._aclose())
        while not closing.done():
            self.driven.settle()
            self.memory.work()
        assert not self.handle.allocated
        assert not self.handle.mapped
        assert self.core.bounce_size == 0

    def progress(self) -> object:
        admitted = sum(request.admitted for request in self.requests)
        in_flight = sum(len(request.in_flight) for request in self.requests)
        return admitted, in_flight, len(self.memory.pending), self.pool.statistics()

    # --- what happens ---------------------------------------------------------------------------------------

    @rule(sizes=st.lists(st.floats(0, 1), min_size=1, max_size=3))
    def submit(self, sizes: list[float]) -> None:
        parts = [1 + int(size**4 * (self.maximum - 1)) for size in sizes]
        request = FakeRequest(len(self.requests), parts)
        self.requests.append(request)
        self.core.submit(request)

    @precondition(lambda self: any(request.in_flight for request in self.requests))
    @rule(data=st.data(), count=st.integers(1, 5))
    def complete(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            running = [request for request in self.requests if request.in_flight]
            if running:
                self.core.complete(data.draw(st.sampled_from(running)))
        self.core.finish_turn()

    @precondition(lambda self: any(not request.done() for request in self.requests))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        unfinished = [request for request in self.requests if not request.done()]
        data.draw(st.sampled_from(unfinished)).cancelled = True

    @rule()
    def turn(self) -> None:
        self.driven.settle()

    @rule()
    def worker_thread_finishes(self) -> None:
        self.memory.work()

    @rule(step=st.sampled_from(["alloc", "map"]))
    def next_step_fails(self, step: str) -> None:
        self.handle.failing = step

    # --- what must hold -------------------------------------------------------------------------------------

    @invariant()
    def nobody_overtakes(self) -> None:
        waiting = [request for request in self.requests if not request.done() and not request.all_admitted]
        if waiting:
            assert all(request.admitted in (0, len(request.parts)) for request in waiting[1:])
            for later in self.requests[waiting[0].number + 1 :]:
                assert not later.in_flight, f"{later} overtook {waiting[0]}"

    @invariant()
    def nobody_is_forgotten(self) -> None:
        waiting = [request for request in self.requests if not request.done() and not request.all_admitted]
        if waiting:
            assert self.core.bounce_in_use or self.pool._resizing is not None

    @invariant()
    def room_is_used(self) -> None:
        """The first one waits only for what is not there, unless the pool runs empty or is replaced."""
        pool = self.pool
        if pool._waiters and pool._resizing is None and not pool._emptying and not self.core.room_made:
            head = cast(FakeRequest, pool._waiters[0].request)
            assert self.core.allocator is not None
            assert head.done() or self.core.allocator.largest_free < head.parts[head.admitted]

    @invariant()
    def memory_is_there(self) -> None:
        assert self.core.bounce_size <= self.memory.round_up(self.maximum)
        assert len(self.handle.allocated) <= 1
        if self.core.bounce_size:
            [region] = self.handle.allocated
            assert region.length == self.core.bounce_size
            assert self.handle.mapped == ({region} if self.memory.limits.needs_mem_regions else set())

    @invariant()
    def statistics_add_up(self) -> None:
        statistics = self.pool.statistics()
        assert statistics.waiting <= self.core.waiting  # which those count in that were cancelled
        assert statistics.high_water >= statistics.in_use
        assert statistics.waits <= len(self.requests)


class UvloopBounceMachine(BounceMachine):
    loop_name = "uvloop"


TestBounceOnAsyncio = BounceMachine.TestCase
TestBounceOnUvloop = UvloopBounceMachine.TestCase
TestBounceOnAsyncio.settings = TestBounceOnUvloop.settings = settings(
    max_examples=50, stateful_step_count=40, deadline=None
)
