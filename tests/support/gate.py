"""Devices and threads that are held while a test looks: what they are to do ends when they are released."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pytest

from aioblk._sync import blocking, threads
from aioblk.layers._begun import Begun
from aioblk.layers._counts import Operation
from aioblk.testing import MemoryDevice

__all__ = ["Gate", "ThreadGate"]

T = TypeVar("T")


class _Held(asyncio.Future[T]):
    """A request that a device has. Whose memory is the caller's ends with the device, cancelled or not."""

    def __init__(self, outcome: T | BaseException, memory: object) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._outcome = outcome
        self._memory = memory
        self._message: tuple[Any, ...] | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        if self._memory is None:
            return super().cancel(msg)
        if self.done():
            return False
        self._message = (msg,)
        return True

    def end(self) -> None:
        outcome, self._memory = self._outcome, None
        if self.done():
            return
        if self._message is not None:
            super().cancel(*self._message)
        elif isinstance(outcome, BaseException):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)


class Gate(MemoryDevice):
    """A device in memory. Requests wait while it is held: those on the caller's memory whatever comes, as
    those of a real one do."""

    def __init__(self, capacity: int, **options: Any) -> None:
        super().__init__(capacity, **options)
        self._held: list[_Held[Any]] = []
        self._holds = False

    def hold(self) -> None:
        self._holds = True

    def release(self) -> None:
        self._holds = False
        held, self._held = self._held, []
        for request in held:
            request.end()

    def _request(
        self,
        operation: Operation,
        outcome: Any,
        length: int = 0,
        keep: object = None,
        on_done: Callable[[bool], object] | None = None,
    ) -> Any:
        if not self._holds:
            return super()._request(operation, outcome, length, keep, on_done)
        request = _Held(outcome, keep)
        self._held.append(request)
        self._counts.add(request, operation, length)
        return Begun(request)


class ThreadGate:
    """Calls that are made in threads, which wait while it is held before they do anything."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.held = 0
        """How many calls have come while it was held."""
        self._is_open = threading.Event()
        self._is_open.set()
        patch.setattr(blocking, "call_in_thread", partial(self._call, threads.call_in_thread))

    def _call(self, start: Callable[[Callable[[], object]], object], function: Callable[[], object]) -> None:
        def wait_and_call() -> None:
            is_open.wait()
            function()

        is_open = self._is_open
        self.held += not is_open.is_set()
        start(wait_and_call if not is_open.is_set() else function)

    def hold(self) -> None:
        self._is_open = threading.Event()

    def release(self) -> None:
        self._is_open.set()
