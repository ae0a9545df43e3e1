"""Changes of parts of blocks: the block is read, changed and written back, and whoever shares it takes turns.

What is guaranteed about the order stands in the docstring of ByteView.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, cast, final

from typing_extensions import Buffer

from .._device.device import Device
from .._native._core import Request
from .._native.buffers import BytesLike, as_memoryview
from .._sync.loops import running_loop
from ._begun import Begun, begin, begin_all, begun
from ._under_way import UnderWay, end_of
from .block_device import BlockDevice

__all__ = ["Edits", "Span"]

_EVERYTHING = 2**64  # beyond every offset

_Work: TypeAlias = Request[Any] | Begun[Any] | asyncio.Future[Any]
_Change: TypeAlias = tuple[int, int, _Work]  # from where to where, in whole blocks, and who makes it
_Zero: TypeAlias = Callable[[int, int], Awaitable[None]]


class Span(NamedTuple):
    """The whole blocks around a range of bytes, and how much of them is outside the range."""

    start: int
    end: int
    head: int
    tail: int

    @classmethod
    def around(cls, offset: int, length: int, block: int) -> "Span":
        if length == 0:
            return cls(0, 0, 0, 0)
        head, tail = offset % block, -(offset + length) % block
        return cls(offset - head, offset + length + tail, head, tail)

    @property
    def length(self) -> int:
        return self.end - self.start

    def surround(self, before: Buffer, buffers: Iterable[BytesLike], after: Buffer) -> list[Buffer]:
        """What fills the blocks, where *buffers* fill the range."""
        fill = (before, *buffers, after)
        return [cast(Buffer, buffer) for buffer in fill if as_memoryview(buffer).nbytes]


class _Edges(NamedTuple):
    """What is in a span's first block before its bytes, and in its last block after them."""

    before: bytes
    after: bytes


@final
class Edits:
    """The changes of one device that share blocks, in their order."""

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._block = device.limits.request_alignment
        # A file may end within a block, and is cut there again when the whole block has been written.
        cut = device.limits.can_grow and self._block > 1
        self._file = device if cut and isinstance(device, Device) else None
        self._turns: list[_Change] = []  # changes of parts of blocks, and who waits for them; in order
        self._cuts: set[asyncio.Task[None]] = set()  # of a file that was made longer by a part of a block
        self._under_way = UnderWay(device)  # changes that the device has

    async def finish(self) -> None:
        """Wait for all changes, and for those in turns though they were cancelled. Of those that the device
        has, only for those of now: others may use it as well, and go on."""
        now = [work for _, _, work in self._under_way]
        while left := [work for _, _, work in self._turns if not work.done()]:
            await end_of(left[0])
        for work in now:
            await end_of(work)

    # --- whole blocks ---------------------------------------------------------------------------------------

    @property
    def are_free(self) -> bool:
        """Whether a change of whole blocks waits for nobody, and nothing needs to be remembered of it."""
        return not self._turns and self._under_way.is_known

    def are_in_the_way(self, ranges: Iterable[tuple[int, int]]) -> bool:
        """Whether changes of whole blocks have to wait for their turn; offsets and lengths of them."""
        return bool(self._turns) and any(
            _meeting(self._turns, offset, offset + length) for offset, length in ranges
        )

    def pass_on(
        self,
        start: int,
        end: int,
        submit: Callable[..., Request[None] | Begun[None]],
        *buffers: BytesLike,
    ) -> Request[None] | Begun[None]:
        """Submit a change of whole blocks, with its buffers: at once, unless it has to wait for its turn."""
        if self._turns and (earlier := _meeting(self._turns, start, end)):
            return self._take_turn(start, end, earlier, partial(submit, *_lasting(buffers)))
        return self.remember(start, end, submit(*buffers))

    def remember(self, start: int, end: int, request: Request[Any] | Begun[Any]) -> Request[Any] | Begun[Any]:
        """Have later changes of parts of blocks wait for this one."""
        if self._block > 1:  # with smaller blocks nobody will ever wait for it
            self._under_way.add(start, end, request)
        return request

    # --- parts of blocks ------------------------------------------------------------------------------------

    def write(self, span: Span, buffers: Sequence[BytesLike], *, fua: bool) -> Request[None] | Begun[None]:
        """Write the buffers to where the span's bytes are."""
        buffers = _lasting(buffers)

        async def put(edges: _Edges) -> None:
            await self._device.writev(span.start, span.surround(edges.before, buffers, edges.after), fua=fua)

        change = self._edit(span, put, fua=fua)
        change.add_done_callback(lambda _: buffers.clear())  # an error keeps the frames that know of them
        return change

    def zero(self, span: Span, zero: _Zero, *, fua: bool) -> Request[None] | Begun[None]:
        """Zero the span's bytes, by writing where they are parts of blocks, and else with *zero*."""
        block = self._block
        first, last = span.start + (block if span.head else 0), span.end - (block if span.tail else 0)
        if first >= last:
            return self.write(span, [bytes(span.length - span.head - span.tail)], fua=fua)

        async def put(edges: _Edges) -> None:
            write = partial(self._device.write, fua=fua)
            parts = [partial(zero, first, last - first)]
            if edges.before:
                parts.append(partial(write, span.start, edges.before.ljust(block, b"\0")))
            if edges.after:
                parts.append(partial(write, last, edges.after.rjust(block, b"\0")))
            await begin_all(parts, results=False, return_exceptions=False)

        return self._edit(span, put, fua=fua)

    def _edit(
        self, span: Span, put: Callable[[_Edges], Awaitable[None]], *, fua: bool
    ) -> Request[None] | Begun[None]:
        """Begin a change of parts of blocks: read the edges, at once unless it has to wait for its turn."""
        if span.length == 0:
            return begun(self._device.write(0, b""))
        end, grows = span.end, self._may_make_longer(span)
        if grows:
            end = _EVERYTHING  # whoever makes the file longer meanwhile would be cut off
        earlier = _meeting((*self._turns, *self._under_way), span.start, end)
        first = None if earlier else asyncio.ensure_future(self._read_edges(span))
        reading = [first] if first else []

        async def edit() -> None:
            # Taken from the list: an error that it has would keep this frame, and the frame it.
            await put(self._edges(span, await (reading.pop() if reading else self._read_edges(span))))

        work = partial(self._keep_length, span.end - span.tail, edit, fua=fua) if grows else edit
        return self._take_turn(span.start, end, earlier, work, first)

    def _read_edges(self, span: Span) -> Awaitable[list[bytes]]:
        return self._device.read_many([(start, self._block) for start in self._edge_blocks(span)])

    def _edge_blocks(self, span: Span) -> list[int]:
        starts = [span.start] if span.head else []
        if span.tail and span.end - self._block not in starts:
            starts.append(span.end - self._block)
        return starts

    def _edges(self, span: Span, found: Sequence[bytes]) -> _Edges:
        blocks = dict(zip(self._edge_blocks(span), found, strict=True))
        before = blocks[span.start][: span.head] if span.head else b""
        after = blocks[span.end - self._block][self._block - span.tail :] if span.tail else b""
        return _Edges(before, after)

    # --- turns ----------------------------------------------------------------------------------------------

    def _take_turn(
        self,
        start: int,
        end: int,
        earlier: list[_Work],
        work: Callable[[], Awaitable[None]],
        first: "asyncio.Future[Any] | None" = None,
    ) -> Begun[None]:
        """Begin *work*, of which *first* is under way, in a turn of its own."""

        async def wait_and_work() -> None:
            nonlocal work
            try:
                for other in earlier:
                    await end_of(other)
                for cut in tuple(self._cuts) if earlier else ():  # begun by those, and not known before
                    await end_of(cut)
                await work()
            finally:
                del work  # an error keeps this frame, which would keep the caller's memory

        change = begin(wait_and_work(), first)
        self._hold(start, end, change)
        return change

    def _hold(self, start: int, end: int, work: _Work) -> None:
        turn = start, end, work
        self._turns.append(turn)
        work.add_done_callback(lambda _: self._turns.remove(turn))

    # --- the end of a file ----------------------------------------------------------------------------------

    def _may_make_longer(self, span: Span) -> bool:
        """Whether writing the span's last block may leave a file longer than it is to be."""
        if self._file is None or not span.tail:
            return False
        return span.end > self._file.capacity or any(end == _EVERYTHING for _, end, _ in self._turns)

    async def _keep_length(self, end: int, work: Callable[[], Awaitable[None]], *, fua: bool) -> None:
        """Do what changes the file's last block, of which it needs the bytes up to *end*."""
        assert self._file is not None
        length = max(self._file.capacity, end)
        try:
            await work()
        finally:
            await asyncio.shield(self._begin_cut(self._file, end, length))
        if fua:
            await self._file.flush()

    def _begin_cut(self, file: Device, end: int, length: int) -> "asyncio.Task[None]":
        """With a turn of its own: it goes on when the change is cancelled, and would cut off what follows."""
        cutting = running_loop("change").create_task(_cut_back(file, length))
        self._hold(end - end % self._block, _EVERYTHING, cutting)
        self._cuts.add(cutting)
        cutting.add_done_callback(self._cuts.remove)
        return cutting


async def _cut_back(file: Device, length: int) -> None:
    await file._until_landed()  # if the work was cancelled
    if file.capacity > length:
        await file.truncate(length)


def _lasting(buffers: Iterable[BytesLike]) -> list[memoryview]:
    """The same, for a change that comes later: valid also when the region that they are of has been left."""
    return [as_memoryview(buffer) for buffer in buffers]


def _meeting(changes: Iterable[_Change], start: int, end: int) -> list[_Work]:
    """Those of the changes that share a block with the range."""
    return [work for its_start, its_end, work in changes if its_start < end and start < its_end]
