"""Throttles: what passes, what waits, and in which order."""

import asyncio
import errno
from typing import Any

import pytest

import aioblk
from aioblk.layers import _throttling
from aioblk.testing import Fault, Faulty, MemoryDevice, Recorder

BLOCK = 512
SIZE = 1 << 20
LIMITS = aioblk.Limits(request_alignment=BLOCK)


class Clock:
    """The loop's, as a throttle group sees it: it stands still until it is told to go on."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self._timers: list[tuple[float, Any]] = []
        clock = self

        class Seen:
            def __getattr__(self, name: str) -> Any:
                return getattr(loop, name)

            def time(self) -> float:
                return clock.now

            def call_later(self, seconds: float, call: Any) -> Any:
                handle = asyncio.Handle(call, (), loop)
                clock._timers.append((clock.now + seconds, handle))
                return handle

        monkeypatch.setattr(_throttling, "running_loop", lambda _operation: Seen())

    async def go_on(self, seconds: float) -> None:
        """To each timer in turn, and some turns of the loop after each."""
        end = self.now + seconds
        while True:
            self._timers = [timer for timer in self._timers if not timer[1].cancelled()]
            due = [timer for timer in self._timers if timer[0] <= end]
            if not due:
                break
            timer = min(due, key=lambda timer: timer[0])
            self._timers.remove(timer)
            self.now = max(self.now, timer[0])
            timer[1]._run()
            for _ in range(4):
                await asyncio.sleep(0)
        self.now = end


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(asyncio.get_running_loop(), monkeypatch)


def recorder() -> Recorder:
    return Recorder(MemoryDevice(SIZE, limits=LIMITS))


async def begin(device: aioblk.BlockDevice, count: int, offset: int = 0) -> list["asyncio.Future[bytes]"]:
    return [asyncio.ensure_future(device.read(offset, BLOCK)) for _ in range(count)]


# --- rates --------------------------------------------------------------------------------------------------


async def test_operations_a_second(clock: Clock) -> None:
    device = recorder()
    throttle = aioblk.Throttle(
        device, aioblk.ThrottleGroup(total=aioblk.Rate(operations=100, burst_operations=10))
    )
    requests = await begin(throttle, 500)
    assert len(device.records) == 10
    for second in range(1, 4):
        await clock.go_on(1)
        assert abs(len(device.records) - (10 + 100 * second)) <= 1
    await clock.go_on(10)
    await asyncio.gather(*requests)
    await clock.go_on(100)
    await begin(throttle, 20)
    assert len(device.records) == 510, "after a while of nothing it is the burst again, and no more"


async def test_bytes_a_second(clock: Clock) -> None:
    device = recorder()
    group = aioblk.ThrottleGroup(total=aioblk.Rate(bytes=100 * BLOCK, burst_bytes=4 * BLOCK))
    throttle = aioblk.Throttle(device, group)
    large = asyncio.ensure_future(throttle.read(0, 200 * BLOCK))
    await asyncio.sleep(0)
    assert len(device.records) == 1, "larger than the burst, and not refused"
    await begin(throttle, 1000)
    await clock.go_on(1.9)
    assert len(device.records) == 1, "those after it wait for the debt"
    await clock.go_on(2.1)
    assert abs(len(device.records) - 205) <= 2
    assert group.statistics().waiting == 1001 - len(device.records)
    assert group.statistics().seconds_waited > 0
    await large
    await clock.go_on(1000)


async def test_reads_and_writes_apart(clock: Clock) -> None:
    device = recorder()
    group = aioblk.ThrottleGroup(
        reads=aioblk.Rate(operations=10, burst_operations=1),
        writes=aioblk.Rate(operations=20, burst_operations=1),
    )
    throttle = aioblk.Throttle(device, group)
    await begin(throttle, 100)
    changes = [
        asyncio.ensure_future(request)
        for _ in range(30)
        for request in (
            throttle.write(0, bytes(BLOCK)),
            throttle.write_zeroes(0, BLOCK),
            throttle.discard(0, BLOCK),
        )
    ]
    await throttle.flush()
    await clock.go_on(2)
    counts = {kind: sum(record.operation == kind for record in device.records) for kind in ("read", "flush")}
    assert counts["flush"] == 1
    assert abs(counts["read"] - 21) <= 1
    assert abs(len(device.changes) - 41) <= 1
    await clock.go_on(100)
    await asyncio.gather(*changes)


async def test_rates_may_change_while_requests_wait(clock: Clock) -> None:
    device = recorder()
    group = aioblk.ThrottleGroup(total=aioblk.Rate(operations=1))
    throttle = aioblk.Throttle(device, group)
    requests = await begin(throttle, 10)
    assert len(device.records) == 1
    group.total = aioblk.Rate()
    assert len(device.records) == 10
    await asyncio.gather(*requests)
    group.reads = group.writes = aioblk.Rate(operations=5)
    assert group.reads.operations == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"operations": 0}, "operations must be positive, not 0"),
        ({"bytes": float("inf")}, "bytes must be positive, not inf"),
        ({"bytes": float("nan")}, "bytes must be positive, not nan"),
        ({"burst_operations": 5}, "burst_operations needs operations"),
        ({"burst_bytes": 5, "operations": 1}, "burst_bytes needs bytes"),
    ],
)
async def test_what_is_no_rate(options: dict[str, float], words: str) -> None:
    with pytest.raises(aioblk.OptionError, match=words):
        aioblk.Rate(**options)


async def test_what_is_no_weight() -> None:
    """A share that is as good as all would leave others nothing, for ever."""
    for weight in (0, -1, 1e-7, 1e7, float("nan"), float("inf")):
        with pytest.raises(aioblk.OptionError, match=r"weight must be from 1e-06 to 1e\+06, not"):
            aioblk.Throttle(recorder(), aioblk.ThrottleGroup(), weight=weight)


async def test_a_new_rate_forgets_no_debt(clock: Clock) -> None:
    device = recorder()
    group = aioblk.ThrottleGroup(writes=aioblk.Rate(bytes=BLOCK, burst_bytes=BLOCK))
    throttle = aioblk.Throttle(device, group)
    await throttle.write(0, bytes(100 * BLOCK))
    group.reads = aioblk.Rate(operations=5)
    for _ in range(5):
        group.writes = aioblk.Rate(bytes=BLOCK, burst_bytes=BLOCK)
    late = asyncio.ensure_future(throttle.write(0, bytes(BLOCK)))
    await clock.go_on(90)
    assert len(device.changes) == 1
    await clock.go_on(15)
    await late
    group.writes = None
    assert group.writes == aioblk.Rate()
    for wrong in (5, "fast"):
        with pytest.raises(aioblk.OptionError, match="a Rate is needed, or None"):
            group.total = wrong  # type: ignore[assignment]
    assert group.total == aioblk.Rate()


async def test_a_burst_is_as_much_as_it_says(clock: Clock) -> None:
    for burst in (1, 5):
        device = recorder()
        group = aioblk.ThrottleGroup(total=aioblk.Rate(operations=100, burst_operations=burst))
        throttle = aioblk.Throttle(device, group)
        requests = await begin(throttle, 20)
        assert len(device.records) == burst
        await clock.go_on(10)
        await asyncio.gather(*requests)


async def test_what_a_closed_layer_refuses_costs_nobody_anything(clock: Clock) -> None:
    group = aioblk.ThrottleGroup(total=aioblk.Rate(operations=10, burst_operations=2))
    closed, device = aioblk.Throttle(recorder(), group), recorder()
    await closed.aclose()
    for _ in range(10):
        with pytest.raises(aioblk.DeviceClosedError):
            closed.read(0, BLOCK)
    await begin(aioblk.Throttle(device, group), 2)
    assert len(device.records) == 2


# --- shares -------------------------------------------------------------------------------------------------


async def test_shares_by_weight(clock: Clock) -> None:
    devices = [recorder() for _ in range(3)]
    group = aioblk.ThrottleGroup(total=aioblk.Rate(operations=100, burst_operations=1))
    throttles = [
        aioblk.Throttle(device, group, weight=weight)
        for device, weight in zip(devices, (1, 2, 5), strict=True)
    ]
    requests = [request for throttle in throttles for request in await begin(throttle, 1000)]
    await clock.go_on(8)
    shares = [len(device.records) for device in devices]
    assert [abs(share - expected) <= 2 for share, expected in zip(shares, (100, 200, 500), strict=True)] == [
        True
    ] * 3
    await clock.go_on(1000)
    await asyncio.gather(*requests)


async def test_a_share_is_a_layers_whatever_it_asks_for(clock: Clock) -> None:
    devices = [recorder(), recorder()]
    group = aioblk.ThrottleGroup(total=aioblk.Rate(operations=100, burst_operations=1))
    both, reads = (aioblk.Throttle(device, group) for device in devices)
    requests = [*await begin(both, 1000), *await begin(reads, 1000)]
    writes = [asyncio.ensure_future(both.write(0, bytes(BLOCK))) for _ in range(1000)]
    await clock.go_on(4)
    assert [abs(len(device.records) - 200) <= 3 for device in devices] == [True, True]
    await clock.go_on(1000)
    await asyncio.gather(*requests, *writes)


async def test_who_comes_late_has_a_share_and_no_more(clock: Clock) -> None:
    greedy, late = recorder(), recorder()
    group = aioblk.ThrottleGroup(total=aioblk.Rate(operations=100, burst_operations=1))
    one, other = aioblk.Throttle(greedy, group), aioblk.Throttle(late, group)
    requests = await begin(one, 2000)
    await clock.go_on(5)
    before = len(greedy.records)
    requests += await begin(other, 2000)
    await clock.go_on(2)
    assert abs(len(greedy.records) - before - 100) <= 2
    assert abs(len(late.records) - 100) <= 2
    await clock.go_on(1000)
    await asyncio.gather(*requests)


async def test_one_direction_does_not_hold_up_the_other(clock: Clock) -> None:
    device = recorder()
    group = aioblk.ThrottleGroup(
        total=aioblk.Rate(operations=1000), writes=aioblk.Rate(operations=1, burst_operations=1)
    )
    throttle = aioblk.Throttle(device, group)
    writes = [asyncio.ensure_future(throttle.write(0, bytes(BLOCK))) for _ in range(5)]
    reads = await begin(throttle, 50)
    await asyncio.gather(*reads)
    assert len(device.changes) == 1
    await clock.go_on(10)
    await asyncio.gather(*writes)


async def test_who_waits_no_more_owes_nothing(clock: Clock) -> None:
    light, heavy = recorder(), recorder()
    group = aioblk.ThrottleGroup(total=aioblk.Rate(operations=100, burst_operations=1))
    one, other = aioblk.Throttle(light, group, weight=1e-6), aioblk.Throttle(heavy, group)
    await (await begin(one, 1))[0]
    await clock.go_on(1)
    first = await begin(one, 5)
    await clock.go_on(1)
    await asyncio.gather(*first)
    await clock.go_on(10)  # in which nobody waits
    requests = [*await begin(other, 20), *await begin(one, 1)]
    await clock.go_on(0.05)
    assert len(light.records) == 7
    await clock.go_on(10)
    await asyncio.gather(*requests)


async def test_however_many_layers_wait_a_few_are_looked_at(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    has_room = _throttling._Bucket.has_room

    def count(bucket: Any, now: float) -> bool:
        nonlocal asked
        asked += 1
        return has_room(bucket, now)

    monkeypatch.setattr(_throttling._Bucket, "has_room", count)
    device = recorder()
    group = aioblk.ThrottleGroup(total=aioblk.Rate(operations=1, burst_operations=1))
    throttles = [aioblk.Throttle(device, group) for _ in range(500)]
    requests = [asyncio.ensure_future(throttle.read(0, BLOCK)) for throttle in throttles for _ in range(2)]
    group.total = aioblk.Rate(operations=1e6, burst_operations=1e6)
    await clock.go_on(1)
    await asyncio.gather(*requests)
    assert asked <= 8 * len(requests)


async def test_a_layer_over_another_one_of_its_group_asks_it_twice(clock: Clock) -> None:
    device = recorder()
    group = aioblk.ThrottleGroup(total=aioblk.Rate(operations=1, burst_operations=1))
    throttle = aioblk.Throttle(aioblk.Throttle(device, group), group)
    requests = await begin(throttle, 700)
    group.total = aioblk.Rate(operations=1e6, burst_operations=1e6)
    await clock.go_on(1)
    await asyncio.gather(*requests)
    assert len(device.records) == 700
    assert group.statistics().waiting == 0


# --- requests that wait -------------------------------------------------------------------------------------


@pytest.fixture
async def busy(clock: Clock) -> tuple["aioblk.Throttle[Faulty]", Clock]:
    """One whose requests have to wait."""
    rate = aioblk.Rate(operations=10, burst_operations=1)
    throttle = aioblk.Throttle(Faulty(MemoryDevice(SIZE, limits=LIMITS)), aioblk.ThrottleGroup(total=rate))
    await throttle.read(0, BLOCK)
    return throttle, clock


async def test_what_waits_is_checked_by_the_call(busy: tuple["aioblk.Throttle[Faulty]", Clock]) -> None:
    throttle, clock = busy
    for call, error in (
        (lambda: throttle.read(1, BLOCK), aioblk.AlignmentError),
        (lambda: throttle.read(-BLOCK, BLOCK), aioblk.OptionError),
        (lambda: throttle.read_into(0, bytes(BLOCK)), BufferError),
        (lambda: throttle.write(0, bytes(1)), aioblk.AlignmentError),
        (lambda: throttle.write_zeroes(0, 1), aioblk.AlignmentError),
        (lambda: throttle.discard(0, 1), aioblk.AlignmentError),
        (lambda: throttle.read_many([(1, BLOCK)]), aioblk.AlignmentError),
        (lambda: throttle.write_many([(0,)]), ValueError),  # type: ignore[list-item]
    ):
        with pytest.raises(error):
            call()
    assert throttle.group.statistics().waiting == 0
    await clock.go_on(1)


async def test_what_is_cancelled_while_it_waits_was_never_made(
    busy: tuple["aioblk.Throttle[Faulty]", Clock],
) -> None:
    throttle, clock = busy
    before = throttle.statistics()
    write = asyncio.ensure_future(throttle.write(0, b"x" * BLOCK))
    later = asyncio.ensure_future(throttle.read(0, BLOCK))
    await asyncio.sleep(0)
    assert throttle.statistics().in_flight == 2
    write.cancel()
    await asyncio.wait([write])
    assert write.cancelled()
    await clock.go_on(0.11)
    assert await later == bytes(BLOCK)
    after = throttle.statistics()
    assert (after.submitted - before.submitted, after.cancelled - before.cancelled) == (2, 1)


async def test_a_device_that_is_closed_or_lost_meanwhile(
    busy: tuple["aioblk.Throttle[Faulty]", Clock],
) -> None:
    throttle, clock = busy
    [lost] = await begin(throttle, 1)
    throttle.device.lose()
    await clock.go_on(1)
    with pytest.raises(aioblk.DeviceLostError):
        await lost


async def test_closing_waits_for_what_waits(busy: tuple["aioblk.Throttle[Faulty]", Clock]) -> None:
    throttle, clock = busy
    requests = await begin(throttle, 3)
    closing = asyncio.ensure_future(throttle.aclose())
    await asyncio.sleep(0)
    with pytest.raises(aioblk.DeviceClosedError):
        throttle.read(0, BLOCK)
    assert not closing.done()
    await clock.go_on(1)
    await closing
    assert all(request.done() and request.exception() is None for request in requests)


async def test_a_batch_for_which_there_is_no_room_is_made_piece_by_piece(clock: Clock) -> None:
    device = recorder()
    group = aioblk.ThrottleGroup(total=aioblk.Rate(operations=100, burst_operations=10))
    throttle = aioblk.Throttle(device, group)
    await throttle.write_many((place * BLOCK, b"x" * BLOCK) for place in range(10))
    reading = asyncio.ensure_future(throttle.read_many((place * BLOCK, BLOCK) for place in range(20)))
    await clock.go_on(0.1)
    assert 18 <= len(device.records) <= 22
    await clock.go_on(1)
    assert b"".join(await reading) == b"x" * (10 * BLOCK) + bytes(10 * BLOCK)


async def test_what_was_given_up_is_forgotten_behind_what_waits_for_long(
    busy: tuple["aioblk.Throttle[Faulty]", Clock],
) -> None:
    throttle, clock = busy
    first = asyncio.ensure_future(throttle.read(0, BLOCK))
    for _ in range(1000):
        (await begin(throttle, 1))[0].cancel()
        await asyncio.sleep(0)
    assert len(throttle._flows["read"].waiting) <= 2 * _throttling.FORGOTTEN
    assert throttle.group.statistics().waiting == 1
    await clock.go_on(1)
    await first


async def test_an_order_of_the_loops_holds_nobody_up(
    busy: tuple["aioblk.Throttle[Faulty]", Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    throttle, clock = busy
    read, orders = throttle.device.read, [KeyboardInterrupt()]

    def interrupted(offset: int, length: int) -> Any:
        if orders:
            raise orders.pop()
        return read(offset, length)

    monkeypatch.setattr(throttle.device, "read", interrupted)
    requests = await begin(throttle, 3)
    with pytest.raises(KeyboardInterrupt):
        await clock.go_on(1)
    await clock.go_on(1)
    with pytest.raises(InterruptedError, match=r"the device's call was interrupted: KeyboardInterrupt\(\)"):
        await requests[0]
    assert await asyncio.gather(*requests[1:]) == [bytes(BLOCK)] * 2


async def test_errors_of_the_device_are_those_of_the_request(clock: Clock) -> None:
    device = Faulty(MemoryDevice(SIZE, limits=LIMITS), Fault(error=errno.EIO))
    throttle = aioblk.Throttle(device, aioblk.ThrottleGroup(total=aioblk.Rate(operations=1)))
    for request in await begin(throttle, 3):
        await clock.go_on(1.1)
        with pytest.raises(aioblk.BlkioError):
            await request


async def test_on_the_loops_own_clock() -> None:
    """As it is used: nothing of this is faster than it may be."""
    loop = asyncio.get_running_loop()
    group = aioblk.ThrottleGroup(total=aioblk.Rate(operations=1000, burst_operations=1))
    throttle = aioblk.Throttle(MemoryDevice(SIZE), group)
    before = loop.time()
    await asyncio.gather(*(throttle.read(0, 1) for _ in range(101)))
    assert loop.time() - before >= 0.099
