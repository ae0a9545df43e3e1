"""Mirror: several devices with the same content, as one that goes on as long as one of them does."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar, final

from typing_extensions import Buffer

from .._device.extents import Extent
from .._libblkio.limits import Limits
from .._native.buffers import as_memoryview
from .._queues.statistics import QueueStatistics
from .._sync.loops import running_loop
from .._sync.scopes import shielded_if_cancelled
from ..errors import BlkioError, OptionError, UnsupportedError, UsageError
from ._begun import Begun, failed
from ._combined import combined_limits
from ._counts import Counts, Operation
from ._legs import Leg, Legs, LegState, Member
from ._mirrored import Call, Change, Read
from ._standalone import Standalone
from ._turns import Turn, Turns
from .block_device import BlockDevice, require_block_device
from .layer import extents_of

__all__ = ["Leg", "LegState", "Mirror"]

T = TypeVar("T")

AT_A_TIME = 1 << 20  # bytes that are copied by one step of resilvering, if the granularity is not larger
STEPS = 4  # of them at a time


@final
class Mirror(Standalone):
    """Devices with the same content: changes go to all of them, reads to one::

        mirror = aioblk.Mirror(one, other)
        await mirror.write(0, data)                  # on both
        ...
        for leg in mirror.legs:
            if leg.state is aioblk.LegState.DROPPED:
                await leg.device.reconnect()         # or whatever brings it back
                await mirror.resilver(leg)           # copies what was changed meanwhile

    **A leg that fails** a request is dropped, as long as another one has done it: the request succeeds, a
    warning is logged to ``aioblk.mirror``, *on_change* is called, and from then on the mirror remembers what
    the leg is missing. That is what is changed from now on, and what was since the last completed
    :meth:`flush`: a device that is gone may have lost it. So one that was lost is dropped although it is back
    before it is asked for anything (:attr:`Device.losses`). The last leg in sync is never dropped; its errors
    are those of the requests. Where a change fails on all, what the range reads as is not known, and only the
    first leg stays, so that it reads as one thing.

    **Resilvering** copies what a leg is missing while the mirror is in use, flushes it, and counts it in.

    **A silent leg** keeps changes waiting, and cancelling them as well: open devices that may fall silent
    with ``lost_after``. So does one that is looking for another backend (``reconnect_for``).

    **Order and cancellation.** Changes that share bytes take turns, so that all legs have them in the same
    order; therefore a change that has begun is carried through although it is cancelled, and then ends as
    cancelled. Reads are cancelled as those of the leg are.

    **After a crash** of the program, or where not all legs were there, nothing here knows which leg is right:
    a change may have reached one and not the other. Name those that are not to be trusted as *stale*, and
    resilver them.

    Memory is what all legs reach together: an :class:`Arena` that is attached to each. Limits are those that
    suit all, and the capacity is that of the smallest leg when the mirror was made: it does not grow. The
    legs belong to one event loop, and are neither opened nor closed.
    """

    def __init__(
        self,
        *devices: BlockDevice,
        stale: Iterable[BlockDevice] = (),
        granularity: int = 1 << 16,
        on_change: Callable[[Leg], object] | None = None,
    ) -> None:
        """Over open *devices*, which have the same content, and *stale* ones, which have not and begin as
        dropped. ``granularity``: the size in bytes of the units in which what a leg is missing is remembered.
        *on_change* is called in the loop's thread with each leg whose state has changed.

        Raises:
            OptionError: no device is to be trusted, one is there twice, or their limits contradict each
                other.
        """
        outdated = list(stale)
        given = [*devices, *outdated]
        for device in given:
            require_block_device(device)
        if not devices:
            raise _wrong("one device at least is to be in sync")
        if len(set(map(id, given))) < len(given):
            raise _wrong("a device is in a mirror once")
        limits = combined_limits("mirror", [device.limits for device in given])
        alignment = limits.request_alignment
        if granularity < 1 or granularity % alignment:
            raise _wrong(
                f"granularity is {granularity}; it must be a multiple of {alignment}, the request-alignment"
            )
        capacity = min(device.capacity for device in given) // alignment * alignment
        super().__init__("mirror", limits, capacity)
        self._granularity = granularity
        self._legs = Legs(devices, outdated, capacity, granularity, on_change)
        self._turns = Turns()
        self._counts = Counts()
        self._zeroes_slowly = False  # one leg at least, whatever others can

    # --- life -----------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        await self._turns.finish()
        await self._counts.finish()
        for member in self._legs.all:
            async with member.resilvering:
                pass  # it has noticed

    # --- what it is -----------------------------------------------------------------------------------------

    @property
    def legs(self) -> tuple[Leg, ...]:
        """All of them, in the order in which they were given."""
        return self._legs.legs

    @property
    def read_only(self) -> bool:
        """Whether changes are refused: one of the legs refuses them."""
        return any(member.read_only for member in self._legs.present())

    def statistics(self) -> QueueStatistics:
        """What was asked of the mirror. What the legs count are the requests that these were made of."""
        return self._counts.snapshot()

    def _extents(self, offset: int, length: int) -> AsyncGenerator[Extent]:
        """As of one of the legs."""
        members = self._legs.in_sync()
        while True:
            try:
                return extents_of(members.pop(0).device, offset, length)
            except BlkioError:  # it was closed
                if not members:
                    raise

    # --- reading --------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> Awaitable[bytes]:
        offset, length = self._asked.to_read(offset, length)
        return self._read(offset, length, lambda leg: leg.read(offset, length))

    def read_into(self, offset: int, buffer: Buffer) -> Awaitable[None]:
        offset, length = self._asked.to_fill(offset, [buffer])
        return self._read(offset, length, lambda leg: leg.read_into(offset, buffer))

    def readv(self, offset: int, buffers: Sequence[Buffer]) -> Awaitable[None]:
        buffers = tuple(buffers)
        offset, length = self._asked.to_fill(offset, buffers)
        return self._read(offset, length, lambda leg: leg.readv(offset, buffers))

    def _read(self, offset: int, length: int, call: Call[T]) -> Awaitable[T]:
        if error := self._refusal("read", offset, length):
            self._counts.refused("read", error)
            return failed(error)
        read = Read(
            self._legs,
            call,
            is_changing=lambda: self._turns.meet(offset, offset + length),
            ends=lambda outcomes: self._legs.read_ends(offset, length, outcomes),
        )
        self._counts.add(read, "read", length)
        return Begun(read)

    # --- changing -------------------------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> Awaitable[None]:
        offset, length = self._asked.to_write(offset, [data])
        view = as_memoryview(data)  # which it cannot lose while it waits for its turn
        return self._change("write", offset, length, lambda leg: leg.write(offset, view, fua=fua))

    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        buffers = tuple(buffers)
        offset, length = self._asked.to_write(offset, buffers)
        views = [as_memoryview(buffer) for buffer in buffers]
        return self._change("write", offset, length, lambda leg: leg.writev(offset, views, fua=fua))

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_unmap: bool = False,
        no_fallback: bool = False,
    ) -> Awaitable[None]:
        """As of the legs. With ``no_fallback`` it fails as soon as it is known that one of them would have to
        write the zeroes out; the first time that some can and others cannot, those do."""
        offset, length = self._asked.to_change("write_zeroes", offset, length)
        if no_fallback and self._zeroes_slowly:
            self._refuse_if_closed("write_zeroes")
            error = UnsupportedError(
                "a leg of the mirror would have to write zeroes out",
                driver="mirror",
                operation="write_zeroes",
                offset=offset,
                length=length,
            )
            self._counts.refused("write_zeroes", error)
            return failed(error)

        how = {"fua": fua, "no_unmap": no_unmap, "no_fallback": no_fallback}
        return self._zero("write_zeroes", offset, length, how)

    def discard(self, offset: int, length: int) -> Awaitable[None]:
        """Zero the range, where all legs can without writing: what a discarded range reads as would be each
        leg's own affair. Where some cannot, nothing is done, but for the first time."""
        offset, length = self._asked.to_discard(offset, length)
        self._refuse_if_closed("discard")
        if self._zeroes_slowly:
            length = 0
        return self._zero("discard", offset, length, {"no_fallback": True})

    def _zero(self, operation: Operation, offset: int, length: int, how: dict[str, bool]) -> Awaitable[None]:
        def zero_slowly(leg: BlockDevice) -> Awaitable[None]:
            self._zeroes_slowly = True
            return leg.write_zeroes(offset, length, **how | {"no_fallback": False})

        return self._change(
            operation,
            offset,
            length,
            lambda leg: leg.write_zeroes(offset, length, **how),
            instead=zero_slowly if how["no_fallback"] else None,
        )

    def _change(
        self,
        operation: Operation,
        offset: int,
        length: int,
        call: Call[None],
        *,
        instead: Call[None] | None = None,
    ) -> Awaitable[None]:
        if error := self._refusal(operation, offset, length):
            self._counts.refused(operation, error)
            return failed(error)
        change = Change(
            self._legs,
            call,
            begins=lambda: self._legs.change_begins(offset, length),
            ends=lambda outcomes: self._legs.change_ends(offset, length, outcomes),
            instead=instead,
        )
        return self._in_turn(change, operation, offset, length)

    def _in_turn(self, change: Change, operation: Operation, offset: int, length: int) -> Begun[None]:
        begun = Begun(change)
        self._counts.add(change, operation, length)
        try:
            self._turns.take(offset, offset + length, lambda turn: self._begin(change, turn))
        except BaseException as error:
            change.fail(error)
            raise
        return begun

    def _begin(self, change: Change, turn: Turn) -> None:
        try:
            change.begin(lambda: self._turns.end(turn))
        except Exception as error:  # there was no memory for as much as beginning
            change.fail(error)
            raise

    def flush(self) -> Awaitable[None]:
        """Make what changes that are done have written durable, on all legs in sync."""
        self._asked.to_flush()
        self._refuse_if_closed("flush")
        covered = self._legs.flush_begins(self._turns.ranges)
        flush = Change(
            self._legs,
            lambda leg: leg.flush(),
            begins=self._legs.notice_losses,
            ends=lambda outcomes: self._legs.flush_ends(covered, outcomes),
        )
        return self._in_turn(flush, "flush", 0, 0)  # no bytes: nobody waits

    # --- resilvering ----------------------------------------------------------------------------------------

    async def resilver(self, leg: Leg, device: BlockDevice | None = None) -> None:
        """Give a dropped leg what it is missing, and count it in again. The mirror is in use meanwhile;
        ``leg.missing.dirty_bytes`` tells how much is left.

        With *device* it takes the place of the leg's own, and is given everything.

        If it fails, is cancelled, or the leg is dropped again, the leg stays dropped, with less missing.

        Raises:
            UsageError: the leg is not dropped, or another mirror's.
            OptionError: *device* is smaller than the mirror, accepts less, or is a leg already.
            BlkioError: the leg cannot be written, or no other one be read.
        """
        running_loop("resilver", "mirror")
        self._refuse_if_closed("resilver")
        member = self._legs.member_of(leg)
        if member is None:
            raise _misuse("resilver", "the leg is none of this mirror")
        async with member.resilvering:  # who was at it before has to notice first that the leg was dropped
            self._legs.notice_losses()
            if member.state is not LegState.DROPPED:
                raise _misuse("resilver", f"a dropped leg can be resilvered; it is {member.state}")
            if device is not None:
                self._refuse_unless_suitable(device)
                self._legs.replace(member, device, self._capacity)
            await self._resilver(member)

    async def _resilver(self, member: Member) -> None:
        self._legs.start_resilvering(member)
        try:
            while self._legs.is_resilvering(member):
                self._refuse_if_closed("resilver")
                if member.missing:
                    await self._copy_missing(member)
                    self._legs.notice_losses()
                    continue
                await member.device.flush()  # what it was given is to be as durable as on the others
                if self._legs.is_resilvering(member) and not member.missing:  # no change has failed meanwhile
                    self._legs.end_resilvering(member)
                    return
        except BaseException as error:
            if self._legs.is_resilvering(member):
                self._legs.drop(member, error)
            raise
        assert member.error is not None  # it was dropped again
        raise member.error

    def _refuse_unless_suitable(self, device: BlockDevice) -> None:
        if any(device is other.device for other in self._legs.all):
            raise _wrong("a device is in a mirror once", "resilver")
        if device.capacity < self._capacity:
            raise _wrong(f"it has {device.capacity} bytes, and the mirror {self._capacity}", "resilver")
        if device.read_only:
            raise _wrong("it is open for reading only", "resilver")
        if _hard(combined_limits("mirror", [self._limits, device.limits])) != _hard(self._limits):
            raise _wrong("it accepts less than the mirror does, whose limits are fixed", "resilver")

    async def _copy_missing(self, member: Member) -> None:
        pieces = self._pieces(member)
        steps = [asyncio.create_task(self._copy(member, pieces)) for _ in range(STEPS)]
        try:
            await Begun(asyncio.gather(*steps))  # which goes on for as long as legs use what is copied
        finally:
            for step in steps:
                step.cancel()
            with shielded_if_cancelled():
                await asyncio.wait(steps)

    def _pieces(self, member: Member) -> Iterator[tuple[int, int]]:
        """What is missing, in steps."""
        at_a_time = max(AT_A_TIME // self._granularity, 1) * self._granularity
        for offset, length in member.missing:
            for start in range(offset, offset + length, at_a_time):
                yield start, min(at_a_time, offset + length - start)

    async def _copy(self, member: Member, pieces: Iterator[tuple[int, int]]) -> None:
        for offset, length in pieces:
            async with self._turns.hold(offset, offset + length):  # nobody changes it meanwhile
                if not self._legs.is_resilvering(member) or self._closed:
                    return
                data = await self._read_for_copy(offset, length)
                member.copied.mark(offset, length)  # until it is flushed, it may be lost
                await member.device.write(offset, data)
                if not self._legs.is_resilvering(member):
                    return
                member.missing.clear(offset, -(-length // self._granularity) * self._granularity)

    def _read_for_copy(self, offset: int, length: int) -> Awaitable[bytes]:
        read: Read[bytes] = Read(
            self._legs,
            lambda leg: leg.read(offset, length),
            is_changing=lambda: False,
            ends=lambda outcomes: self._legs.read_ends(offset, length, outcomes),
        )
        return Begun(read)

    def __repr__(self) -> str:
        return f"<aioblk.Mirror {', '.join(map(repr, self._legs.legs))}>"


def _hard(limits: Limits) -> Limits:
    """Without what is only faster."""
    return replace(
        limits, optimal_io_alignment=1, optimal_io_size=0, optimal_buf_alignment=1, flush_needed=True
    )


def _misuse(operation: str, message: str) -> UsageError:
    return UsageError(message, driver="mirror", operation=operation)


def _wrong(message: str, operation: str = "open") -> OptionError:
    return OptionError(message, driver="mirror", operation=operation)
