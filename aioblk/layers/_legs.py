"""The devices of a mirror: which of them have its content, and what the others are missing."""

import asyncio
import enum
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, final

from .._sync.loops import running_loop
from ..errors import BlkioError, DeviceClosedError, DeviceLostError, UnsupportedError
from ._loss import losses_of
from .block_device import BlockDevice
from .dirty_bitmap import DirtyBitmap

__all__ = ["Leg", "LegState", "Legs", "Member", "Outcome", "Outcomes"]

_GONE = (DeviceLostError, DeviceClosedError)

log = logging.getLogger("aioblk.mirror")  # nobody else tells that a leg was dropped


class LegState(enum.StrEnum):
    """Of one device of a mirror."""

    IN_SYNC = "in sync"
    """It has all of the content. Reads may go to it."""
    RESILVERING = "resilvering"
    """It has a part, and is being given the rest: changes go to it, and no reads."""
    DROPPED = "dropped"
    """It has a part, and is asked for nothing."""


@final
@dataclass(slots=True, eq=False)
class Member:
    """What is known of one device of a mirror."""

    device: BlockDevice
    missing: DirtyBitmap
    """Where it may differ from the others."""
    read_only: bool
    losses: int
    """How often it was lost, when it was last asked for something."""
    state: LegState = LegState.IN_SYNC
    error: BaseException | None = None
    """Why it was dropped. None: it was not, or was stale from the beginning."""
    reads: int = 0
    """That it is asked for now."""
    generation: int = 0
    """How often it was dropped: what was asked before says nothing of it any more."""
    copied: DirtyBitmap = field(default_factory=DirtyBitmap)
    """What it was given by resilvering, and has not flushed."""
    resilvering: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by who resilvers it."""


@final
class Leg:
    """One device of a mirror."""

    __slots__ = ("_legs", "_member")

    def __init__(self, member: Member, legs: "Legs") -> None:
        self._member = member
        self._legs = legs

    @property
    def device(self) -> BlockDevice:
        """What the leg is."""
        return self._member.device

    @property
    def state(self) -> LegState:
        """Whether it has what the others have."""
        self._legs.notice_losses()
        return self._member.state

    @property
    def error(self) -> BaseException | None:
        """Why it was dropped. None: it was not, or was stale from the beginning."""
        self._legs.notice_losses()
        return self._member.error

    @property
    def missing(self) -> DirtyBitmap:
        """Where it may differ from the others; of no use to change it."""
        self._legs.notice_losses()
        return self._member.missing

    def __repr__(self) -> str:
        return f"<Leg {self._member.state}: {self.device!r}>"


@final
class Outcome(NamedTuple):
    """What came of a request on one leg."""

    member: Member
    generation: int
    """Of the member, when it was asked."""
    error: BaseException | None


Outcomes: TypeAlias = Sequence[Outcome]


@final
class Legs:
    """All of a mirror. One at least is in sync, always."""

    def __init__(
        self,
        trusted: Sequence[BlockDevice],
        stale: Iterable[BlockDevice],
        capacity: int,
        granularity: int,
        on_change: Callable[[Leg], object] | None,
    ) -> None:
        self._on_change = on_change
        self.all: list[Member] = [
            Member(
                device,
                DirtyBitmap(granularity, end=capacity),
                device.read_only,
                losses_of(device),
                copied=DirtyBitmap(granularity, end=capacity),
            )
            for device in (*trusted, *stale)
        ]
        for member in self.all[len(trusted) :]:
            member.state = LegState.DROPPED
            member.missing.mark(0, capacity)
        self._legs = {Leg(member, self): member for member in self.all}
        self._unflushed = DirtyBitmap(granularity)
        """Changes that neither a completed flush covers, nor one under way."""
        self._flushing: list[DirtyBitmap] = []
        """Those that flushes under way cover."""

    @property
    def legs(self) -> tuple[Leg, ...]:
        return tuple(self._legs)

    def member_of(self, leg: Leg) -> Member | None:
        """None: it is another mirror's."""
        return self._legs.get(leg)

    def leg_of(self, member: Member) -> Leg:
        return next(leg for leg, its_member in self._legs.items() if its_member is member)

    def in_sync(self) -> list[Member]:
        return [member for member in self.all if member.state is LegState.IN_SYNC]

    def present(self) -> list[Member]:
        """Those that changes go to."""
        return [member for member in self.all if member.state is not LegState.DROPPED]

    def to_read(self, tried: Iterable[Member], is_changing: bool) -> Member | None:
        """The least busy one that was not tried. Of what is being changed, always the same one is asked, or
        what has been seen might not be there any more."""
        self.notice_losses()
        members = [member for member in self.all if member.state is LegState.IN_SYNC and member not in tried]
        if is_changing and members:
            return members[0]
        return min(members, key=lambda member: member.reads, default=None)

    # --- what they miss -------------------------------------------------------------------------------------

    def change_begins(self, offset: int, length: int) -> None:
        self.notice_losses()
        self._unflushed.mark(offset, length)
        for member in self.all:
            if member.state is LegState.DROPPED:
                member.missing.mark(offset, length)

    def change_ends(self, offset: int, length: int, outcomes: Outcomes) -> BaseException | None:
        """The error of the change, if it has one; legs that lack it and others have it are dropped."""
        if all(outcome.error is None for outcome in outcomes):
            return None
        if all(isinstance(outcome.error, UnsupportedError) for outcome in outcomes):
            return outcomes[0].error  # none of them has done anything
        error = self._drop_those_without(outcomes)
        for member, _, failure in outcomes:
            # Where it has failed on all, what they read as there is no longer known to be the same.
            if member.state is not LegState.IN_SYNC and (failure is not None or error is not None):
                member.missing.mark(offset, length)
        return error

    def read_ends(self, offset: int, length: int, outcomes: Outcomes) -> None:
        """Legs that cannot read what another one can are dropped."""
        self._drop_those_without(outcomes)
        for member, _, failure in outcomes:
            if member.state is not LegState.IN_SYNC and failure is not None:
                member.missing.mark(offset, length)

    def flush_begins(self, changing: Iterable[tuple[int, int]]) -> DirtyBitmap:
        """What it covers: changes that are done. Those under way are given from where to where."""
        covered = self._unflushed.take()
        self._flushing.append(covered)
        for start, end in changing:
            self._unflushed.mark(start, end - start)
        return covered

    def flush_ends(self, covered: DirtyBitmap, outcomes: Outcomes) -> BaseException | None:
        error = self._drop_those_without(outcomes)
        self._flushing.remove(covered)
        if error is not None:
            self._unflushed.update(covered)
        return error

    def _drop_those_without(self, outcomes: Outcomes) -> BaseException | None:
        """Have only those legs that a request has succeeded on. If there is none, one stays: the first that
        is not gone, or else the first."""
        current = [outcome for outcome in outcomes if outcome.generation == outcome.member.generation]
        in_sync = [outcome for outcome in current if outcome.member.state is LegState.IN_SYNC]
        stays = None
        if in_sync and all(outcome.error is not None for outcome in in_sync):
            stays = min(in_sync, key=lambda outcome: isinstance(outcome.error, _GONE))
        for outcome in current:
            if outcome.error is not None and (stays is None or outcome.member is not stays.member):
                self.drop(outcome.member, outcome.error)
        return None if stays is None else stays.error

    # --- leaving and coming back ----------------------------------------------------------------------------

    def notice_losses(self) -> None:
        """Drop who was lost since it was last asked, be it back or not: no request has failed, and what no
        completed flush covers may be gone. To be called before anything is asked for; what is under way when
        a device is lost fails."""
        lost = [member for member in self.all if member.losses != losses_of(member.device)]
        if not lost:
            return
        in_sync = self.in_sync()
        stays = None
        if all(member in lost for member in in_sync):
            stays = min(in_sync, key=lambda member: getattr(member.device, "lost", None) is not None)
        for member in lost:
            member.losses = losses_of(member.device)
            if member.state is not LegState.DROPPED and member is not stays:
                error = getattr(member.device, "lost", None)
                if not isinstance(error, BlkioError):
                    error = DeviceLostError("it was lost, and may lack what was not flushed", driver="mirror")
                self.drop(member, error)

    def drop(self, member: Member, error: BaseException) -> None:
        """Ask it for nothing any more. What no completed flush covers, it may have lost."""
        for unflushed in (self._unflushed, *self._flushing, member.copied.take()):
            member.missing.update(unflushed)
        member.error = error.with_traceback(None)  # which has frames, and these have memory of callers
        member.generation += 1
        self._change_state(member, LegState.DROPPED)

    def start_resilvering(self, member: Member) -> None:
        member.error = None
        member.losses = losses_of(member.device)
        self._change_state(member, LegState.RESILVERING)

    def is_resilvering(self, member: Member) -> bool:
        return member.state is LegState.RESILVERING

    def end_resilvering(self, member: Member) -> None:
        """It has flushed what it was given."""
        member.copied.take()
        self._change_state(member, LegState.IN_SYNC)

    def replace(self, member: Member, device: BlockDevice, capacity: int) -> None:
        """Another device, of which nothing is known, for one that was dropped."""
        member.device, member.read_only = device, device.read_only
        member.missing.mark(0, capacity)

    def _change_state(self, member: Member, state: LegState) -> None:
        member.state = state
        if state is LegState.DROPPED:
            log.warning("a leg of the mirror is dropped: %r: %s", member.device, member.error)
        else:
            log.info("a leg of the mirror is %s: %r", state, member.device)
        if self._on_change is not None:  # not from here: it may do anything, and raise
            running_loop("mirror").call_soon(self._on_change, self.leg_of(member))
