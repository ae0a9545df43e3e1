"""Reader: a stretch of a device from its beginning to its end, read ahead."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from functools import partial
from typing import Self, final

from .._native._core import View
from .._sync.loops import running_loop
from .._sync.scopes import AsyncClosing, shielded_if_cancelled
from ..errors import DeviceClosedError, OptionError, StreamBusyError, UsageError
from ._asked import end_of_stretch
from ._begun import failed, future_of, give_up
from ._buffers import Buffers
from .block_device import BlockDevice, require_block_device
from .byte_view import ByteView

__all__ = ["Reader"]


@final
class Reader(AsyncClosing):
    """Reads a range in order, with the next pieces under way while one is being used::

        async with aioblk.Reader(dev, 0, size) as reader:
            async for data in reader:
                digest.update(data)

    It gives buffers of ``chunk`` bytes, the last one shorter, each of which is the reader's again as soon as
    the next one is asked for: copy what is to last. At most ``depth`` requests are in flight; the memory is
    ``(depth + 1) * chunk`` bytes, which the device reaches without copying, if it can be told of memory.

    An error is raised where its piece would have been given. Afterwards, and after a piece was cancelled,
    iterating goes on with that piece: to skip it, :meth:`seek`.

    Belongs to the event loop of its device, and to one task at a time.
    """

    def __init__(
        self,
        device: BlockDevice,
        offset: int = 0,
        length: int | None = None,
        *,
        chunk: int = 1 << 20,
        depth: int = 4,
    ) -> None:
        """Of an open device; ``length`` bytes from ``offset`` on, or all up to the end as it is now. No
        offset or length needs to be aligned; those that are, are faster.

        Raises:
            OptionError: the range is not one of the device, or ``chunk`` or ``depth`` is not positive.
        """
        require_block_device(device)
        self._end = end_of_stretch("reader", device.capacity, offset, length, operation="open")
        for name, value in (("chunk", chunk), ("depth", depth)):
            if value < 1:
                raise OptionError(f"{name} must be positive, not {value}", driver="reader", operation="open")
        self._device = device
        self._to: BlockDevice = (
            device if device.limits.request_alignment == 1 else ByteView[BlockDevice](device)
        )
        self._chunk = chunk
        self._depth = depth
        self._next = offset  # of what is not under way
        self._offset = offset
        self._buffers: Buffers | None = None
        self._lent: View | memoryview | None = None  # to whoever iterates
        self._under_way: deque[tuple[int, View | memoryview, asyncio.Future[None]]] = deque()
        self._given_up: set[asyncio.Future[None]] = set()
        self._busy = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<aioblk.Reader at {self._offset} of {self._device!r}>"

    @property
    def offset(self) -> int:
        """Where on the device the piece begins that was given last or, if none was, will be given next."""
        return self._offset

    async def __aenter__(self) -> Self:
        """Begin to read.

        Raises:
            UsageError: it was entered before.
            BlkioError: there is no memory.
        """
        running_loop("enter", "reader")
        if self._buffers is not None:
            raise UsageError("a reader can be entered once", driver="reader", operation="open")
        self._buffers = await Buffers.of(self._device, self._depth + 1, self._chunk)
        self._read_ahead()
        return self

    async def aclose(self) -> None:
        """Give up what is under way, wait until the device does not write to the buffers any more, and give
        them back; idempotent."""
        running_loop("close", "reader")
        self._closed = True
        self._give_up()
        with shielded_if_cancelled():
            if self._given_up:
                await asyncio.wait(self._given_up)
            if self._buffers is not None:
                self._lent = None
                await self._buffers.aclose()

    def seek(self, offset: int) -> None:
        """Go on at another place of the range; what was read ahead is forgotten.

        Raises:
            OptionError: it is not in the range.
            StreamBusyError: another task is waiting for the next piece.
        """
        running_loop("seek", "reader")
        self._refuse_if_closed("seek")
        if self._busy:  # it would be given the bytes of one place as those of another
            raise StreamBusyError(
                "another task is waiting for the next piece", driver="reader", operation="seek"
            )
        if not 0 <= offset <= self._end:
            raise OptionError(
                f"{offset} is not between 0 and {self._end}, the reader's end",
                driver="reader",
                operation="seek",
            )
        self._go_to(offset)

    def _go_to(self, offset: int) -> None:
        self._give_up()
        self._next = self._offset = offset
        self._read_ahead()

    def __aiter__(self) -> AsyncIterator["View | memoryview"]:
        return self

    async def __anext__(self) -> "View | memoryview":
        """The next piece; the one before is the reader's again."""
        running_loop("read", "reader")
        if self._busy:
            raise StreamBusyError("another task is waiting for the next piece", driver="reader")
        self._refuse_if_closed("read")
        self._take_back()
        self._read_ahead()
        self._busy = True
        request: asyncio.Future[None] | None = None
        try:
            while not self._under_way:
                if self._next >= self._end:
                    raise StopAsyncIteration
                # All buffers are with requests that were given up.
                await asyncio.wait(self._given_up, return_when=asyncio.FIRST_COMPLETED)
            offset, buffer, request = self._under_way[0]
            await asyncio.wait([request])
            self._refuse_if_closed("read")
            if request.cancelled() or request.exception() is not None:
                self._go_to(offset)  # what lies behind it is read anew: it is given in order
                request.result()
        finally:
            self._busy = False
            del request  # which has the error that keeps this frame
        self._under_way.popleft()
        self._offset, self._lent = offset, buffer
        return buffer[: min(self._chunk, self._end - offset)]

    def _refuse_if_closed(self, operation: str) -> None:
        if self._closed:
            raise DeviceClosedError("the reader is closed", driver="reader", operation=operation)

    # --- reading ahead --------------------------------------------------------------------------------------

    def _read_ahead(self) -> None:
        """Have as much under way as may be."""
        if self._buffers is None:
            raise UsageError("a reader is used within `async with`", driver="reader", operation="read")
        while not self._closed and self._next < self._end and len(self._under_way) < self._depth:
            buffer = self._buffers.take()
            if buffer is None:
                return  # those that were given up are used by the device still
            offset, length = self._next, min(self._chunk, self._end - self._next)
            self._next += length
            self._under_way.append((offset, buffer, self._begin(offset, buffer[:length])))

    def _begin(self, offset: int, buffer: "View | memoryview") -> "asyncio.Future[None]":
        """A refusal is given where the piece would be."""
        try:
            return future_of(self._to.read_into(offset, buffer))
        except Exception as refusal:
            return failed(refusal).future

    def _take_back(self) -> None:
        if self._lent is not None and self._buffers is not None:
            self._buffers.give(self._lent)
            self._lent = None

    def _give_up(self) -> None:
        while self._under_way:
            _, buffer, request = self._under_way.popleft()
            give_up(request)
            self._given_up.add(request)
            request.add_done_callback(partial(self._landed, buffer))

    def _landed(self, buffer: "View | memoryview", request: "asyncio.Future[None]") -> None:
        """The device does not write to it any more."""
        self._given_up.discard(request)
        if self._buffers is not None:
            self._buffers.give(buffer)
            self._read_ahead()
