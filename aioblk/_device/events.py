"""What happens to a device as a whole, for whoever listens, and for the log."""

import asyncio
import logging
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias, final

from .._libblkio.subject import Subject
from ..errors import BlkioError, DeviceLostError
from .instruments import Instruments

__all__ = ["DeviceEvent", "DeviceLost", "DeviceResized", "DeviceReturned", "DeviceSearching", "Events"]

log: logging.Logger = logging.getLogger("aioblk.device")
log.addHandler(logging.NullHandler())  # who has set up no logging is told by exceptions alone


@final
@dataclass(frozen=True, slots=True)
class DeviceLost:
    """Everything in flight has failed, and new requests are refused."""

    error: DeviceLostError
    """Why."""


@final
@dataclass(frozen=True, slots=True)
class DeviceSearching:
    """The backend has died, and another is looked for in its place (``reconnect_for``); requests wait."""


@final
@dataclass(frozen=True, slots=True)
class DeviceReturned:
    """The device is there again: by itself, or by ``reconnect()``."""


@final
@dataclass(frozen=True, slots=True)
class DeviceResized:
    """It has another capacity than when it was last asked, in bytes."""

    before: int
    """The capacity that it had."""
    capacity: int
    """The one that it has."""


DeviceEvent: TypeAlias = DeviceLost | DeviceSearching | DeviceReturned | DeviceResized


@final
class _Listener:
    """What somebody has not heard of yet."""

    def __init__(self) -> None:
        self.untold: deque[DeviceEvent] = deque()
        self.news = asyncio.Event()


@final
class Events:
    """Those of one device. For the thread of its loop."""

    def __init__(self, subject: Subject, instruments: Instruments, log: logging.Logger = log) -> None:
        self._log = log
        self._instruments = instruments
        self._name = str(subject)
        self._listeners: weakref.WeakSet[_Listener] = weakref.WeakSet()
        self._has_ended = False
        self._log.debug("%s is open", self._name)

    def tell(self, event: DeviceEvent) -> None:
        match event:
            case DeviceLost(error):
                self._log.warning("%s is lost: %s", self._name, error.message)
                self._instruments.tell_soon("device_lost", error)
            case DeviceSearching():
                self._log.warning("%s has lost its backend, and is looking for another", self._name)
                self._instruments.tell_soon("device_searching")
            case DeviceReturned():
                self._log.info("%s is back", self._name)
                self._instruments.tell_soon("device_returned")
            case DeviceResized(before, capacity):
                self._log.info("%s has %d bytes now, and had %d", self._name, capacity, before)
                self._instruments.tell_soon("device_resized", before, capacity)
        for listener in tuple(self._listeners):
            listener.untold.append(event)
            listener.news.set()

    def end(self) -> None:
        """The device is being closed: nothing will happen any more; idempotent."""
        if not self._has_ended:
            self._has_ended = True
            self._log.debug("%s is being closed", self._name)
            self._instruments.tell_soon("device_closing")
        for listener in tuple(self._listeners):
            listener.news.set()

    def listen(
        self, ask_capacity: Callable[[], Awaitable[object]], every: float | None
    ) -> AsyncGenerator[DeviceEvent]:
        """Those from now on; *ask_capacity* is called *every* so many seconds."""
        listener = _Listener()
        self._listeners.add(listener)
        return self._heard_by(listener, ask_capacity, every)

    async def _heard_by(
        self, listener: _Listener, ask_capacity: Callable[[], Awaitable[object]], every: float | None
    ) -> AsyncGenerator[DeviceEvent]:
        while True:
            while listener.untold:
                yield listener.untold.popleft()
            if self._has_ended:
                return
            listener.news.clear()
            try:
                async with asyncio.timeout(every):
                    await listener.news.wait()
            except TimeoutError:
                try:
                    await ask_capacity()
                except BlkioError as error:  # one that is lost tells so by itself
                    self._log.debug("%s does not tell its capacity: %s", self._name, error)
