"""What the user of a simulated history asks of devices: each request drawn from its dice, and made."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Protocol, final

import aioblk

from .fate import SIZE
from .history import History
from .holdings import Holdings
from .library import Driver
from .operations import Operation, Operations
from .oracle import SECTOR, Change, Oracle, Wrong
from .slots import SLOT, Slot

__all__ = ["MOST_SECTORS", "Asker", "Surroundings"]

MOST_SECTORS = SLOT // SECTOR
LONG = 0.94  # dice beyond that make a request of all sectors
BEYOND = 4 * SIZE  # bytes, where no disk has anything


class Surroundings(Protocol):
    """Whom requests may go to, beside queues."""

    @property
    def device(self) -> aioblk.Device: ...
    @property
    def view(self) -> aioblk.ByteView | None: ...
    @property
    def bounces(self) -> bool: ...


@final
class Asker:
    """Makes requests, and cancels them and waits for them."""

    def __init__(
        self, history: History, around: Surroundings, holdings: Holdings, operations: Operations
    ) -> None:
        self._history = history
        self._around = around
        self._holdings = holdings
        self._operations = operations
        self._oracle: Oracle = operations.oracle
        self._met: deque[tuple[int, int]] = deque(maxlen=4)
        """Where something was changed over what was given up: worth reading before it is changed again."""

    @property
    def _leaves_at_once(self) -> bool:
        """Whether a request on memory that is not the user's is over when it is cancelled."""
        return self._around.view is None

    def _target(self, dice: float) -> tuple[Any, aioblk.Queue | None]:
        if self._around.view is not None:
            return self._around.view, None
        choice = int(dice * (len(self._holdings.queues) + 1))
        if choice == 0 or not self._holdings.queues:
            return self._around.device, None
        return self._holdings.queues[choice - 1], self._holdings.queues[choice - 1]

    def _range(self, dice: float, more: float, unit: int = 1) -> tuple[int, int]:
        sectors = self._history.sectors
        count = sectors if more > LONG else min(1 + int(more**3 * MOST_SECTORS), sectors)
        first = int(dice * (sectors - count + 1)) // unit * unit
        return first, max(count // unit * unit, unit)

    def _memory(self, operation: Operation, length: int, dice: float) -> Any:
        """For one request: its user's own, or registered."""
        slots = self._holdings.usable_slots()
        if self._holdings.arena is not None and dice > 0.8:
            with suppress(MemoryError, aioblk.BlkioError):
                buffer = self._holdings.arena.allocate(length)
                slot = Slot(buffer, buffer.release)
                operation.slots.append(slot)
                operation.private = False
                return slot
        if slots and dice > 0.4 and length <= SLOT:
            slot = slots[int(dice * 1000) % len(slots)]
            slot.usable = False
            self._operations.watch.forget(slot.view)
            operation.slots.append(slot)
            operation.private = False
            return slot
        operation.private &= self._around.bounces
        return bytearray(length)

    def _pieces(self, memory: Any, length: int, dice: float) -> list[Any]:
        """The memory as one buffer or several, cut anywhere."""
        view = memory.view if isinstance(memory, Slot) else memoryview(memory)
        cuts = _cuts(length, dice)
        if self._would_part_sectors(len(cuts) - 1):
            cuts = sorted({cut // SECTOR * SECTOR for cut in cuts})
        found: list[Any] = [view[a:b] for a, b in itertools.pairwise(cuts)]
        if isinstance(memory, Slot) and len(found) > 1 and dice * 1000 % 1 < 0.3:  # some are the user's own
            found = [piece if index % 3 == 2 else bytearray(piece) for index, piece in enumerate(found)]
        return found

    def _would_part_sectors(self, pieces: int) -> bool:
        """Whether so many pieces may take several requests to the disk within a sector, which tears it."""
        try:
            limits = self._around.device.limits
        except aioblk.BlkioError:
            return False  # nor is anything asked of it
        return limits.request_alignment < SECTOR and limits.max_segments < pieces

    def _prepare_write(
        self, operation: Operation, first: int, count: int, dice: float, cut: float
    ) -> list[Any]:
        change = self._oracle.begin(first, count, zeroes=False)
        operation.changes.append(change)
        data = change.data()
        memory = self._memory(operation, len(data), dice)
        if isinstance(memory, Slot):
            memory.put(data)
        else:
            memory[:] = data
        return self._pieces(memory, len(data), cut)

    def _prepare_read(
        self, operation: Operation, first: int, count: int, dice: float, cut: float
    ) -> list[Any]:
        operation.readings.append(self._oracle.begin_read(first, count))
        pieces = self._pieces(self._memory(operation, count * SECTOR, dice), count * SECTOR, cut)
        operation.buffers.append(
            [memoryview(piece) for piece in pieces]
        )  # valid when the region has been left
        return pieces

    async def do_read(self, dice: tuple[float, ...]) -> None:
        target, queue = self._target(dice[0])
        first, count = self._range(dice[1], dice[2])
        if self._met and dice[0] * 100 % 1 < 0.5:
            first, count = self._met.popleft()
        operation = Operation(f"read {first}+{count}", private=self._leaves_at_once)
        if dice[3] < 0.3:
            operation.readings.append(self._oracle.begin_read(first, count))
            self._operations.make(
                operation, lambda: target.read(first * SECTOR, count * SECTOR), queue, dice[4]
            )
            return
        pieces = self._prepare_read(operation, first, count, dice[3], dice[4])
        if len(pieces) == 1 and dice[5] < 0.5:
            self._operations.make(
                operation, lambda: target.read_into(first * SECTOR, pieces[0]), queue, dice[5] * 2
            )
        else:
            self._operations.make(operation, lambda: target.readv(first * SECTOR, pieces), queue, dice[4])

    async def do_write(self, dice: tuple[float, ...]) -> None:
        self._write(*self._range(dice[1], dice[2]), dice)

    def _write(self, first: int, count: int, dice: tuple[float, ...]) -> None:
        target, queue = self._target(dice[0])
        operation = Operation(
            f"write {first}+{count}", private=self._leaves_at_once, durable=dice[5] * 100 % 1 < 0.2
        )
        pieces = self._prepare_write(operation, first, count, dice[3], dice[4])
        if dice[1] * 1000 % 1 < 0.1:
            _require_refusal(lambda: target.writev(first * SECTOR, [*pieces, object()]))
        fua = operation.durable
        operation.name = f"{operation.name} #{operation.changes[0].number}{' fua' if fua else ''}"
        if len(pieces) == 1 and dice[5] < 0.5:
            self._operations.make(
                operation, lambda: target.write(first * SECTOR, pieces[0], fua=fua), queue, dice[5] * 2
            )
        else:
            self._operations.make(
                operation, lambda: target.writev(first * SECTOR, pieces, fua=fua), queue, dice[4]
            )
        if dice[3] * 10 % 1 < 0.5:  # the memory of an arena's buffer is free when the request is over
            for slot in operation.slots:
                slot.release()

    async def do_write_zeroes(self, dice: tuple[float, ...]) -> None:
        self._write_zeroes(*self._range(dice[1], dice[2]), dice)

    def _write_zeroes(self, first: int, count: int, dice: tuple[float, ...]) -> None:
        target, queue = self._target(dice[0])
        change = self._oracle.begin(first, count, zeroes=True)
        fua = dice[3] < 0.2
        operation = Operation(
            f"write_zeroes {first}+{count} #{change.number}{' fua' if fua else ''}",
            [change],
            private=self._leaves_at_once,
            durable=fua,
        )
        flags = {"fua": fua, "no_unmap": dice[5] < 0.5}
        self._operations.make(
            operation, lambda: target.write_zeroes(first * SECTOR, count * SECTOR, **flags), queue, dice[4]
        )

    async def do_discard(self, dice: tuple[float, ...]) -> None:
        if not self._around.bounces:
            return  # it goes round libblkio
        target, queue = self._target(dice[0])
        unit = max(self._history.properties.get("discard_alignment", SECTOR) // SECTOR, 1)
        first, count = self._range(dice[1], dice[2], unit)
        first += self._history.properties.get("discard_alignment_offset", 0) // SECTOR
        while first + count > self._history.sectors:
            count -= unit
        if count <= 0:
            return  # there is no whole unit
        change = self._oracle.begin(first, count, zeroes=True)
        operation = Operation(
            f"discard {first}+{count} #{change.number}", [change], private=self._leaves_at_once
        )
        self._operations.make(
            operation, lambda: target.discard(first * SECTOR, count * SECTOR), queue, dice[4]
        )

    async def do_flush(self, dice: tuple[float, ...]) -> None:
        target, queue = self._target(dice[0])
        operation = Operation("flush", flush=self._oracle.begin_flush(), private=self._leaves_at_once)
        self._operations.make(operation, target.flush, queue, dice[4])

    async def do_read_many(self, dice: tuple[float, ...]) -> None:
        target, queue = self._target(dice[0])
        operation = Operation("read_into_many", private=self._leaves_at_once, is_batch=True)
        pairs: list[tuple[int, Any]] = []
        for each, (first, count) in self._places(dice):
            (piece,) = self._prepare_read(operation, first, count, each, 0)
            pairs.append((first * SECTOR, piece))
        operation.name += " " + ", ".join(f"{r.first}+{r.count}" for r in operation.readings)
        lists = dice[0] * 1000 % 1 < 0.7
        self._operations.make(
            operation, lambda: target.read_into_many(pairs, return_exceptions=lists), queue, dice[4]
        )
        has_an_end = self._history.driver is not Driver.IO_URING  # files have zeroes there
        if has_an_end and dice[1] * 1000 % 1 < 0.2:
            self._read_beyond_the_end(target, queue, dice[4], lists=lists)

    def _read_beyond_the_end(
        self, target: Any, queue: aioblk.Queue | None, style: float, *, lists: bool
    ) -> None:
        """Two of three items fail, whatever else does: in their places, or the first of them for all."""
        pairs = [(BEYOND, SLOT), (0, SLOT), (BEYOND + SLOT, SLOT)]

        def judge(outcome: Any) -> None:
            found = outcome if isinstance(outcome, list) else [outcome]
            for (offset, length), each in zip(pairs, found, strict=False):
                if isinstance(each, aioblk.BlkioError) and each.operation != "read":
                    continue  # there was no bounce memory for it
                fails_there = isinstance(each, aioblk.BlkioError) and each.offset == offset
                if not fails_there and (offset >= BEYOND or not isinstance(each, bytes)):
                    raise Wrong(f"{operation.name}: {length} bytes at {offset} came to {each!r}")
            if lists != isinstance(outcome, list):
                raise Wrong(f"{operation.name} came to {outcome!r}")

        operation = Operation("read_many beyond the end", judge=judge, private=False)
        self._operations.make(
            operation, lambda: target.read_many(pairs, return_exceptions=lists), queue, style
        )

    def _places(self, dice: tuple[float, ...]) -> Iterator[tuple[float, tuple[int, int]]]:
        """Dice, sectors and their number; often side by side, which goes to the device as one."""
        side_by_side = dice[5] * 1000 % 1 < 0.4
        end = self._history.sectors
        for each in _series(dice):
            first, count = self._range(each, dice[2] * 0.7)
            if side_by_side and end + count <= self._history.sectors:
                first = end
            end = first + count
            yield each, (first, count)

    async def do_write_many(self, dice: tuple[float, ...]) -> None:
        target, queue = self._target(dice[0])
        fua = dice[5] * 100 % 1 < 0.2
        operation = Operation("write_many", private=self._leaves_at_once, is_batch=True, durable=fua)
        pairs: list[tuple[int, Any]] = []
        for each, (first, count) in self._places(dice):
            memory = each if dice[2] < 0.4 else 0.0  # its user's own: who cancels does not wait then
            (piece,) = self._prepare_write(operation, first, count, memory, 0)
            pairs.append((first * SECTOR, piece))
        operation.name += " " + ", ".join(f"{c.first}+{c.count} #{c.number}" for c in operation.changes)
        lists = dice[0] * 1000 % 1 < 0.7
        self._operations.make(
            operation, lambda: target.write_many(pairs, fua=fua, return_exceptions=lists), queue, dice[4]
        )

    async def ask_at_once(self, dice: tuple[float, ...]) -> None:
        """Several requests, which the device has when this is over, unless it is fast."""
        for index in range(2, 5 + int(dice[3] * 5)):
            each = tuple(die * 3.7 * index % 1 for die in dice)
            await (self.do_write if each[0] < 0.5 else self.do_read)(each)
        await asyncio.sleep(0)

    async def do_cancel(self, dice: tuple[float, ...]) -> None:
        pending = list(self._operations.pending)
        if not pending:
            return
        batches = [each for each in pending if each.is_batch and each.changes and each.private]
        if batches and dice[0] * 100 % 1 < 0.4:
            pending = batches
        operation = pending[int(dice[0] * len(pending))]
        self._operations.cancel(operation)
        if not operation.private or not operation.must_be_cancelled:
            return
        if dice[1] < 0.5 and operation.changes:
            self._change_again(operation.changes[int(dice[2] * len(operation.changes))], dice)
        for _ in range(3):
            await asyncio.sleep(0)
        if operation in self._operations.pending:
            raise Wrong(f"{operation.name} is cancelled and over, and who waits for it is not told")

    async def do_give_up(self, dice: tuple[float, ...]) -> None:
        """A change is cancelled while the device has it; what meets any part of it comes at once, and waits.

        It is on memory of aioblk's own, where there is such: who cancels it does not wait then.
        """
        kinds = (self.do_write_many, self.do_write_many, self.do_write, self.do_write_zeroes, self.do_discard)
        before = next(reversed(self._operations.pending), None)
        await kinds[int(dice[0] * 1000) % len(kinds)]((*dice[:3], dice[3] * 0.4, dice[4] * 0.6, dice[5]))
        latest = next(reversed(self._operations.pending), None)
        if latest is None or latest is before:
            return  # this device has no such request, or has refused it
        for _ in range(1 + int(dice[5] * 1000) % 3):
            await asyncio.sleep(0)
        self._operations.cancel(latest)
        for index, change in enumerate(latest.changes, 2):
            each = tuple(die * 3.7 * index % 1 for die in dice)
            first = change.first + int(each[0] * change.count)
            count = 1 + int(each[1] * (change.first + change.count - first))
            self._change_over(first, count, each)

    def _change_again(self, change: Change, dice: tuple[float, ...]) -> None:
        """What meets a change that was given up: that must not land over it."""
        first = max(change.first - int(dice[3] * 3), 0)
        count = min(1 + int(dice[4] * MOST_SECTORS), self._history.sectors - first)
        self._change_over(first, count, dice)

    def _change_over(self, first: int, count: int, dice: tuple[float, ...]) -> None:
        self._met.append((first, count))
        if dice[5] < 0.7:
            self._write(first, count, dice)
        else:
            self._write_zeroes(first, count, dice)

    async def do_await_some(self, dice: tuple[float, ...]) -> None:
        """For a while: a device may be silent."""
        waiters: Any = [each.waiter for each in self._operations.pending]
        if waiters:
            await asyncio.wait(
                waiters[int(dice[0] * len(waiters)) :],
                timeout=dice[1] * 3,
                return_when=asyncio.FIRST_COMPLETED,
            )

    async def do_await_all(self, dice: tuple[float, ...]) -> None:
        waiters: Any = [each.waiter for each in self._operations.pending]
        if waiters:
            await asyncio.wait(waiters, timeout=dice[1] * 10)


def _require_refusal(call: Callable[[], object]) -> None:
    """Of what is no buffer; nothing is kept of those beside it."""
    with suppress(TypeError, aioblk.BlkioError):  # or the device takes nothing now
        call()
        raise Wrong("writev() takes what is no buffer")


def _cuts(length: int, dice: float) -> list[int]:
    """Where memory is cut, from beginning to end: nowhere, or anywhere, with tiny pieces side by side."""
    cuts, at = {0, length}, 0
    for index in range(1, 1 if dice < 0.6 else 2 + int((dice - 0.6) * 30)):
        anywhere = int(length * (dice * 7.3 * index % 1))
        at = at + 1 + int(dice * 1e4 * index) % 90 if index % 5 != 1 else anywhere
        cuts.add(min(at, length))
    return sorted(cuts)


def _series(dice: tuple[float, ...]) -> list[float]:
    """As many numbers as the dice say."""
    return [(dice[1] * (3.7 * index + 1)) % 1 for index in range(1 + int(dice[3] * 7))]
