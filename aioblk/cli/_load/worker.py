"""A process that does jobs, as the fleet starts it: a plan comes in, and frames go out.

It ends in order when its standard input does: with its parent, however that ended.
"""

import asyncio
import gc
import os
import pickle
import resource
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import final

from ..._device.device import Device
from ...addresses import open as open_address
from ...layers.block_device import BlockDevice
from ..running import loop_factory
from .frames import FRAME, Done, Failed, Frame, Operations, Ready, Sample, Task
from .job import Clocked, Signals, Verified, buffers_of, run_job


def main() -> None:
    """Of the process."""
    out, sys.stdout = sys.stdout.buffer, sys.stderr
    orders = sys.stdin.fileno()
    (length,) = FRAME.unpack(_read(orders, FRAME.size))
    task: Task = pickle.loads(_read(orders, length))

    def tell(frame: Frame) -> None:
        data = pickle.dumps(frame)
        out.write(FRAME.pack(len(data)) + data)
        out.flush()

    try:
        with asyncio.Runner(loop_factory=loop_factory(task.plan.loop)) as runner:
            runner.run(_Worker(task, tell, orders).run())
    except BrokenPipeError:  # nobody listens any more
        sys.stderr.close()
    except BaseExceptionGroup as group:
        errors = group.subgroup(OSError)
        if errors is None:
            raise
        tell(Failed(_first(errors)))
    except OSError as error:
        tell(Failed(error))


def _read(fd: int, length: int) -> bytes:
    """So many bytes, without a buffer that a thread could hold when the process ends."""
    data = b""
    while len(data) < length and (more := os.read(fd, length - len(data))):
        data += more
    return data


def _first(group: BaseExceptionGroup[OSError]) -> OSError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


@final
class _Worker:
    def __init__(self, task: Task, tell: Callable[[Frame], None], orders: int) -> None:
        self._plan, self._jobs, self._every = task.plan, task.jobs, task.every
        self._tell = tell
        self._orders = orders
        self._statistics: Callable[[], Operations]
        self._ended = asyncio.Event()

    async def run(self) -> None:
        plan = self._plan
        queues = {"num_queues": len(self._jobs)} if plan.threads else {}
        async with AsyncExitStack() as stack:
            device = await stack.enter_async_context(open_address(plan.address, **plan.properties, **queues))
            clocked = None
            if isinstance(device, Device):
                device.measuring = True
                self._statistics = lambda: dict(device.statistics().operations)
            else:
                clocked = Clocked(plan.block_size)
                self._statistics = clocked.statistics
            signals = [Signals() for _ in self._jobs]
            buffers = await stack.enter_async_context(buffers_of(plan, device, len(self._jobs)))
            threads = ThreadPoolExecutor(
                len(self._jobs)
            )  # the default one may have fewer: some would not begin
            asyncio.get_running_loop().set_default_executor(threads)
            async with asyncio.TaskGroup() as group:
                jobs = [
                    group.create_task(
                        run_job(plan, number, device, buffers[index], signals[index], clocked)
                        if index == 0
                        else asyncio.to_thread(
                            self._in_a_thread, number, index, device, buffers[index], signals[index]
                        )
                    )
                    for index, number in enumerate(self._jobs)
                ]
                group.create_task(self._conduct(signals, jobs))

    def _in_a_thread(
        self, number: int, index: int, device: BlockDevice, buffers: list[memoryview], signals: Signals
    ) -> Verified:
        assert isinstance(device, Device)

        async def run() -> Verified:
            async with device.queue(index) as queue:
                return await run_job(self._plan, number, queue, buffers, signals, None)

        with asyncio.Runner(loop_factory=loop_factory(self._plan.loop)) as runner:
            return runner.run(run())

    async def _conduct(self, signals: list[Signals], jobs: "list[asyncio.Task[Verified]]") -> None:
        """Begin, tell how it goes, and end it."""
        loop = asyncio.get_running_loop()
        try:
            for each in signals:
                await asyncio.wrap_future(each.ready)
            self._tell(Ready(type(loop).__module__.partition(".")[0]))
            begun = asyncio.Event()
            threading.Thread(target=self._listen, args=(loop, begun), daemon=True).start()
            await begun.wait()
            gc.collect()
            gc.freeze()
            for each in signals:
                each.go.set_result(None)
            await self._pause(time.perf_counter() + self._plan.warmup)
            usage, start, before = (
                resource.getrusage(resource.RUSAGE_SELF),
                time.perf_counter(),
                self._statistics(),
            )
            end = start + self._plan.seconds
            due = start
            while (due := due + self._every) < end and not self._ended.is_set():
                await self._pause(due)
                self._tell(Sample(time.perf_counter() - start, self._since(before)))
            await self._pause(end)
            seconds, done = time.perf_counter() - start, self._since(before)
            after = resource.getrusage(resource.RUSAGE_SELF)
        finally:
            for each in signals:
                each.stop.set_result(None)
                if not each.go.done():
                    each.go.set_result(None)
        verified = sum([await job for job in jobs], Verified())
        user, system = after.ru_utime - usage.ru_utime, after.ru_stime - usage.ru_stime
        self._tell(Done(seconds, done, user, system, verified))

    def _since(self, before: Operations) -> Operations:
        return {
            name: now - before[name] if name in before else now
            for name, now in self._statistics().items()
            if now.completed or now.failed
        }

    async def _pause(self, until: float) -> None:
        try:
            async with asyncio.timeout(max(until - time.perf_counter(), 0)):
                await self._ended.wait()
        except TimeoutError:
            pass

    def _listen(self, loop: asyncio.AbstractEventLoop, begun: asyncio.Event) -> None:
        """A byte: begin. The end: stop, wherever it is."""
        byte = os.read(self._orders, 1)
        try:
            if not byte:
                loop.call_soon_threadsafe(self._ended.set)
            loop.call_soon_threadsafe(begun.set)
            os.read(self._orders, 1)
            loop.call_soon_threadsafe(self._ended.set)
        except RuntimeError:
            pass  # the loop has been faster
