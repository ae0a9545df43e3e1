"""Requests of devices that are made of nothing but Python."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar, final

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
        on_done: Callable[[], object] | None = None,
        after: float = 0,
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop=loop)
        self._keep = keep
        self._on_done = on_done
        if after:
            self._timer: asyncio.Handle = loop.call_later(after, self._settle, outcome)
        else:
            self._timer = loop.call_soon(self._settle, outcome)

    def _settle(self, outcome: T | BaseException) -> None:
        self._keep = None
        if self._on_done is not None:
            self._on_done()
        if self.cancelled():
            return
        if isinstance(outcome, BaseException):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)

    def cancel(self, msg: Any | None = None) -> bool:
        """It was executed: only nobody waits for it any longer."""
        if self._on_done is None:
            self._keep = None
            self._timer.cancel()
        return super().cancel(msg)
