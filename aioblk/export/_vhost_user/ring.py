"""One queue on the event loop: kicked, it begins all that is available; what is done it shows once a turn."""

import asyncio
import contextlib
import errno
import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

from ..._native._core import GuestMemory, GuestRequest, View, Virtqueue
from ...errors import DeviceClosedError, DeviceLostError
from ...services.in_flight import InFlightShare
from ..statistics import Counts
from .lent import RefusedError
from .requests import Requests, Work, status_of

log = logging.getLogger("aioblk.export")

MOST = 1 << 16  # requests; there are never so many


@final
@dataclass(slots=True)
class Terms:
    """What the queues of a client have in common."""

    requests: Requests
    counts: Counts
    share: InFlightShare | None
    """What requests have to enter."""
    lose: Callable[[DeviceLostError | DeviceClosedError], None]
    """The device is lost: what it had is not answered, and whoever keeps it may do it again."""


@final
class Ring:
    """A virtqueue, and the descriptors beside it."""

    def __init__(self, number: int, terms: Terms) -> None:
        self._number = number
        self._terms = terms
        self.size = 0
        self.base = 0
        self.addresses: tuple[int, int, int] | None = None
        """Of the descriptors, the available and the used ring, as the client knows them."""
        self.enabled = False
        self._queue: Virtqueue | None = None
        self._kick: int | None = None
        self._call: int | None = None
        self._error: int | None = None
        self._begun = 0  # requests that the device has
        self._held: deque[GuestRequest] = deque()  # and those that wait until they may enter
        self._letting_in: asyncio.Task[None] | None = None
        self._ends = False
        self._is_pushing = False
        self._answered = 0
        self._said_broken = False
        self._idle = asyncio.Event()

    @property
    def is_started(self) -> bool:
        return self._queue is not None

    @property
    def in_flight(self) -> int:
        return self._begun + len(self._held)

    # --- descriptors ----------------------------------------------------------------------------------------

    def set_kick(self, descriptor: int) -> None:
        """Which the client writes to when requests are available."""
        self._drop_kick()
        self._kick = descriptor
        asyncio.get_running_loop().add_reader(descriptor, self._on_kick)

    def set_call(self, descriptor: int | None) -> None:
        """Which is written to when requests are done."""
        if self._call is not None:
            os.close(self._call)
        self._call = descriptor
        if self._queue is not None:
            _tell(descriptor)  # of what was done before there was one

    def set_error(self, descriptor: int | None) -> None:
        """Which is written to when the queue is broken."""
        if self._error is not None:
            os.close(self._error)
        self._error = descriptor

    def _drop_kick(self) -> None:
        if self._kick is not None:
            asyncio.get_running_loop().remove_reader(self._kick)
            os.close(self._kick)
            self._kick = None

    def _on_kick(self) -> None:
        if self._kick is not None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._kick)
            self.go_on()

    # --- life -----------------------------------------------------------------------------------------------

    def start(
        self, memory: GuestMemory, *, event_index: bool, tracked: View | None, disk: tuple[int, bool, bytes]
    ) -> None:
        """When all is there that it takes, and it is not started yet.

        Raises:
            RefusedError: the queue is not where it is said to be.
        """
        if self._queue is not None or self._kick is None or self.addresses is None or not self.enabled:
            return
        try:
            queue = Virtqueue(
                memory, self.size, *self.addresses, self.base, event_index=event_index, tracked=tracked
            )
        except ValueError as error:
            raise RefusedError(f"queue {self._number} cannot be had: {error}") from None
        queue.set_disk(*disk)
        self._queue = queue
        self._answered = 0
        self._said_broken = False
        if queue.in_flight:
            log.info("queue %d: %d requests are done again", self._number, queue.in_flight)
        if tracked is not None:
            _tell(self._call)  # whoever had it before may have died before that
        self.go_on()

    def set_disk(self, disk: tuple[int, bool, bytes]) -> None:
        if self._queue is not None:
            self._queue.set_disk(*disk)

    def move(self, memory: GuestMemory) -> None:
        """The client lends other memory."""
        if self._queue is not None:
            with contextlib.suppress(ValueError):  # it is broken then
                self._queue.move(memory)
            self._look_whether_broken(self._queue)

    async def stop(self) -> int:
        """Take nothing more, and finish what was taken: the index of the next request."""
        self._drop_kick()
        queue = self._queue
        if queue is not None:
            self._ends = True
            await self.until_idle()
            self._push()
            self.base = queue.base
            self._queue = None
            self._ends = False
        return self.base

    def abandon(self) -> None:
        """Take nothing more, and begin nothing that was taken and has not begun."""
        self._ends = True
        self._drop_kick()
        self._held.clear()
        if self._letting_in is not None:
            self._letting_in.cancel()
        self._look_whether_idle()

    def close(self) -> None:
        """The guest sees what is done, and nothing of what is not, whose memory lasts until it is."""
        self._push()
        self._queue = None
        self.set_call(None)
        self.set_error(None)

    async def until_idle(self) -> None:
        """Wait for what has begun."""
        while self._begun or self._held:
            self._idle.clear()
            await self._idle.wait()

    def _look_whether_idle(self) -> None:
        if not (self._begun or self._held):
            self._idle.set()

    # --- requests -------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        """Begin what is available."""
        queue = self._queue
        if queue is None or self._ends or not self.enabled:
            return
        while not self._held:
            for request in queue.take(MOST):
                self._let_in_or_hold(request)
            if not queue.listen():
                break
        self._look_whether_broken(queue)
        self._push_soon()

    def _let_in_or_hold(self, request: GuestRequest) -> None:
        share = self._terms.share
        if share is None or (not self._held and share.enter_nowait(request.length)):
            self._begin(request)
            return
        self._held.append(request)
        if self._letting_in is None:
            self._letting_in = asyncio.create_task(self._let_in(share))

    async def _let_in(self, share: InFlightShare) -> None:
        try:
            while self._held:
                await share.enter(self._held[0].length)
                self._begin(self._held.popleft())
        finally:
            self._letting_in = None
        self._look_whether_idle()
        self.go_on()

    def _begin(self, request: GuestRequest) -> None:
        counts, kind = self._terms.counts, request.kind
        counts.requests[kind] += 1
        counts.bytes[kind] += request.length
        self._begun += 1
        try:
            work = self._terms.requests.begin(request)
        except Exception as error:
            self._end(request, error)
        else:
            if work is None:
                self._end(request, None)
            else:
                work.add_done_callback(partial(self._done, request))

    def _done(self, request: GuestRequest, work: Work) -> None:
        try:
            error = work.exception()
        except asyncio.CancelledError as cancelled:
            error = cancelled
        self._end(request, error)

    def _end(self, request: GuestRequest, error: BaseException | None) -> None:
        terms, queue = self._terms, self._queue
        self._begun -= 1
        if terms.share is not None:
            terms.share.leave(request.length)
        if queue is None:
            return  # the device was given up, and is through with it after all
        if isinstance(error, (DeviceLostError, DeviceClosedError)):
            terms.lose(error)
        else:
            if error is not None:
                number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
                terms.counts.errors[number] += 1
                log.debug("queue %d: %r: %s", self._number, str(request), str(error) or repr(error))
            queue.finish(request, status_of(error))
            self._push_soon()
        if self._ends:
            self._look_whether_idle()

    def _push_soon(self) -> None:
        if not self._is_pushing:
            self._is_pushing = True
            asyncio.get_running_loop().call_soon(self._push)

    def _push(self) -> None:
        self._is_pushing = False
        queue = self._queue
        if queue is not None:
            self._terms.counts.answered += queue.answered - self._answered
            self._answered = queue.answered
            if queue.push():
                _tell(self._call)

    def _look_whether_broken(self, queue: Virtqueue) -> None:
        if queue.broken is not None and not self._said_broken:
            self._said_broken = True
            self._terms.counts.broken += 1
            log.warning("queue %d is stopped: %s", self._number, queue.broken)
            _tell(self._error)


def _tell(descriptor: int | None) -> None:
    if descriptor is not None:
        with contextlib.suppress(BlockingIOError):  # it says so already, and how often does not matter
            os.eventfd_write(descriptor, 1)
