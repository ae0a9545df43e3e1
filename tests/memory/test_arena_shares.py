"""Shares of an Arena: memory that nobody can take away, weights, and what ends with a share."""

import asyncio
import gc
import itertools
import mmap
import threading
import weakref
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import aioblk
from aioblk import Arena

from ..support.turns import DrivenLoop, turns

PAGE = mmap.PAGESIZE


# --- promises -----------------------------------------------------------------------------------------------


async def test_who_asks_for_little_pays_for_what_it_takes() -> None:
    """A buffer of one byte takes as much as one of a page."""
    counts = {1: 0, PAGE: 0}
    async with Arena(PAGE) as arena:

        async def repeat(share: aioblk.ArenaShare, length: int) -> None:
            while sum(counts.values()) < 100:
                with await share.acquire(length):
                    counts[length] += 1
                    await asyncio.sleep(0)

        with arena.share() as small, arena.share() as large:
            tasks = [repeat(share, n) for share, n in ((small, 1), (large, PAGE)) for _ in range(3)]
            await asyncio.gather(*tasks)
    assert abs(counts[1] - counts[PAGE]) <= 6


async def test_a_refusal_on_another_loop_leaves_those_who_wait_alone() -> None:
    async with Arena(PAGE) as arena:
        buffer = await arena.acquire(PAGE)
        waiting = asyncio.create_task(arena.acquire(PAGE))
        await turns()
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, arena.acquire(PAGE))
        await asyncio.to_thread(buffer.release)
        (await asyncio.wait_for(waiting, 10)).release()


async def test_while_an_arena_is_trimmed_no_share_can_be_had() -> None:
    async with Arena(16 * PAGE) as arena:
        trimming = asyncio.create_task(arena.trim())
        for _ in range(1000):
            try:
                arena.share(size=PAGE).close()
            except MemoryError as error:
                assert "is being trimmed" in str(error)  # noqa: PT017 (it need not be raised)
            await asyncio.sleep(0)
        await trimming
        arena.share(size=PAGE).close()


async def test_a_promise_is_kept_in_fragmented_memory_that_others_wait_for() -> None:
    async with Arena(16 * PAGE) as arena:
        with arena.share(size=4 * PAGE) as share:
            assert (share.size, arena.statistics().promised, arena.statistics().in_use) == (*[4 * PAGE] * 3,)
            buffers = [await arena.acquire(PAGE) for _ in range(12)]
            for buffer in buffers[::2]:
                buffer.release()
            waiting = asyncio.create_task(arena.acquire(2 * PAGE))
            await turns()
            for _ in range(10):
                acquiring = asyncio.create_task(share.acquire(4 * PAGE))
                await asyncio.sleep(0)
                assert share.in_use == 4 * PAGE
                acquiring.result().release()
            buffers[1].release()
            (await waiting).release()
            for buffer in buffers:
                buffer.release()
        assert arena.statistics() == aioblk.ArenaStatistics(1, 16 * PAGE, 0, 0, 0)


async def test_two_stalled_clients_cannot_stop_a_third() -> None:
    async with Arena(16 * PAGE) as arena:
        shares = [arena.share(size=4 * PAGE) for _ in range(3)]
        held = [await share.acquire(PAGE) for share in shares[:2] for _ in range(6)]
        waiting = [asyncio.create_task(share.acquire(PAGE)) for share in shares[:2]]
        await turns()
        for _ in range(10):
            pages = [await share.acquire(PAGE) for share in shares[2:] for _ in range(4)]
            for page in pages:
                page.release()
        for buffer in held:
            buffer.release()
        for task in waiting:
            (await task).release()
        for share in shares:
            share.close()


async def test_devices_reach_what_a_share_has(device: aioblk.Device) -> None:
    async with Arena(1 << 20) as arena:
        await arena.attach(device)
        with arena.share(size=1 << 16) as share, await share.acquire(8192) as buffer:
            before = device.statistics().bounced_bytes
            buffer[:] = b"x" * 8192
            await device.write(0, buffer)
            await device.read_into(8192, buffer)
            assert device.statistics().bounced_bytes == before


async def test_beyond_its_promise_a_share_takes_what_is_common_in_turn() -> None:
    async with Arena(4 * PAGE) as arena:
        with arena.share(size=PAGE) as share:
            with await share.acquire(3 * PAGE) as large:
                assert share.in_use == 0
                waiting = asyncio.create_task(arena.acquire(PAGE))
                more = asyncio.create_task(share.acquire(2 * PAGE))
                own = asyncio.create_task(share.acquire(PAGE))
                await turns()
                assert not own.done()  # its own tasks do not overtake each other
                large.release()
            for task in (waiting, more, own):
                (await task).release()


async def test_who_does_not_wait_has_what_is_there_for_it() -> None:
    async with Arena(4 * PAGE, kept=0.5) as arena:
        with arena.share(size=PAGE) as own, arena.share() as none:
            buffers = [own.acquire_nowait(PAGE) for _ in range(3)]
            assert None not in buffers
            assert own.acquire_nowait(1) is None  # what is left is kept
            waiting = asyncio.create_task(none.acquire(PAGE))
            await turns()
            assert none.acquire_nowait(PAGE) is None
            for buffer in buffers:
                assert buffer is not None
                buffer.release()
            (await waiting).release()
            with pytest.raises(ValueError, match="must be positive"):
                own.acquire_nowait(0)
            with pytest.raises(MemoryError, match="no block of the arena is as large"):
                own.acquire_nowait(4 * PAGE)
        with pytest.raises(aioblk.UsageError, match="closed share"):
            own.acquire_nowait(1)


async def test_who_can_do_with_less_takes_what_is_promised_at_once() -> None:
    async with Arena(8 * PAGE) as arena:
        share = arena.share(size=2 * PAGE)
        common, rest = await share.acquire(4 * PAGE, at_least=1), await arena.acquire(2 * PAGE)
        assert (len(common), share.in_use) == (4 * PAGE, 0)
        with await share.acquire(4 * PAGE, at_least=1) as part:
            assert len(part) == share.in_use == 2 * PAGE
            waiting = asyncio.create_task(share.acquire(4 * PAGE, at_least=1))
            await turns()
            assert not waiting.done()
        with await waiting as part:
            assert len(part) == 2 * PAGE
        for buffer in (common, rest):
            buffer.release()
        share.close()


# --- what is kept for promises ------------------------------------------------------------------------------


async def test_who_takes_all_that_is_common_keeps_no_newcomer_out() -> None:
    async with Arena(16 * PAGE, kept=0.5) as arena:
        with arena.share(size=2 * PAGE) as greedy:
            held = [await greedy.acquire(PAGE) for _ in range(10)]
            waiting = asyncio.create_task(greedy.acquire(PAGE))
            await turns()
            assert not waiting.done()
            with arena.share(size=6 * PAGE) as late:
                (await asyncio.wait_for(late.acquire(6 * PAGE), 10)).release()
                with pytest.raises(
                    MemoryError,
                    match=f"of the arena's {8 * PAGE} bytes that are kept for shares, {8 * PAGE} are promised"
                    r" to others, and 0 left in a row; .*Arena\(kept=...\)",
                ):
                    arena.share(size=PAGE)
            for buffer in held:
                buffer.release()
            (await waiting).release()


async def test_what_is_kept_is_nobodys_and_counts_as_free() -> None:
    async with Arena(16 * PAGE, kept=0.25) as arena:
        assert (arena.statistics().in_use, arena.statistics().buffers, arena.statistics().promised) == (
            0,
            0,
            0,
        )
        with arena.share() as share:
            for acquire in (arena.acquire, share.acquire):
                with pytest.raises(MemoryError, match=f"has {12 * PAGE}, beside what is kept for shares"):
                    await acquire(13 * PAGE)
        with await arena.acquire(12 * PAGE), pytest.raises(MemoryError):
            arena.allocate(1)
        with arena.share(size=PAGE) as share, await share.acquire(PAGE):
            seen = arena.statistics()
            assert (seen.in_use, seen.buffers, seen.promised) == (PAGE, 1, PAGE)


async def test_promises_that_end_in_any_order_leave_what_is_common_in_one_piece() -> None:
    async with Arena(16 * PAGE, kept=0.5) as arena:
        shares = [arena.share(size=2 * PAGE) for _ in range(4)]
        for share in shares[::2]:
            share.close()
        (await asyncio.wait_for(arena.acquire(8 * PAGE), 10)).release()
        for share in shares[1::2]:
            share.close()
        arena.share(size=8 * PAGE).close()


@pytest.mark.parametrize("kept", [0, 0.5])
async def test_an_arena_that_was_not_entered_says_so(kept: float) -> None:
    arena = aioblk.Arena(PAGE, kept=kept)
    with pytest.raises(MemoryError, match="the arena has no block; enter it with `async with`, or add one"):
        arena.share(size=PAGE)
    with pytest.raises(MemoryError, match="the arena has no block; enter it with `async with`, or add one"):
        await arena.acquire(PAGE)


async def test_a_block_can_be_removed_with_what_is_kept_of_it() -> None:
    async with Arena(4 * PAGE, kept=0.5) as arena:
        [first] = arena.blocks
        with arena.share(size=PAGE):
            with pytest.raises(
                aioblk.UsageError, match="1 buffers of the block are in use, 1 of them by shares"
            ):
                await arena.remove_block(first)
            await arena.add_block(8 * PAGE)
        await arena.remove_block(first)
        assert arena.statistics() == aioblk.ArenaStatistics(1, 8 * PAGE, 0, 0, 0, 0)
        with arena.share(size=4 * PAGE):
            assert await arena.trim() == 4 * PAGE, "what is kept stays"


@pytest.mark.parametrize("kept", [-0.1, 1, 1.5])
def test_not_all_can_be_kept(kept: float) -> None:
    with pytest.raises(ValueError, match="kept must be from 0 to less than 1"):
        Arena(PAGE, kept=kept)


# --- what is refused ----------------------------------------------------------------------------------------


async def test_what_is_impossible_is_refused() -> None:
    async with Arena(4 * PAGE) as arena:
        for size, weight, message in (
            (-1, 1, "size must not be negative, as -1 is"),
            (0, 0, "weight must be from"),
        ):
            with pytest.raises(ValueError, match=message):
                arena.share(size=size, weight=weight)
        with arena.share(size=100) as rounded, arena.share(weight=0.5) as share:
            assert (rounded.size, share.size, share.in_use, share.weight) == (PAGE, 0, 0, 0.5)
            for length, least in ((0, None), (-1, None), (PAGE, 0), (PAGE, PAGE + 1)):
                with pytest.raises(ValueError, match="must be"):
                    await share.acquire(length, at_least=least)
            with pytest.raises(MemoryError, match=f"no block of the arena is as large as {5 * PAGE}"):
                await share.acquire(5 * PAGE)
            with pytest.raises(
                MemoryError,
                match=f"promised {4 * PAGE} bytes: of the arena's {4 * PAGE} bytes, {PAGE} are promised to"
                f" others, and {3 * PAGE} left in a row",
            ):
                arena.share(size=4 * PAGE)
            assert repr(rounded) == f"<ArenaShare of {PAGE} bytes, 0 in use>"
    with pytest.raises(aioblk.UsageError, match="cannot have a share of a closed arena"):
        arena.share()


# --- weights ------------------------------------------------------------------------------------------------


async def test_shares_that_wait_get_bytes_by_their_weights() -> None:
    log: list[int] = []
    async with Arena(4 * PAGE) as arena:

        async def client(number: int, weight: float, length: int) -> None:
            with arena.share(weight=weight) as share:

                async def work() -> None:
                    while len(log) < 200:
                        with await share.acquire(length):
                            log.append(number)
                            await asyncio.sleep(0)

                await asyncio.gather(*(work() for _ in range(8)))

        await asyncio.gather(client(0, 1, PAGE), client(1, 3, 2 * PAGE))
    # Three times the bytes, in buffers of twice the size.
    assert 76 <= log[:200].count(0) <= 84


# --- the end of a share -------------------------------------------------------------------------------------


async def test_what_was_promised_is_the_arenas_again_when_no_buffer_of_it_is_in_use() -> None:
    async with Arena(4 * PAGE) as arena:
        share = arena.share(size=4 * PAGE)
        first, second = await share.acquire(PAGE), await share.acquire(PAGE)
        waiting = asyncio.create_task(arena.acquire(4 * PAGE))
        await turns()
        share.close()
        share.close()
        assert repr(share) == f"<ArenaShare closed of {4 * PAGE} bytes, {2 * PAGE} in use>"
        first[0] = 1
        first.release()
        view = memoryview(second)
        second.release()
        await turns()
        assert not waiting.done()
        assert arena.statistics().promised == 4 * PAGE
        view.release()
        with await waiting:
            assert arena.statistics().promised == 0


async def test_closing_a_share_refuses_who_waits_and_whoever_comes() -> None:
    async with Arena(4 * PAGE) as arena:
        share = arena.share(size=PAGE)
        with await share.acquire(PAGE), await arena.acquire(3 * PAGE):
            waiting = [asyncio.create_task(share.acquire(PAGE)) for _ in range(3)]
            await turns()
            share.close()
            for task in waiting:
                with pytest.raises(aioblk.UsageError, match="a closed share"):
                    await task
            with pytest.raises(aioblk.UsageError, match="a closed share"):
                await share.acquire(PAGE)


async def test_closing_the_arena_refuses_who_waits_and_closes_what_was_carved() -> None:
    async with Arena(4 * PAGE) as arena:
        share, ended = arena.share(size=PAGE), arena.share(size=PAGE)
        buffer, kept = await share.acquire(PAGE), await ended.acquire(PAGE)
        ended.close()
        with await arena.acquire(2 * PAGE):
            waiting = asyncio.create_task(share.acquire(PAGE))
            await turns()
            await arena.aclose()
            with pytest.raises(aioblk.UsageError, match="closed arena"):
                await waiting
    for each in (buffer, kept):
        with pytest.raises(ValueError, match="closed"):
            bytes(each)
    with pytest.raises(aioblk.UsageError, match="closed arena"):
        await share.acquire(PAGE)
    share.close()


async def test_closing_the_arena_in_the_turn_in_which_memory_is_granted_refuses_it() -> None:
    arena = await Arena(PAGE).__aenter__()
    held = await arena.acquire(PAGE)
    waiting = asyncio.create_task(arena.acquire(PAGE))
    await turns()
    held.release()
    arena._memory.queue.serve()
    assert not arena._memory.queue.waiting
    arena._memory.closed = True
    with pytest.raises(aioblk.UsageError, match="closed arena"):
        await waiting
    assert arena.statistics().in_use == 0
    await arena.aclose()


async def test_who_does_not_wait_gets_nothing_of_an_arena_that_is_closed_or_being_closed() -> None:
    """Where its memory was is somebody else's by then, or nobody's."""
    async with Arena(4 * PAGE, kept=0.5) as arena:
        with arena.share(size=PAGE) as share:
            arena._memory.closed = True  # while devices are being detached
            with pytest.raises(aioblk.UsageError, match="closed arena"):
                share.acquire_nowait(PAGE)
            await arena.aclose()
            with pytest.raises(aioblk.UsageError, match="closed arena"):
                share.acquire_nowait(PAGE)
            assert share._own is not None
            assert share._own._take(PAGE) is None


async def test_a_block_with_a_share_is_not_removed() -> None:
    async with Arena(4 * PAGE) as arena:
        block = await arena.add_block(4 * PAGE)
        first, second = arena.share(size=4 * PAGE), arena.share(size=4 * PAGE)
        buffer = await second.acquire(PAGE)
        second.close()
        with pytest.raises(
            aioblk.UsageError, match="1 buffers of the block are in use, 1 of them by shares: close those"
        ):
            await arena.remove_block(block)
        buffer.release()
        await arena.remove_block(block)
        first.close()


async def test_a_share_that_is_forgotten_warns_and_leaves_nothing() -> None:
    async with Arena(4 * PAGE) as arena:
        share = arena.share(size=2 * PAGE)
        buffer = await share.acquire(PAGE)
        gc.disable()
        try:
            with pytest.warns(ResourceWarning, match="unclosed <ArenaShare of"):
                del share
            buffer[0] = 1
            del buffer
            assert arena.statistics().in_use == 0
        finally:
            gc.enable()
        with pytest.warns(ResourceWarning, match="unclosed <ArenaShare of"):
            arena.share()


async def test_buffers_of_a_share_come_back_in_any_thread() -> None:
    async with Arena(2 * PAGE) as arena:
        with arena.share(size=PAGE) as share, await arena.acquire(PAGE):
            for _ in range(20):
                held = await share.acquire(PAGE)
                waiting = asyncio.create_task(share.acquire(PAGE))
                await asyncio.to_thread(held.release)
                forgotten = await waiting
                waiting = asyncio.create_task(share.acquire(PAGE))
                await asyncio.sleep(0)
                del forgotten, waiting
                gone = threading.Thread(target=gc.collect)
                gone.start()
                gone.join()
                await turns()
                waiting = asyncio.create_task(share.acquire(PAGE))
                (await waiting).release()


async def test_acquiring_that_is_cancelled_in_the_turn_in_which_it_is_granted_loses_nothing() -> None:
    async with Arena(2 * PAGE) as arena:
        with arena.share(size=PAGE) as share, await arena.acquire(PAGE):
            held = await share.acquire(PAGE)
            tasks = [asyncio.create_task(share.acquire(PAGE)) for _ in range(5)]
            await turns()
            held.release()
            arena._memory.queue.serve(share._lane)
            for task in tasks[:4]:
                task.cancel()
            (await tasks[4]).release()
            assert share.in_use == 0


async def test_who_was_refused_is_kept_by_nobody() -> None:
    async with Arena(PAGE) as arena:
        with await arena.acquire(PAGE):
            share = arena.share()
            gc.disable()
            try:
                waiting = asyncio.create_task(share.acquire(PAGE))
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
    share: aioblk.ArenaShare
    size: int
    waiting: list[int] = field(default_factory=list)
    held: list[aioblk.ArenaBuffer] = field(default_factory=list)
    closed: bool = False


class ArenaSharesMachine(RuleBasedStateMachine):
    """Clients take pages, give them back here or in another thread, are cancelled and closed."""

    loop_name = "asyncio"
    pages = 12
    kept = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.driven = DrivenLoop(self.loop_name)
        self.arena = Arena(self.pages * PAGE, kept=self.kept)
        self.clients: list[Client] = []
        self.tasks: list[asyncio.Task[aioblk.ArenaBuffer]] = []
        self.cancelled: set[int] = set()

    @initialize()
    def enter_arena(self) -> None:
        self.driven.loop.run_until_complete(self.arena.__aenter__())

    def teardown(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.driven.settle(8)
        for client in self.clients:
            client.share.close()
            for buffer in client.held:
                buffer.release()
        for task in self.tasks:
            if not task.cancelled() and task.exception() is None:
                task.result().release()
        assert self.arena.statistics().in_use == self.arena.statistics().promised == 0
        self.driven.loop.run_until_complete(self.arena.aclose())
        self.driven.close()

    @precondition(lambda self: len(self.clients) < 5)
    @rule(pages=st.integers(0, 4), weight=st.sampled_from([0.01, 1.0, 4.0]))
    def open(self, pages: int, weight: float) -> None:
        memory = self.arena._memory
        sources = [*memory._kept.values()] if self.kept else self.arena.blocks
        longest = max(source._longest_room for source in sources)
        try:
            share = self.arena.share(size=pages * PAGE, weight=weight)
        except MemoryError:
            assert pages * PAGE > longest
        else:
            self.clients.append(Client(share, pages))

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), pages=st.integers(1, 4), exact=st.booleans())
    def acquire(self, data: st.DataObject, pages: int, exact: bool) -> None:
        client = data.draw(st.sampled_from(self.clients))
        number = len(self.tasks)
        least = pages * PAGE if exact else PAGE
        at_once = (
            not client.waiting
            and not client.closed
            and client.size
            and client.share._own is not None
            and client.share._own._longest_room >= least
        )
        taking = client.share.acquire(pages * PAGE, at_least=least)
        self.tasks.append(self.driven.loop.create_task(taking))
        client.waiting.append(number)
        self.driven.settle(1)
        if at_once or client.closed:
            assert self.tasks[number].done()
        self.look()

    @precondition(lambda self: any(client.held for client in self.clients))
    @rule(data=st.data(), cancels=st.booleans(), elsewhere=st.booleans())
    def release(self, data: st.DataObject, cancels: bool, elsewhere: bool) -> None:
        client = data.draw(st.sampled_from([client for client in self.clients if client.held]))
        buffer = client.held.pop(data.draw(st.integers(0, len(client.held) - 1)))
        if elsewhere:
            thread = threading.Thread(target=buffer.release)
            thread.start()
            thread.join()
        else:
            buffer.release()
        if cancels:
            self.driven.settle(data.draw(st.integers(0, 2)))
            for each in self.clients:
                for number in each.waiting[:1]:
                    if self.tasks[number].cancel():
                        self.cancelled.add(number)
        self.look()

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(self.clients))
        client.share.close()
        client.closed = True
        self.look()

    def look(self) -> None:
        self.driven.settle(12)
        for client in self.clients:
            left = [number for number in client.waiting if number not in self.cancelled]
            served = [number for number in left if self.tasks[number].done()]
            assert served == left[: len(served)]
            for number in served:
                if not (client.closed and self.tasks[number].exception() is not None):
                    client.held.append(self.tasks[number].result())
            client.waiting = left[len(served) :]
        held = [(b.address, b.address + len(b)) for client in self.clients for b in client.held]
        held.sort()
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(held))

    @invariant()
    def what_is_promised_is_free_or_its_own(self) -> None:
        statistics = self.arena.statistics()
        promised = [client for client in self.clients if client.share._own and client.share._own._is_held]
        assert statistics.promised == sum(client.size for client in promised) * PAGE
        assert all(client in promised for client in self.clients if client.size and not client.closed)
        own = sum(client.share.in_use for client in self.clients)
        taken = sum(len(buffer) for client in self.clients for buffer in client.held)
        assert statistics.in_use == statistics.promised + taken - own
        assert taken - own <= (1 - self.kept) * self.pages * PAGE
        assert not any(client.closed and client.waiting for client in self.clients)


class UvloopArenaSharesMachine(ArenaSharesMachine):
    loop_name = "uvloop"


class KeepingArenaSharesMachine(ArenaSharesMachine):
    kept = 0.5


TestArenaSharesOnAsyncio = ArenaSharesMachine.TestCase
TestArenaSharesOnUvloop = UvloopArenaSharesMachine.TestCase
TestSharesOfAnArenaThatKeeps = KeepingArenaSharesMachine.TestCase
for _case in (TestArenaSharesOnAsyncio, TestArenaSharesOnUvloop, TestSharesOfAnArenaThatKeeps):
    _case.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
