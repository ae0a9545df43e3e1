"""InFlight: limits on requests and bytes, and who enters next."""

import asyncio
from typing import Any

import pytest

import aioblk


async def test_counts_and_limits_requests_and_bytes() -> None:
    in_flight = aioblk.InFlight(requests=2, bytes=100)
    await in_flight.enter(60)
    await in_flight.enter(40)
    assert (in_flight.requests, in_flight.bytes) == (2, 100)
    third = asyncio.create_task(in_flight.enter())
    await asyncio.sleep(0)
    assert not third.done()
    in_flight.leave(60)
    await third
    too_much = asyncio.create_task(in_flight.enter(61))
    in_flight.leave()
    await asyncio.sleep(0.001)
    assert not too_much.done()
    in_flight.leave(40)
    await too_much
    assert repr(in_flight) == "<InFlight 1 of 2 requests, 61 of 100 bytes>"
    in_flight.leave(61)
    assert repr(aioblk.InFlight(requests=3)) == "<InFlight 0 of 3 requests, 0 bytes>"


async def test_more_than_the_limit_enters_alone() -> None:
    in_flight = aioblk.InFlight(requests=8, bytes=100)
    await in_flight.enter(1000)
    other = asyncio.create_task(in_flight.enter(1))
    await asyncio.sleep(0)
    assert not other.done()
    in_flight.leave(1000)
    await other


async def test_nobody_overtakes_and_who_gives_up_holds_nobody_up() -> None:
    in_flight = aioblk.InFlight(requests=8, bytes=100)
    await in_flight.enter(50)
    large = asyncio.create_task(in_flight.enter(100))
    small = asyncio.create_task(in_flight.enter(50))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not small.done()
    large.cancel()
    await small
    assert in_flight.bytes == 100


async def test_leaving_lets_in_as_many_as_fit() -> None:
    in_flight = aioblk.InFlight(requests=8, bytes=100)
    await in_flight.enter(100)
    tasks = [asyncio.create_task(in_flight.enter(25)) for _ in range(5)]
    await asyncio.sleep(0)
    in_flight.leave(100)
    await asyncio.gather(*tasks[:4])
    assert not tasks[4].done()
    in_flight.leave(25)
    await tasks[4]


async def test_draining() -> None:
    in_flight = aioblk.InFlight(requests=8, bytes=100)
    await in_flight.drain()
    await in_flight.enter(1)
    await in_flight.enter(2)
    drains = [asyncio.create_task(in_flight.drain()) for _ in range(2)]
    await asyncio.sleep(0)
    in_flight.leave(1)
    await asyncio.sleep(0)
    assert not any(drain.done() for drain in drains)
    in_flight.leave(2)
    await asyncio.gather(*drains)


def test_limits_are_positive() -> None:
    for requests, size in ((0, 1), (1, 0), (-1, 5)):
        with pytest.raises(ValueError, match="positive"):
            aioblk.InFlight(requests=requests, bytes=size)


async def test_nothing_is_counted_backwards() -> None:
    limit = aioblk.InFlight(requests=2, bytes=100)
    with pytest.raises(ValueError, match="length must not be negative, as -1 is"):
        await limit.enter(-1)
    await limit.enter(10)
    with pytest.raises(RuntimeError, match="cannot leave"):
        limit.leave(-1)
    assert (limit.requests, limit.bytes) == (1, 10)


async def test_leaving_once_too_often_is_refused() -> None:
    limit = aioblk.InFlight(requests=2, bytes=100)
    with pytest.raises(RuntimeError, match="cannot leave: 0 are in flight"):
        limit.leave()
    await limit.enter(10)
    with pytest.raises(
        RuntimeError, match="a request of 11 bytes cannot leave: 1 are in flight, with 10 bytes"
    ):
        limit.leave(11)
    limit.leave(10)
    assert (limit.requests, limit.bytes) == (0, 0)


class Number:
    """As other libraries have them: what is added to one overflows, or becomes another kind of number."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value

    def _overflow(self, other: object) -> bool:
        raise OverflowError

    __add__ = __radd__ = __sub__ = __rsub__ = __lt__ = __le__ = __gt__ = __ge__ = __mul__ = _overflow


def number(value: int) -> Any:
    return Number(value)


async def test_whole_numbers_of_any_type_are_counted_exactly() -> None:
    in_flight = aioblk.InFlight(requests=number(8), bytes=number(100), kept=0.5)
    with in_flight.share(requests=number(2), bytes=number(50)) as share:
        for each in (in_flight, share):
            await each.enter(number(20))
            await each.enter(True)
            assert type(each.bytes) is type(each.requests) is int
            assert each.bytes >= 21
            each.leave(number(20))
            each.leave(True)
        assert share.enter_nowait(number(50))
        assert share.enter_nowait(number(51))  # which takes all that is common
        assert not share.enter_nowait(number(1))
        waiting = [asyncio.create_task(each.enter(number(30))) for each in (share, in_flight)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        share.leave(50)
        share.leave(number(51))
        await asyncio.gather(*waiting)
        for each in (share, in_flight):
            assert type(each.bytes) is int
            each.leave(30)
    assert (in_flight.requests, in_flight.bytes) == (0, 0)


@pytest.mark.parametrize("length", [1.5, float("nan"), float("inf"), "1", None])
async def test_what_is_no_whole_number_is_refused_and_counts_nothing(length: Any) -> None:
    """One that is no number at all would have every limit met for ever."""
    in_flight = aioblk.InFlight(requests=4, bytes=100, kept=0.5)
    with in_flight.share(requests=1) as share:
        for each in (in_flight, share):
            await each.enter(5)
            for call in (each.enter, each.leave):
                with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
                    await (call(length) or asyncio.sleep(0))
            assert (each.requests, each.bytes) == (1, 5)
            each.leave(5)
        with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
            share.enter_nowait(length)
        with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
            in_flight.share(requests=length)
        if length is not None:  # with which as large a part as of the requests is meant
            with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
                in_flight.share(bytes=length)
        in_flight.share(requests=1, bytes=25).close()
    assert (in_flight.requests, in_flight.bytes) == (0, 0)


async def test_any_length_waits_for_its_turn_and_leaves_the_order_as_it_is() -> None:
    in_flight = aioblk.InFlight(requests=4, bytes=100, kept=0.5)
    with in_flight.share(weight=1e-6) as share:
        await in_flight.enter()
        waiting = [asyncio.create_task(each.enter(10**400)) for each in (share, in_flight)]
        await asyncio.sleep(0)
        in_flight.leave()
        await waiting[0]
        share.leave(10**400)
        await waiting[1]
        in_flight.leave(10**400)
        await share.enter(1)
        share.leave(1)
    assert (in_flight.requests, in_flight.bytes) == (0, 0)
