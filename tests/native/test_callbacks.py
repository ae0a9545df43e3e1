"""Callbacks and hooks that do what they please while they are called, compared and collected."""

import contextvars
import gc
import sys
from typing import Any

import pytest

import aioblk
from aioblk._native._core import Submitter

from ..support.bench import BLOCK, Bench


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


class Leaving:
    """A callback that goes when it is compared, and is equal to all or to none."""

    def __init__(self, request: aioblk.Request[Any], *, equal: bool) -> None:
        self._request: aioblk.Request[Any] | None = request
        self._equal = equal
        request.add_done_callback(self)

    def __eq__(self, other: object) -> bool:
        request, self._request = self._request, None
        if request is not None:
            request.remove_done_callback(self)
        return self._equal

    def __hash__(self) -> int:
        return id(self)

    def __call__(self, _request: object) -> None:
        raise AssertionError


@pytest.mark.parametrize("count", [1, 2, 3])
def test_callbacks_that_go_while_they_are_compared(bench: Bench, count: int) -> None:
    request = bench.submitter.read(0, BLOCK)
    for _ in range(count):
        Leaving(request, equal=True)
    request.remove_done_callback(print)
    assert request.remove_done_callback(print) == 0
    request.cancel()


def test_who_goes_while_it_is_compared_takes_nobody_along(bench: Bench) -> None:
    request = bench.read()
    Leaving(request, equal=False)
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
