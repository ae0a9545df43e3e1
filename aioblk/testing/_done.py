"""Requests of devices that are made of nothing but Python."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar, final

from .._sync.loops import running_loop

__all__ = ["Done"]

T = TypeVar("T")


@final
class Done(asyncio.Future[T]):
    """A request that was executed by its call, and whose outcome comes in a later turn of the loop, as that
    of a real device does. Buffers stay exported until then."""

    def __init__(
        self,
        outcome: T | BaseException,
        keep: object = None,
        on_done: Callable[[bool], object] | None = None,
    ) -> None:
        """*on_done* is called when it is done, with whether somebody has waited until then."""
        loop = running_loop("request")
        super().__init__(loop=loop)
        self._keep = keep
        self._on_done = on_done
        # With somebody to be told, a turn later: who cancels it at once has not seen it complete.
        settle = self._settle if on_done is None else self._settle_soon
        self._handle: asyncio.Handle | None = loop.call_soon(settle, outcome)

    def _settle_soon(self, outcome: T | BaseException) -> None:
        self._handle = running_loop("request").call_soon(self._settle, outcome)

    def _settle(self, outcome: T | BaseException) -> None:
        self._keep = self._handle = None  # which would keep this one, and what it has read
        if self._on_done is not None:
            self._on_done(not self.cancelled())
        if self.cancelled():
            return
        if isinstance(outcome, BaseException):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)

    def cancel(self, msg: Any | None = None) -> bool:
        """It was executed: only nobody waits for it any longer."""
        self._keep = None
        if self._on_done is None and self._handle is not None:
            self._handle.cancel()
            self._handle = None
        return super().cancel(msg)
