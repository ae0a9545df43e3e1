"""ByteView: reading and writing any bytes of a device that knows only blocks."""

import errno
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Generic, Literal, Self, TypeAlias, cast, final, overload

from typing_extensions import TypeVar

from .._device.device import Device
from .._device.extents import Extent
from .._libblkio.limits import Limits
from .._native._core import Submitter
from .._native.buffers import BytesLike, as_memoryview, length_of
from .._queues.statistics import QueueStatistics
from .._sync.loops import running_loop
from .._sync.scopes import AsyncClosing, shielded_if_cancelled
from ..errors import BlkioError, OptionError, UnsupportedError
from ._begun import Begun, BegunRequests, begin, begin_all, calls_of, future_of
from ._closed import Closed
from ._edits import Edits, Span
from ._plain import PLAIN
from .block_device import BlockDevice, require_block_device
from .layer import extents_of

__all__ = ["ByteView"]

T = TypeVar("T")
D_co = TypeVar("D_co", bound=BlockDevice, default=BlockDevice, covariant=True)

_Result: TypeAlias = Coroutine[Any, Any, T]


@final
class ByteView(AsyncClosing, Generic[D_co]):
    """A device as an array of bytes: offsets and lengths need no alignment.

    Requests on whole blocks are the device's own, submitted by the call, without a copy or a task. Where a
    read begins or ends within a block, the rest of the block is read along. Where a change does, the block is
    read first and written back with the new bytes in it. Only these edges are copied, through the bounce pool
    where the device needs that.

    It is a :class:`BlockDevice` itself, over any other. A request begins when its method is called, what is
    wrong with the arguments is raised by the call, and what the call returns is to be awaited, or handed to
    ``asyncio.gather()``, ``create_task()`` or ``ensure_future()``.

    **What is guaranteed about the order**, among the requests of one ByteView on a device that nobody else
    writes to:

    *   A change (write, write-zeroes, discard) never alters a byte outside its range, whatever runs beside
        it: one that has part of a block to write back waits for all earlier changes of that block, and all
        later ones wait for it.
    *   So changes that share a block take effect in the order in which they were begun, unless all of them
        are of whole blocks. Those are as unordered as the device's own requests: where two of them overlap,
        each block ends as one or the other left it.
    *   Reads are not ordered with changes in flight. What begins after a change has been awaited sees it.

    **Cancellation.** A cancelled change that waits for its turn, or reads the edges, leaves the device as it
    was. One that the device has, and a read, are left as the device's own requests are; what comes after a
    change and shares a block with it waits until that cannot land any more.

    **The end of a file** may lie within a block, where the page cache is bypassed (``direct=True``). What
    ends there is written as a whole block, and the file cut to where it ended or the bytes do: it is never
    longer than they need. Changes behind that place wait meanwhile. That takes a :class:`Device`; any other
    block device that can grow does so by whole blocks.

    Belongs to the event loop of its device, which it neither opens nor closes.
    """

    def __init__(self, device: D_co) -> None:
        """Of an open device.

        Raises:
            TypeError: it is no :class:`BlockDevice`.
        """
        require_block_device(device)
        limits = device.limits
        self._device = device
        # Whom new requests go to: what gives coroutines, as a Device does.
        self._to = cast(Device, _with_coroutines(device))
        self._block = limits.request_alignment
        self._edits = Edits(device)
        self._limits = replace(
            limits,
            request_alignment=1,
            optimal_io_alignment=max(limits.optimal_io_alignment, self._block),
            discard_alignment=0,
            discard_alignment_offset=0,
        )

    # --- what it is -----------------------------------------------------------------------------------------

    @property
    def device(self) -> D_co:
        """The one below."""
        return self._device

    @property
    def limits(self) -> Limits:
        """The device's, but any offset and length will do. Whole blocks are the fastest."""
        return self._limits

    @property
    def capacity(self) -> int:
        """The device's size in bytes."""
        return self._to.capacity

    @property
    def read_only(self) -> bool:
        """Whether changes are refused."""
        return self._to.read_only

    def extents(self, offset: int = 0, length: int | None = None) -> AsyncGenerator[Extent]:
        """What the device tells; of one that tells nothing, everything is data."""
        _ = self._to.read_only  # which a closed view refuses
        return extents_of(self._device, offset, length)

    def statistics(self) -> QueueStatistics:
        """What the device counts: the requests that those of the view, and of others, were made of."""
        return self._to.statistics()

    async def __aenter__(self) -> Self:
        running_loop("enter", "view")
        return self

    async def aclose(self) -> None:
        """Refuse new requests, and wait for changes in flight. The device stays open; idempotent.

        Whatever else is in flight is the device's own, which finishes it before it is closed.
        """
        running_loop("close", "view")
        self._to, self._block = cast(Device, Closed("the view")), 1  # so that everything goes straight there
        with shielded_if_cancelled():
            await self._edits.finish()

    # --- reading --------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> _Result[bytes]:
        """``length`` bytes from ``offset``.

        Raises as the device does and, at the call,
            OptionError: ``offset`` or ``length`` is negative.
        """
        if (offset | length) % self._block == 0:
            return self._to.read(offset, length)
        span = self._span("read", offset, length)
        first = future_of(self._to.read(span.start, span.length))
        return begin(_cut(first, span.head, length), first)

    def read_into(self, offset: int, buffer: BytesLike) -> _Result[None]:
        """Fill the writable ``buffer`` from ``offset`` on; errors as by :meth:`read`."""
        if self._block == 1 or (offset | as_memoryview(buffer).nbytes) % self._block == 0:
            return self._to.read_into(offset, buffer)
        return self.readv(offset, [buffer])

    def readv(self, offset: int, buffers: Sequence[BytesLike]) -> _Result[None]:
        """Fill several writable buffers, one after the other, from ``offset`` on; as :meth:`read_into`."""
        buffers = tuple(buffers)
        length = length_of(buffers)
        if (offset | length) % self._block == 0:
            return self._to.readv(offset, buffers)
        span = self._span("read", offset, length)
        around = span.surround(bytearray(span.head), buffers, bytearray(span.tail))
        return self._to.readv(span.start, around)

    @overload
    def read_many(
        self, requests: Iterable[tuple[int, int]], *, return_exceptions: Literal[False] = False
    ) -> _Result[list[bytes]]: ...
    @overload
    def read_many(
        self, requests: Iterable[tuple[int, int]], *, return_exceptions: bool
    ) -> _Result[list[bytes | BaseException]]: ...
    def read_many(self, requests: Iterable[tuple[int, int]], *, return_exceptions: bool = False) -> Any:
        """Read many (offset, length) pairs with one await; gives a list of bytes in the order of the pairs.

        Every pair is checked before the first is begun, and refused as by :meth:`read`. The first error, in
        the order of the pairs, is raised when all are over; with ``return_exceptions`` errors and refusals
        are in the list instead.
        """
        pairs = list(requests)
        try:
            are_whole_blocks = self._are_whole_blocks(pairs)
        except (TypeError, ValueError):  # what is no pair is refused by its own call
            return begin_all(calls_of(self.read, pairs, "length"), return_exceptions=return_exceptions)
        if are_whole_blocks:
            return self._to.read_many(pairs, return_exceptions=return_exceptions)
        if not return_exceptions:
            for offset, length in pairs:
                self._span("read", offset, length)
        return begin_all(calls_of(self.read, pairs, "length"), return_exceptions=return_exceptions)

    def read_into_many(
        self, requests: Iterable[tuple[int, BytesLike]], *, return_exceptions: bool = False
    ) -> _Result[Any]:
        """Fill the buffers of many (offset, buffer) pairs with one await; errors as by :meth:`read_many`.

        Gives None or, with ``return_exceptions``, a list with an exception or None for each pair.
        """
        pairs = list(requests)
        if (ranges := _ranges(pairs)) is None:  # what is no pair is refused by its own call
            return self._one_by_one(self.read_into, pairs, return_exceptions)
        if self._are_whole_blocks(ranges):
            return self._to.read_into_many(pairs, return_exceptions=return_exceptions)
        if not return_exceptions:
            for offset, buffer in pairs:
                self._span("read", offset, length_of([buffer], writable=True))
        calls = [partial(self.read_into, *pair) for pair in pairs]
        return begin_all(calls, results=False, return_exceptions=return_exceptions)

    # --- changing -------------------------------------------------------------------------------------------

    def write(self, offset: int, data: BytesLike, *, fua: bool = False) -> _Result[None]:
        """Write the bytes of ``data`` at ``offset``; with ``fua`` they are on stable storage when it is done.

        ``data`` must not change before that. A write that ends beyond the end of a file makes it longer, to
        the byte. When it fails, the blocks at the edges keep their other bytes.

        Raises as :meth:`read`.
        """
        if self._block == 1:  # nothing to align, and nobody to wait for
            return self._to.write(offset, data, fua=fua)
        length = len(data) if type(data) in PLAIN else as_memoryview(data).nbytes  # type: ignore[arg-type]
        if (offset | length) % self._block == 0:
            if self._edits.are_free:
                return self._to.write(offset, data, fua=fua)
            submit = partial(self._to.write, offset, fua=fua)
            return self._edits.pass_on(offset, offset + length, submit, data)
        return self.writev(offset, [data], fua=fua)

    def writev(self, offset: int, buffers: Sequence[BytesLike], *, fua: bool = False) -> _Result[None]:
        """Write several buffers, one after the other, at ``offset``; as :meth:`write`."""
        buffers = tuple(buffers)
        length = length_of(buffers)
        if (offset | length) % self._block == 0:
            return self._edits.pass_on(
                offset, offset + length, lambda *given: self._to.writev(offset, given, fua=fua), *buffers
            )
        span = self._span_to_change("write", offset, length_of(buffers, contiguous=True))
        return self._edits.write(span, buffers, fua=fua)

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_unmap: bool = False,
        no_fallback: bool = False,
    ) -> _Result[None]:
        """Zero ``length`` bytes from ``offset``; whole blocks as the device's ``write_zeroes`` does it.

        Raises as :meth:`read` and, at the call,
            UnsupportedError: with ``no_fallback``, the range has parts of blocks, which can only be written.
        """
        zero = partial(self._to.write_zeroes, fua=fua, no_unmap=no_unmap)
        if (offset | length) % self._block == 0:
            submit = partial(zero, offset, length, no_fallback=no_fallback)
            return self._edits.pass_on(offset, offset + length, submit)
        span = self._span_to_change("write_zeroes", offset, length)
        if no_fallback:
            raise self._refusal(
                UnsupportedError,
                f"parts of blocks of {self._block} bytes can only be zeroed by writing them, which"
                " no_fallback rules out; leave it out, or align the range",
                "write_zeroes",
                offset,
                length,
            )
        return self._edits.zero(span, zero, fua=fua)

    def discard(self, offset: int, length: int) -> _Result[None]:
        """Give back what whole units of ``limits.discard_alignment`` of the device there are in the range.

        Discarding is advice: the rest of the range stays as it is. Raises as :meth:`read`.
        """
        self._span("discard", offset, length)
        limits = self._to.limits
        unit, origin = max(limits.discard_alignment, self._block), limits.discard_alignment_offset
        start = max(origin, offset + -(offset - origin) % unit)
        end = max(start, offset + length - (offset + length - origin) % unit)
        if start >= end:
            start = end = origin  # no whole unit: nothing, where it can be asked for
        return self._edits.pass_on(start, end, partial(self._to.discard, start, end - start))

    def flush(self) -> _Result[None]:
        """Make what changes that are done have written durable. Those in flight are not covered."""
        return self._to.flush()

    def write_many(
        self, requests: Iterable[tuple[int, BytesLike]], *, fua: bool = False, return_exceptions: bool = False
    ) -> _Result[Any]:
        """Write many (offset, buffer) pairs with one await, in no certain order, unless they share a block of
        which one has a part; otherwise as :meth:`read_into_many`."""
        pairs = list(requests)
        if (ranges := _ranges(pairs)) is None:
            return self._one_by_one(partial(self.write, fua=fua), pairs, return_exceptions)
        if self._are_whole_blocks(ranges) and not self._edits.are_in_the_way(ranges):
            request = self._to.write_many(pairs, fua=fua, return_exceptions=return_exceptions)
            if self._edits.are_free:
                return request
            for offset, length in ranges:
                self._edits.remember(offset, offset + length, request)
            return request
        if not return_exceptions:
            for offset, buffer in pairs:
                self._span_to_change("write", offset, length_of([buffer], contiguous=True))
        calls = [partial(self.write, *pair, fua=fua) for pair in pairs]
        return begin_all(calls, results=False, return_exceptions=return_exceptions)

    @staticmethod
    def _one_by_one(method: Any, pairs: list[Any], return_exceptions: bool) -> Begun[Any]:
        """What is no pair is refused by its own call."""
        return begin_all(
            calls_of(method, pairs, "buffer"), results=False, return_exceptions=return_exceptions
        )

    # --- spans ----------------------------------------------------------------------------------------------

    def _are_whole_blocks(self, ranges: Iterable[tuple[int, int]]) -> bool:
        block = self._block
        return block == 1 or all((offset | length) % block == 0 for offset, length in ranges)

    def _span(self, operation: str, offset: int, length: int) -> Span:
        """The whole blocks around a range, if it is one."""
        if offset < 0 or length < 0:
            message = "offset and length must not be negative"
            raise self._refusal(OptionError, message, operation, offset, length)
        return Span.around(offset, length, self._block)

    def _span_to_change(self, operation: str, offset: int, length: int) -> Span:
        if self._to.read_only:
            message = "the device is open for reading only"
            raise self._refusal(BlkioError, message, operation, offset, length, errno=errno.EBADF)
        return self._span(operation, offset, length)

    def _refusal(
        self,
        kind: type[BlkioError],
        message: str,
        operation: str,
        offset: int,
        length: int,
        errno: int | None = None,
    ) -> BlkioError:
        driver = getattr(self._device, "driver", None)
        return kind(message, errno=errno, driver=driver, operation=operation, offset=offset, length=length)


def _ranges(pairs: Iterable[tuple[int, BytesLike]]) -> list[tuple[int, int]] | None:
    """None: not all are (offset, buffer) pairs."""
    plain = PLAIN
    try:
        return [
            (offset, len(buffer) if type(buffer) in plain else as_memoryview(buffer).nbytes)  # type: ignore[arg-type]
            for offset, buffer in pairs
        ]
    except (TypeError, ValueError, BufferError):
        return None


async def _cut(request: Awaitable[bytes], start: int, length: int) -> bytes:
    try:
        return (await request)[start : start + length]
    finally:
        del request  # which has the error that keeps this frame


def _with_coroutines(device: object) -> object:
    has_them = issubclass(type(device), (Submitter, ByteView))
    return device if has_them else BegunRequests(device)
