"""A request of a user: what is awaited, and the commands that it takes."""

import asyncio
from collections.abc import Generator
from types import TracebackType
from typing import Any, Protocol, TypeVar, final

from .commands import Command, NewBytes

__all__ = ["NbdRequest", "Owner", "new_request"]

T = TypeVar("T")


class Owner(Protocol):
    """Who has a request's commands."""

    def give_up(self, request: "NbdRequest[Any]", /) -> None:
        """Nobody waits for it any more, and its memory must not be touched again."""

    def fail_for_memory(self, request: "NbdRequest[Any]", /) -> None:
        """The same, and it fails: there is no memory for what it comes to."""


class NbdRequest(asyncio.Future[T]):
    """What is awaited.

    Cancelled, it is done at once: what the kernel has of it was copied, and what comes for it goes nowhere.
    """

    __slots__ = (
        *("_steps", "commands", "epoch", "flush_after", "is_flushing", "length", "offset", "operation"),
        *("owner", "pending", "value"),
    )

    owner: Owner
    operation: str
    offset: int | None
    length: int
    commands: tuple[Command, ...]
    pending: int
    """How many of the commands are not answered."""
    value: "NewBytes | T | None"
    """What it comes to."""
    flush_after: bool
    """Whether it is done only when a flush is that comes after it, since the server has no other way."""
    is_flushing: bool
    epoch: int
    """Before which break of the connections the first command was answered."""
    _steps: Generator[Any, None, T] | None

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        self.owner.give_up(self)
        return super().cancel(msg)


@final
class _CoroutineToo(NbdRequest[T]):
    """The same where a coroutine is wanted, for a task.

    asyncio.wait() refuses whatever looks like a coroutine, and create_task() whatever does not. The former
    puts its arguments into a set first: so what is hashed looks like a coroutine no more, as requests of
    libblkio's devices do (forms.c).
    """

    __slots__ = ()

    def __hash__(self) -> int:
        self.__class__ = NbdRequest  # type: ignore[assignment]
        return object.__hash__(self)

    def send(self, value: None, /) -> Any:
        if self._steps is None:
            self._steps = self.__await__()
        try:
            return next(self._steps)
        finally:
            del self  # which has the error that keeps this frame

    def throw(self, typ: Any, val: Any = None, tb: TracebackType | None = None, /) -> Any:
        error = typ if val is None else val
        try:
            if self._steps is None:  # the task that was made of this one was cancelled before its first step
                if self.done():
                    if not self.cancelled():
                        self.exception()  # nobody will ask for it any more
                else:
                    self.cancel()
                raise error
            return self._steps.throw(error)
        finally:
            del self, typ, val, error

    def close(self) -> None:
        """What was begun goes on."""
        if self._steps is not None:
            self._steps.close()


def new_request(loop: asyncio.AbstractEventLoop) -> NbdRequest[Any]:
    return _CoroutineToo(loop=loop)
