"""A loop may take no callback: it is closed, it has no memory, or Ctrl-C arrives within."""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import aioblk
from aioblk._native._core import QueueCore, Submitter
from aioblk.testing.storage_daemon import StorageDaemon

from ..support.bench import BLOCK, Bench, Loop, closed
from ..support.devices import held as held_daemon

ENDINGS: dict[str, Callable[[Bench, Any], object]] = {
    "cancel": lambda _, request: request.cancel(),
    "throw": lambda _, request: request.throw(asyncio.CancelledError),
    "abandon": lambda bench, _: bench.core.abandon(OSError("lost")),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_closed_loop_is_told_of(bench: Bench, ending: str) -> None:
    """Whoever ends a request whose waiters cannot be told is told that."""
    request = bench.read()
    others = [bench.read() for _ in range(2)]
    bench.loop.errors += [closed() for _ in range(10)]
    with pytest.raises((RuntimeError, asyncio.CancelledError)):
        ENDINGS[ending](bench, request)
    bench.loop.errors.clear()
    assert request.done()
    assert all(other.done() == (ending == "abandon") for other in others)


@pytest.mark.parametrize("ending", ["cancel", "abandon"])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, SystemExit])
def test_who_waits_is_told_later(bench: Bench, ending: str, error: type[BaseException]) -> None:
    """Once the loop takes it; an order is raised there, too."""
    request = bench.read()
    request.add_done_callback(bench.called.append)
    bench.loop.calls.clear()
    bench.loop.errors.append(error("arrived"))
    ENDINGS[ending](bench, request)
    assert request.done()
    orders = 0
    for _ in range(10):
        try:
            bench.core.flush()
        except (KeyboardInterrupt, SystemExit):
            orders += 1
        bench.loop.run()
    assert bench.called == [request, request]
    assert orders == (error is not MemoryError)


def test_who_waits_is_told_in_order_although_the_loop_refused_the_first(bench: Bench) -> None:
    for _ in range(3):
        bench.read()
    bench.loop.calls.clear()
    bench.loop.errors.append(MemoryError())
    bench.core.abandon(OSError("lost"))
    told: list[object] = []
    for _ in range(2):
        bench.core.flush()
        bench.loop.run()
        told = told or list(bench.called)
    assert len(told) == 3
    assert bench.called == told


def test_a_request_that_no_turn_is_taken_for_is_withdrawn(bench: Bench) -> None:
    bench.loop.errors.append(closed())
    with pytest.raises(RuntimeError, match="closed"):
        bench.submitter.read(0, BLOCK)
    assert bench.core.in_flight == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_that_nobody_retrieved_and_nobody_takes(
    bench: Bench, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", printed.append)
    request = bench.read()
    bench.core.abandon(OSError("lost"))
    bench.loop.run()
    bench.called.clear()
    bench.loop.errors.append(error("arrived"))
    del request
    if error is RuntimeError:
        assert len(printed) == 1
    else:
        with pytest.raises(KeyboardInterrupt):
            bench.loop.run()
        assert not printed


def test_an_order_in_another_thread_is_raised_in_the_main_one(bench: Bench) -> None:
    """Of a request that goes there, with an error that nobody retrieved."""
    requests = [bench.submitter.read(0, BLOCK)]
    bench.core.abandon(OSError("lost"))
    bench.loop.errors.append(KeyboardInterrupt("arrived"))
    thread = threading.Thread(target=requests.clear)

    def let_go() -> None:
        thread.start()
        thread.join()
        str(bench)  # an order arrives between two steps of a program

    with pytest.raises(KeyboardInterrupt):
        let_go()
    thread.join()


def test_several_orders_are_one_context(bench: Bench) -> None:
    """The second is raised, and says that the first came before it."""
    for _ in range(2):
        request = bench.read()
        bench.loop.errors.append(KeyboardInterrupt("arrived"))
        request.cancel()
    with pytest.raises(KeyboardInterrupt) as caught:
        bench.core.flush()
    assert isinstance(caught.value.__context__, KeyboardInterrupt)


def test_orders_upon_orders_end(bench: Bench) -> None:
    """A loop that never takes anything is asked twice, not for ever."""
    request = bench.read()
    bench.loop.calls.clear()
    bench.core.flush()
    bench.loop.errors += [KeyboardInterrupt(f"number {number}") for number in range(20)]
    request.cancel()
    assert len(bench.loop.errors) > 10
    bench.loop.errors.clear()
    with pytest.raises(KeyboardInterrupt):
        bench.core.flush()
    bench.core.flush()
    bench.loop.run()
    assert bench.called == [request]


def test_a_queue_that_is_gone_passes_its_order_on() -> None:
    bench = Bench()
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    request = bench.read()
    bench.loop.errors.append(KeyboardInterrupt("arrived"))
    request.cancel()
    bench.loop.calls.clear()
    asyncio._set_running_loop(None)
    with pytest.raises(KeyboardInterrupt):
        bench.core.flush()
    bench.end()


def test_what_was_refused_ends_in_a_later_turn_where_the_loop_has_taken_none(bench: Bench) -> None:
    other = Bench(needs_regions=True)
    loop: Any = other.loop
    asyncio._set_running_loop(loop)
    other.core.on_bounce = lambda *_: None
    request = other.read()
    batch = other.submitter.read_many([(0, BLOCK), (BLOCK, BLOCK)])
    other.loop.run()
    assert not other.core.admit(request)
    other.loop.errors += [MemoryError(), MemoryError()]
    other.core.refuse(request, OSError("no room"))
    batch.cancel()
    assert other.core.admit(batch)
    assert (request.done(), other.core.in_flight) == (False, 3)
    other.core.flush()
    assert isinstance(request.exception(), OSError)
    assert other.core.in_flight == 0
    other.loop.run()
    assert other.called == [request]
    other.end()


def test_who_completes_what_was_done_outside_is_told_of_a_closed_loop() -> None:
    bench = Bench(discard_method=2)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    core: Any = bench.core
    request = bench.read()
    core.refuse(request, OSError("it has been admitted"))
    assert not request.done()
    core.abandon_bounce()
    bench.end()
    core.suspend()
    with pytest.raises(RuntimeError, match="not suspended"):
        core.recall()
    asyncio._set_running_loop(None)


async def test_the_oldest_of_several(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    """Of a batch, the first item that is not over is named."""
    core = slow_device.queue()._compiled
    with held_daemon(slow_daemon):
        batch = slow_device.read_many([(0, 0), (4096, 4096), (8192, 4096)])
        assert core.grow_older() == (1, "read", 4096, 4096)
        later = slow_device.read(0, 4096)
        core.flush()
        assert core.grow_older() == (2, "read", 4096, 4096)
    assert await batch == [b"", bytes(4096), bytes(4096)]
    await later
    assert core.grow_older() is None


class OtherLoop(Loop):
    """Of another thread."""

    def call_soon_threadsafe(self, callback: Callable[..., object], *arguments: Any) -> object:
        return self.call_soon(callback, *arguments)


def test_an_order_while_another_thread_is_told(outside: Bench) -> None:
    """It is raised in the main thread, and the other one is told later."""
    core: Any = outside.core
    core.on_discard = lambda *_: None
    given_up = outside.submitter.discard(0, BLOCK)
    given_up.cancel()
    loop: Any = OtherLoop()
    submitter = Submitter()

    def wait() -> aioblk.Request[None]:
        asyncio._set_running_loop(loop)
        submitter._core = other = QueueCore(outside.device, 1, -1, loop, 8)
        resumed: Any = other
        resumed.on_discard = lambda request, *_: other.complete(request, 0, None)
        waiting = submitter.discard(0, BLOCK)
        other.suspend()
        return waiting

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(wait).result()
        loop.calls.clear()
        loop.errors.append(KeyboardInterrupt("arrived"))
        core.suspend()
        core.complete(given_up, 0, None)
        assert not loop.calls
        with pytest.raises(KeyboardInterrupt, match="arrived"):
            core.flush()
        core.flush()
        assert not waiting.done()
        thread.submit(loop.run).result()
        assert waiting.done()


def test_who_completes_is_told_of_a_closed_loop(outside: Bench) -> None:
    core: Any = outside.core
    core.on_discard = lambda *_: None
    request = outside.submitter.discard(0, BLOCK)
    request.add_done_callback(print)
    outside.loop.errors += [closed() for _ in range(3)]
    with pytest.raises(RuntimeError, match="closed"):
        core.complete(request, 0, None)
    assert request.done()


@pytest.mark.parametrize("content", [None, 0, 2**64 - 2])
def test_a_loop_that_takes_no_call_is_woken_by_an_event(content: int | None) -> None:
    """As by one of the device's, if that has events; there is room for one more, or there are plenty."""
    bench = Bench(suspended=False, discard_method=2)
    loop: Any = bench.loop
    event = os.eventfd(0, os.EFD_NONBLOCK)
    core: Any = QueueCore(bench.device, 1, -1 if content is None else event, loop, 8)
    submitter = Submitter()
    submitter._core = core
    asyncio._set_running_loop(loop)
    core.on_discard = lambda *_: None
    os.eventfd_write(event, content or 0)
    given_up = submitter.discard(0, BLOCK)
    given_up.cancel()
    waiting = submitter.discard(0, BLOCK)
    bench.loop.errors.append(closed())
    core.complete(given_up, 0, None)
    assert not bench.loop.errors
    if content is None:
        with pytest.raises(BlockingIOError):
            os.eventfd_read(event)
    else:
        assert os.eventfd_read(event) == max(content, 1)
    waiting.cancel()
    core.suspend()
    core.flush()
    core.abandon(OSError("lost"))
    os.close(event)
    bench.core.suspend()
    bench.end()
    asyncio._set_running_loop(None)
