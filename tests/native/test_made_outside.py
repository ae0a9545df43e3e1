"""Changes that are made outside libblkio by a hook, and what waits for those that were given up."""

import asyncio
import os
from contextlib import suppress
from typing import Any

import pytest

import aioblk
from aioblk._native._core import QueueCore, Submitter

from ..support.bench import BLOCK, Bench


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


def test_a_lost_queue_holds_nothing(outside: Bench) -> None:
    """Not even for what another one has given up: nothing is in flight on it."""
    core: Any = outside.core
    core.on_discard = lambda *_: None
    discard = outside.submitter.discard(0, BLOCK)
    discard.cancel()
    loop: Any = outside.loop
    lost = QueueCore(outside.device, 1, -1, loop, 8)
    lost.abandon(OSError("lost"))
    submitter = Submitter()
    submitter._core = lost
    with pytest.raises(OSError, match="refused"):
        submitter.read(0, BLOCK)
    assert lost.in_flight == 0
    core.complete(discard, 0, None)


def test_a_lost_queue_refuses_a_request_of_several_parts(outside: Bench) -> None:
    bench = Bench(max_transfer=BLOCK)
    loop: Any = outside.loop
    lost = QueueCore(bench.device, 1, -1, loop, 8)
    lost.abandon(OSError("lost"))
    bench.submitter._core = lost
    with pytest.raises(OSError, match="refused"):
        bench.submitter.read(0, 3 * BLOCK)
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
    core.suspend()
    core.flush()
    assert core.in_flight == 0


def test_a_report_of_zones_that_was_given_up_is_in_nobodys_way(bench: Bench) -> None:
    report = bench.submitter._report_zones(0, 1)
    report.cancel()
    assert report.cancelled()
    assert not bench.device.has_given_up


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
