"""One job: an event loop, and as many tasks as the depth, each awaiting one request after the other."""

import asyncio
import mmap
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from ..._memory.mapping import MapsMemory
from ..._native.latency import LatencyRecorder
from ..._queues.statistics import OperationStatistics
from ...layers.block_device import BlockDevice
from ...layers.throttle import Rate, Throttle, ThrottleGroup
from .order import Operation, Order
from .pattern import Pattern, stamp
from .plan import Plan

__all__ = ["Clocked", "Signals", "Verified", "buffers_of", "run_job"]

MOST_FAULTS = 10  # that are told


@final
class Signals:
    """What a job and its process tell each other, from whatever thread."""

    def __init__(self) -> None:
        self.ready: Future[None] = Future()
        self.go: Future[None] = Future()
        self.stop: Future[None] = Future()


@final
@dataclass(slots=True)
class Verified:
    """How many blocks were read again, and what was wrong."""

    blocks: int = 0
    wrong: int = 0
    faults: tuple[str, ...] = ()

    def add(self, fault: str | None) -> None:
        self.blocks += 1
        if fault is not None:
            self.wrong += 1
            self.faults = (*self.faults, fault)[:MOST_FAULTS]

    def __add__(self, other: "Verified") -> "Verified":
        faults = (self.faults + other.faults)[:MOST_FAULTS]
        return Verified(self.blocks + other.blocks, self.wrong + other.wrong, faults)


@final
class Clocked:
    """Counts and times the requests of a device that does not do that by itself."""

    def __init__(self, block_size: int) -> None:
        self._size = block_size
        self._recorders: dict[str, LatencyRecorder] = {}
        self._counts: dict[str, int] = {}

    def clocked(self, name: str, operation: Operation) -> Operation:
        recorder = self._recorders[name] = LatencyRecorder()
        self._counts[name] = 0
        clock = time.perf_counter

        async def timed(offset: int, buffer: Any) -> None:
            start = clock()
            await operation(offset, buffer)
            recorder.add(clock() - start)
            self._counts[name] += 1

        return timed

    def statistics(self) -> dict[str, OperationStatistics]:
        return {
            name: OperationStatistics(
                completed=count,
                bytes=0 if name == "flush" else count * self._size,
                latency=self._recorders[name].histogram(),
            )
            for name, count in self._counts.items()
        }


@asynccontextmanager
async def buffers_of(plan: Plan, device: BlockDevice, jobs: int) -> AsyncGenerator[list[list[memoryview]]]:
    """A buffer for each task of each of so many jobs, which the device reaches by itself if the plan says so:
    in one region, since some devices take few."""
    size = plan.block_size
    length = jobs * plan.depth * size
    async with AsyncExitStack() as stack:
        if plan.registered and isinstance(device, MapsMemory):
            region = memoryview(await stack.enter_async_context(device.allocate(length)))
        else:
            region = memoryview(mmap.mmap(-1, -(-length // mmap.PAGESIZE) * mmap.PAGESIZE))
        buffers = [region[start : start + size] for start in range(0, length, size)]
        yield [buffers[job * plan.depth : (job + 1) * plan.depth] for job in range(jobs)]


async def run_job(
    plan: Plan,
    number: int,
    target: BlockDevice,
    buffers: Sequence[memoryview],
    signals: Signals,
    clocked: Clocked | None,
) -> Verified:
    """Begin when told to, go on until told to stop, and verify what was written, if that is planned.

    Raises:
        BlkioError: a request has failed; the others are not waited for.
    """
    group = ThrottleGroup()
    if plan.rate is not None or plan.iops is not None:
        operations, length = (None if each is None else each / plan.jobs for each in (plan.iops, plan.rate))
        group.total = Rate(operations=operations, bytes=length)
        target = Throttle(target, group)
    read, write, flush = _operations(plan, target, buffers, clocked)
    verifier = _Verifier(plan, number, read, write) if plan.verify else None
    order = Order(plan, number, read, write, flush)
    slots: list[Callable[[], Coroutine[Any, Any, None]]]
    if verifier is None:
        slots = [partial(_repeat, order.requests, buffer) for buffer in buffers]
    else:
        slots = [partial(verifier.repeat, slot, buffer) for slot, buffer in enumerate(buffers)]
    signals.ready.set_result(None)
    await asyncio.shield(asyncio.wrap_future(signals.go))
    async with asyncio.TaskGroup() as tasks:
        for slot in slots:
            tasks.create_task(slot())
        await asyncio.shield(asyncio.wrap_future(signals.stop))
        order.stop()
        group.total = None  # who waits for its turn would do so for hours, perhaps
        if verifier is not None:
            verifier.stopped = True
    return Verified() if verifier is None else await verifier.check_all(buffers)


async def _repeat(requests: Any, buffer: memoryview) -> None:
    for operation, offset in requests:
        await operation(offset, buffer)


def _operations(
    plan: Plan, target: BlockDevice, buffers: Sequence[memoryview], clocked: Clocked | None
) -> tuple[Operation, Operation, Operation]:
    """Reading, changing and flushing."""
    size, fua = plan.block_size, plan.fua
    name = "write"
    write: Operation = target.write
    if plan.kind == "trim":
        name = "discard"

        def discard(offset: int, _buffer: Any) -> Awaitable[None]:
            return target.discard(offset, size)

        write = discard
    elif plan.kind == "rw" and not plan.verify:  # what was read is not written elsewhere
        data = memoryview(mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE))[:size]
        stamp(data, plan.seed)

        def write_data(offset: int, _buffer: Any) -> Awaitable[None]:
            return target.write(offset, data, fua=fua)

        write = write_data
    elif fua:

        def write_with_fua(offset: int, buffer: Any) -> Awaitable[None]:
            return target.write(offset, buffer, fua=True)

        write = write_with_fua
    if plan.writes and not plan.verify:
        for slot, buffer in enumerate(buffers):
            stamp(buffer, plan.seed + slot)
    operations: list[Operation] = [target.read_into, write, lambda _offset, _buffer: target.flush()]
    if clocked is not None:
        names = ("read", name, "flush")
        operations = [clocked.clocked(*each) for each in zip(names, operations, strict=True)]
    read, write, flush = operations
    return read, write, flush


@final
class _Verifier:
    """Knows how often each block was written. A block belongs to one task: none overtakes another."""

    def __init__(self, plan: Plan, job: int, read: Operation, write: Operation) -> None:
        self._plan = plan
        self._blocks = plan.share(job)
        self._read, self._write = read, write
        self._pattern = Pattern(plan.block_size, plan.seed)
        self._generations: dict[int, int] = {}
        self._random = random.Random(f"{plan.seed} {job}")
        self._found = Verified()
        self.stopped = False

    async def repeat(self, slot: int, buffer: memoryview) -> None:
        own = self._blocks[slot :: self._plan.depth]
        at = -1
        while own and not self.stopped:
            at = self._random.randrange(len(own)) if self._plan.random else (at + 1) % len(own)
            offset = own[at]
            if self._plan.kind == "rw" and self._random.random() * 100 < self._plan.reads:
                await self._check(offset, buffer)
            else:
                generation = self._generations.get(offset, 0) + 1
                self._pattern.fill(buffer, offset, generation)
                await self._write(offset, buffer)
                self._generations[offset] = generation

    async def _check(self, offset: int, buffer: memoryview) -> None:
        await self._read(offset, buffer)
        if generation := self._generations.get(offset):
            self._found.add(self._pattern.check(buffer, offset, generation))

    async def check_all(self, buffers: Sequence[memoryview]) -> Verified:
        """Read again whatever was written."""
        offsets = iter(sorted(self._generations))

        async def check_some(buffer: memoryview) -> None:
            for offset in offsets:
                await self._check(offset, buffer)

        async with asyncio.TaskGroup() as group:
            for buffer in buffers:
                group.create_task(check_some(buffer))
        return self._found
