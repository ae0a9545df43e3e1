"""A loop may take no callback: it is closed, it has no memory, or Ctrl-C arrives within.

The loop here does what a test says, and the queue is suspended: nothing reaches a device.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import aioblk
from aioblk._native._core import QueueCore, Submitter

from ..support.refused_memory import new_device_core

BLOCK = 512


class Loop:
    """Keeps what it is asked to call; raises, instead, what is in ``errors``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self.errors: list[BaseException] = []
        self.reported: list[dict[str, Any]] = []

    def get_debug(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., object], *arguments: Any, context: Any = None) -> object:
        if self.errors:
            raise self.errors.pop(0)
        self.calls.append((callback, arguments))
        return self

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.reported.append(context)

    def run(self) -> None:
        while self.calls:
            callback, arguments = self.calls.pop(0)
            callback(*arguments)


class Bench:
    """A suspended queue on the loop."""

    def __init__(self, **options: Any) -> None:
        self.loop = Loop()
        loop: Any = self.loop
        self.core = QueueCore(new_device_core(**options), 1, -1, loop, 8)
        self.core.suspend()
        self.submitter = Submitter()
        self.submitter._core = self.core
        self.called: list[object] = []

    def read(self) -> aioblk.Request[bytes]:
        """It waits in the backlog, and somebody waits for it."""
        request = self.submitter.read(0, BLOCK)
        request.add_done_callback(self.called.append)
        return request

    def end(self) -> None:
        self.loop.errors.clear()
        self.core.abandon(OSError("lost"))
        self.loop.run()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    yield bench
    bench.end()
    asyncio._set_running_loop(None)


def closed() -> RuntimeError:
    return RuntimeError("Event loop is closed")


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


def test_memory_that_is_not_there_is_told_of_when_it_is_asked_for(bench: Bench) -> None:
    """The hook that finds bounce memory may be missing, and may fail."""
    other = Bench(needs_regions=True)
    loop: Any = other.loop
    asyncio._set_running_loop(loop)
    request = other.submitter.read(0, BLOCK)
    with pytest.raises(RuntimeError, match="no bounce pool"):
        request.result()

    def refuse(*_: object) -> None:
        raise OSError("no room")

    other.core.on_bounce = refuse
    with pytest.raises(OSError, match="no room"):
        other.submitter.read(0, BLOCK).result()

    def end(request: aioblk.Request[Any], _need: int) -> None:
        request.cancel()
        raise OSError("no room")

    other.core.on_bounce = end
    assert other.submitter.read(0, BLOCK).cancelled()
    other.end()
    asyncio._set_running_loop(loop)


@pytest.mark.parametrize("ending", ["admit", "refuse"])
def test_admission_tells_who_waits(bench: Bench, ending: str) -> None:
    other = Bench(needs_regions=True)
    loop: Any = other.loop
    asyncio._set_running_loop(loop)
    other.core.on_bounce = lambda *_: None
    request = other.read()
    batch = other.submitter.read_many([(0, BLOCK), (BLOCK, BLOCK)])
    assert not other.core.admit(request)
    other.loop.errors += [closed() for _ in range(5)]
    with pytest.raises(RuntimeError, match="closed"):
        other.core.refuse(request, OSError("no room"))
    other.loop.errors.clear()
    assert isinstance(request.exception(), OSError)
    batch.cancel()
    assert other.core.admit(batch)
    other.end()


def test_discards_outside_libblkio_need_their_hook() -> None:
    bench = Bench(discard_method=2)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    try:
        resumed: Any = bench.core
        for hook in (None, print):
            resumed.on_discard = hook
            with pytest.raises((RuntimeError, OSError)):
                bench.submitter.discard(0, BLOCK)
        assert bench.core.in_flight == 0
    finally:
        bench.end()
        asyncio._set_running_loop(None)


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


def test_waiting_is_for_the_thread_of_a_usable_queue() -> None:
    core = QueueCore(new_device_core(), 1, -1, None, 8)
    core.suspend()
    with pytest.raises(RuntimeError, match="usable queue"):
        core.wait(None, 0)
    with ThreadPoolExecutor(1) as thread, pytest.raises(RuntimeError, match="in its own thread"):
        thread.submit(core.wait, None, 0).result()


async def test_the_oldest_of_several(slow_device: aioblk.Device) -> None:
    """Of a batch, the first item that is not over is named."""
    core = slow_device.queue()._compiled
    batch = slow_device.read_many([(0, 0), (4096, 4096), (8192, 4096)])
    assert core.grow_older() == (1, "read", 4096, 4096)
    later = slow_device.read(0, 4096)
    core.flush()
    assert core.grow_older() == (2, "read", 4096, 4096)
    assert await batch == [b"", bytes(4096), bytes(4096)]
    await later
    assert core.grow_older() is None
