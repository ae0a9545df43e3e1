"""Threads that may be blocked are used again, keep nobody, and go by themselves."""

import contextvars
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from aioblk._sync import threads
from aioblk._sync.threads import NAME, call_in_thread, dismiss

PATIENCE = 15  # seconds; more than enough


class Called:
    """A function that says where it was called, and returns when it may."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.thread: int | None = None
        self.is_called = threading.Event()
        self.may_return = threading.Event()
        if at_once:
            self.may_return.set()

    def __call__(self) -> None:
        self.thread = threading.get_ident()
        self.is_called.set()
        assert self.may_return.wait(PATIENCE)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def wait_until_they_wait(count: int) -> None:
    """Until so many threads wait for more."""
    until = threading.Event()
    for _ in range(PATIENCE * 1000):
        if len(threads._waiting) == count:
            return
        until.wait(0.001)
    pytest.fail(f"{len(threads._waiting)} threads wait, not {count}")


def end() -> None:
    dismiss()
    for worker in workers():
        worker.join(PATIENCE)
    assert workers() == []


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(threads, "_PATIENCE", PATIENCE)  # so that how fast this machine is does not matter
    end()
    yield
    end()


def test_a_thread_that_is_done_is_used_again() -> None:
    first, second = Called(), Called()
    call_in_thread(first)
    wait_until_they_wait(1)
    call_in_thread(second)
    wait_until_they_wait(1)
    assert first.thread == second.thread
    assert len(workers()) == 1


def test_a_thread_that_is_blocked_holds_nobody_up() -> None:
    blocked, other = Called(at_once=False), Called()
    call_in_thread(blocked)
    assert blocked.is_called.wait(PATIENCE)
    call_in_thread(other)
    assert other.is_called.wait(PATIENCE)
    assert blocked.thread != other.thread
    blocked.may_return.set()


def test_few_of_many_wait_for_more() -> None:
    calls = [Called(at_once=False) for _ in range(threads._MOST + 3)]
    for call in calls:
        call_in_thread(call)
    for call in calls:
        assert call.is_called.wait(PATIENCE)
    before = workers()
    for call in calls:
        call.may_return.set()
    wait_until_they_wait(threads._MOST)
    for worker in before:
        if worker not in workers():
            worker.join(PATIENCE)
    assert len({call.thread for call in calls}) == len(calls)


def test_a_thread_that_waits_keeps_nothing_of_what_it_called() -> None:
    called = Called()
    gone = weakref.ref(called)
    call_in_thread(called)
    assert called.is_called.wait(PATIENCE)
    wait_until_they_wait(1)
    del called
    assert gone() is None


def test_nobody_waits_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_PATIENCE", 0.001)
    call_in_thread(Called())
    for worker in workers():
        worker.join(PATIENCE)
    assert workers() == []
    assert threads._waiting == []


def test_who_is_taken_as_its_patience_ends_does_the_work() -> None:
    """It is off the list already, and what it is to call comes only after it has looked."""

    class Late:
        def get(self, timeout: float) -> object:
            raise queue.Empty

        def get_nowait(self) -> object:
            return called

    called = Called()
    assert threads._next(cast(Any, Late())) is called


class Interrupting(list[Any]):
    """Of those who wait: runs something where somebody is taken off, as a signal or the collector may."""

    def __init__(self, waiting: list[Any], what: Callable[[], object]) -> None:
        super().__init__(waiting)
        self._what: list[Callable[[], object]] = [what]  # once

    def pop(self, index: Any = -1) -> Any:
        hand = super().pop(index)
        self._run()
        return hand

    def append(self, hand: Any) -> None:
        super().append(hand)
        self._run()

    def _run(self) -> None:
        if self._what:
            self._what.pop()()


def test_who_was_taken_by_somebody_who_was_interrupted_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes any more, and nobody else knows of it."""
    monkeypatch.setattr(threads, "_PATIENCE", 0.001)

    def interrupt() -> None:
        raise KeyboardInterrupt

    hand: Any = threads._Hand()
    monkeypatch.setattr(threads, "_waiting", Interrupting([hand], interrupt))
    with pytest.raises(KeyboardInterrupt):
        call_in_thread(lambda: None)
    answers: list[object] = []
    waiter = threading.Thread(target=lambda: answers.append(threads._next(hand)), daemon=True)
    waiter.start()
    waiter.join(PATIENCE)
    assert answers == [None]


@pytest.mark.parametrize("place", ["taking", "waiting"])
def test_what_runs_in_between_may_call_in_threads_too(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """A signal's handler, or a finalizer that the collector calls."""
    monkeypatch.setattr(threads, "_PATIENCE", PATIENCE)
    called, inner = Called(), Called()
    if place == "taking":
        call_in_thread(Called())
        wait_until_they_wait(1)
    waiting = Interrupting(threads._waiting, lambda: call_in_thread(inner))
    monkeypatch.setattr(threads, "_waiting", waiting)
    call_in_thread(called)
    assert called.is_called.wait(PATIENCE)
    assert inner.is_called.wait(PATIENCE)
    end()  # of those on the list that is put away now


def test_what_a_call_sets_in_its_context_is_not_there_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_PATIENCE", PATIENCE)
    variable = contextvars.ContextVar("variable", default=0)
    seen: list[int] = []
    for number in (1, 2):

        def look(number: int = number) -> None:
            seen.append(variable.get())
            variable.set(number)

        call_in_thread(look)
        wait_until_they_wait(1)
    assert len(workers()) == 1
    assert seen == [0, 0]


def test_dismissed_at_work_it_goes_when_that_is_done() -> None:
    blocked = Called(at_once=False)
    call_in_thread(blocked)
    assert blocked.is_called.wait(PATIENCE)
    [worker] = workers()
    dismiss()
    assert worker.is_alive()
    blocked.may_return.set()
    worker.join(PATIENCE)
    assert not worker.is_alive()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_process_has_no_threads_to_hand_work_to() -> None:
    call_in_thread(Called())
    wait_until_they_wait(1)
    child = os.fork()
    if child == 0:
        called = Called()
        call_in_thread(called)
        os._exit(0 if called.is_called.wait(PATIENCE) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
