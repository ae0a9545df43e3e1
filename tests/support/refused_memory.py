"""Whatever the core is asked while memory is refused: each allocation fails, from the first to the last.

A process that has the injector runs this, as tests/test_no_memory.py does. A case is a generator: it makes
what the call needs, yields the call, and looks afterwards at what has come of it. The call raises
MemoryError, an error of the device, or nothing; a second one, with memory, does what the first should have.
"""

import asyncio
import gc
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from itertools import count
from typing import Any

import aioblk
from aioblk._native._core import Allocator, DeviceCore, Memory, Moved, QueueCore, Submitter, View, move_pairs

from .injector import Injector, Kind

BLOCK = 4096
BEYOND = 1 << 60  # any device's capacity, and the length of any file
MOST = 400  # allocations of one call

EXPECTED = (MemoryError, aioblk.BlkioError, asyncio.CancelledError, SystemError)
"""The last is CPython's, for a frame that there is no memory for."""

Case = AsyncIterator[Callable[[], object]]
CASES: list[Callable[[aioblk.Device], Case]] = []

injector = Injector()


def case(make: Callable[[aioblk.Device], Case]) -> Callable[[aioblk.Device], Case]:
    CASES.append(make)
    return make


async def attempt(steps: Case, first: int, times: int) -> int:
    """Let *times* allocations of the call fail, from the *first* on; returns how many did."""
    call = await anext(steps)
    gc.collect()  # which empties Python's own lists of free objects; `kept` takes what is freed since
    kept = [((number,), (number, None), (number, None, None), [number]) for number in range(100)]
    injector.arm(Kind.PYTHON, first, times)
    with suppress(*EXPECTED):
        injector.call(call)
    refusals = injector.refusals
    injector.disarm()
    kept.clear()
    async for _ in steps:
        raise AssertionError("a case yields once")
    return refusals


async def sweep(make: Callable[[aioblk.Device], Case], device: aioblk.Device) -> None:
    for times in (1, 3):
        for first in count(1):
            assert first < MOST
            if await attempt(make(device), first, times) == 0:
                break


# --- what the core is made of -------------------------------------------------------------------------------


# Made before memory is refused: CPython 3.13 crashes where it has none for a function.
LIMITS: dict[str, Any] = {
    "make_error": lambda *_: OSError("failed"),
    "make_refusal": lambda *_: OSError("refused"),
    "needs_regions": False,
    "read_only": False,
    "virtqueues": False,
    "request_alignment": 512,
    "buf_alignment": 1,
    "max_segments": 16,
    "max_segment_len": 0,
    "max_transfer": 0,
    "max_discard_len": 0,
    "max_write_zeroes_len": 0,
    "discard_alignment": 0,
    "discard_alignment_offset": 0,
    "discard_method": 0,
    "bounce_cap": 1 << 20,
}


def new_device_core(**options: Any) -> DeviceCore:
    return DeviceCore(**LIMITS | options)


@case
async def a_device_core(_: aioblk.Device) -> Case:
    yield new_device_core


@case
async def regions(_: aioblk.Device) -> Case:
    core = new_device_core()
    for number in range(8):
        core.add_region(number << 20, 1 << 20)
    yield lambda: core.add_region(8 << 20, 1 << 20)
    if core.region_count == 8:
        core.add_region(8 << 20, 1 << 20)
    assert core.retire_region(8 << 20) == 0
    core.remove_region(8 << 20)
    assert core.region_count == 8


@case
async def a_queue_core(_: aioblk.Device) -> Case:
    core = new_device_core()
    loop = asyncio.get_running_loop()
    yield lambda: QueueCore(core, 1, -1, loop, 1)
    QueueCore(core, 1, -1, loop, 1)


@case
async def what_a_queue_core_says(device: aioblk.Device) -> Case:
    core = device.queue()._compiled
    yield lambda: (core.statistics(), core.bounce_size, core.bounce_in_use, core.in_flight)
    assert core.statistics()["in_flight"] == 0


@case
async def moved_methods(_: aioblk.Device) -> Case:
    asked: list[tuple[int, object]] = []

    def method(offset: int, what: object) -> None:
        asked.append((offset, what))

    def refused(offset: int, what: object) -> None:
        raise AssertionError("it lies within")

    pairs = tuple((number * BLOCK, bytes(BLOCK)) for number in range(4))

    def call() -> None:
        Moved(method, refused, BEYOND, 1 << 40)(BLOCK, BLOCK)
        assert move_pairs(pairs, BEYOND, 1 << 40) is not None

    yield call
    asked.clear()
    Moved(method, refused, BEYOND, 1 << 40)(BLOCK, b"x")
    assert asked == [(BEYOND + BLOCK, b"x")]
    assert move_pairs(pairs, BEYOND, 1 << 40) == [(BEYOND + offset, data) for offset, data in pairs]


@case
async def changes_in_flight(device: aioblk.Device) -> Case:
    buffers = [bytearray(BLOCK) for _ in range(3)]
    requests = [
        device.write(0, buffers[0]),
        device.write_many([(BLOCK, buffers[1]), (2 * BLOCK, buffers[2])]),
    ]
    yield device._changes
    for request in requests:
        await request
    assert device._changes() == []


@case
async def memory(_: aioblk.Device) -> Case:
    released: list[bool] = []
    buffer = bytearray(BLOCK)
    made = Memory.from_buffer(buffer, on_release=lambda: released.append(True))
    view = View(made)

    def call() -> None:
        Memory(0, BLOCK)
        Memory.from_buffer(buffer)
        assert view[1:3] == bytes(2)
        assert len(view.tobytes()) == BLOCK
        assert view[5] == 0
        view[6:10] = b"abcd"
        assert repr(view)
        assert repr(made)
        assert made.address
        assert view.address

    yield call
    view[6:10] = b"abcd"
    assert view.tobytes() == bytes(6) + b"abcd" + bytes(BLOCK - 10)
    made.close()
    assert released == [True]
    buffer.append(0)  # nothing exports it any more


@case
async def the_release_of_memory(_: aioblk.Device) -> Case:
    """What it calls may want memory; nothing is left behind."""
    buffer = bytearray(BLOCK)
    made = [Memory.from_buffer(buffer, on_release=lambda: [bytes(1000)])]
    yield made.clear
    buffer.append(0)


@case
async def an_allocator(_: aioblk.Device) -> Case:
    allocator = Allocator(1 << 20, 512)

    def call() -> None:
        Allocator(1 << 20, 512)
        offset = allocator.take(1000)
        assert offset is not None
        allocator.give(offset)

    yield call


@case
async def a_submitter_that_is_not_open(_: aioblk.Device) -> Case:
    closed = aioblk.IoUring("nowhere")
    yield lambda: closed.read(0, BLOCK)


# --- what is done once --------------------------------------------------------------------------------------


def refuse_the_first_hash(request: aioblk.Request[bytes]) -> None:
    """asyncio is taught about requests when the first one is hashed. That may fail, and hashing does not."""
    for first in count(1):
        child = os.fork()
        if child == 0:
            injector.arm(Kind.PYTHON, first)
            with suppress(MemoryError):  # of the number
                injector.call(hash, request)
            os._exit(injector.refusals == 0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 1:
            break
        assert status == 0, first


# --- awaiting -----------------------------------------------------------------------------------------------


def pending(device: aioblk.Device) -> tuple[aioblk.Request[None], aioblk.Request[bytes]]:
    """One that the device has by the next turn only, after one that it has already."""
    first = device.read(0, BLOCK)
    second = device.read_into(0, bytearray(BLOCK))
    assert not second.done()
    return second, first


async def over(*requests: aioblk.Request[Any]) -> None:
    async with asyncio.timeout(10):
        await asyncio.wait(requests)  # type: ignore[type-var]
    for request in requests:
        if not request.cancelled():
            request.exception()


@case
async def callbacks(device: aioblk.Device) -> Case:
    request, first = pending(device)
    called: list[int] = []

    def calling(number: int) -> Callable[[object], None]:
        return lambda _: called.append(number)

    def add(number: int) -> None:
        request.add_done_callback(to_be_called[number])
        added[number] = True

    added = [False] * 4
    to_be_called = [calling(number) for number in range(4)]

    def call() -> None:
        lists = [[], [], []]  # type: ignore[var-annotated] # of those that Python keeps for reuse
        for number in range(4):
            add(number)
        lists.clear()

    yield call
    await over(request, first)
    await asyncio.sleep(0)
    assert called == [number for number in range(4) if added[number]]


@case
async def callbacks_of_what_is_done(device: aioblk.Device) -> Case:
    request = device.read(0, BLOCK)
    await over(request)
    called: list[object] = []
    yield lambda: request.add_done_callback(called.append)
    request.add_done_callback(called.append)
    await asyncio.sleep(0)
    assert called


@case
async def removed_callbacks(device: aioblk.Device) -> Case:
    request, first = pending(device)
    called: list[object] = []

    def callback(request: object) -> None:
        called.append(request)

    for _ in range(3):
        request.add_done_callback(callback)
        request.add_done_callback(print)
    yield lambda: (request.remove_done_callback(print), request.remove_done_callback(callback))
    request.remove_done_callback(print)
    request.remove_done_callback(callback)
    await over(request, first)
    assert not called


@case
async def words(device: aioblk.Device) -> Case:
    request, first = pending(device)
    batch = device.read_many([(0, BLOCK)])
    format_coroutine = asyncio.coroutines._format_coroutine  # type: ignore[attr-defined]
    yield lambda: (repr(request), repr(batch), request.get_loop(), hash(first), format_coroutine(first))
    await over(request, first, batch)


@case
async def results_too_early(device: aioblk.Device) -> Case:
    request, first = pending(device)

    def call() -> None:
        for ask in (request.result, request.exception):
            try:
                ask()
            except asyncio.InvalidStateError:
                pass
            else:
                raise AssertionError

    yield call
    await over(request, first)


@case
async def awaiting_by_hand(device: aioblk.Device) -> Case:
    request = device.read(0, BLOCK)
    await over(request)

    def send() -> None:
        request.__await__().send(None)

    def call() -> None:
        for step in (request.__await__().__next__, send):
            with suppress(StopIteration):
                step()
        with suppress(ValueError):
            request.__await__().throw(ValueError())

    yield call
    assert await request == bytes(BLOCK)


@case
async def a_failure(device: aioblk.Device) -> Case:
    request = device.write(BEYOND, bytes(BLOCK))
    await asyncio.wait([request])  # type: ignore[type-var]
    yield request.result
    assert isinstance(request.exception(), aioblk.BlkioError)


@case
async def a_forgotten_failure(device: aioblk.Device) -> Case:
    forgotten = [device.write(BEYOND, bytes(BLOCK))]
    await asyncio.wait(forgotten)  # type: ignore[type-var]
    yield forgotten.clear
    assert not forgotten


@case
async def what_is_thrown(device: aioblk.Device) -> Case:
    request, first = pending(device)
    yield lambda: request.throw(asyncio.CancelledError)
    await over(request, first)


@case
async def cancelling(device: aioblk.Device) -> Case:
    request, first = pending(device)
    reading = device.read(0, BLOCK)
    batch = device.read_many([(0, BLOCK), (BLOCK, BLOCK)])
    yield lambda: [each.cancel("enough") for each in (request, reading, batch)]
    await over(request, first, reading, batch)


@case
async def the_result_of_what_was_cancelled(device: aioblk.Device) -> Case:
    request, first = pending(device)
    reading = device.read(0, BLOCK)
    reading.cancel()
    yield reading.result
    assert reading.cancelled()
    await over(request, first)


@case
async def items(device: aioblk.Device) -> Case:
    request = device.read(0, BLOCK)

    def call() -> None:
        with suppress(TypeError):
            request[0]  # type: ignore[index]

    yield call
    await over(request)


@case
async def a_callback_in_the_place_of_another(device: aioblk.Device) -> Case:
    request, first = pending(device)
    called: list[object] = []
    request.add_done_callback(print)
    request.add_done_callback(called.append)
    request.add_done_callback(called.append)
    yield lambda: request.remove_done_callback(print)
    request.remove_done_callback(print)
    await over(request, first)
    await asyncio.sleep(0)
    assert called == [request, request]


# --- requests that need more --------------------------------------------------------------------------------


def submitting(method: Callable[..., aioblk.Request[Any]], *arguments: Any, **named: Any) -> Case:
    """A request that is made while memory is refused; all that it was given is let go of afterwards."""

    async def steps() -> Case:
        made: list[aioblk.Request[Any]] = []
        given = [each() if callable(each) else each for each in arguments]
        yield lambda: made.append(method(*given, **named))
        given.clear()
        await over(method.__self__.read(0, BLOCK), *made)  # type: ignore[attr-defined]

    return steps()


def buffers() -> list[memoryview]:
    """A hundred odd pieces of eight blocks: a part of them has a vector, and bounce memory where need be."""
    memory = memoryview(bytearray(8 * BLOCK))
    return [memory[start : start + 328] for start in range(0, 8 * BLOCK, 328)]


@case
def many_pieces(device: aioblk.Device) -> Case:
    return submitting(device.readv, 0, buffers)


@case
def an_iterator_of_pairs(device: aioblk.Device) -> Case:
    return submitting(device.read_many, lambda: ([BLOCK * i, BLOCK] for i in range(12)))


@case
def a_batch_of_long_ones(device: aioblk.Device) -> Case:
    return submitting(device.write_many, lambda: [(0, bytes(2 << 20)), (4 << 20, bytes(2 << 20))])


@case
def a_batch_of_neighbours(device: aioblk.Device) -> Case:
    return submitting(device.write_many, lambda: [(i * BLOCK, bytes(BLOCK)) for i in range(12)])


@case
def a_batch_of_failures(device: aioblk.Device) -> Case:
    return submitting(
        device.write_many,
        lambda: [(0, bytes(BLOCK)), (1, bytes(BLOCK)), (BEYOND, bytes(BLOCK))],
        return_exceptions=True,
    )


@case
def a_batch_of_refusals(device: aioblk.Device) -> Case:
    return submitting(
        device.write_many, lambda: [(1, bytes(BLOCK)), (0, bytearray(7))], return_exceptions=True
    )


@case
def what_is_refused(device: aioblk.Device) -> Case:
    return submitting(device.read, -1, BLOCK)


@case
def a_report_of_zones(device: aioblk.Device) -> Case:
    return submitting(device._report_zones, 0, 16)


@case
def a_barrier(device: aioblk.Device) -> Case:
    return submitting(device._until_landed)


@case
def a_long_range(device: aioblk.Device) -> Case:
    return submitting(device.write_zeroes, 0, 4 << 20, no_unmap=True)


@case
def zeroes_past_the_end(device: aioblk.Device) -> Case:
    return submitting(device.write_zeroes, device.capacity - BLOCK, 3 * BLOCK)


def first_of_a_queue(name: str, *arguments: Any, **limits: int) -> None:
    """A request of a queue that has kept none for reuse. It is suspended, so nothing is issued."""

    async def steps(_: aioblk.Device) -> Case:
        queue = QueueCore(new_device_core(**limits), 1, -1, None, 1)
        queue.suspend()
        submitter = Submitter()
        submitter._core = queue
        yield lambda: getattr(submitter, name)(*arguments)
        queue.abandon(OSError())
        assert queue.in_flight == 0

    steps.__name__ = f"first_{name}"
    CASES.append(steps)


first_of_a_queue("read", 0, 512)
first_of_a_queue("write", 0, bytes(512))
first_of_a_queue("writev", 0, [bytes(512), bytes(512)])
first_of_a_queue("write_many", [(0, bytes(1536)), (4096, bytes(512))], max_transfer=512)
first_of_a_queue("write_zeroes", 0, 4096, max_write_zeroes_len=512)
first_of_a_queue("discard", 0, 512)
first_of_a_queue("flush")
first_of_a_queue("read_many", [(0, 512), (512, 512)])
first_of_a_queue("_report_zones", 0, 1)
first_of_a_queue("_until_landed")


@case
async def the_oldest(device: aioblk.Device) -> Case:
    core = device.queue()._compiled
    request, first = pending(device)
    flush = device.flush()
    yield core.grow_older
    await over(request, first, flush)


# --- loss ---------------------------------------------------------------------------------------------------


@case
async def loss(device: aioblk.Device) -> Case:
    """Who waits is told so, in some words."""
    with tempfile.TemporaryFile() as file:
        file.truncate(1 << 20)
        other = await aioblk.IoUring(fd=file.fileno()).open()
    core = other.queue()._compiled
    requests = [*pending(other), other.flush(), other.read_many([(0, BLOCK), (BLOCK, BLOCK)])]
    error = aioblk.DeviceLostError("lost", operation="read")
    yield lambda: core.abandon(error)
    core.abandon(error)
    await over(*requests)
    assert core.in_flight == 0
    await other.aclose()


async def main() -> None:
    only = sys.argv[3:]
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # there is much to report
    sys.unraisablehook = lambda _: None
    gc.freeze()  # spares the many collections what has been imported
    async with aioblk.open(sys.argv[1], path=sys.argv[2], bounce_pool_size=1 << 18) as device:
        assert isinstance(device, aioblk.Device)
        request = device.read(0, 1 << 18)
        await request
        refuse_the_first_hash(request)
        for make in CASES:
            if not only or make.__name__ in only:
                print(make.__name__, flush=True)
                await sweep(make, device)
        assert device.statistics().in_flight == 0


if __name__ == "__main__":
    asyncio.run(main())
