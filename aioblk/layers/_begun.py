"""What a call has begun: a request of several steps, awaited as if it were one of a device's own."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from functools import partial
from types import TracebackType
from typing import Any, TypeVar, final

from .._native._core import Request
from .._sync.loops import running_loop
from .._sync.scopes import outcome_of

__all__ = [
    "Begun",
    "BegunRequests",
    "Followed",
    "begin",
    "begin_all",
    "begun",
    "calls_of",
    "failed",
    "future_of",
    "give_up",
]

T = TypeVar("T")


@final
class Begun(Coroutine[Any, Any, T]):
    """A task or future that was begun by a call and is awaited as if the call had been a coroutine's.

    That is what a Request is as well. So whoever calls need not know which of the two it is given.
    """

    __slots__ = ("_steps", "future")

    def __init__(self, future: asyncio.Future[T]) -> None:
        self.future = future
        self._steps: Generator[Any, None, T] | None = None  # of who takes it for a coroutine

    def done(self) -> bool:
        return self.future.done()

    def add_done_callback(self, function: Callable[[Any], object]) -> None:
        self.future.add_done_callback(function)

    def __await__(self) -> Generator[Any, None, T]:
        return outcome_of(self.future)

    def send(self, value: None, /) -> Any:
        try:
            return next(self._start())
        finally:
            del self  # which has the error that keeps this frame

    def throw(self, typ: Any, val: Any = None, tb: TracebackType | None = None, /) -> Any:
        error = typ if val is None else val
        try:
            if self.future.done():
                _forget(self.future)
                return self._start().throw(error)  # three arguments are deprecated
            self.future.cancel()  # the task that was made of this one was cancelled before its first step
            self._steps = _end_and_raise(self.future, error)
            return next(self._steps)
        finally:
            del self, typ, val, error  # which would otherwise keep this frame, and the frame it

    def close(self) -> None:
        """What was begun goes on."""
        if self._steps is not None:
            self._steps.close()

    def _start(self) -> Generator[Any, None, T]:
        if self._steps is None:
            self._steps = outcome_of(self.future)
        return self._steps


def _end_and_raise(future: asyncio.Future[Any], error: BaseException) -> Generator[Any, None, Any]:
    """Wait until it is over, and raise the error however that ends: it may be too far to be cancelled."""
    with contextlib.suppress(Exception, asyncio.CancelledError):
        yield from outcome_of(future)
    try:
        raise error
    finally:
        del error  # which would otherwise keep this frame, and the frame it


def begun(request: Awaitable[T]) -> Request[T] | Begun[T]:
    """A request of any block device, as one that is known to be under way, and serves as a coroutine."""
    if isinstance(request, (Request, Begun)):
        return request
    return Begun(asyncio.ensure_future(request))


@final
class Followed(asyncio.Future[T]):
    """A request whose end somebody learns of before whoever awaits it."""

    def __init__(
        self, request: "asyncio.Future[T]", on_end: Callable[[BaseException | None], object]
    ) -> None:
        """*on_end* is called with the error, if it has one."""
        super().__init__(loop=running_loop("request"))
        self._request = request
        self._on_end = on_end
        self._message: Any = None  # of who has cancelled it, by which anyio knows its own
        request.add_done_callback(self._settle)

    def cancel(self, msg: Any | None = None) -> bool:
        self._message = msg
        return self._request.cancel(msg)

    def _settle(self, request: "asyncio.Future[T]") -> None:
        error = asyncio.CancelledError() if request.cancelled() else request.exception()
        try:
            self._on_end(error)
        except BaseException as failure:  # whatever it is, nobody may be left waiting
            if not isinstance(failure, Exception):
                self.set_exception(InterruptedError(f"the request's end was interrupted: {failure!r}"))
                raise
            error = failure
        try:
            if error is None:
                self.set_result(request.result())
            elif isinstance(error, asyncio.CancelledError):
                super().cancel(self._message)
            else:
                self.set_exception(error)
        finally:
            del error, request  # which have the error that keeps this frame


@final
class BegunRequests:
    """A block device by way of which every request is a :class:`Begun`, whatever the device itself gives."""

    _METHODS = frozenset(
        {"read", "read_into", "readv", "read_many", "read_into_many", "discard", "flush"}
        | {"write", "writev", "write_many", "write_zeroes"}
    )

    def __init__(self, device: object) -> None:
        self._device = device

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._device, name)
        if name not in self._METHODS:
            return member

        def begin_it(*arguments: Any, **options: Any) -> Request[Any] | Begun[Any]:
            return begun(member(*arguments, **options))

        return begin_it


def failed(error: BaseException) -> Begun[Any]:
    """A request whose error is for who awaits it, though it was known by the call."""
    future: asyncio.Future[Any] = running_loop("request").create_future()
    future.set_exception(error)
    return Begun(future)


def future_of(request: Awaitable[T]) -> "asyncio.Future[T]":
    """The same with what futures have."""
    return request.future if isinstance(request, Begun) else asyncio.ensure_future(request)


def begin(work: Coroutine[Any, Any, T], first: asyncio.Future[Any] | None = None) -> Begun[T]:
    """Have a task do the rest. *first* is the step that was made by the call, and that the work awaits,
    unless it ends before."""
    try:
        task = running_loop("request").create_task(work)
    except BaseException:
        work.close()
        raise
    if first is not None:
        task.add_done_callback(lambda _: give_up(first))
    return Begun(task)


def give_up(request: "asyncio.Future[Any]") -> None:
    """Cancel it, if it is not over and lets itself be cancelled; nobody wants to know how it ends."""
    if request.done():
        _forget(request)
    else:
        request.cancel()
        request.add_done_callback(_forget)


def _forget(request: "asyncio.Future[Any]") -> None:
    if not request.cancelled():
        request.exception()


def calls_of(
    method: Callable[[int, Any], Awaitable[Any]], pairs: Iterable[Any], what: str
) -> list[Callable[[], Awaitable[Any]]]:
    """For :func:`begin_all`: a call for each (offset, *what*) pair; what is no pair, its call refuses."""
    return [partial(_call, method, pair, what) for pair in pairs]


def _call(method: Callable[[int, Any], Awaitable[Any]], pair: Any, what: str) -> Awaitable[Any]:
    try:
        values = tuple[Any, ...](pair)
    except TypeError:
        raise TypeError(f"an (offset, {what}) pair is needed, not {type(pair).__name__}") from None
    if len(values) != 2:
        raise ValueError(f"an (offset, {what}) pair is needed, not {len(values)} values")
    return method(*values)


def begin_all(
    calls: Iterable[Callable[[], Awaitable[Any]]], *, results: bool = True, return_exceptions: bool
) -> Begun[Any]:
    """Begin many requests, with one outcome, when all are over: a list of theirs, or None without *results*.

    With *return_exceptions*, errors and what the calls raise are in the list. Without, the first error in
    their order is raised, and what a call raises by this call; what was begun before it is given up then.
    """
    futures: list[asyncio.Future[Any]] = []
    for call in calls:
        try:
            futures.append(future_of(call()))
        except Exception as refusal:
            if not return_exceptions:
                for other in futures:
                    give_up(other)
                raise
            futures.append(running_loop("request").create_future())
            futures[-1].set_exception(refusal)
    if return_exceptions:
        return Begun(asyncio.gather(*futures, return_exceptions=True))
    return Begun(_Together(futures, results=results))


@final
class _Together(asyncio.Future[list[Any] | None]):
    """Over when all requests are, also where one has failed.

    To cancel it is to cancel them. No task could do that: one that is cancelled before its first step is over
    at once, while they still use the caller's memory.
    """

    def __init__(self, requests: list[asyncio.Future[Any]], *, results: bool) -> None:
        super().__init__(loop=running_loop("request"))
        self._has_results = results
        self._requests = asyncio.gather(*requests, return_exceptions=True)
        self._requests.add_done_callback(self._settle)

    def cancel(self, msg: Any | None = None) -> bool:
        return self._requests.cancel(msg)

    def _settle(self, requests: "asyncio.Future[list[Any]]") -> None:
        try:
            outcomes = requests.result()
        except asyncio.CancelledError as error:
            super().cancel(*error.args)
            return
        failed = next((outcome for outcome in outcomes if isinstance(outcome, BaseException)), None)
        if failed is None:
            self.set_result(outcomes if self._has_results else None)
        elif isinstance(failed, asyncio.CancelledError):
            super().cancel(*failed.args)
        else:
            self.set_exception(failed)  # not raised before: it would keep this frame, and the frame it
