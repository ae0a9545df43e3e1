"""The devices of a mirror: which of them have its content, and what the others are missing."""

import asyncio
import enum
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

from ..errors import UnsupportedError
from .block_device import BlockDevice
from .dirty_bitmap import DirtyBitmap

__all__ = ["Leg", "LegState", "Legs", "Member", "Outcomes"]

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
    state: LegState = LegState.IN_SYNC
    error: BaseException | None = None
    """Why it was dropped. None: it was not, or was stale from the beginning."""
    reads: int = 0
    """That it is asked for now."""


@final
class Leg:
    """One device of a mirror."""

    __slots__ = ("_member",)

    def __init__(self, member: Member) -> None:
        self._member = member

    @property
    def device(self) -> BlockDevice:
        return self._member.device

    @property
    def state(self) -> LegState:
        return self._member.state

    @property
    def error(self) -> BaseException | None:
        """Why it was dropped. None: it was not, or was stale from the beginning."""
        return self._member.error

    @property
    def missing(self) -> DirtyBitmap:
        """Where it may differ from the others; of no use to change it."""
        return self._member.missing

    def __repr__(self) -> str:
        return f"<Leg {self.state}: {self.device!r}>"


Outcomes: TypeAlias = Sequence[tuple[Member, BaseException | None]]
"""What came of a change, by the legs that were asked for it."""


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
        self.all = [Member(device, DirtyBitmap(granularity, end=capacity)) for device in (*trusted, *stale)]
        for member in self.all[len(trusted) :]:
            member.state = LegState.DROPPED
            member.missing.mark(0, capacity)
        self._legs = {Leg(member): member for member in self.all}
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

    def to_read(self, tried: Iterable[Member]) -> Member | None:
        """The least busy one that was not tried."""
        members = [member for member in self.all if member.state is LegState.IN_SYNC and member not in tried]
        return min(members, key=lambda member: member.reads, default=None)

    # --- what they miss -------------------------------------------------------------------------------------

    def change_begins(self, offset: int, length: int) -> None:
        self._unflushed.mark(offset, length)
        for member in self.all:
            if member.state is LegState.DROPPED:
                member.missing.mark(offset, length)

    def change_ends(self, offset: int, length: int, outcomes: Outcomes) -> BaseException | None:
        """The error of the change, if it has one; legs that lack it and others have it are dropped."""
        if all(error is None for _, error in outcomes):
            return None
        if all(isinstance(error, UnsupportedError) for _, error in outcomes):
            return outcomes[0][1]  # none of them has done anything
        error = self._drop_those_without(outcomes)
        for member, failure in outcomes:
            # Where it has failed on all, what they read as there is no longer known to be the same.
            if member.state is not LegState.IN_SYNC and (failure is not None or error is not None):
                member.missing.mark(offset, length)
        return error

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
        """Have only those legs that a change, or flush, has succeeded on; if there is none, one stays."""
        in_sync = [(member, error) for member, error in outcomes if member.state is LegState.IN_SYNC]
        error = in_sync[0][1] if in_sync and all(error is not None for _, error in in_sync) else None
        stays = in_sync[0][0] if error is not None else None
        for member, failure in outcomes:
            if failure is not None and member is not stays and member.state is not LegState.DROPPED:
                self.drop(member, failure)
        return error

    # --- leaving and coming back ----------------------------------------------------------------------------

    def drop(self, member: Member, error: BaseException) -> None:
        """Ask it for nothing any more. What no completed flush covers, it may have lost."""
        for unflushed in (self._unflushed, *self._flushing):
            member.missing.update(unflushed)
        member.error = error
        self._change_state(member, LegState.DROPPED)

    def start_resilvering(self, member: Member) -> None:
        member.error = None
        self._change_state(member, LegState.RESILVERING)

    def is_resilvering(self, member: Member) -> bool:
        return member.state is LegState.RESILVERING

    def end_resilvering(self, member: Member) -> None:
        self._change_state(member, LegState.IN_SYNC)

    def replace(self, member: Member, device: BlockDevice, capacity: int) -> None:
        """Another device, of which nothing is known, for one that was dropped."""
        member.device = device
        member.missing.mark(0, capacity)

    def _change_state(self, member: Member, state: LegState) -> None:
        member.state = state
        if state is LegState.DROPPED:
            log.warning("a leg of the mirror is dropped: %r: %s", member.device, member.error)
        else:
            log.info("a leg of the mirror is %s: %r", state, member.device)
        if self._on_change is not None:  # not from here: it may do anything, and raise
            asyncio.get_running_loop().call_soon(self._on_change, self.leg_of(member))
