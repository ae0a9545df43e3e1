"""Writer: bytes one after the other, written behind whoever gives them."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Generator
from typing import Self, final

from typing_extensions import Buffer

from .._native._core import View
from .._native.buffers import flat
from .._sync.loops import running_loop
from .._sync.scopes import AsyncClosing, shielded, shielded_if_cancelled
from .._sync.tasks import start_steadfast_task
from ..errors import DeviceClosedError, OptionError, StreamBusyError, UsageError
from ._begun import failed, future_of
from ._buffers import Buffers
from .block_device import BlockDevice, require_block_device
from .byte_view import ByteView

__all__ = ["Writer"]


@final
class Writer(AsyncClosing):
    """Collects what it is given into writes of ``chunk`` bytes, with several under way::

        async with aioblk.Reader(source) as reader, aioblk.Writer(target) as writer:
            async for data in reader:
                await writer.write(data)
            await writer.flush()                # now it is on stable storage

    What it is given is copied, and the caller's again at once. At most ``depth`` writes are in flight; the
    memory is ``(depth + 1) * chunk`` bytes, which the device reaches without copying, if it can be told of
    memory.

    **Errors.** A write that has failed is told by the next call, whichever that is; from then on every call
    raises it, and nothing more is written: what lies behind a gap is of no use. :attr:`written` tells how far
    the bytes go without one.

    Leaving the block writes what was collected and waits for all of it; when it is left by an exception, what
    was not begun is dropped. Only :meth:`flush` makes anything durable.

    Belongs to the event loop of its device, and to one task at a time.
    """

    def __init__(self, device: BlockDevice, offset: int = 0, *, chunk: int = 1 << 20, depth: int = 4) -> None:
        """On an open device, from ``offset`` on. No offset or length needs to be aligned; chunks that are,
        with the offset, are faster.

        Raises:
            OptionError: ``offset`` is negative, or ``chunk`` or ``depth`` is not positive.
        """
        require_block_device(device)
        if offset < 0:
            raise OptionError(
                f"offset must not be negative, as {offset} is", driver="writer", operation="open"
            )
        for name, value in (("chunk", chunk), ("depth", depth)):
            if value < 1:
                raise OptionError(f"{name} must be positive, not {value}", driver="writer", operation="open")
        self._device = device
        self._to: BlockDevice = (
            device if device.limits.request_alignment == 1 else ByteView[BlockDevice](device)
        )
        self._chunk = chunk
        self._depth = depth
        self._start = offset  # of what is collected
        self._collected = 0
        self._buffer: View | memoryview | None = None  # that it is collected in
        self._buffers: Buffers | None = None
        self._under_way: deque[tuple[int, View | memoryview, asyncio.Future[None]]] = deque()
        self._written = offset
        self._error: BaseException | None = None
        self._was_told = False
        self._closing: asyncio.Task[None] | None = None
        self._busy = False

    def __repr__(self) -> str:
        return f"<aioblk.Writer at {self.offset}, written to {self._written}, on {self._device!r}>"

    @property
    def offset(self) -> int:
        """Where on the device the next byte goes."""
        return self._start + self._collected

    @property
    def written(self) -> int:
        """Where on the device those bytes end whose writes are done, without a gap."""
        return self._written

    @property
    def _room(self) -> int:
        """How much is collected at most: writes end at multiples of the chunk."""
        return self._chunk - self._start % self._chunk

    # --- life -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Get the memory.

        Raises:
            UsageError: it was entered before.
            BlkioError: there is no memory.
        """
        running_loop("enter", "writer")
        if self._buffers is not None:
            raise UsageError("a writer can be entered once", driver="writer", operation="open")
        self._buffers = await Buffers.of(self._device, self._depth + 1, self._chunk)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        running_loop("close", "writer")
        if error is not None:
            self._collected = 0
        with shielded():
            try:
                await self.aclose()
            except Exception:
                if error is None:
                    raise

    async def aclose(self) -> None:
        """Write what was collected, wait until the device is done with the buffers, and give them back;
        idempotent.

        Raises what went wrong with a write, if nobody was told.
        """
        loop = running_loop("close", "writer")
        if self._busy:
            raise StreamBusyError("another task is writing", driver="writer", operation="close")
        if self._closing is None:
            self._closing = start_steadfast_task(loop, self._close())
        with shielded_if_cancelled():
            await asyncio.shield(self._closing)
        self._raise_untold()

    async def _close(self) -> None:
        if self._error is None:
            self._submit()
        while self._under_way:
            await self._settle_first()
        if self._buffers is not None:
            self._buffer = None
            await self._buffers.aclose()

    # --- writing --------------------------------------------------------------------------------------------

    async def write(self, data: Buffer) -> None:
        """Collect the bytes; waits only while ``depth`` writes are in flight. A task that is cancelled here
        has given a part of them, as :attr:`offset` tells.

        Raises:
            BlkioError: a write has failed, this one or one before.
            DeviceClosedError: the writer was closed.
            StreamBusyError: another task is writing.
        """
        with self._turn("write"):
            left = flat(data)
            while left.nbytes:
                if self._buffer is None:
                    self._buffer = await self._free_buffer()
                count = min(left.nbytes, self._room - self._collected)
                self._buffer[self._collected : self._collected + count] = left[:count]
                self._collected += count
                left = left[count:]
                if self._collected == self._room:
                    self._submit()
            while self._under_way and self._under_way[0][2].done():
                self._settle()
            self._raise_error()

    async def flush(self) -> None:
        """Write what was collected, wait for all of it, and make it durable.

        Raises as :meth:`write`; what a flush of the device has failed for as well, from then on.
        """
        with self._turn("flush"):
            self._submit()
            while self._under_way:
                await self._settle_first()
                self._raise_error()
            try:
                await self._to.flush()
            except Exception as error:  # who asks again may be told that all is well: Linux does so of files
                self._error = error
                self._raise_error()

    # --- what is under way ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _turn(self, operation: str) -> Generator[None]:
        """One call at a time, on an open writer that has not failed."""
        running_loop(operation, "writer")
        if self._closing is not None:
            raise DeviceClosedError("the writer is closed", driver="writer", operation=operation)
        if self._buffers is None:
            raise UsageError("a writer is used within `async with`", driver="writer", operation=operation)
        if self._busy:
            raise StreamBusyError("another task is writing", driver="writer", operation=operation)
        self._raise_error()
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _raise_error(self) -> None:
        if self._error is not None:
            self._was_told = True
            raise self._error.with_traceback(None)

    def _raise_untold(self) -> None:
        if not self._was_told:
            self._raise_error()

    async def _free_buffer(self) -> "View | memoryview":
        assert self._buffers is not None
        while len(self._under_way) >= self._depth:
            await self._settle_first()
            self._raise_error()
        buffer = self._buffers.take()
        assert buffer is not None  # there is one more than may be under way
        return buffer

    def _submit(self) -> None:
        """Begin to write what was collected."""
        if self._buffer is None or not self._collected:
            return
        buffer, data, offset = self._buffer, self._buffer[: self._collected], self._start
        self._start += self._collected
        self._buffer, self._collected = None, 0
        try:
            request = future_of(self._to.write(offset, data))
        except Exception as refusal:
            request = failed(refusal).future
        self._under_way.append((self._start, buffer, request))

    async def _settle_first(self) -> None:
        await asyncio.wait([self._under_way[0][2]])  # who is cancelled here leaves it where it is
        self._settle()

    def _settle(self) -> None:
        """The first one under way is done."""
        assert self._buffers is not None
        end, buffer, request = self._under_way.popleft()
        self._buffers.give(buffer)
        error = asyncio.CancelledError() if request.cancelled() else request.exception()
        if error is not None:
            self._error = self._error or error
        elif self._error is None:
            self._written = end
