"""The requests of a simulated history: each is made, perhaps cancelled, and its outcome judged."""

import asyncio
import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, final

import aioblk

from .oracle import Change, Flush, Oracle, Reading, Wrong
from .replaying import Asked
from .slots import Slot, Watch

__all__ = ["Circumstances", "Operation", "Operations"]

Pair = tuple[int, Any]


class Circumstances(Protocol):
    """What may be met at present, as far as the user can know."""

    def may_refuse(self, error: aioblk.BlkioError, queue: aioblk.Queue | None) -> bool:
        """Whether a request may be refused at the call."""
        ...

    def may_fail(self, error: aioblk.BlkioError) -> bool:
        """Whether a request that was made may fail so."""
        ...

    def may_fail_itself(self, error: aioblk.BlkioError) -> bool:
        """The same, of one that is no registration and no other call."""
        ...

    @property
    def may_be_lost(self) -> bool:
        """Whether anything has happened for which a device may be lost."""
        ...

    @property
    def is_lost(self) -> bool:
        """Whether the device is lost."""
        ...

    @property
    def bounces(self) -> bool:
        """Whether the device reaches registered memory only."""
        ...


@final
@dataclass(eq=False)
class Operation:
    """One request, or a batch."""

    name: str
    changes: list[Change] = field(default_factory=list[Change])
    readings: list[Reading] = field(default_factory=list[Reading])
    flush: Flush | None = None
    durable: bool = False
    slots: list[Slot] = field(default_factory=list[Slot])
    buffers: list[list[Any]] = field(default_factory=list[list[Any]])
    """What each read fills, but for those whose result is the data."""
    is_batch: bool = False
    private: bool = False
    """Whether who cancels it does not wait for the device."""
    asked: list[Asked] = field(default_factory=list[Asked])
    cancelled: bool = False
    must_be_cancelled: bool = False
    """Whether it has taken the cancellation."""
    by_deadline: bool = False
    begun: bool = True
    """Whether a task that awaits it has had its first step."""
    waiter: "aioblk.Request[Any] | asyncio.Task[Any] | None" = None
    judge: Callable[[Any], None] | None = None
    """What its outcome is looked at by, in the place of all else, unless it is cancelled or lost."""

    def done(self) -> bool:
        return self.waiter is None or self.waiter.done()


@final
class Operations:
    """Those of one history."""

    def __init__(self, oracle: Oracle, circumstances: Circumstances, tell: Callable[[str], None]) -> None:
        self.oracle = oracle
        self.pending: dict[Operation, None] = {}
        self.lost: list[Change] = []
        """Whose device was lost: it may yet do something."""
        self.given_up: list[Change] = []
        """What nobody waits for any more, and the device may have for as long as it lives."""
        self.watch = Watch()
        self.wrong: BaseException | None = None
        """The first thing that was."""
        self.made = 0
        self.cancelled: set[int] = set()
        """The numbers of those that somebody tried to cancel."""
        self.left: list[Asked] = []
        """What was cancelled, or may be by its deadline: whether the device still has it is not known."""
        self.outcomes: dict[str, int] = {}
        self._circumstances = circumstances
        self._tell = tell

    @property
    def memory_may_be_kept(self) -> bool:
        """Whether a lost device may have requests' memory, for good."""
        return self._circumstances.may_be_lost

    # --- making ---------------------------------------------------------------------------------------------

    def make(
        self,
        operation: Operation,
        call: Callable[[], "aioblk.Request[Any]"],
        queue: aioblk.Queue | None,
        style: float,
    ) -> None:
        """Call what submits it, and have the outcome judged. *style*: how it is waited for."""
        self.made += 1
        ranges: list[Change | Reading] = [*operation.changes, *operation.readings]
        operation.asked = [Asked(self.made, each.first, each.count) for each in ranges]
        operation.name = f"{operation.name} @{self.made}"
        try:
            request = call()
        except aioblk.BlkioError as error:
            for change in operation.changes:
                self.oracle.withdraw(change)
            for slot in operation.slots:
                self._give(operation, slot)
            self._tell(f"{operation.name}: refused, {type(error).__name__}: {error}")
            self._count(f"refused: {type(error).__name__}")
            if not self._circumstances.may_refuse(error, queue):
                raise Wrong(f"{operation.name} was refused: {error!r}") from error
            return
        self._tell(operation.name)
        self.pending[operation] = None
        if style < 0.6:
            operation.waiter = asyncio.ensure_future(request)  # itself, if it is a Request
        else:
            operation.private = False  # when its request is cancelled is not known
            operation.by_deadline = style > 0.85
            self.left += operation.asked if operation.by_deadline else []
            work = (
                _with_deadline(operation, request, (style - 0.85) * 5) if operation.by_deadline else request
            )
            operation.begun = not operation.by_deadline
            operation.waiter = asyncio.get_running_loop().create_task(work)
        if style * 100 % 1 < 0.2:
            self._have_another_wait(operation.waiter)
        operation.waiter.add_done_callback(lambda waiter: self._judge(operation, waiter))

    def _have_another_wait(self, waiter: Any) -> None:
        """For a moment, before anybody else."""
        waiter.add_done_callback(_ignore)
        asyncio.get_running_loop().call_soon(waiter.remove_done_callback, _ignore)

    def cancel(self, operation: Operation) -> None:
        waiter = operation.waiter
        if waiter is None or not operation.begun:
            return  # its request would not be cancelled, nor be anybody's
        self._tell(f"{operation.name}: cancel")
        operation.cancelled = True
        self.cancelled.update(asked.number for asked in operation.asked)
        self.left += operation.asked
        operation.must_be_cancelled = waiter.cancel()
        if operation.must_be_cancelled and operation.private:
            for change in operation.changes:
                self.oracle.end(change)

    # --- judging --------------------------------------------------------------------------------------------

    def _judge(self, operation: Operation, waiter: Any) -> None:
        try:
            self._end(operation, waiter)
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Something is wrong, that no caller can be told of."""
        self.wrong = self.wrong or error

    def _end(self, operation: Operation, waiter: Any) -> None:
        del self.pending[operation]
        # Not by catching it: its traceback would keep this frame.
        cancelled = asyncio.CancelledError() if waiter.cancelled() else None
        outcome: Any = cancelled or waiter.exception() or waiter.result()
        self._tell(f"{operation.name}: {_brief(outcome)}")
        self._count(type(outcome).__name__ if isinstance(outcome, BaseException) else "ok")
        if operation.must_be_cancelled and not isinstance(outcome, asyncio.CancelledError):
            raise Wrong(f"{operation.name} has taken a cancellation, and ended otherwise: {_brief(outcome)}")
        if operation.judge is not None:
            if isinstance(outcome, asyncio.CancelledError) or _is_deadline(outcome):
                self._require_right(operation, outcome)
            else:
                operation.judge(outcome)
        elif operation.is_batch and isinstance(outcome, list):
            for index, each in enumerate(outcome):
                self._end_item(operation, index, each)
        else:
            items = max(len(operation.changes), len(operation.readings), 1)
            for index in range(items):
                self._end_item(operation, index, outcome)
        errors = outcome if operation.is_batch and isinstance(outcome, list) else [outcome]
        # One that had been cancelled stays so when its device is lost.
        is_lost = any(
            isinstance(each, aioblk.DeviceLostError)
            or (isinstance(each, BaseException) and self._circumstances.is_lost)
            for each in errors
        )
        for slot in operation.slots:
            if is_lost:
                slot.usable = False  # the device may still write to it
            else:
                self._give(operation, slot)
        if operation.private and operation.cancelled:
            for buffers in operation.buffers:
                for buffer in buffers:
                    self.watch.keep(buffer, operation.name)
        operation.waiter = None

    def _end_item(self, operation: Operation, index: int, outcome: Any) -> None:
        change = operation.changes[index] if operation.changes else None
        if isinstance(outcome, BaseException):
            if change is not None and isinstance(outcome, aioblk.DeviceLostError):
                self.lost.append(change)
            elif change is not None:
                self.oracle.end(change)
                if not isinstance(outcome, aioblk.BlkioError):
                    self.given_up.append(change)
            self._require_right(operation, outcome)
        elif change is not None:
            self.oracle.acknowledge(change, durable=operation.durable)
        elif operation.flush is not None:
            self.oracle.end_flush(operation.flush)
        elif operation.readings:
            data = outcome
            if operation.buffers:
                data = b"".join(bytes(buffer) for buffer in operation.buffers[index])
            self.oracle.end_read(operation.readings[index], data)

    def _require_right(self, operation: Operation, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError) and operation.cancelled:
            return
        if _is_deadline(error) and operation.by_deadline:
            return
        if isinstance(error, aioblk.BlkioError) and self._circumstances.may_fail_itself(error):
            return
        raise Wrong(f"{operation.name} failed: {error!r}") from error

    def leave_lost(self, *, goes_on: bool) -> None:
        """Another instance has taken its place. *goes_on*: what the lost one had may still be carried out."""
        for change in self.lost:
            if not goes_on:
                self.oracle.end(change)
        for change in self.given_up:
            if goes_on:
                self.oracle.reopen(change)
        self.lost.clear()
        self.given_up.clear()

    def _give(self, operation: Operation, slot: Slot) -> None:
        if operation.readings:
            self.watch.keep(slot.view, operation.name)
        slot.usable = True
        slot.release()

    def _count(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


def _brief(outcome: Any) -> str:
    if isinstance(outcome, aioblk.BlkioError):
        return f"{type(outcome).__name__} {errno.errorcode.get(outcome.errno or 0, outcome.errno)}"
    return type(outcome).__name__ if isinstance(outcome, BaseException) else "ok"


def _is_deadline(outcome: Any) -> bool:
    return isinstance(outcome, TimeoutError) and not isinstance(outcome, aioblk.BlkioError)


def _ignore(_waiter: object) -> None:
    """Has no effect, and is one object."""


async def _with_deadline(operation: Operation, request: "aioblk.Request[Any]", seconds: float) -> Any:
    operation.begun = True
    async with asyncio.timeout(seconds):
        return await request
