"""Objects that run code where nobody expects any: each is a way in, from within a call of aioblk.

Whatever comes in calls let_in()'s function with the name of the way.
"""

import asyncio
import contextlib
import gc
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

__all__ = [
    "Buffer",
    "Callback",
    "Flag",
    "Loop",
    "Message",
    "Name",
    "Number",
    "Segments",
    "batch",
    "let_in",
    "listen_to_the_collector",
    "make_cycle",
    "make_task",
    "watch_weakly",
]

T = TypeVar("T")


def _nobody(_way: str) -> None: ...


_come_in: Callable[[str], None] = _nobody


def let_in(function: Callable[[str], None]) -> None:
    """What every way in leads to from now on."""
    global _come_in
    _come_in = function


class Buffer(bytearray):
    """Memory for requests."""

    def __del__(self) -> None:
        _come_in("__del__ of a buffer")

    # These are called from Python 3.12 on.
    def __buffer__(self, flags: int) -> memoryview:
        _come_in("__buffer__")
        return super().__buffer__(flags)

    def __release_buffer__(self, view: memoryview) -> None:
        super().__release_buffer__(view)
        _come_in("__release_buffer__")


class Number:
    """An offset or a length."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        _come_in("__index__")
        return self.value


class Flag:
    """For fua, no_unmap, return_exceptions."""

    def __init__(self, value: bool) -> None:
        self.value = value

    def __bool__(self) -> bool:
        _come_in("__bool__")
        return self.value


class Name(str):
    """A keyword."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        _come_in("__eq__ of a keyword")
        return str(self) == other

    def __hash__(self) -> int:
        _come_in("__hash__ of a keyword")
        return super().__hash__()


class Message:
    """What a request is cancelled with."""

    def __str__(self) -> str:
        _come_in("__str__ of a message")
        return "cancelled"

    def __del__(self) -> None:
        _come_in("__del__ of a message")


class Callback:
    """For when a request is done."""

    def __init__(self, equal: bool = False) -> None:
        self.equal = equal

    def __call__(self, _request: object) -> None:
        _come_in("a callback")

    def __eq__(self, other: object) -> bool:
        _come_in("__eq__ of a callback")
        return self.equal and isinstance(other, Callback)

    def __hash__(self) -> int:
        _come_in("__hash__ of a callback")
        return 1

    def __del__(self) -> None:
        _come_in("__del__ of a callback")


class Segments(Sequence[T], Generic[T]):
    """Buffers for readv and writev; the sequence changes its mind about how many there are."""

    def __init__(self, items: Sequence[T], length: int) -> None:
        self.items = items
        self.length = length

    def __len__(self) -> int:
        _come_in("__len__ of a sequence")
        return self.length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> Any:
        _come_in("__getitem__ of a sequence")
        return self.items[index]

    def __iter__(self) -> Iterator[T]:
        for item in self.items:
            _come_in("a generator of a sequence")
            yield item


def batch(pairs: Iterable[T]) -> Iterator[T]:
    """For read_many and its like."""
    for pair in pairs:
        _come_in("a generator of a batch")
        yield pair


class Loop(asyncio.SelectorEventLoop):
    """An event loop that does more than it should."""

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        with contextlib.suppress(Exception):  # or asyncio itself would lose the task that it was to wake
            _come_in("call_soon")
        return super().call_soon(callback, *args, context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        with contextlib.suppress(Exception):  # or it would end asyncio's own run_forever()
            _come_in("call_exception_handler")
        super().call_exception_handler(context)


class _Task(asyncio.Task[Any]):
    """Of those that are all Python, asyncio's functions know nothing from CPython 3.14 on."""


def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
    """A task in Python, which aioblk cannot wake directly; or as much of it as goes."""
    kind: Any = asyncio.tasks._PyTask if sys.version_info < (3, 14) else _Task  # type: ignore[attr-defined]
    task: asyncio.Task[Any] = kind(coroutine, loop=loop, **options)
    return task


def make_cycle() -> None:
    """Something that only the collector finds."""
    one = Callback()
    one.itself = one  # type: ignore[attr-defined]


def watch_weakly(thing: Any) -> None:
    """For when the thing goes."""
    weakref.finalize(thing, lambda: _come_in("a weakref"))


def listen_to_the_collector() -> None:
    """For the rest of the process."""
    gc.callbacks.append(lambda phase, _information: _come_in(f"the collector's {phase}"))
