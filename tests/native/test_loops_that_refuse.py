"""A loop may take no callback: it is closed, it has no memory, or Ctrl-C arrives within.

The loop here does what a test says, and the queue is suspended: nothing reaches a device.
"""

import asyncio
import contextvars
import ctypes
import functools
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import aioblk
from aioblk._native._core import Memory, QueueCore, Submitter, View

from ..support.devices import held as held_daemon
from ..support.refused_memory import new_device_core
from ..support.scripts import run_script
from ..support.storage_daemon import StorageDaemon

BLOCK = 512


class Loop:
    """Keeps what it is asked to call; raises, instead, what is in ``errors``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self.errors: list[BaseException] = []
        self.before: Callable[[], object] | None = None  # called within the next call_soon
        self.reported: list[dict[str, Any]] = []

    def get_debug(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., object], *arguments: Any, context: Any = None) -> object:
        before, self.before = self.before, None
        if before:
            before()
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

    def __init__(self, *, suspended: bool = True, **options: Any) -> None:
        self.loop = Loop()
        loop: Any = self.loop
        self.device = new_device_core(**options)
        self.core = QueueCore(self.device, 1, -1, loop, 8)
        if suspended:
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


def test_memory_that_was_found_before_its_hook_failed_is_used() -> None:
    bench = Bench(needs_regions=True)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    core: Any = bench.core

    def find(request: aioblk.Request[Any], need: int) -> None:
        core.attach_bounce(1 << 20, need, BLOCK)
        assert core.admit(request)
        raise OSError("too late")

    core.on_bounce = find
    request = bench.submitter.read(0, BLOCK)
    assert not request.done()
    assert core.bounce_in_use == BLOCK
    core.abandon(OSError("lost"))
    assert request.exception() is not None
    core.abandon_bounce()
    bench.end()
    asyncio._set_running_loop(None)


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
    late = other.read()
    other.loop.errors += [MemoryError(), MemoryError()]
    late.cancel()
    other.loop.errors[:] = [closed()]
    with pytest.raises(RuntimeError, match="closed"):
        other.core.admit(batch)
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


def test_who_waits_without_a_loop_is_told_first_that_the_device_is_lost() -> None:
    """Another thread has found that, and left it to this one."""
    core = QueueCore(new_device_core(), 1, -1, None, 8)
    core.suspend()
    submitter = Submitter()
    submitter._core = core
    request = submitter.read(0, BLOCK)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(core.abandon, OSError("lost")).result() == 0
    assert not request.done()
    assert core.wait(request, 0) is True
    assert isinstance(request.exception(), OSError)


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


# --- changes that are made outside libblkio -----------------------------------------------------------------


@pytest.fixture
def outside() -> Iterator[Bench]:
    """Discards are made by a hook; nothing reaches libblkio but what is never issued."""
    bench = Bench(suspended=False, discard_method=2)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    yield bench
    bench.core.suspend()
    bench.end()
    asyncio._set_running_loop(None)


def test_a_hook_for_discards_may_be_missing_or_fail(outside: Bench) -> None:
    core: Any = outside.core
    for hook in (None, lambda *_: 1 / 0):
        core.on_discard = hook
        with pytest.raises((RuntimeError, ZeroDivisionError)):
            outside.submitter.discard(0, BLOCK)
    assert core.in_flight == 0

    def complete(request: aioblk.Request[None], *_: int) -> None:
        core.complete(request, 0, None)
        raise OSError("too late")

    core.on_discard = complete
    with pytest.raises(OSError, match="too late"):
        outside.submitter.discard(0, BLOCK)
    assert core.in_flight == 0


def held(outside: Bench) -> aioblk.Request[None]:
    """A discard that waits for one that was cancelled; the queue is suspended, the other one over."""
    core: Any = outside.core
    core.on_discard = lambda *_: None
    first = outside.submitter.discard(0, BLOCK)
    first.cancel()
    second = outside.submitter.discard(0, BLOCK)
    core.suspend()
    core.complete(first, 0, None)
    assert not second.done()
    return second


@pytest.mark.parametrize("hook", ["none", "an error", "an order", "over before", "lost"])
def test_what_was_held_begins_as_if_it_were_submitted_now(outside: Bench, hook: str) -> None:
    request = held(outside)
    core: Any = outside.core

    def fail(error: BaseException) -> None:
        raise error

    def complete(_request: object, *_: int) -> None:
        core.complete(request, 0, None)
        raise OSError("too late")

    core.on_discard = {
        "none": None,
        "an error": lambda *_: fail(OSError("not now")),
        "an order": lambda *_: fail(KeyboardInterrupt()),
        "over before": complete,
        "lost": lambda *_: core.abandon(OSError("lost")),
    }[hook]
    if hook == "an order":
        with pytest.raises(KeyboardInterrupt):
            core.flush()
    core.flush()
    assert request.done()
    assert (request.exception() is None) == (hook == "over before")


def test_one_of_several_that_were_held_may_give_up_the_device(outside: Bench) -> None:
    request = held(outside)
    core: Any = outside.core
    core.on_discard = lambda *_: core.abandon(OSError("lost"))
    core.flush()
    assert request.done()


def test_what_was_held_may_be_cancelled(outside: Bench) -> None:
    request = held(outside)
    request.cancel()
    outside.core.flush()
    assert request.cancelled()
    assert outside.core.in_flight == 0


def test_an_error_may_be_asked_for_while_it_is_made() -> None:
    """Whoever asks gets the same one."""
    asked: list[BaseException | None] = []

    def make(*_: object) -> BaseException:
        if not asked:
            asked.append(None)
            asked.append(request.exception())
        return OSError("failed")

    bench = Bench(suspended=False, discard_method=2, make_error=make)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    core: Any = bench.core
    core.on_discard = lambda *_: None
    request = bench.submitter.discard(0, BLOCK)
    core.complete(request, 5, "failed")
    assert request.exception() is asked[1]
    core.suspend()
    bench.end()
    asyncio._set_running_loop(None)


@pytest.mark.parametrize("orders", [1, 5])
def test_an_order_while_an_error_is_made(orders: int) -> None:
    """Who waits is told in other words, if need be."""
    left = [KeyboardInterrupt()] * orders

    def make(*_: object) -> BaseException:
        if left:
            raise left.pop()
        return OSError("lost")

    bench = Bench(make_refusal=make)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    request = bench.read()
    bench.core.abandon(OSError("lost"))
    assert isinstance(request.exception(), OSError)
    with pytest.raises(KeyboardInterrupt):
        bench.core.flush()
    left.clear()
    bench.end()
    asyncio._set_running_loop(None)


# --- memory that requests use -------------------------------------------------------------------------------


def test_regions_whose_end_could_not_be_told() -> None:
    """It is told in a later turn, of each once more."""
    bench = Bench(needs_regions=True)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    device: Any = bench.device
    buffers = [bytearray(BLOCK) for _ in range(3)]
    addresses = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in buffers]
    told: list[int] = []
    refusals = [MemoryError(), MemoryError(), MemoryError(), MemoryError()]

    def tell(address: int) -> None:
        if refusals:
            raise refusals.pop()
        told.append(address)
        device.remove_region(address)

    device.on_region_idle = tell
    requests = []
    for other in (4096, 2**60):  # which nobody uses, and nobody gives back
        device.add_region(other, BLOCK)
    for buffer, address in zip(buffers, addresses, strict=True):
        device.add_region(address, BLOCK)
        requests.append(bench.submitter.read_into(0, buffer))
        assert device.retire_region(address) == 1
    bench.core.abandon(OSError("lost"))
    for _ in range(6):
        bench.core.flush()
    assert sorted(told) == sorted(addresses)
    assert device.region_count == 2
    for request in requests:
        request.exception()
    bench.end()
    asyncio._set_running_loop(None)


def test_a_part_that_was_refused_and_one_that_is_lost() -> None:
    """The first error counts."""
    bench = Bench(needs_regions=True, bounce_cap=BLOCK)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    core: Any = bench.core
    core.on_bounce = None
    with pytest.raises(RuntimeError, match="no bounce pool"):
        bench.submitter.read(0, BLOCK).result()
    core.attach_bounce(1 << 20, BLOCK, BLOCK)
    core.on_bounce = lambda *_: None
    request = bench.submitter.read(0, 2 * BLOCK)
    core.refuse(request, OSError("no room"))
    assert not request.done()
    core.abandon(OSError("lost"))
    with pytest.raises(OSError, match="no room"):
        request.result()
    core.abandon_bounce()
    core.abandon_bounce()
    bench.end()
    asyncio._set_running_loop(None)


def test_a_part_that_was_refused_and_one_that_nobody_wants_any_more() -> None:
    bench = Bench(needs_regions=True, bounce_cap=BLOCK)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    core: Any = bench.core
    core.attach_bounce(1 << 20, BLOCK, BLOCK)
    core.on_bounce = lambda *_: None
    request = bench.submitter.read(0, 2 * BLOCK)
    core.refuse(request, OSError("no room"))
    request.cancel()
    core.flush()
    assert request.cancelled()
    assert (core.in_flight, core.bounce_in_use) == (0, 0)
    bench.end()
    asyncio._set_running_loop(None)


def test_who_refers_to_memory_of_requests_can_be_asked(bench: Bench) -> None:
    buffers = [bytearray(BLOCK) for _ in range(3)]
    batch = bench.submitter.write_many([(0, buffer) for buffer in buffers])
    several = bench.submitter.readv(0, buffers)
    for buffer in buffers:
        referrers = gc.get_referrers(buffer)
        assert any(each is batch for each in referrers)
        assert any(each is several for each in referrers)


# --- hooks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError, MemoryError, KeyboardInterrupt])
def test_a_hook_that_fails(bench: Bench, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", printed.append)
    errors = [error("arrived")]
    calls: list[int] = []

    def idle() -> None:
        calls.append(1)
        if errors:
            raise errors.pop()

    bench.core.on_idle = idle
    bench.read().cancel()
    orders = 0
    for _ in range(4):
        try:
            bench.core.flush()
        except KeyboardInterrupt:
            orders += 1
    assert len(printed) == (error is OSError)
    assert orders == (error is KeyboardInterrupt)
    assert len(calls) == 1 + (error is not OSError)


class Fleeting:
    """A callback that is equal to all, and gone when that is found out."""

    def __init__(self, request: aioblk.Request[Any]) -> None:
        self._request: aioblk.Request[Any] | None = request
        request.add_done_callback(self)

    def __eq__(self, other: object) -> bool:
        request, self._request = self._request, None
        if request is not None:
            request.remove_done_callback(self)
        return True

    def __hash__(self) -> int:
        return id(self)

    def __call__(self, _request: object) -> None:
        raise AssertionError


@pytest.mark.parametrize("count", [1, 2, 3])
def test_callbacks_that_go_while_they_are_compared(bench: Bench, count: int) -> None:
    request = bench.submitter.read(0, BLOCK)
    for _ in range(count):
        Fleeting(request)
    request.remove_done_callback(print)
    assert request.remove_done_callback(print) == 0
    request.cancel()


class Leaving:
    """A callback that goes when it is compared, and is equal to none."""

    def __init__(self, request: aioblk.Request[Any]) -> None:
        self._request: aioblk.Request[Any] | None = request
        request.add_done_callback(self)

    def __eq__(self, other: object) -> bool:
        request, self._request = self._request, None
        if request is not None:
            request.remove_done_callback(self)
        return False

    def __hash__(self) -> int:
        return id(self)

    def __call__(self, _request: object) -> None:
        raise AssertionError


def test_who_goes_while_it_is_compared_takes_nobody_along(bench: Bench) -> None:
    request = bench.read()
    Leaving(request)
    for _ in range(2):
        request.add_done_callback(bench.called.append)
    assert request.remove_done_callback(print) == 0
    request.cancel()
    bench.loop.run()
    assert bench.called == [request] * 3


class Answering(Submitter):
    def _refuse_unopened(self, operation: str) -> None:
        """It should raise."""


def test_a_device_that_does_not_say_that_it_is_not_open() -> None:
    with pytest.raises(RuntimeError, match="not open"):
        Answering().read(0, BLOCK)


def test_the_first_builtin_that_waits_is_no_task(scratch_file: Path) -> None:
    run_script(
        """
        import asyncio, sys
        import aioblk

        async def main():
            async with aioblk.IoUring(sys.argv[1]) as device:
                called, reported = [], []
                asyncio.get_running_loop().set_exception_handler(lambda _, what: reported.append(what))
                request = device.read_into(0, bytearray(4096))
                request = device.read_into(0, bytearray(4096))
                request.add_done_callback(str.maketrans)  # of no object, and content with no request
                while not reported:
                    await asyncio.sleep(0)
                request = device.read_into(0, bytearray(4096))
                request = device.read_into(0, bytearray(4096))
                request.add_done_callback(called.append)
                request.add_done_callback(print)
                request.add_done_callback(asyncio.current_task().set_name)
                while not called:
                    await asyncio.sleep(0)
                await asyncio.sleep(0)
                assert called == [request]
                assert asyncio.current_task().get_name() == str(request)

        asyncio.run(main())
        """,
        scratch_file,
    )


# --- callbacks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["cancelled", "removed"])
def test_the_collector_may_run_anything_while_a_callback_is_added(bench: Bench, change: str) -> None:
    """Where making room for it collects, that may end the request, or remove the callback."""
    request = bench.read()

    class Garbage:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            if change == "cancelled":
                request.cancel()
            else:
                request.remove_done_callback(bench.called.append)

    add, callback = request.add_done_callback, bench.called.append
    context, threshold = contextvars.copy_context(), gc.get_threshold()
    gc.collect()
    gc.disable()
    Garbage()
    kept = [[(number, None)] for number in range(3000)]  # more than Python keeps of what was freed
    gc.set_threshold(1)
    gc.enable()
    add(callback, context=context)
    gc.set_threshold(*threshold)
    assert len(kept) == 3000
    request.cancel()
    bench.loop.run()
    # From 3.12 on the collector runs after the call, and finds the callback that it removes.
    times = {"cancelled": 2, "removed": 1 if sys.version_info < (3, 12) else 0}[change]
    assert bench.called == [request] * times


def test_more_are_woken_than_a_turn_may_wake(bench: Bench) -> None:
    """The others in the next one."""
    requests = [bench.read() for _ in range(600)]
    bench.core.abandon(OSError("lost"))
    bench.loop.run()
    assert bench.called == requests[::-1]
    bench.called.clear()


def test_those_that_a_turn_did_not_wake_are_woken_in_the_next() -> None:
    bench = Bench()
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    requests = [bench.read() for _ in range(600)]
    for request in requests:
        bench.loop.errors.append(MemoryError())
        request.cancel()
        bench.loop.errors.clear()
    bench.loop.calls.clear()
    bench.core.flush()
    assert len(bench.loop.calls) == 512 + 1  # and the next turn
    bench.loop.run()
    assert bench.called == requests
    bench.end()
    asyncio._set_running_loop(None)


def test_who_submits_is_not_concerned_with_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that were to be woken meanwhile, an error is printed."""
    printed: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", printed.append)
    request = bench.read()
    bench.loop.errors.append(MemoryError())
    request.cancel()
    bench.loop.errors.append(closed())
    bench.submitter.read(0, BLOCK).cancel()
    assert len(printed) == 1
    assert bench.called == []


def waiting(bench: Bench, request: aioblk.Request[Any], **options: Any) -> asyncio.Task[None]:
    """A task on the loop that waits for the request."""

    async def wait() -> None:
        await request

    loop: Any = bench.loop
    calls, bench.loop.calls = bench.loop.calls, []
    task = asyncio.Task(wait(), loop=loop, **options)
    bench.loop.run()
    bench.loop.calls = calls
    assert not task.done()
    return task


def test_a_task_in_whose_context_somebody_runs_is_woken_by_the_loop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody may enter a context twice."""
    monkeypatch.delitem(sys.modules, "anyio._backends._asyncio", raising=False)
    context, inner = contextvars.copy_context(), contextvars.copy_context()
    request = bench.submitter.read_into(0, bytearray(BLOCK))
    task = waiting(bench, request, context=context)
    assert request.cancel()
    bench.loop.calls.clear()
    context.run(inner.run, bench.core.flush)
    assert request.done()
    assert not task.done()
    bench.loop.run()
    assert task.cancelled()


def test_a_task_that_runs_its_loop_may_end_what_others_wait_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are woken meanwhile, by the loop: the task may be waiting for them."""
    monkeypatch.delitem(sys.modules, "anyio._backends._asyncio", raising=False)
    request, other = bench.submitter.read_into(0, bytearray(BLOCK)), bench.read()

    async def wait() -> None:
        with suppress(asyncio.CancelledError):
            await request
        bench.core.flush()  # as the loop does when it is run from here
        bench.loop.calls.clear()
        other.cancel()
        bench.loop.run()
        assert bench.called == [other]

    loop: Any = bench.loop
    bench.loop.calls.clear()
    task = asyncio.Task(wait(), loop=loop)
    bench.loop.run()
    request.cancel()
    bench.core.flush()
    assert task.done()
    task.result()


# --- waiting although cancelled ---------------------------------------------------------------------------


def test_shields_that_cannot_be_had(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where anyio is in use, who waits although it is cancelled is shielded; that fails, and is said."""
    importlib.import_module("anyio._backends._asyncio")
    monkeypatch.setitem(sys.modules, "aioblk._sync.scopes", None)
    printed: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", printed.append)
    request = bench.submitter.read_into(0, bytearray(BLOCK))
    assert request.throw(asyncio.CancelledError) is request
    request.add_done_callback(bench.called.append)
    assert request.cancel()
    assert len(printed) == 1
    with pytest.raises(ValueError, match="thrown"):
        request.throw(ValueError("thrown"))
    request.close()
    assert len(printed) == 3
    bench.core.abandon(OSError("lost"))
    bench.loop.run()
    assert not request.cancel()
    assert bench.called == [request]


def test_a_task_that_cannot_be_shielded_goes_on_waiting(bench: Bench) -> None:
    """The loop takes no call for it, nor would it take another."""
    importlib.import_module("anyio._backends._asyncio")
    request = bench.submitter.read_into(0, bytearray(BLOCK))
    task = waiting(bench, request)
    bench.loop.errors.append(closed())
    assert request.cancel()
    assert not bench.loop.errors
    bench.end()
    assert task.cancelled()


def test_a_task_that_cannot_be_shielded_may_be_lost_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the loop looks for memory, the request ends; then the loop is closed."""
    importlib.import_module("anyio._backends._asyncio")
    printed: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", printed.append)
    request = bench.submitter.read_into(0, bytearray(BLOCK))
    task: Any = waiting(bench, request)
    bench.loop.before = lambda: bench.core.abandon(OSError("lost"))
    bench.loop.errors += [MemoryError(), closed()]
    assert request.cancel()
    assert not bench.loop.errors
    assert len(printed) == 1
    assert request.cancelled()
    assert not task.done()
    task._log_destroy_pending = False


def test_a_request_without_a_loop_needs_no_shield() -> None:
    importlib.import_module("anyio._backends._asyncio")
    core = QueueCore(new_device_core(), 1, -1, None, 8)
    core.suspend()
    submitter = Submitter()
    submitter._core = core
    request = submitter.read_into(0, bytearray(BLOCK))
    assert request.cancel()
    assert not request.done()
    core.abandon(OSError("lost"))
    assert request.cancelled()


# --- odds -------------------------------------------------------------------------------------------------


def test_a_comparison_that_fails(bench: Bench) -> None:
    class Unequal:
        def __eq__(self, other: object) -> bool:
            raise ArithmeticError

        __hash__ = None  # type: ignore[assignment]

        def __call__(self, _request: object) -> None: ...

    request = bench.submitter.read(0, BLOCK)
    for _ in range(2):
        request.add_done_callback(Unequal())
        with pytest.raises(ArithmeticError):
            request.remove_done_callback(print)
    request.cancel()


def test_pairs_may_be_in_a_tuple(bench: Bench) -> None:
    batch = bench.submitter.read_many(((0, BLOCK), (BLOCK, BLOCK)))
    assert repr(batch) == "<Request batch of read, items=2 pending>"
    batch.cancel()


def test_lengths_beyond_all_memory(bench: Bench) -> None:
    with pytest.raises(MemoryError, match="9223372036854775296 bytes of a read"):
        bench.submitter.read(0, 2**63 - 512)
    views = [View(Memory(4096, 1 << 62)) for _ in range(3)]
    with pytest.raises(OSError, match="refused"):
        bench.submitter.writev(0, views)


def test_a_file_that_tells_no_length_is_zeroed_like_a_disk(bench: Bench) -> None:
    bench.device.file_fd = 2**31 - 1
    request = bench.submitter.write_zeroes(0, 2 * BLOCK)
    assert not request.done()
    bench.core.abandon(OSError("lost"))
    assert isinstance(request.exception(), OSError)


def test_bounce_memory_that_holds_no_block() -> None:
    bench = Bench(needs_regions=True, bounce_cap=BLOCK // 2)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    with pytest.raises(OSError, match="refused"):
        bench.submitter.read(0, BLOCK)
    bench.end()
    asyncio._set_running_loop(None)


def test_an_order_while_memory_is_sought() -> None:
    bench = Bench(needs_regions=True)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)

    def arrive(*_: object) -> None:
        raise KeyboardInterrupt

    bench.core.on_bounce = arrive
    with pytest.raises(KeyboardInterrupt):
        bench.submitter.read(0, BLOCK)
    bench.core.flush()
    assert bench.core.in_flight == 0
    bench.end()
    asyncio._set_running_loop(None)


def test_an_order_while_memory_is_sought_for_what_was_held() -> None:
    bench = Bench(suspended=False, needs_regions=True, discard_method=2)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    core: Any = bench.core
    core.on_discard = lambda *_: None
    discard = bench.submitter.discard(0, BLOCK)
    discard.cancel()
    read = bench.submitter.read(0, BLOCK)

    def arrive(*_: object) -> None:
        raise KeyboardInterrupt

    core.on_bounce = arrive
    core.suspend()
    core.complete(discard, 0, None)
    with pytest.raises(KeyboardInterrupt):
        core.flush()
    assert isinstance(read.exception(), OSError)
    bench.end()
    asyncio._set_running_loop(None)


def test_a_lost_queue_holds_nothing(outside: Bench) -> None:
    """Not even for what another one has given up."""
    core: Any = outside.core
    core.on_discard = lambda *_: None
    discard = outside.submitter.discard(0, BLOCK)
    discard.cancel()
    loop: Any = outside.loop
    lost = QueueCore(outside.device, 1, -1, loop, 8)
    lost.abandon(OSError("lost"))
    submitter = Submitter()
    submitter._core = lost
    assert isinstance(submitter.read(0, BLOCK).exception(), OSError)
    core.complete(discard, 0, None)


def test_a_lost_queue_refuses_each_part(outside: Bench) -> None:
    bench = Bench(max_transfer=BLOCK)
    loop: Any = outside.loop
    lost = QueueCore(bench.device, 1, -1, loop, 8)
    lost.abandon(OSError("lost"))
    bench.submitter._core = lost
    assert isinstance(bench.submitter.read(0, 3 * BLOCK).exception(), OSError)
    assert lost.in_flight == 0


def test_how_long_a_zone_is_nobody_knows(outside: Bench) -> None:
    """So it meets whatever was given up."""
    core: Any = outside.core
    core.on_discard = lambda *_: None
    given_up = outside.submitter.discard(0, BLOCK)
    given_up.cancel()
    waiting = [
        outside.submitter._manage_zone("reset_zone", 1 << 20),
        outside.submitter._report_zones(1 << 20, 1),
    ]
    for request in waiting:
        assert not request.done()
        request.cancel()
        assert request.cancelled()
    core.complete(given_up, 0, None)
    assert core.in_flight == 0


def test_a_report_of_zones_that_was_given_up_is_in_nobodys_way(bench: Bench) -> None:
    report = bench.submitter._report_zones(0, 1)
    report.cancel()
    assert report.cancelled()
    assert not bench.device.has_given_up


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


def test_the_first_of_those_that_were_held_may_give_up_the_device(outside: Bench) -> None:
    core: Any = outside.core
    core.on_discard = lambda *_: None
    first = outside.submitter.discard(0, BLOCK)
    first.cancel()
    others = [outside.submitter.discard(0, BLOCK) for _ in range(3)]
    core.suspend()
    core.complete(first, 0, None)
    core.on_discard = lambda *_: core.abandon(OSError("lost"))
    core.flush()
    assert all(isinstance(each.exception(), OSError) for each in others)


def test_a_hook_that_was_deleted(outside: Bench) -> None:
    core: Any = outside.core
    with pytest.raises(RuntimeError, match="no hook"):
        outside.submitter.discard(0, BLOCK)
    request = held(outside)
    del core.on_discard
    core.flush()
    with pytest.raises(RuntimeError, match="no hook"):
        request.result()


def test_who_completes_is_told_of_a_closed_loop(outside: Bench) -> None:
    core: Any = outside.core
    core.on_discard = lambda *_: None
    request = outside.submitter.discard(0, BLOCK)
    request.add_done_callback(print)
    outside.loop.errors += [closed() for _ in range(3)]
    with pytest.raises(RuntimeError, match="closed"):
        core.complete(request, 0, None)
    assert request.done()


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 1e10])
def test_waiting_for_nothing_takes_no_time(seconds: float) -> None:
    core = QueueCore(new_device_core(), 1, -1, None, 8)
    assert core.wait(None, seconds) is False
    core.suspend()


def test_a_child_lets_go_of_nothing_that_was_held(outside: Bench) -> None:
    request = held(outside)
    called: list[object] = []
    core: Any = outside.core
    core.on_discard = lambda *_: called.append(1)
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            core.flush()
        os._exit(bool(called) or request.done())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    core.flush()
    assert called


class Waiting:
    """A queue without a loop: it waits for what another has given up, and has a region's end to tell."""

    def __init__(self) -> None:
        self.other = Bench(suspended=False, discard_method=2, needs_regions=True)
        self.device: Any = self.other.device
        self.core: Any = QueueCore(self.device, 1, -1, None, 8)
        submitter = Submitter()
        submitter._core = self.core
        loop: Any = self.other.loop
        asyncio._set_running_loop(loop)
        self._leave_a_region(submitter)
        other: Any = self.other.core
        self.core.on_discard = other.on_discard = lambda *_: None
        self._given_up = self.other.submitter.discard(0, BLOCK)
        self._given_up.cancel()
        self.waits = submitter.discard(0, BLOCK)

    def _leave_a_region(self, submitter: Submitter) -> None:
        buffer = bytearray(BLOCK)
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        self.device.add_region(address, BLOCK)
        self.core.suspend()
        request = submitter.read_into(0, buffer)
        self.device.retire_region(address)
        refusals = [MemoryError(), MemoryError()]

        def refuse(_address: int) -> None:
            raise refusals.pop()

        self.device.on_region_idle = refuse
        request.cancel()
        self.core.flush()
        assert request.cancelled()
        assert not refusals
        self.core.resume(1, -1, 8)

    def end(self) -> None:
        self.other.core.suspend()
        self.other.end()
        self.core.suspend()
        self.core.abandon(OSError("lost"))
        asyncio._set_running_loop(None)


@pytest.fixture
def waiting_queue() -> Iterator[Waiting]:
    queue = Waiting()
    yield queue
    queue.end()


def test_what_could_not_be_told_is_told_while_waiting(waiting_queue: Waiting) -> None:
    told: list[int] = []
    waiting_queue.device.on_region_idle = told.append
    assert waiting_queue.core.wait(None, 0.0) is False
    assert len(told) == 1


def test_what_is_told_while_waiting_may_give_up_the_device(waiting_queue: Waiting) -> None:
    core = waiting_queue.core
    waiting_queue.device.on_region_idle = lambda _: core.abandon(OSError("lost"))
    assert core.wait(None, -1.0) is False
    assert isinstance(waiting_queue.waits.exception(), OSError)


def test_a_signal_ends_waiting(waiting_queue: Waiting) -> None:
    """Its handler runs in between, and may raise."""

    def arrive(*_: object) -> None:
        raise ArithmeticError("arrived")

    before = signal.signal(signal.SIGUSR1, arrive)
    waiting_queue.device.on_region_idle = functools.partial(ctypes.CDLL(None)["raise"], signal.SIGUSR1)
    with pytest.raises(ArithmeticError, match="arrived"):
        waiting_queue.core.wait(None, -1.0)
    signal.signal(signal.SIGUSR1, before)
    assert not waiting_queue.waits.done()


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
