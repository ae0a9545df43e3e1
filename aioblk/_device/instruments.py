"""Who is told of each request of a device, and of what becomes of the device."""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from .._libblkio.subject import Subject
from ..errors import DeviceLostError

__all__ = ["Instrument", "Instruments", "RequestInfo"]

log: logging.Logger = logging.getLogger("aioblk.instruments")  # nobody else tells that one was removed


@final
@dataclass(frozen=True, slots=True, eq=False)
class RequestInfo:
    """A request, as an instrument sees it: the same object when it has begun and when it has finished, and
    equal to no other, so that it can be the key to what is known of it."""

    operation: str
    """``read`` for all that reads, and so on; zones have ``report_zones`` and the like."""
    offset: int
    """In bytes; of a batch, that of its first item. 0 where there is none."""
    length: int
    """In bytes; of a batch, of all items together. 0 where there is none."""
    requests: int
    """As how many requests it counts: a batch as its items."""


class Instrument:
    """Methods that a device calls, as far as an object has them; this class need not be among its bases.

    Those of requests are called where it happens: in the thread of the queue, in the middle of a submission
    or of a turn of the loop. Those of the device are called by its loop, in the next turn. They should be
    short, and may not await; what they may do with the device is what any callback may. An instrument that
    raises an exception is removed, and the exception logged (``aioblk.instruments``): what it looks at goes
    on.
    """

    def request_begun(self, request: RequestInfo, /) -> None:
        """It is about to be submitted: in the task, and the context, of who has called the method."""

    def request_finished(self, request: RequestInfo, error: BaseException | None, /) -> None:
        """It is over for who waits for it: done, or with the *error* that it raises, CancelledError included.

        A cancelled request is over when its task goes on; the device may be at it for longer.
        """

    def device_lost(self, error: DeviceLostError, /) -> None:
        """Everything in flight has failed, and new requests are refused."""

    def device_searching(self) -> None:
        """The backend has died, and another is looked for in its place (``reconnect_for``); requests wait."""

    def device_returned(self) -> None:
        """The device is there again."""

    def device_resized(self, before: int, capacity: int, /) -> None:
        """It has another size than when it was last asked, in bytes."""

    def device_closing(self) -> None:
        """It takes no more requests. Those in flight finish after this."""


METHODS = tuple(name for name, value in vars(Instrument).items() if callable(value))
OF_REQUESTS = ("request_begun", "request_finished")


@final
class Instruments:
    """Those of one device."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._all: tuple[tuple[object, dict[str, Callable[..., object]]], ...] = ()
        self._under_way: dict[int, RequestInfo] = {}

    def add(self, instrument: object) -> None:
        """Idempotent. OptionError: it has none of the methods."""
        methods = {name: method for name in METHODS if (method := _own(instrument, name)) is not None}
        if not methods:
            raise self._subject.invalid(
                "add_instrument",
                f"{instrument!r} has none of the methods of an instrument: {', '.join(METHODS)}",
            )
        if not self._has(instrument):
            self._all = (*self._all, (instrument, methods))

    def remove(self, instrument: object) -> None:
        """OptionError: it is not there."""
        if not self._has(instrument):
            raise self._subject.invalid("remove_instrument", f"{instrument!r} is no instrument of the device")
        self._drop(instrument)

    def _has(self, instrument: object) -> bool:
        return any(each is instrument for each, _ in self._all)

    def _drop(self, instrument: object) -> None:
        self._all = tuple(pair for pair in self._all if pair[0] is not instrument)
        if not self.want_requests:
            self._under_way.clear()

    @property
    def want_requests(self) -> bool:
        """Whether any is to be told of each request."""
        return any(name in methods for _, methods in self._all for name in OF_REQUESTS)

    def tell_soon(self, name: str, *args: object) -> None:
        """The same from the loop, and not in the middle of what becomes of the device."""
        if self._all:
            asyncio.get_running_loop().call_soon(self.tell, name, *args)

    def tell(self, name: str, *args: object) -> None:
        """Call the method of all that have it. What is no error, as KeyboardInterrupt, is raised then."""
        order: BaseException | None = None
        for instrument, methods in self._all:
            method = methods.get(name)
            if method is None or not self._has(instrument):  # another one may have removed it
                continue
            try:
                method(*args)
            except Exception:
                self._drop(instrument)
                with contextlib.suppress(Exception):  # whatever has been made of logging
                    log.exception("%r is removed from %s: its %s() failed", instrument, self._subject, name)
            except BaseException as error:
                order = order or error
        if order is not None:
            try:
                raise order
            finally:
                del order  # which has this frame

    # --- requests: what the compiled core calls -------------------------------------------------------------

    def begun(self, number: int, operation: str, offset: int, length: int, requests: int) -> None:
        request = self._under_way[number] = RequestInfo(operation, offset, length, requests)
        self.tell("request_begun", request)

    def finished(self, number: int, error: BaseException | None, was_cancelled: bool) -> None:
        request = self._under_way.pop(number, None)
        if request is not None:  # since the first was added
            self.tell("request_finished", request, asyncio.CancelledError() if was_cancelled else error)


def _own(instrument: object, name: str) -> Callable[..., Any] | None:
    """Its method, unless it is the one that does nothing."""
    if getattr(type(instrument), name, None) is getattr(Instrument, name) and name not in _attributes(
        instrument
    ):
        return None
    method = getattr(instrument, name, None)
    return method if callable(method) else None


def _attributes(instrument: object) -> dict[str, Any]:
    return getattr(instrument, "__dict__", {})
