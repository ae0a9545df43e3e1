"""CopyOnWrite: a device whose changes go to another one, and leave it as it is."""

# The layer and its bitmap do with each other what users do not see.
# pyright: reportPrivateUsage=false

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import final

from typing_extensions import Buffer

from .._device.extents import Extent
from .._native.buffers import flat
from .._queues.statistics import QueueStatistics
from .._sync.loops import running_loop
from ..errors import OptionError, UsageError
from ._begun import Begun, Followed, begin, begin_all, failed, future_of
from ._combined import combined_limits
from ._standalone import Standalone
from ._under_way import UnderWay
from .block_device import BlockDevice, require_block_device
from .dirty_bitmap import DirtyBitmap
from .layer import extents_of

__all__ = ["CopyOnWrite"]

AT_A_TIME = 1 << 20  # bytes that are committed by one step


@final
class CopyOnWrite(Standalone):
    """A base that stays as it is, and an overlay that has the changes::

        golden = aioblk.IoUring("golden.img", read_only=True)
        changes = aioblk.IoUring("changes.img")             # as large as golden.img, or a file that grows
        async with golden, changes:
            machine = aioblk.CopyOnWrite(golden, changes)
            await machine.write(0, data)                    # to changes.img, at the same offset

    A read takes each block from where it is: what was written from the overlay, all else from the base. A
    block is the least that can be written (``limits.request_alignment``), so nothing is ever copied. Limits
    are those that suit both; the capacity is the base's, in whole blocks, and does not grow.

    :meth:`commit` writes the changes to the base, which other overlays of the same base see as well: commit
    to a copy of it, or have one overlay only. Which blocks the overlay has is known here alone, and is gone
    when the program ends; the overlay is of no use to anyone else. What is to last needs a format, such as
    qcow2: docs/layers.md shows how to have that below a device.

    A change counts from when it is done: one that fails, or is cancelled, may leave the range as it was.
    Otherwise requests are as those of the two devices. They belong to one event loop, and are neither opened
    nor closed.
    """

    def __init__(self, base: BlockDevice, overlay: BlockDevice) -> None:
        """Of two open devices. Whatever the overlay has now is of no importance.

        Raises:
            OptionError: the overlay is smaller than the base and does not grow, is the base, or is open for
                reading only.
        """
        for device in (base, overlay):
            require_block_device(device)
        if base is overlay:
            raise _wrong("the overlay is the base itself")
        if overlay.read_only:
            raise _wrong("the overlay is open for reading only")
        limits = combined_limits("copy-on-write", [base.limits, overlay.limits])
        self._block = limits.request_alignment
        capacity = base.capacity // self._block * self._block
        if overlay.capacity < capacity and not overlay.limits.can_grow:
            raise _wrong(f"the overlay has {overlay.capacity} bytes, and the base {capacity}")
        super().__init__("copy-on-write", limits, capacity)
        self._base = base
        self._overlay = overlay
        self._changed = DirtyBitmap(self._block)  # what the overlay has
        self._one_commit = asyncio.Lock()
        self._committing: DirtyBitmap | None = None
        """What is being written to the base, and was not changed since."""
        self._under_way = UnderWay(None)  # changes

    # --- life -----------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        await self._under_way.finish()
        async with self._one_commit:
            pass

    # --- what it is -----------------------------------------------------------------------------------------

    @property
    def base(self) -> BlockDevice:
        """What stays as it is."""
        return self._base

    @property
    def overlay(self) -> BlockDevice:
        """What has the changes."""
        return self._overlay

    @property
    def changed(self) -> DirtyBitmap:
        """What the overlay has; of no use to change it."""
        return self._changed

    @property
    def read_only(self) -> bool:
        """Never."""
        return False

    def statistics(self) -> QueueStatistics:
        """What the two devices count: the requests that those of this one, and of others, were made of."""
        return self._base.statistics() + self._overlay.statistics()

    def _extents(self, offset: int, length: int) -> AsyncGenerator[Extent]:
        """What was changed is data; of the rest, what the base tells."""
        return self._extents_of(self._changed.runs(offset, length))

    async def _extents_of(self, runs: Iterator[tuple[int, int, bool]]) -> AsyncGenerator[Extent]:
        for offset, length, is_changed in runs:  # as far as somebody asks: there may be millions
            if is_changed:
                yield Extent(offset, length)
                continue
            async with aclosing(extents_of(self._base, offset, length)) as extents:
                async for extent in extents:
                    yield extent

    # --- reading --------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> Awaitable[bytes]:
        offset, length = self._asked.to_read(offset, length)
        if error := self._refusal("read", offset, length):
            return failed(error)
        runs = self._runs(offset, length)
        if len(runs) == 1:
            return self._having(runs[0]).read(offset, length)
        calls = [partial(self._having(run).read, *run[:2]) for run in runs]
        pieces = future_of(begin_all(calls, return_exceptions=False))
        reading = begin(_joined(pieces), pieces)
        self._under_way.add(0, 0, reading)  # of several requests: closing waits for it
        return reading

    def readv(self, offset: int, buffers: Sequence[Buffer]) -> Awaitable[None]:
        buffers = tuple(buffers)
        offset, length = self._asked.to_fill(offset, buffers)
        if error := self._refusal("read", offset, length):
            return failed(error)
        runs = self._runs(offset, length)
        if len(runs) == 1:
            return self._having(runs[0]).readv(offset, buffers)
        pieces = _divided(buffers, [size for _, size, _ in runs])
        calls = [
            partial(self._having(run).readv, run[0], piece) for run, piece in zip(runs, pieces, strict=True)
        ]
        reading = begin_all(calls, results=False, return_exceptions=False)
        self._under_way.add(0, 0, reading)
        return reading

    def _runs(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """The range as (offset, length, whether the overlay has it); one at least."""
        return list(self._changed.runs(offset, length)) or [(offset, 0, False)]

    def _having(self, run: tuple[int, int, bool]) -> BlockDevice:
        return self._overlay if run[2] else self._base

    # --- changing -------------------------------------------------------------------------------------------

    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        buffers = tuple(buffers)
        offset, length = self._asked.to_write(offset, buffers)
        if error := self._refusal("write", offset, length):
            return failed(error)
        return self._change(offset, length, self._overlay.writev(offset, buffers, fua=fua))

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_unmap: bool = False,
        no_fallback: bool = False,
    ) -> Awaitable[None]:
        offset, length = self._asked.to_change("write_zeroes", offset, length)
        if error := self._refusal("write_zeroes", offset, length):
            return failed(error)
        zeroing = self._overlay.write_zeroes(
            offset, length, fua=fua, no_unmap=no_unmap, no_fallback=no_fallback
        )
        return self._change(offset, length, zeroing)

    def _change(self, offset: int, length: int, request: Awaitable[None]) -> Awaitable[None]:
        followed = Followed(future_of(request), lambda error: self._ended(offset, length, error))
        return self._keep(offset, length, followed)

    def _ended(self, offset: int, length: int, error: BaseException | None) -> None:
        if error is None:
            self._changed.mark(offset, length)

    def _keep(self, offset: int, length: int, change: "asyncio.Future[None]") -> Begun[None]:
        """A commit that is under way may have read what was there before the change, or in the midst of it:
        however that ends, the overlay keeps the blocks."""
        if self._committing is not None:
            self._committing.clear(offset, length)
        begun = Begun(change)
        self._under_way.add(offset, offset + length, begun)
        return begun

    def discard(self, offset: int, length: int) -> Awaitable[None]:
        """Of the overlay. What was never written there goes on reading as the base has it."""
        offset, length = self._asked.to_discard(offset, length)
        if error := self._refusal("discard", offset, length):
            return failed(error)
        return self._keep(offset, length, future_of(self._overlay.discard(offset, length)))

    def flush(self) -> Awaitable[None]:
        """Of the overlay, which is all that is written to but by :meth:`commit`."""
        self._refuse_if_closed("flush")
        return self._overlay.flush()

    # --- committing -----------------------------------------------------------------------------------------

    async def commit(self, target: BlockDevice | None = None) -> None:
        """Write what was changed to the base and flush it. What is changed meanwhile stays in the overlay,
        and everything stays there if this fails or is cancelled: it can be repeated.

        With *target* it is written there, as to a copy of the base, and the overlay keeps it.

        A crash in the midst of it leaves the base with a part of the changes.

        Raises:
            UsageError: the base is open for reading only, or is being committed to.
            OptionError: *target* has less capacity.
            BlkioError: one of the devices fails.
        """
        running_loop("commit", "copy-on-write")
        self._refuse_if_closed("commit")
        to = self._base if target is None else target
        if self._one_commit.locked():
            raise UsageError("it is being committed already", driver="copy-on-write", operation="commit")
        if to.read_only:
            what = "the base" if target is None else "the target"
            message = f"{what} is open for reading only; open it for writing, or commit to another device"
            raise UsageError(message, driver="copy-on-write", operation="commit")
        if to.capacity < self._capacity and not to.limits.can_grow:
            raise _wrong(f"the target has {to.capacity} bytes, and the base {self._capacity}", "commit")
        if self._block % to.limits.request_alignment:
            block = to.limits.request_alignment
            raise _wrong(f"the target has blocks of {block} bytes, and this one of {self._block}", "commit")
        async with self._one_commit:
            await self._commit(to, forgets=target is None)

    async def _commit(self, to: BlockDevice, *, forgets: bool) -> None:
        pending = self._changed._copy()
        if forgets:  # only what nobody changes meanwhile
            for start, end, _ in self._under_way:
                pending.clear(start, end - start)
            self._committing = pending
        try:
            for offset, length in pending:
                for start in range(offset, offset + length, AT_A_TIME):
                    size = min(AT_A_TIME, offset + length - start)
                    await to.write(start, await self._overlay.read(start, size))
            await to.flush()
            if forgets:
                self._changed._clear_all_of(pending)
        finally:
            self._committing = None

    def __repr__(self) -> str:
        return f"<aioblk.CopyOnWrite over {self._base!r}, to {self._overlay!r}>"


async def _joined(pieces: "asyncio.Future[list[bytes]]") -> bytes:
    try:
        return b"".join(await pieces)
    finally:
        del pieces  # which has the error that keeps this frame


def _divided(buffers: Sequence[Buffer], lengths: Sequence[int]) -> list[list[memoryview]]:
    """The buffers as so many bytes each."""
    pieces: list[list[memoryview]] = [[]]
    room = list(lengths)
    for buffer in buffers:
        left = flat(buffer)
        while left.nbytes:
            if room[len(pieces) - 1] == 0:
                pieces.append([])
            piece = left[: room[len(pieces) - 1]]
            pieces[-1].append(piece)
            room[len(pieces) - 1] -= piece.nbytes
            left = left[piece.nbytes :]
    return pieces


def _wrong(message: str, operation: str = "open") -> OptionError:
    return OptionError(message, driver="copy-on-write", operation=operation)
