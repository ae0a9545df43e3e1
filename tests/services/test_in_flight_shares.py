"""Shares of an InFlight: what nobody can take away, weights, and what ends with a share."""

import asyncio
import gc
import weakref
from dataclasses import dataclass, field
from decimal import Decimal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import aioblk

from ..support.turns import DrivenLoop, turns

# --- promises -----------------------------------------------------------------------------------------------


async def test_two_stalled_clients_cannot_stop_a_third() -> None:
    in_flight = aioblk.InFlight(requests=9, bytes=900, kept=2 / 3)
    stalled = [in_flight.share(requests=2) for _ in range(2)]
    waiting = [asyncio.create_task(share.enter(100)) for share in stalled for _ in range(9)]
    await turns()
    assert in_flight.requests == 7
    with in_flight.share(requests=2) as third:
        for _ in range(100):
            for _ in range(2):
                entering = asyncio.create_task(third.enter(100))
                await asyncio.sleep(0)
                assert entering.done()
            assert in_flight.requests == 9
            for _ in range(2):
                third.leave(100)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    for share in stalled:
        share.close()


async def test_beyond_its_promise_a_share_takes_what_is_common() -> None:
    in_flight = aioblk.InFlight(requests=4, bytes=100, kept=0.5)
    with in_flight.share(requests=1, bytes=10) as one, in_flight.share(requests=1) as other:
        await one.enter(10)
        await one.enter(25)
        await one.enter(25)
        assert (one.requests, one.bytes) == (3, 60)
        more = asyncio.create_task(one.enter())
        await turns()
        assert not more.done()
        await other.enter(25)
        assert (in_flight.requests, in_flight.bytes) == (4, 85)
        other.leave(25)
        await turns()
        assert not more.done()  # what was promised to another is never lent
        one.leave(10)
        await more
        for length in (25, 25, 0):
            one.leave(length)
    assert repr(in_flight) == "<InFlight 0 of 4 requests, 0 of 100 bytes>"
    assert repr(one) == "<InFlightShare closed 0 requests, 1 promised, 0 bytes, 10 promised>"


async def test_who_does_not_wait_enters_where_nobody_would_have_to() -> None:
    in_flight = aioblk.InFlight(requests=4, bytes=100, kept=0.5)
    one, other = in_flight.share(requests=1, bytes=10), in_flight.share(requests=1)
    assert one.enter_nowait(10)
    assert one.enter_nowait(50)  # of what is common
    assert one.enter_nowait()
    assert not one.enter_nowait()
    assert not one.enter_nowait(1)
    assert not other.enter_nowait(41)
    waiting = asyncio.create_task(one.enter())
    await turns()
    one.leave()
    await turns()
    assert waiting.done()
    assert (one.requests, one.bytes) == (3, 60)
    again = asyncio.create_task(one.enter())
    await turns()
    other.leave() if other.enter_nowait() else pytest.fail("what is promised waits for nobody")
    assert other.enter_nowait()
    assert not other.enter_nowait()
    assert not one.enter_nowait()
    again.cancel()
    await asyncio.wait([again])
    one.leave(50)
    assert other.enter_nowait()
    with pytest.raises(ValueError, match="must not be negative"):
        one.enter_nowait(-1)
    one.close()
    with pytest.raises(aioblk.UsageError, match="the share is closed"):
        one.enter_nowait()
    for share, lengths in ((one, (10, 0)), (other, (0, 0))):
        for length in lengths:
            share.leave(length)
    other.close()
    assert (in_flight.requests, in_flight.bytes) == (0, 0)


async def test_without_bytes_a_share_is_promised_as_large_a_part_as_of_requests() -> None:
    in_flight = aioblk.InFlight(requests=8, bytes=800, kept=0.5)
    with in_flight.share(requests=1) as share:
        assert "0 bytes, 100 promised" in repr(share)
    with aioblk.InFlight(requests=8, kept=0.5).share(requests=2) as share:
        await share.enter(1 << 50)  # bytes are not limited at all
        share.leave(1 << 50)


async def test_where_bytes_are_not_limited_a_promise_is_of_any_number() -> None:
    in_flight = aioblk.InFlight(requests=8, kept=0.5)
    with in_flight.share(requests=2) as greedy, in_flight.share(requests=2) as polite:
        waiting = [asyncio.create_task(greedy.enter(1 << 40)) for _ in range(20)]
        await turns()
        for _ in range(2):
            await asyncio.wait_for(polite.enter(1 << 40), 10)
            polite.leave(1 << 40)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        for _ in range(greedy.requests):
            greedy.leave(1 << 40)
    assert (in_flight.requests, in_flight.bytes) == (0, 0)
    with pytest.raises(ValueError, match="bytes are not limited here"):
        in_flight.share(requests=1, bytes=1)
    in_flight.share(requests=4).close()  # all that was promised can be promised again


async def test_what_is_no_usual_number_breaks_nobody_elses_turn() -> None:
    in_flight = aioblk.InFlight(requests=1, bytes=100)
    share = in_flight.share(weight=Decimal(2))  # type: ignore[arg-type]
    await share.enter(1)
    waiting = [asyncio.create_task(share.enter(1)), asyncio.create_task(in_flight.enter(1))]
    await turns()
    share.leave(1)
    await waiting[0]
    share.leave(1)
    await waiting[1]
    waiting = [asyncio.create_task(share.enter(10**400))]
    await turns()
    in_flight.leave(1)
    await waiting[0]  # alone, as any other that is too long
    share.leave(10**400)
    assert in_flight.requests == 0
    share.close()
    with pytest.raises(TypeError):
        in_flight.share(requests=0.5)  # type: ignore[arg-type]


async def test_what_is_kept_can_be_promised_once() -> None:
    in_flight = aioblk.InFlight(requests=8, bytes=800, kept=0.5)
    first = in_flight.share(requests=3, bytes=10)
    with pytest.raises(
        aioblk.UsageError,
        match=r"2 requests cannot be promised: 3 of the 4 that are kept for shares \(of 8\) are promised"
        r" already; promise less, close other shares, or have more kept by InFlight\(kept=...\)",
    ):
        in_flight.share(requests=2)
    with pytest.raises(aioblk.UsageError, match="391 bytes cannot be promised: 10 of the 400"):
        in_flight.share(bytes=391)
    first.close()
    first.close()
    with in_flight.share(requests=4, bytes=400):
        pass
    with pytest.raises(aioblk.UsageError, match="0 of the 0 that are kept"):
        aioblk.InFlight(requests=8).share(requests=1)


def test_what_cannot_be_promised_is_refused() -> None:
    in_flight = aioblk.InFlight(requests=8, bytes=800, kept=0.5)
    with pytest.raises(ValueError, match="requests must not be negative, as -1 is"):
        in_flight.share(requests=-1, bytes=0)
    with pytest.raises(ValueError, match="bytes must not be negative, as -1 is"):
        in_flight.share(bytes=-1)
    with pytest.raises(ValueError, match="weight must be from"):
        in_flight.share(weight=0, requests=4)
    with in_flight.share(weight=2, requests=4) as share:
        assert share.weight == 2
    for kept in (-0.1, 1, float("nan")):
        with pytest.raises(ValueError, match="kept must be from 0 to less than 1"):
            aioblk.InFlight(requests=8, kept=kept)


async def test_a_request_and_a_byte_are_always_common() -> None:
    in_flight = aioblk.InFlight(requests=1, bytes=1, kept=0.999)
    with in_flight.share() as share:
        await share.enter(1)
        share.leave(1)


# --- who is next --------------------------------------------------------------------------------------------


async def test_shares_that_wait_get_what_their_weights_say() -> None:
    in_flight = aioblk.InFlight(requests=2, bytes=1000)
    log: list[str] = []

    async def client(name: str, weight: float) -> None:
        with in_flight.share(weight=weight) as share:

            async def work() -> None:
                while len(log) < 100:
                    await share.enter(10)
                    log.append(name)
                    await asyncio.sleep(0)
                    share.leave(10)

            await asyncio.gather(*(work() for _ in range(8)))

    await asyncio.gather(client("a", 3), client("b", 1))
    assert 72 <= log[:100].count("a") <= 78


async def test_what_costs_more_is_what_counts() -> None:
    """Of a request, the larger one of its parts of all requests and of all bytes."""
    in_flight = aioblk.InFlight(requests=10, bytes=100)
    await in_flight.enter(100)
    log: list[str] = []
    with in_flight.share() as large, in_flight.share() as small:

        async def enter(share: aioblk.InFlightShare, length: int, name: str) -> None:
            await share.enter(length)
            log.append(name)

        tasks = [asyncio.create_task(enter(large, 50, "large")) for _ in range(2)]
        tasks += [asyncio.create_task(enter(small, 1, "small")) for _ in range(6)]
        await turns()
        in_flight.leave(100)
        await asyncio.gather(tasks[0], *tasks[2:7])
        assert log[:6] == ["large", *["small"] * 5]
        large.leave(50)
        await asyncio.gather(*tasks)
        large.leave(50)
        for _ in range(6):
            small.leave(1)


async def test_what_is_longer_than_all_that_is_common_enters_when_nobody_uses_that() -> None:
    in_flight = aioblk.InFlight(requests=8, bytes=100, kept=0.5)
    with in_flight.share(requests=1) as one, in_flight.share(requests=1) as other:
        await other.enter(12)
        await other.enter(1)
        long = asyncio.create_task(one.enter(1000))
        await turns()
        late = asyncio.create_task(in_flight.enter(1))
        await turns()
        assert not long.done()
        assert not late.done()  # it would keep it waiting for ever
        other.leave(1)
        await long
        other.leave(12)
        await other.enter(12)  # what was promised is there all the same
        assert not late.done()
        one.leave(1000)
        await late
        in_flight.leave(1)
        other.leave(12)


async def test_a_share_whose_head_gives_up_lets_in_what_is_promised() -> None:
    in_flight = aioblk.InFlight(requests=8, bytes=100, kept=0.5)
    await in_flight.enter(50)
    with in_flight.share(requests=1, bytes=10) as share:
        long = asyncio.create_task(share.enter(11))
        short = asyncio.create_task(share.enter(10))
        await turns()
        assert not short.done()  # its own do not overtake each other
        long.cancel()
        await short
        share.leave(10)


async def test_entering_that_is_cancelled_in_the_turn_in_which_it_may_loses_nothing() -> None:
    in_flight = aioblk.InFlight(requests=2, kept=0.5)
    with in_flight.share(requests=1) as share:
        await share.enter()
        await share.enter()
        tasks = [asyncio.create_task(share.enter()) for _ in range(5)]
        await turns()
        share.leave()
        for task in tasks[:4]:
            task.cancel()
        await tasks[4]
        assert [task.cancelled() for task in tasks] == [True] * 4 + [False]
        assert (share.requests, in_flight.requests) == (2, 2)
        share.leave()
        share.leave()
    assert in_flight.requests == 0


async def test_counting_backwards_is_refused() -> None:
    in_flight = aioblk.InFlight(requests=8, bytes=100, kept=0.5)
    with in_flight.share(requests=1) as share:
        await share.enter(10)
        await share.enter(10)
        with pytest.raises(RuntimeError, match="cannot leave: 0 are in flight, with 0 bytes"):
            in_flight.leave()  # those are the share's
        with pytest.raises(RuntimeError, match="a request of 21 bytes cannot leave: 2 are in flight"):
            share.leave(21)
        with pytest.raises(ValueError, match="length must not be negative"):
            await share.enter(-1)
        share.leave(10)
        share.leave(10)
        with pytest.raises(RuntimeError, match="cannot leave"):
            share.leave()


# --- the end of a share -------------------------------------------------------------------------------------


async def test_closing_refuses_who_waits_and_whoever_comes() -> None:
    in_flight = aioblk.InFlight(requests=1)
    await in_flight.enter()
    share = in_flight.share()
    waiting = [asyncio.create_task(share.enter()) for _ in range(3)]
    other = asyncio.create_task(in_flight.enter())
    await turns()
    share.close()
    for task in waiting:
        with pytest.raises(aioblk.UsageError, match="the share is closed"):
            await task
    with pytest.raises(aioblk.UsageError, match="the share is closed"):
        await share.enter()
    in_flight.leave()
    await other


async def test_what_was_promised_goes_back_with_the_last_that_is_in_flight() -> None:
    in_flight = aioblk.InFlight(requests=4, kept=0.5)
    share = in_flight.share(requests=2)
    for _ in range(3):
        await share.enter()
    share.close()
    for _ in range(3):
        with pytest.raises(aioblk.UsageError, match="cannot be promised"):
            in_flight.share(requests=1)
        share.leave()
    in_flight.share(requests=2).close()
    share.close()
    in_flight.share(requests=2).close()


async def test_shares_are_closed_in_any_order() -> None:
    in_flight = aioblk.InFlight(requests=8, kept=0.5)
    shares = [in_flight.share(requests=1) for _ in range(4)]
    for share in shares:
        await share.enter()
        await share.enter()
    for share in shares:
        share.leave()
        share.close()
    for share in reversed(shares):
        share.leave()
    in_flight.share(requests=4).close()
    assert in_flight.requests == 0


async def test_draining_waits_for_one_share_or_for_all() -> None:
    in_flight = aioblk.InFlight(requests=8, kept=0.5)
    with in_flight.share(requests=1) as one, in_flight.share(requests=1) as other:
        await one.drain()
        await one.enter()
        await other.enter()
        drains = [asyncio.create_task(each.drain()) for each in (one, in_flight)]
        await turns()
        one.leave()
        await drains[0]
        assert not drains[1].done()
        other.leave()
        await drains[1]


async def test_a_share_that_is_forgotten_warns_and_gives_its_promise_back() -> None:
    in_flight = aioblk.InFlight(requests=4, kept=0.5)
    share = in_flight.share(requests=2)
    with pytest.warns(ResourceWarning, match="unclosed <InFlightShare 0 requests, 2 promised"):
        del share
    in_flight.share(requests=2).close()
    share = in_flight.share(requests=2)
    await share.enter()  # and nobody can say any more when it leaves
    with pytest.warns(ResourceWarning, match="unclosed"):
        del share
    with pytest.raises(aioblk.UsageError, match="cannot be promised"):
        in_flight.share(requests=2)


async def test_who_was_refused_is_kept_by_nobody() -> None:
    in_flight = aioblk.InFlight(requests=1)
    await in_flight.enter()
    share = in_flight.share()
    gc.disable()
    try:
        waiting = asyncio.create_task(share.enter())
        await turns()
        share.close()
        await asyncio.wait([waiting])
        assert isinstance(waiting.exception(), aioblk.UsageError)
        gone = weakref.ref(share)
        del share, waiting
        await turns()
        assert gone() is None
    finally:
        gc.enable()


# --- against a simple oracle --------------------------------------------------------------------------------


@dataclass
class Client:
    """A share, and what it should be like."""

    share: aioblk.InFlightShare
    requests: int
    bytes: int
    inside: list[int] = field(default_factory=list)  # lengths
    waiting: list[int] = field(default_factory=list)  # of tasks, in the order of arrival
    closed: bool = False

    def promises(self, length: int) -> bool:
        return len(self.inside) < self.requests and sum(self.inside) + length <= self.bytes

    def beyond(self) -> tuple[int, int]:
        return max(0, len(self.inside) - self.requests), max(0, sum(self.inside) - self.bytes)


class InFlightMachine(RuleBasedStateMachine):
    """Clients enter, leave, are cancelled (also in the turn in which they enter) and closed, in any order."""

    loop_name = "asyncio"
    most_requests, most_bytes = 8, 80
    common_requests, common_bytes = 4, 40

    def __init__(self) -> None:
        super().__init__()
        self.driven = DrivenLoop(self.loop_name)
        self.in_flight = aioblk.InFlight(requests=self.most_requests, bytes=self.most_bytes, kept=0.5)
        self.clients: list[Client] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.lengths: list[int] = []
        self.cancelled: set[int] = set()

    def teardown(self) -> None:
        self.driven.close()
        for client in self.clients:
            client.share.close()

    @precondition(lambda self: len(self.clients) < 6)
    @rule(weight=st.sampled_from([0.001, 1.0, 5.0]), requests=st.integers(0, 3), size=st.integers(0, 30))
    def open(self, weight: float, requests: int, size: int) -> None:
        held = [client for client in self.clients if not client.closed or client.inside]
        fits = (
            sum(client.requests for client in held) + requests <= self.most_requests - self.common_requests
            and sum(client.bytes for client in held) + size <= self.most_bytes - self.common_bytes
        )
        try:
            share = self.in_flight.share(weight=weight, requests=requests, bytes=size)
        except aioblk.UsageError:
            assert not fits
        else:
            assert fits
            self.clients.append(Client(share, requests, size))

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), length=st.sampled_from([0, 1, 5, 10, 40, 200]))
    def enter(self, data: st.DataObject, length: int) -> None:
        client = data.draw(st.sampled_from(self.clients))
        number = len(self.tasks)
        at_once = client.promises(length) and not client.waiting
        self.tasks.append(self.driven.loop.create_task(client.share.enter(length)))
        self.lengths.append(length)
        client.waiting.append(number)
        self.driven.settle(1)
        if at_once or client.closed:
            assert self.tasks[number].done()
        self.look()

    @precondition(lambda self: any(client.inside for client in self.clients))
    @rule(data=st.data(), cancels=st.booleans())
    def leave(self, data: st.DataObject, cancels: bool) -> None:
        client = data.draw(st.sampled_from([client for client in self.clients if client.inside]))
        length = data.draw(st.sampled_from(sorted(set(client.inside))))
        client.inside.remove(length)
        client.share.leave(length)
        if cancels:  # before any of those who may enter now has run
            for each in self.clients:
                for number in each.waiting[:1]:
                    self.cancel(number)
        self.look()

    @precondition(lambda self: any(client.waiting for client in self.clients))
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self.cancel(data.draw(st.sampled_from([n for client in self.clients for n in client.waiting])))
        self.look()

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.clients))
        client.share.close()
        client.closed = True
        self.look()

    def cancel(self, number: int) -> None:
        assert self.tasks[number].cancel()
        self.cancelled.add(number)

    def look(self) -> None:
        """See who has entered, and that nobody has overtaken another one of the same share."""
        self.driven.settle(8)
        for client in self.clients:
            left = [number for number in client.waiting if number not in self.cancelled]
            entered = [number for number in left if self.tasks[number].done()]
            assert entered == left[: len(entered)]
            for number in entered:
                if client.closed and self.tasks[number].exception() is not None:
                    continue
                self.tasks[number].result()
                client.inside.append(self.lengths[number])
            client.waiting = left[len(entered) :]

    @invariant()
    def nobody_has_too_much_and_nobody_waits_for_nothing(self) -> None:
        for client in self.clients:
            assert (client.share.requests, client.share.bytes) == (len(client.inside), sum(client.inside))
            assert not (client.closed and client.waiting)
            if client.waiting:
                assert not client.promises(self.lengths[client.waiting[0]])
        requests = sum(client.beyond()[0] for client in self.clients)
        size = sum(client.beyond()[1] for client in self.clients)
        assert requests <= self.common_requests
        assert size <= self.common_bytes or any(
            length > self.common_bytes for client in self.clients for length in client.inside
        )
        assert self.in_flight.requests == sum(len(client.inside) for client in self.clients)
        assert self.in_flight.bytes == sum(sum(client.inside) for client in self.clients)
        if any(client.waiting for client in self.clients):
            assert requests or size  # of what is common: else the next one would have it

    @invariant()
    def who_waits_enters_in_the_end(self) -> None:
        heads = [client.waiting[0] for client in self.clients if client.waiting]
        most = max((self.lengths[number] for number in heads), default=0)
        requests = sum(client.beyond()[0] for client in self.clients)
        size = sum(client.beyond()[1] for client in self.clients)
        assert not heads or requests == self.common_requests or size + most > self.common_bytes


class UvloopInFlightMachine(InFlightMachine):
    loop_name = "uvloop"


TestInFlightOnAsyncio = InFlightMachine.TestCase
TestInFlightOnUvloop = UvloopInFlightMachine.TestCase
TestInFlightOnAsyncio.settings = TestInFlightOnUvloop.settings = settings(
    max_examples=50, stateful_step_count=30, deadline=None
)
