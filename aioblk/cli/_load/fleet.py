"""Starts the processes of a plan, and sums up what they tell."""

import asyncio
import contextlib
import os
import pickle
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from ..._native.latency import LatencyHistogram
from ..._queues.statistics import OperationStatistics
from ..._sync.scopes import shielded
from ...errors import BlkioError
from .frames import FRAME, Done, Failed, Frame, Operations, Ready, Sample, Task
from .job import Verified
from .plan import Plan

__all__ = ["Point", "Result", "measure"]

SAMPLES_EVERY = 0.25  # seconds
PATIENCE = 10.0  # seconds, for a process that was told to stop

WORKER = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from aioblk.cli._load.worker import main
main()
"""
"""What a process runs. Ctrl-C is for all in a terminal, and the parent says when to stop: from before what
takes time is imported."""


@final
@dataclass(frozen=True, slots=True)
class Point:
    """What all jobs did between two moments, in seconds since the warm-up."""

    start: float
    end: float
    operations: Operations

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def total(self) -> OperationStatistics:
        """Of all operations but flushes."""
        return total(self.operations)


def total(operations: Operations) -> OperationStatistics:
    """Of all but flushes."""
    return sum((each for name, each in operations.items() if name != "flush"), OperationStatistics())


@final
@dataclass(slots=True)
class Result:
    """What a plan came to; while it is under way, so far."""

    plan: Plan
    loop: str = ""
    seconds: float = 0.0
    operations: Operations = field(default_factory=dict[str, OperationStatistics])
    """Each, by the name of its method."""
    user: float = 0.0
    """Seconds of the processor, of all jobs' processes,"""
    system: float = 0.0
    """and of the kernel on behalf of them."""
    points: list[Point] = field(default_factory=list[Point])
    verified: Verified = field(default_factory=Verified)
    complete: bool = False

    @property
    def latency(self) -> LatencyHistogram:
        """Of all operations but flushes."""
        return total(self.operations).latency

    @property
    def iops(self) -> float:
        return total(self.operations).completed / self.seconds if self.seconds else 0.0


async def measure(plan: Plan, told: Callable[[Result], object] = lambda _: None) -> Result:
    """Do it. *told* is called with what there is so far, some times a second.

    A task that is cancelled has the processes stop, and waits for them.

    Raises:
        BlkioError: a device could not be opened, or a request has failed; or OSError, a process could not be
            started.
    """
    result = Result(plan)
    numbers = [range(plan.jobs)] if plan.threads else [range(job, job + 1) for job in range(plan.jobs)]
    every = max(SAMPLES_EVERY, min(plan.seconds / 500, 1.0))
    async with contextlib.AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(_process(Task(plan, each, every))) for each in numbers]
        for process in processes:
            ready = await _receive(process)
            assert isinstance(ready, Ready)
            result.loop = ready.loop
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"!")
        samples: list[dict[int, Sample]] = []

        async def listen(index: int, process: Process) -> Done:
            number = 0
            while isinstance(frame := await _receive(process), Sample):
                if number == len(samples):
                    samples.append({})
                samples[number][index] = frame
                if len(samples[number]) == len(processes):
                    _note(result, samples[number])
                    told(result)
                number += 1
            assert isinstance(frame, Done)
            return frame

        try:
            async with asyncio.TaskGroup() as group:
                listening = [group.create_task(listen(*each)) for each in enumerate(processes)]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        done = [each.result() for each in listening]
    _note(result, dict(enumerate(done)))
    result.user, result.system = sum(each.user for each in done), sum(each.system for each in done)
    result.verified = sum((each.verified for each in done), Verified())
    result.complete = True
    return result


def _note(result: Result, samples: "dict[int, Sample] | dict[int, Done]") -> None:
    """What all processes had done by the same moment, as near as they are to it."""
    seconds = sum(each.seconds for each in samples.values()) / len(samples)
    operations: Operations = {}
    for sample in samples.values():
        for name, each in sample.operations.items():
            operations[name] = operations.get(name, OperationStatistics()) + each
    nothing = OperationStatistics()
    since = {name: each - result.operations.get(name, nothing) for name, each in operations.items()}
    result.points.append(Point(result.seconds, seconds, since))
    result.seconds, result.operations = seconds, operations


@asynccontextmanager
async def _process(task: Task) -> AsyncGenerator[Process]:
    """One that has been told what to do."""
    root = str(Path(__file__).parents[3])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER),
        stdin=PIPE,
        stdout=PIPE,
        env={**os.environ, "PYTHONPATH": path},
        limit=1 << 24,
    )
    assert process.stdin is not None
    try:
        data = pickle.dumps(task)
        process.stdin.write(FRAME.pack(len(data)) + data)
        yield process
    finally:
        process.stdin.close()
        with shielded():
            await _end(process)


async def _end(process: Process) -> None:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            while await process.stdout.read(1 << 16):
                pass
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _receive(process: Process) -> Frame:
    assert process.stdout is not None
    try:
        (length,) = FRAME.unpack(await process.stdout.readexactly(FRAME.size))
        frame: Frame = pickle.loads(await process.stdout.readexactly(length))
    except asyncio.IncompleteReadError:
        status = await process.wait()
        raise BlkioError(f"a job's process ended with status {status}", operation="bench") from None
    if isinstance(frame, Failed):
        raise frame.error
    return frame
