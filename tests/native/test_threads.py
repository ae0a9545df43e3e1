"""Threads that share a device: what each may touch, with a GIL and without one."""

import asyncio
import contextlib
import gc
import random
import subprocess
import sys
import sysconfig
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import aioblk
from aioblk._native._core import Allocator, Memory, View

from ..support.devices import BLOCK, pattern
from ..support.scripts import run_script

if TYPE_CHECKING:
    from ..conftest import StorageDaemonFactory

DATA = pattern(256 * BLOCK)
THREADS = 3
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


@pytest.fixture(params=["io_uring", "vhost_user"])
async def device(
    request: pytest.FixtureRequest, scratch_file: Path, storage_daemon: "StorageDaemonFactory"
) -> AsyncIterator[aioblk.Device]:
    """Holds DATA; a queue for each thread beside the default one."""
    with scratch_file.open("r+b") as file:
        file.write(DATA)
    if request.param == "io_uring":
        device: aioblk.Device = aioblk.IoUring(scratch_file, num_queues=THREADS + 1)
    else:
        socket = storage_daemon(scratch_file, num_queues=THREADS + 1).socket
        device = aioblk.VirtioBlkVhostUser(socket, num_queues=THREADS + 1)
    async with device:
        yield device


@contextlib.contextmanager
def frequent_switches() -> Iterator[None]:
    """Where threads take turns, let them do so as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


async def in_threads(work: Callable[[int], object], count: int = THREADS) -> None:
    """Run work(0), work(1), ... at the same time, each in a thread of its own that then ends."""
    barrier = threading.Barrier(count)

    def begin_together(index: int) -> None:
        barrier.wait()
        work(index)

    with frequent_switches(), ThreadPoolExecutor(count) as threads:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(threads, begin_together, n) for n in range(count)))


def elsewhere(work: Callable[[], object]) -> None:
    """Run *work* in another thread and raise what it raises."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(work).result()


# --- the interpreter ----------------------------------------------------------------------------------------


def test_importing_aioblk_leaves_the_gil_as_it_is() -> None:
    """A free-threaded interpreter warns of each extension module that makes it take a GIL after all."""
    code = "import aioblk, sys; print(getattr(sys, '_is_gil_enabled', lambda: True)())"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (str(not FREE_THREADED), "")


SUBINTERPRETERS = """
import sys

def make():
    if sys.version_info >= (3, 13):
        import _interpreters as interpreters
        return interpreters, [interpreters.create(kind) for kind in ("legacy", "isolated")]
    import _xxsubinterpreters as interpreters
    return interpreters, [interpreters.create(isolated=isolated) for isolated in (False, True)]

def import_there():
    interpreters, made = make()
    run = getattr(interpreters, "exec", None) or interpreters.run_string
    for each in made:
        assert run(each, CODE) is None
        interpreters.destroy(each)

CODE = "try: import aioblk\\nexcept ImportError as error: print(error, flush=True)"
import_there()
import aioblk
import_there()
"""


def test_subinterpreters_are_refused() -> None:
    """Whether they share the GIL or not, before and after the main interpreter has imported the package."""
    done = run_script(SUBINTERPRETERS)
    assert done.stdout.count("main interpreter only") == 4, done.stdout


# --- one device, many threads -------------------------------------------------------------------------------


async def test_threads_share_memory_that_comes_and_goes(device: aioblk.Device) -> None:
    """Every thread reads into its part of one region, and into one that is registered anew all the time."""
    passing: list[aioblk.MemoryRegion] = []
    finished = threading.Event()
    running = THREADS

    async def use(index: int, shared: aioblk.MemoryRegion) -> None:
        choose = random.Random(index)
        mine = shared[index * BLOCK : (index + 1) * BLOCK]
        async with device.queue(index + 1) as queue:
            for _ in range(60):
                offsets = [choose.randrange(len(DATA) // BLOCK) * BLOCK for _ in range(8)]
                requests: list[Any] = [queue.read(at, BLOCK) for at in offsets]
                others: list[Any] = []
                with contextlib.suppress(ValueError, IndexError):  # it has just been closed
                    others.append(queue.read_into(0, passing[-1][:BLOCK]))
                    others.append(queue.write(offsets[0], memoryview(DATA)[offsets[0] :][:BLOCK]))
                choose.choice(requests).cancel()
                whole = await queue.read(0, len(DATA))  # so long that do_io runs without the GIL
                assert whole == DATA
                await queue.read_into(offsets[0], mine)
                assert mine == DATA[offsets[0] : offsets[0] + BLOCK]
                for at, result in zip(
                    offsets, await asyncio.gather(*requests, return_exceptions=True), strict=True
                ):
                    if not isinstance(result, asyncio.CancelledError):
                        assert result == DATA[at : at + BLOCK]
                await asyncio.gather(*others)

    def run(index: int, shared: aioblk.MemoryRegion) -> None:
        nonlocal running
        try:
            asyncio.run(use(index, shared))
        finally:
            running -= 1
            if running == 0:
                finished.set()

    async with device.allocate(THREADS * BLOCK) as shared:
        threads = asyncio.create_task(in_threads(lambda index: run(index, shared)))
        while not finished.is_set():
            async with device.allocate(BLOCK) as region:
                passing.append(region)
                await device.read_into(BLOCK, region)
                device.statistics()
        await threads
    assert device.statistics().in_flight == 0


async def test_more_is_bounced_than_fits_at_once(device: aioblk.Device) -> None:
    """Each queue has bounce memory of its own; its size may be asked from any thread."""

    async def use(index: int) -> None:
        async with device.queue(index + 1) as queue:
            for _ in range(3):
                whole = await asyncio.gather(*(queue.read(0, len(DATA)) for _ in range(8)))
                assert set(whole) == {DATA}

    threads = asyncio.create_task(in_threads(lambda index: asyncio.run(use(index))))
    while not threads.done():
        device.statistics()
        await device.read(0, BLOCK)
    await threads


# --- requests in other threads ------------------------------------------------------------------------------


async def test_the_last_reference_goes_in_another_thread(device: aioblk.Device) -> None:
    """Requests of every outcome, dropped while the queue goes on making new ones."""
    handed_over: list[list[Any]] = []
    made: list[weakref.ref[Any]] = []
    ready, dropped = threading.Semaphore(0), threading.Semaphore(0)

    def drop() -> None:
        while True:
            ready.acquire()
            requests = handed_over.pop()
            if not requests:
                return
            requests.clear()
            dropped.release()

    async def make(queue: aioblk.Queue) -> None:
        region = bytearray(BLOCK)
        for _ in range(100):
            requests: list[Any] = [queue.read(0, BLOCK) for _ in range(8)]
            requests += [queue.read_into(0, region), queue.write(0, DATA[:BLOCK])]
            requests += [queue.read_many([(0, BLOCK), (BLOCK, BLOCK)]), queue.flush()]
            requests[3].cancel()
            await asyncio.wait(requests)
            made.extend(map(weakref.ref, requests))
            handed_over.append(requests)
            del requests
            ready.release()
            await queue.read(0, BLOCK)
            dropped.acquire()
        handed_over.append([])
        ready.release()

    async def run() -> None:
        async with device.queue(1) as queue:
            await make(queue)

    await in_threads(lambda index: asyncio.run(run()) if index == 0 else drop(), 2)
    gc.collect()
    assert [reference for reference in made if reference() is not None] == []


async def test_an_outcome_may_be_looked_at_in_any_thread(device: aioblk.Device) -> None:
    read, flush = device.read(0, BLOCK), device.flush()
    wrong = device.read(1 << 50, BLOCK)  # beyond the end of both
    await asyncio.gather(read, flush, wrong, return_exceptions=True)
    errors: list[BaseException | None] = [None] * THREADS

    def look(index: int) -> None:
        assert read.done()
        assert read.result() == DATA[:BLOCK]
        assert flush.exception() is None
        if wrong.exception() is not None:
            errors[index] = wrong.exception()
        assert "finished" in repr(read)

    await in_threads(look)
    assert errors == [wrong.exception()] * THREADS


async def test_a_request_that_is_not_over_belongs_to_its_thread(
    storage_daemon: "StorageDaemonFactory",
) -> None:
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        daemon.pause()
        request = device.read(0, BLOCK)
        called: list[object] = []
        misuses: list[Callable[[], object]] = [
            request.cancel,
            lambda: request.remove_done_callback(called.append),
            lambda: request.throw(ValueError),
        ]
        if FREE_THREADED:
            misuses += [lambda: request.add_done_callback(called.append), lambda: request.send(None)]
        for misuse in misuses:
            with pytest.raises(aioblk.UsageError, match="another thread"):
                elsewhere(misuse)
        elsewhere(lambda: repr(request))
        assert not request.done()
        daemon.resume()
        assert await request == bytes(BLOCK)
        assert called == []


async def test_every_method_is_refused_in_a_wrong_thread(device: aioblk.Device) -> None:
    block = bytearray(BLOCK)
    calls: list[Callable[[], object]] = [
        lambda: device.read(0, BLOCK),
        lambda: device.read_into(0, block),
        lambda: device.readv(0, [block]),
        lambda: device.write(0, block),
        lambda: device.writev(0, [block]),
        lambda: device.write_zeroes(0, BLOCK),
        lambda: device.discard(0, BLOCK),
        lambda: device.flush(),
        lambda: device.read_many([(0, BLOCK)]),
        lambda: device.read_into_many([(0, block)]),
        lambda: device.write_many([(0, block)]),
    ]
    for call in calls:
        with pytest.raises(aioblk.UsageError, match="another thread"):
            elsewhere(call)
    assert device.statistics().submitted == 0


async def test_a_lost_device_is_told_to_a_thread_that_waits(storage_daemon: "StorageDaemonFactory") -> None:
    daemon = storage_daemon(num_queues=2)
    async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=2) as device:
        loop, waiting = asyncio.get_running_loop(), asyncio.Event()

        def wait() -> None:
            with device.blocking_queue(1) as queue:
                queue.wait(queue.read(0, BLOCK))
                daemon.pause()
                requests = [queue.read(0, BLOCK), queue.write(0, bytes(BLOCK))]
                loop.call_soon_threadsafe(waiting.set)
                for request in requests:
                    with pytest.raises(aioblk.DeviceLostError):
                        queue.wait(request)
                with pytest.raises(aioblk.DeviceLostError):
                    queue.read(0, BLOCK)

        thread = asyncio.create_task(asyncio.to_thread(wait))
        await waiting.wait()
        daemon.kill()
        await thread


# --- what threads share beneath -----------------------------------------------------------------------------


async def test_memory_is_released_once_and_never_under_a_user() -> None:
    for _ in range(50):
        released = threading.Event()
        memory = Memory.from_buffer(bytearray(BLOCK), on_release=released.set)
        view = View(memory)

        def use(index: int, view: View = view, released: threading.Event = released) -> None:
            if index == 0:
                view.memory.close()
                return
            with contextlib.suppress(ValueError):
                while True:
                    with memoryview(view) as exported:
                        assert not released.is_set()
                        assert exported[0] == 0
                    assert view.tobytes() == bytes(BLOCK)
                    assert view[BLOCK - 1] == 0

        await in_threads(use)
        assert memory.released
        assert memory.uses == 0
        assert released.is_set()


async def test_an_allocator_serves_many_threads() -> None:
    allocator = Allocator(1 << 20, 512)

    def use(index: int) -> None:
        choose = random.Random(index)
        taken: list[int] = []
        for _ in range(2000):
            offset = allocator.take(choose.randrange(1, 8192))
            if offset is not None:
                taken.append(offset)
            if len(taken) > 8:
                allocator.give(taken.pop(choose.randrange(len(taken))))
        for offset in taken:
            allocator.give(offset)

    await in_threads(use)
    assert (allocator.in_use, allocator.count, allocator.largest_free) == (0, 0, 1 << 20)
