"""Copying a device to another one: what is data is copied, what is a hole stays one."""

import asyncio
import errno
import math
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, final

from typing_extensions import Protocol, runtime_checkable

from .._native._core import View, zero_runs
from .._sync.blocking import run_blocking
from .._sync.loops import running_loop
from .._sync.scopes import shielded
from .._sync.tasks import SteadfastTasks, carried_through, until_ended
from ..errors import BlkioError, OptionError, UnsupportedError
from ..layers.block_device import BlockDevice, require_block_device
from ..layers.byte_view import ByteView
from ._clone import clone_file, forget_pages
from ._journal import Journal, identity_of
from ._memory import shared_buffers
from ._pieces import LEAST_HOLE, Foreseen, Piece, Sizes, any_bytes, pieces_of, sizes_for, stretches
from ._place import bypasses_page_cache, file_of, place_of

__all__ = ["CopyProgress", "CopyResult", "copy"]

Phase: TypeAlias = Literal["copy", "flush", "verify"]

FLUSHED_AT_ONCE = 256 << 20  # bytes: a cache is written out beside the copy, and not at its end
REQUEST_SIZE_OF_FILES = 512 << 10  # bytes: a processor's cache has what was read when it is looked through
PAGES_AT_ONCE = 32 << 20  # bytes in the page cache: the next ones are given the same memory
COMPARED_BEFORE_GOING_ON = 32 << 20  # bytes
SAVED_EVERY = 2.0  # seconds, where there is a journal
DISCARDED_AT_ONCE = 1 << 30  # bytes


@final
@dataclass(frozen=True, slots=True)
class CopyProgress:
    """How far a copy has come; bytes."""

    phase: Phase
    """What is being done."""
    size: int
    """What there is to do, in this phase."""
    done: int
    """Of that. What is skipped is done, too."""
    copied: int
    """Read from the source and written, by this call."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CopyResult:
    """What :func:`copy` has done; bytes, if nothing else is said."""

    size: int
    """Of the copy."""
    copied: int
    """Read and written."""
    zeroed: int
    """Made zeroes on the destination, without writing what was read."""
    skipped: int
    """Zeroes that the destination had already."""
    discarded: int
    """Behind the copy."""
    resumed_at: int
    """Where this call began."""
    cloned: bool
    """The file system shares the content among both files, until one of them is changed."""
    verified: bool
    """The destination was read again, and is equal."""
    source_changed: bool
    """The source was written to meanwhile, as its size or its time of modification tells."""
    seconds: float
    """How long it took."""


@runtime_checkable
class _Truncates(Protocol):
    async def truncate(self, size: int) -> None: ...


async def copy(
    source: BlockDevice,
    destination: BlockDevice,
    *,
    sparse: int = 4096,
    allocate: bool = False,
    destination_is_zero: bool = False,
    discard_rest: bool = False,
    resize: bool = True,
    clone: bool = True,
    verify: bool = False,
    rate: float | None = None,
    journal: str | os.PathLike[str] | None = None,
    request_size: int | None = None,
    depth: int | None = None,
    on_progress: Callable[[CopyProgress], object] | None = None,
) -> CopyResult:
    """Make the first bytes of *destination* those of *source*, all of them, and durable::

        async with (
            aioblk.IoUring("disk.img", read_only=True) as source,
            aioblk.VirtioBlkVhostUser("blk.sock") as destination,
        ):
            await aioblk.copy(source, destination)

    Both are open, and any block devices. What the source tells to be a hole is not read; it, and zeroes that
    are found in what is read, become zeroes of the destination: where that tells of a hole, nothing is done,
    elsewhere :meth:`BlockDevice.write_zeroes` is. Several requests are under way at a time, on memory that
    both reach.

    :param sparse: The least number of zero bytes in a row that are not written, a multiple of both
        alignments; where the destination is not zero, at least 64 KiB. 0: what is read is written.
    :param allocate: Everything is to have its place on the destination: holes are not kept.
    :param destination_is_zero: It reads as zeroes everywhere. If that is wrong, so is the copy.
    :param discard_rest: What the destination has behind the copy is discarded, as far as it can be.
    :param resize: A destination that is a regular file gets the size of the source, to the byte. Otherwise it
        grows if it must, and keeps what lies behind.
    :param clone: Where source and destination are regular files of a file system that can have them share
        their content until one is changed (XFS, btrfs), have it do so, which takes no time.
    :param verify: Read the destination again when it is flushed, past the page cache if it is a file, and
        compare.
    :param rate: The most bytes to read from the source in a second.
    :param journal: A file that tells what is done, so that the same call goes on after a crash, a kill, an
        error or a cancellation. It is there until the copy is done. What it says is on stable storage by
        then. A copy that goes on first compares what was copied last.
    :param request_size: The length of requests; less where a device takes less. Otherwise 1 MiB;
        half of it from file to file.
    :param depth: Requests under way at a time on each of both. Otherwise as many as have 8 MiB, from 4 to 64.
        Twice as much memory is taken: what comes next is read while what was read is written.
    :param on_progress: Is called when some more is done, in the loop's thread.

    Raises:
        OptionError: before anything is changed: the destination is too small, or both share bytes; an option
            is out of range; the journal is of another copy, or the source has changed since.
        BlkioError: a request failed. It says where; a note says whether of the source or of the destination.
            If verifying has failed, ``offset`` is the first byte that differs.

    If it is cancelled, or fails, nothing new is begun. What is being read is given up; changes of the
    destination that have begun are waited for, so nothing changes it afterwards. It has some of the copy, the
    journal knows of what.
    """
    running_loop("copy")
    began = time.monotonic()
    require_block_device(source)
    require_block_device(destination)
    size = source.capacity
    _refuse_unless_possible(source, destination, size)
    if request_size is None and file_of(source) is not None and file_of(destination) is not None:
        request_size = REQUEST_SIZE_OF_FILES
    sizes = sizes_for(
        source.limits, destination.limits, request_size=request_size, depth=depth, operation="copy"
    )
    sparse = _unit_of_zeroes(sparse, sizes, allocate)
    if rate is not None and not rate > 0:
        raise OptionError(f"rate must be positive, not {rate}", operation="copy")
    identity = identity_of(source, is_source=True)
    done = 0
    if journal is not None:
        kept = Journal(journal, identity, identity_of(destination, is_source=False))
        done = min(await run_blocking(kept.load), size)
        await _refuse_unless_resumable(source, destination, kept, done)
    else:
        kept = None
    work = _Copy(source, destination, size, sizes, sparse, allocate, kept, done, on_progress)
    if rate is not None:
        work.throttle(rate)
    try:
        await work.begin()
        if resize:
            await _resize(destination, size)
        may_clone = clone and not done and rate is None and not allocate
        cloned = may_clone and await _clone(source, destination)
        if not cloned:
            await work.run(destination_is_zero and not done)
        discarded = await _discard_behind(destination, size) if discard_rest else 0
        await work.flush()
        if verify:
            await _verify(source, destination, size, sizes, on_progress)
        await work.forget_journal()
    finally:
        await work.aclose()
    return CopyResult(
        size=size,
        copied=work.copied,
        zeroed=work.zeroed,
        skipped=work.skipped,
        discarded=discarded,
        resumed_at=done,
        cloned=cloned,
        verified=verify,
        source_changed=identity_of(source, is_source=True) != identity,
        seconds=time.monotonic() - began,
    )


# --- before the first byte ----------------------------------------------------------------------------------


def _refuse_unless_possible(source: BlockDevice, destination: BlockDevice, size: int) -> None:
    if destination.read_only:
        raise BlkioError("the destination is open for reading only", errno=errno.EBADF, operation="copy")
    if not destination.limits.can_grow and destination.capacity < size:
        raise OptionError(
            f"the destination has {destination.capacity} bytes, and the source {size}",
            errno=errno.ENOSPC,
            operation="copy",
        )
    ours, theirs = place_of(source), place_of(destination)._replace(length=size)
    if source is destination or ours.overlaps(theirs):
        raise OptionError("source and destination are the same, or share bytes", operation="copy")


def _unit_of_zeroes(sparse: int, sizes: Sizes, allocate: bool) -> int:
    if sparse < 0 or (sparse % sizes.alignment and sparse >= sizes.alignment):
        raise OptionError(
            f"sparse is {sparse}; it must be 0 or a multiple of {sizes.alignment}, the request-alignment",
            operation="copy",
        )
    return 0 if allocate or sparse == 0 else max(sparse, sizes.alignment)


async def _refuse_unless_resumable(
    source: BlockDevice, destination: BlockDevice, journal: Journal, done: int
) -> None:
    """The end of what is done is there: it is the destination that it was, and the source as well."""
    if not done:
        return
    from .comparison import compare  # as in _verify(): most copies do not

    first = max(done - COMPARED_BEFORE_GOING_ON, 0)
    if destination.capacity >= done:
        found = await compare(source, destination, offset=first, length=done - first)
        if found.same:
            return
    raise OptionError(
        f"it says that {done} bytes are copied, but the last of them are not what the source has: one of both"
        " was changed since; remove it to copy anew",
        driver="copy",
        operation="resume",
        filename=str(journal.path),
    )


# --- copying ------------------------------------------------------------------------------------------------


@final
class _Copy:
    """What is under way, done, and to be done."""

    def __init__(
        self,
        source: BlockDevice,
        destination: BlockDevice,
        size: int,
        sizes: Sizes,
        sparse: int,
        allocate: bool,
        journal: Journal | None,
        done: int,
        on_progress: Callable[[CopyProgress], object] | None,
    ) -> None:
        self._source = source
        self._destination = destination
        self._from = any_bytes(source, size)
        self._to = any_bytes(destination, size)
        self._size = size
        self._sizes = sizes
        self._sparse = sparse
        self._allocate = allocate
        self._journal = journal
        self._on_progress = on_progress
        self._done = self._next = self._start = done
        self._under_way: set[int] = set()  # where pieces begin; what has failed stays
        self._turn = asyncio.Lock()  # of who takes the next piece
        self._free: asyncio.Queue[View] = asyncio.Queue()
        self._full: asyncio.Queue[_Full | None] = asyncio.Queue()  # None: a writer has nothing more to do
        self._readers = 0
        self._files = SteadfastTasks("copy")
        self._checkpointing = False
        self._unflushed = 0
        self._last_saved = time.monotonic()
        self._flush_failed = False
        self._file = None if bypasses_page_cache(destination) else file_of(destination)
        self._flushed_at_once = _flushed_at_once(destination)
        self._forgotten = done  # by the page cache, which would otherwise be full of what nobody reads
        self.copied = self.zeroed = self.skipped = 0

    def throttle(self, rate: float) -> None:
        from ..layers.throttle import Rate, Throttle, ThrottleGroup  # most copies have no rate

        group = ThrottleGroup(reads=Rate(bytes=rate))
        self._from = any_bytes(Throttle[BlockDevice](self._source, group), self._size)

    async def begin(self) -> None:
        """The journal is there before the destination is changed."""
        if self._journal is not None:
            await self._files.finish(run_blocking(partial(self._journal.save, self._done)))

    async def run(self, destination_is_zero: bool) -> None:
        """All that is to be copied. It is not flushed then."""
        try:
            async with AsyncExitStack() as resources:
                known = None
                if not self._allocate and not destination_is_zero:
                    known = Foreseen(self._destination, self._start, alignment=self._sizes.alignment)
                    resources.push_async_callback(known.aclose)
                coming = await resources.enter_async_context(aclosing(self._plan()))
                devices = (self._source, self._destination)
                buffers = await resources.enter_async_context(
                    shared_buffers(devices, 2 * self._sizes.depth, self._sizes.request)
                )
                await self._read_and_write(coming, known, buffers)
            await self._have_the_size()
        except BaseException:
            if self._journal is not None and not self._flush_failed:
                with shielded(), suppress(Exception):
                    await self._checkpoint()
            raise

    async def _plan(self) -> AsyncGenerator[Piece]:
        least = LEAST_HOLE if self._sparse else self._sizes.alignment
        alignment = self._sizes.alignment
        with _of("source"):
            async with aclosing(
                stretches(self._source, self._start, self._size, alignment=alignment, least=least)
            ) as found:
                async for stretch in found:
                    for piece in pieces_of(stretch, self._sizes):
                        yield piece

    async def _read_and_write(
        self, coming: AsyncGenerator[Piece], known: Foreseen | None, buffers: list[View]
    ) -> None:
        """What comes next is read while what was read is written. A device may tell of all its writes at once
        that they are done: it is given the next ones at once, and does not wait for them to be read."""
        for buffer in buffers:
            self._free.put_nowait(buffer)
        self._readers = self._sizes.depth
        await _together(
            each for _ in range(self._readers) for each in (self._read_on(coming, known), self._write_on())
        )

    async def _read_on(self, coming: AsyncGenerator[Piece], known: Foreseen | None) -> None:
        """One piece after the other."""
        while True:
            buffer = await self._free.get()
            async with self._turn:
                piece = await anext(coming, None)
                if piece is None:
                    break
                places = [piece._replace(is_hole=not self._allocate)]
                if known is not None:
                    with _of("destination"):
                        places = await known.between(piece.offset, piece.end)
                self._under_way.add(piece.offset)
                self._next = piece.end
            onto_zeroes = all(place.is_hole for place in places)
            zeroes: list[tuple[int, int]] = []
            if not piece.is_hole:
                data = buffer[: piece.length]
                with _of("source"):
                    await self._from.read_into(piece.offset, data)
                least = self._sparse if onto_zeroes else max(self._sparse, LEAST_HOLE)
                zeroes = _zeroes_in(data, self._sparse, least)
            self._full.put_nowait(_Full(buffer, piece, places, onto_zeroes, zeroes))
        self._readers -= 1
        if not self._readers:
            for _ in range(self._sizes.depth):
                self._full.put_nowait(None)

    async def _write_on(self) -> None:
        """What was read, until there is nothing more to come."""
        while (full := await self._full.get()) is not None:
            if full.piece.is_hole:
                await self._make_zeroes(full.places)
            else:
                await self._write_out(full)
            self._under_way.remove(full.piece.offset)
            self._free.put_nowait(full.buffer)
            self._done += full.piece.length
            self._tell("copy", self._done)
            await self._flush_now_and_then()

    async def _make_zeroes(self, places: list[Piece]) -> None:
        for place in places:
            if place.is_hole:
                self.skipped += place.length
            else:
                await self._zero(place.offset, place.length)

    async def _zero(self, offset: int, length: int) -> None:
        with _of("destination"):
            await _in_one_go(self._to.write_zeroes(offset, length, no_unmap=self._allocate))
        self.zeroed += length
        self._unflushed += 1  # hardly anything to be written out, as a rule

    async def _write_out(self, full: "_Full") -> None:
        offset, written = full.piece.offset, 0
        for start, end in full.zeroes:
            await self._write(offset + written, full.buffer[written:start])
            if full.onto_zeroes:
                self.skipped += end - start
            else:
                await self._zero(offset + start, end - start)
            written = end
        await self._write(offset + written, full.buffer[written : full.piece.length])

    async def _write(self, offset: int, data: View) -> None:
        if length := len(data):
            with _of("destination"):
                await _in_one_go(self._to.write(offset, data))
            self.copied += length
            self._unflushed += length

    async def _have_the_size(self) -> None:
        """A device that has grown, but not by what was skipped at the end."""
        missing = self._size - self._destination.capacity
        if missing > 0:
            with _of("destination"):
                await carried_through(_await(self._to.write_zeroes(self._size - missing, missing)))

    # --- durability -----------------------------------------------------------------------------------------

    async def _flush_now_and_then(self) -> None:
        """By whoever has done a piece; the others go on."""
        is_time = self._journal is not None and time.monotonic() - self._last_saved > SAVED_EVERY
        is_much = self._unflushed >= self._flushed_at_once
        if not self._checkpointing and (is_much or is_time):
            await self._checkpoint()

    async def _checkpoint(self) -> None:
        """Steadfast: what is saved later must not come before what was saved earlier."""
        await self._files.until_done()
        await self._files.finish(self._flush_and_save())

    async def _flush_and_save(self) -> None:
        self._checkpointing, self._unflushed = True, 0
        done = min(self._under_way, default=self._next)
        try:
            with _of("destination"):
                await self._destination.flush()
            if self._file is not None and done > self._forgotten:
                await forget_pages(self._file, self._forgotten, done - self._forgotten)
                self._forgotten = done
            if self._journal is not None:
                await run_blocking(partial(self._journal.save, done))
                self._last_saved = time.monotonic()
        except BaseException:
            self._flush_failed = True  # what was not written out may never be, and the next flush succeed
            raise
        finally:
            self._checkpointing = False

    async def flush(self) -> None:
        """Everything is durable from here on."""
        self._tell("flush", self._size)
        await self._checkpoint()

    async def forget_journal(self) -> None:
        if self._journal is not None:
            await self._files.finish(run_blocking(self._journal.remove))

    async def aclose(self) -> None:
        """Wait until the journal is as it is to stay."""
        await self._files.until_ended()

    def _tell(self, phase: Phase, done: int) -> None:
        if self._on_progress is not None:
            self._on_progress(CopyProgress(phase, self._size, done, self.copied))


def _flushed_at_once(destination: BlockDevice) -> float:
    """How much is written between two flushes; bytes."""
    if file_of(destination) is None:
        return FLUSHED_AT_ONCE
    return math.inf if bypasses_page_cache(destination) else PAGES_AT_ONCE


def _zeroes_in(buffer: View, unit: int, least: int) -> list[tuple[int, int]]:
    if not unit:
        return []
    return [
        (start, end) for start, end, is_zero in zero_runs(buffer, unit) if is_zero and end - start >= least
    ]


@final
class _Full(NamedTuple):
    """A buffer with a piece of the source, unless that is a hole."""

    buffer: View
    piece: Piece
    places: list[Piece]
    """What the destination has there."""
    onto_zeroes: bool
    """Whether all of that are holes."""
    zeroes: list[tuple[int, int]]
    """What need not be written of the buffer."""


@final
class _Worker(asyncio.Task[None]):
    """A task that is cancelled behind a change, not within: a device may go on with what is given up."""

    changes = False
    given_up = False

    def cancel(self, msg: Any | None = None) -> bool:
        if self.changes:
            self.given_up = True
            return True
        return super().cancel(msg)


async def _in_one_go(change: Awaitable[None]) -> None:
    """A worker's change of the destination."""
    worker = asyncio.current_task()
    assert isinstance(worker, _Worker)
    worker.changes = True
    try:
        await change
    finally:
        worker.changes = False
    if worker.given_up:
        raise asyncio.CancelledError


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of it, or the first error, when all have ended."""
    loop = asyncio.get_running_loop()
    workers = [_Worker(each, loop=loop) for each in work]
    try:
        await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for worker in workers:
            worker.cancel()
        try:
            await until_ended(workers)
        finally:
            errors = [worker.exception() for worker in workers if not worker.cancelled()]
    for error in errors:
        if error is not None:
            raise error


@final
class _of:  # noqa: N801 - it is used as a word
    """Has errors say of which side they are."""

    def __init__(self, side: Literal["source", "destination"]) -> None:
        self._side = side

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            error.add_note(f"of the {self._side}")


# --- what the whole takes -----------------------------------------------------------------------------------


async def _await(change: Awaitable[None]) -> None:
    await change


async def _resize(destination: BlockDevice, size: int) -> None:
    if isinstance(destination, _Truncates) and destination.limits.can_grow:
        with _of("destination"):
            if destination.capacity != size:
                await carried_through(_await(destination.truncate(size)))


async def _clone(source: BlockDevice, destination: BlockDevice) -> bool:
    ours, theirs = file_of(source), file_of(destination)
    return ours is not None and theirs is not None and await carried_through(clone_file(ours, theirs))


async def _discard_behind(destination: BlockDevice, size: int) -> int:
    """How much that was."""
    view = ByteView[BlockDevice](destination)
    position, end = size, destination.capacity
    with _of("destination"), suppress(UnsupportedError):
        while position < end:
            length = min(DISCARDED_AT_ONCE, end - position)
            await carried_through(_await(view.discard(position, length)))
            position += length
    return position - size


async def _verify(
    source: BlockDevice,
    destination: BlockDevice,
    size: int,
    sizes: Sizes,
    on_progress: Callable[[CopyProgress], object] | None,
) -> None:
    from .comparison import compare

    if (file := file_of(destination)) is not None:
        await forget_pages(file)

    def tell(done: int, _size: int) -> None:
        if on_progress is not None:
            on_progress(CopyProgress("verify", size, done, size))

    found = await compare(
        source, destination, length=size, request_size=sizes.request, depth=sizes.depth, on_progress=tell
    )
    if not found.same:
        raise BlkioError(
            "the destination does not read as the source does: one of both was changed, or does not keep what"
            " it is given",
            errno=errno.EIO,
            driver="copy",
            operation="verify",
            offset=found.first,
        )
