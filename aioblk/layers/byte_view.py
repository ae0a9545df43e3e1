"""ByteView: reading and writing any bytes of a device that knows only blocks."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias, TypeVar, final

from .._device.device import Device
from .._native._core import Request
from .._native.buffers import BytesLike, as_memoryview
from .._sync.scopes import outcome_of
from ..errors import OptionError, UnsupportedError

__all__ = ["ByteView"]

T = TypeVar("T")

REMEMBERED = 64  # changes, before those that are done are forgotten


@final
class ByteView:
    """A device as an array of bytes: offsets and lengths need no alignment.

    Requests on whole blocks are the device's own, submitted by the call, without a copy or a task. Where a
    read begins or ends within a block, the rest of the block is read along. Where a change does, the block is
    read first and written back with the new bytes in it. Only these edges are copied, through the bounce pool
    where the device needs that.

    As with a device, a request begins when its method is called, what is wrong with the arguments is raised
    by the call, and what the call returns is to be awaited, or handed to ``asyncio.gather()``,
    ``create_task()`` or ``ensure_future()``.

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
    longer than they need. Changes behind that place wait meanwhile.

    Belongs to the event loop of its device, which it neither opens nor closes.
    """

    def __init__(self, device: Device) -> None:
        """Of an open device."""
        self._device = device
        self._block = device.limits.request_alignment
        self._can_grow = device.limits.can_grow and self._block > 1
        self._turns: list[_Change] = []  # changes of parts of blocks, and who waits for them; in order
        self._cuts: set[asyncio.Task[None]] = set()  # of a file that was made longer by a part of a block
        self._direct: list[_Change] = []  # changes that the device has; some may be done
        self._forget_at = REMEMBERED

    @property
    def device(self) -> Device:
        return self._device

    # --- reading --------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> Coroutine[Any, Any, bytes]:
        """``length`` bytes from ``offset``.

        Raises as the device does and, at the call,
            OptionError: ``offset`` or ``length`` is negative.
        """
        if (offset | length) % self._block == 0:
            return self._device.read(offset, length)
        span = self._span("read", offset, length)
        return _begin(_cut(self._device.read(span.start, span.length), span.head, length))

    def read_into(self, offset: int, buffer: BytesLike) -> Coroutine[Any, Any, None]:
        """Fill the writable ``buffer`` from ``offset`` on; errors as by :meth:`read`."""
        if self._block == 1 or (offset | as_memoryview(buffer).nbytes) % self._block == 0:
            return self._device.read_into(offset, buffer)
        return self.readv(offset, [buffer])

    def readv(self, offset: int, buffers: Sequence[BytesLike]) -> Coroutine[Any, Any, None]:
        """Fill several writable buffers, one after the other, from ``offset`` on; as :meth:`read_into`."""
        length = _length(buffers)
        if (offset | length) % self._block == 0:
            return self._device.readv(offset, buffers)
        span = self._span("read", offset, length)
        return self._device.readv(
            span.start, span.surround(bytearray(span.head), buffers, bytearray(span.tail))
        )

    # --- changing -------------------------------------------------------------------------------------------

    def write(self, offset: int, data: BytesLike, *, fua: bool = False) -> Coroutine[Any, Any, None]:
        """Write the bytes of ``data`` at ``offset``; with ``fua`` they are on stable storage when it is done.

        ``data`` must not change before that. A write that ends beyond the end of a file makes it longer, to
        the byte. When it fails, the blocks at the edges keep their other bytes.

        Raises as :meth:`read`.
        """
        if self._block == 1:  # nothing to align, and nobody to wait for
            return self._device.write(offset, data, fua=fua)
        if (offset | (length := as_memoryview(data).nbytes)) % self._block == 0:
            if self._turns:
                submit = partial(self._device.write, offset, data, fua=fua)
                return self._change(offset, offset + length, submit)
            return self._remember(offset, offset + length, self._device.write(offset, data, fua=fua))
        return self.writev(offset, [data], fua=fua)

    def writev(
        self, offset: int, buffers: Sequence[BytesLike], *, fua: bool = False
    ) -> Coroutine[Any, Any, None]:
        """Write several buffers, one after the other, at ``offset``; as :meth:`write`."""
        length = _length(buffers)
        if (offset | length) % self._block == 0:
            return self._change(
                offset, offset + length, partial(self._device.writev, offset, buffers, fua=fua)
            )
        span = self._span("write", offset, length)
        return self._edit(span, partial(self._write_with_edges, span, buffers, fua=fua), fua=fua)

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_unmap: bool = False,
        no_fallback: bool = False,
    ) -> Coroutine[Any, Any, None]:
        """Zero ``length`` bytes from ``offset``; whole blocks as the device's ``write_zeroes`` does it.

        Raises as :meth:`read` and, at the call,
            UnsupportedError: with ``no_fallback``, the range has parts of blocks, which can only be written.
        """
        zero = partial(self._device.write_zeroes, fua=fua, no_unmap=no_unmap)
        if (offset | length) % self._block == 0:
            return self._change(
                offset, offset + length, partial(zero, offset, length, no_fallback=no_fallback)
            )
        span = self._span("write_zeroes", offset, length)
        if no_fallback:
            raise UnsupportedError(
                f"parts of blocks of {self._block} bytes can only be zeroed by writing them, which"
                " no_fallback rules out; leave it out, or align the range",
                driver=self._device.driver,
                operation="write_zeroes",
                offset=offset,
                length=length,
            )
        first = -(-offset // self._block) * self._block
        last = (offset + length) // self._block * self._block
        if first >= last:
            return self._edit(span, partial(self._write_with_edges, span, [bytes(length)], fua=fua), fua=fua)
        return self._edit(span, partial(self._zero_with_edges, span, first, last, zero, fua=fua), fua=fua)

    def discard(self, offset: int, length: int) -> Coroutine[Any, Any, None]:
        """Give back what whole units of ``limits.discard_alignment`` there are in the range.

        Discarding is advice: the rest of the range stays as it is. Raises as :meth:`read`.
        """
        self._span("discard", offset, length)
        limits = self._device.limits
        unit, origin = max(limits.discard_alignment, self._block), limits.discard_alignment_offset
        start = max(origin, offset + -(offset - origin) % unit)
        end = max(start, offset + length - (offset + length - origin) % unit)
        return self._change(start, end, partial(self._device.discard, start, end - start))

    def flush(self) -> Coroutine[Any, Any, None]:
        """Make what changes that are done have written durable. Those in flight are not covered."""
        return self._device.flush()

    # --- turns ----------------------------------------------------------------------------------------------

    def _change(self, start: int, end: int, submit: Callable[[], Request[None]]) -> Coroutine[Any, Any, None]:
        """Submit a change of whole blocks: at once, unless it has to wait for its turn."""
        if earlier := _meeting(self._turns, start, end):
            return self._take_turn(start, end, earlier, submit)
        return self._remember(start, end, submit())

    def _remember(self, start: int, end: int, request: Request[None]) -> Request[None]:
        """Have later changes of parts of blocks wait for this one."""
        if self._block > 1 and not request.done():  # with smaller blocks nobody will ever wait for it
            if len(self._direct) >= self._forget_at:
                self._direct = [change for change in self._direct if not change[2].done()]
                self._forget_at = 2 * len(self._direct) + REMEMBERED
            self._direct.append((start, end, request))
        return request

    def _edit(
        self, span: "_Span", work: Callable[[], Awaitable[None]], *, fua: bool
    ) -> Coroutine[Any, Any, None]:
        """Begin a change of parts of blocks, which waits for its turn."""
        if span.length == 0:
            return self._device.write(0, b"")
        end = span.end
        if self._can_grow and span.tail and (span.end > self._device.capacity or self._may_be_cut()):
            work = partial(self._keep_length, span.end - span.tail, work, fua=fua)
            end = _EVERYTHING  # whoever makes the file longer meanwhile would be cut off
        earlier = _meeting((*self._turns, *self._direct), span.start, end)
        return self._take_turn(span.start, end, earlier, work)

    def _may_be_cut(self) -> bool:
        """Whether the file may be longer just now than it will be, by a part of a block."""
        return any(end == _EVERYTHING for _, end, _ in self._turns)

    async def _keep_length(self, end: int, work: Callable[[], Awaitable[None]], *, fua: bool) -> None:
        """Do what changes the file's last block, of which it needs the bytes up to *end*."""
        length = max(self._device.capacity, end)
        try:
            await work()
        finally:
            await asyncio.shield(self._begin_cut(end, length))
        if fua:
            await self._device.flush()

    def _begin_cut(self, end: int, length: int) -> "asyncio.Task[None]":
        """With a turn of its own: it goes on when the change is cancelled, and would cut off what follows."""
        cutting = asyncio.get_running_loop().create_task(self._cut_back(length))
        turn = end - end % self._block, _EVERYTHING, cutting
        self._turns.append(turn)
        self._cuts.add(cutting)

        def end_turn(_: "asyncio.Task[None]") -> None:
            self._turns.remove(turn)
            self._cuts.remove(cutting)

        cutting.add_done_callback(end_turn)
        return cutting

    async def _cut_back(self, length: int) -> None:
        await self._device._until_landed()  # if the work was cancelled
        if self._device.capacity > length:
            await self._device.truncate(length)

    def _take_turn(
        self, start: int, end: int, earlier: "list[_Work]", work: Callable[[], Awaitable[None]]
    ) -> Coroutine[Any, Any, None]:
        async def wait_and_work() -> None:
            for other in earlier:
                await _end_of(other)
            for cut in tuple(self._cuts):  # begun by those, and not known before
                await _end_of(cut)
            await work()

        begun = _begin(wait_and_work())
        turn = start, end, begun.task
        self._turns.append(turn)
        begun.task.add_done_callback(lambda _: self._turns.remove(turn))
        return begun

    # --- edges ----------------------------------------------------------------------------------------------

    async def _write_with_edges(self, span: "_Span", buffers: Sequence[BytesLike], *, fua: bool) -> None:
        before, after = await self._edges(span)
        await self._device.writev(span.start, span.surround(before, buffers, after), fua=fua)

    async def _zero_with_edges(
        self, span: "_Span", first: int, last: int, zero: Callable[[int, int], Request[None]], *, fua: bool
    ) -> None:
        before, after = await self._edges(span)
        work = [zero(first, last - first)]
        if before:
            work.append(self._device.write(span.start, before.ljust(self._block, b"\0"), fua=fua))
        if after:
            work.append(self._device.write(last, after.rjust(self._block, b"\0"), fua=fua))
        for outcome in await asyncio.gather(*work, return_exceptions=True):
            if outcome is not None:
                raise outcome

    async def _edges(self, span: "_Span") -> tuple[bytes, bytes]:
        """What is in the first block before the span's bytes, and in its last block after them."""
        starts = [span.start] if span.head else []
        if span.tail and span.end - self._block not in starts:
            starts.append(span.end - self._block)
        blocks = dict(
            zip(starts, await self._device.read_many([(start, self._block) for start in starts]), strict=True)
        )
        before = blocks[span.start][: span.head] if span.head else b""
        after = blocks[span.end - self._block][self._block - span.tail :] if span.tail else b""
        return before, after

    def _span(self, operation: str, offset: int, length: int) -> "_Span":
        if offset < 0 or length < 0:
            raise OptionError(
                "offset and length must not be negative",
                driver=self._device.driver,
                operation=operation,
                offset=offset,
                length=length,
            )
        if length == 0:
            return _Span(0, 0, 0, 0)
        head, tail = offset % self._block, -(offset + length) % self._block
        return _Span(offset - head, offset + length + tail, head, tail)


_EVERYTHING = 2**64  # beyond every offset

_Work: TypeAlias = Request[None] | asyncio.Task[None]
_Change: TypeAlias = tuple[int, int, _Work]  # from where to where, in whole blocks, and who makes it


def _meeting(changes: Iterable[_Change], start: int, end: int) -> list[_Work]:
    """Those of the changes that share a block with the range."""
    return [work for its_start, its_end, work in changes if its_start < end and start < its_end]


class _Span(NamedTuple):
    """The whole blocks around a range of bytes, and how much of them is outside the range."""

    start: int
    end: int
    head: int
    tail: int

    @property
    def length(self) -> int:
        return self.end - self.start

    def surround(self, before: BytesLike, buffers: Iterable[BytesLike], after: BytesLike) -> list[BytesLike]:
        """What fills the blocks, where *buffers* fill the range."""
        return [buffer for buffer in (before, *buffers, after) if as_memoryview(buffer).nbytes]


def _length(buffers: Iterable[BytesLike]) -> int:
    return sum(as_memoryview(buffer).nbytes for buffer in buffers)


async def _cut(request: Request[bytes], start: int, length: int) -> bytes:
    return (await request)[start : start + length]


async def _end_of(work: _Work) -> None:
    """Wait until it is done, however that ends, and leave it alone if the waiting is cancelled."""
    ended = asyncio.Event()
    work.add_done_callback(lambda _: ended.set())
    await ended.wait()


@final
class _Begun(Coroutine[Any, Any, T]):
    """A task that was started by a call and is awaited as if the call had been a coroutine's.

    That is what a Request is as well. So whoever calls need not know which of the two it is given.
    """

    __slots__ = ("_steps", "task")

    def __init__(self, task: asyncio.Task[T]) -> None:
        self.task = task
        self._steps: Generator[Any, None, T] | None = None  # of who takes it for a coroutine

    def __await__(self) -> Generator[Any, None, T]:
        return outcome_of(self.task)

    def send(self, value: None, /) -> Any:
        return next(self._start())

    def throw(self, typ: Any, val: Any = None, tb: TracebackType | None = None, /) -> Any:
        steps = self._start()
        if self.task.done():
            return steps.throw(typ if val is None else val)  # three arguments are deprecated
        self.task.cancel()  # the task that was made of this one was cancelled before its first step
        return next(steps)

    def close(self) -> None:
        """The task goes on."""
        if self._steps is not None:
            self._steps.close()

    def _start(self) -> Generator[Any, None, T]:
        if self._steps is None:
            self._steps = outcome_of(self.task)
        return self._steps


def _begin(work: Coroutine[Any, Any, T]) -> _Begun[T]:
    return _Begun(asyncio.get_running_loop().create_task(work))
