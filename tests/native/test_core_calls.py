"""What the compiled types say to calls that make no sense.

Only the package calls them, so its own mistakes end here: with an exception, and with everything as it was.
"""

import asyncio
import ctypes
import gc
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import aioblk
from aioblk._native._core import Allocator, DeviceCore, Memory, QueueCore, Submitter, View
from aioblk.testing.storage_daemon import StorageDaemon

from ..support.devices import BLOCK, held, settled
from ..support.refused_memory import new_device_core
from ..support.scripts import run_script


class Refuses:
    """No number."""

    def __index__(self) -> int:
        raise RuntimeError("no number")


class Closing:
    """An index that closes the memory when it is asked for."""

    def __init__(self, memory: Memory, value: int = 0) -> None:
        self._memory = memory
        self._value = value

    def __index__(self) -> int:
        self._memory.close()
        return self._value


def core_of(device: aioblk.Device) -> QueueCore:
    return device.queue()._compiled


# --- memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "arguments", "error"),
    [
        (Memory, (), TypeError),
        (Memory, ("address", 1), TypeError),
        (Memory, (Refuses(), 1), TypeError),
        (Memory, (0, -1), ValueError),
        (Memory, (2**64 - 1, 10), OverflowError),
        (Memory.from_buffer, (), TypeError),
        (Memory.from_buffer, (5,), TypeError),
        (Allocator, (), TypeError),
        (Allocator, (512, 3), ValueError),
        (Allocator, (513, 512), ValueError),
    ],
)
def test_what_is_no_memory(
    make: Callable[..., Any], arguments: tuple[Any, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        make(*arguments)


def test_what_cannot_be_called_on_release() -> None:
    buffer = bytearray(8)
    with pytest.raises(TypeError, match="callable"):
        Memory.from_buffer(buffer, on_release=5)  # type: ignore[arg-type]
    buffer.append(0)  # nothing exports it


def test_a_buffer_that_was_released_is_no_memory() -> None:
    buffer = memoryview(bytearray(8))
    buffer.release()
    with pytest.raises(ValueError, match="released"):
        Memory.from_buffer(buffer)


def test_memory_says_what_has_become_of_it() -> None:
    memory = Memory.from_buffer(bytearray(8))
    view = View(memory)
    assert "closed" not in repr(memory) + repr(view)
    with memoryview(view):
        memory.close()
        assert repr(memory).endswith(", closed>")
        assert repr(view).endswith(", closed>")
    assert repr(memory).endswith(", released>")


@pytest.mark.parametrize("range_", [(-1,), (9,), (0, -1), (0, 9), (8, 1), (0, 2**70), (0, Refuses())])
def test_what_lies_not_within_memory(range_: tuple[Any, ...]) -> None:
    memory = Memory.from_buffer(bytearray(8))
    with pytest.raises((ValueError, OverflowError, RuntimeError)):
        View(memory, *range_)


def test_views_of_closed_memory() -> None:
    memory = Memory.from_buffer(bytearray(8))
    items = iter(View(memory))
    assert next(items) == 0
    memory.close()
    with pytest.raises(ValueError, match="closed"):
        next(items)
    with pytest.raises(ValueError, match="closed"):
        View(memory)


def test_memory_may_be_closed_by_an_index() -> None:
    def view() -> tuple[View, Memory]:
        memory = Memory.from_buffer(bytearray(8))
        return View(memory), memory

    target, memory = view()
    with pytest.raises(ValueError, match="closed"):
        target[Closing(memory)]  # type: ignore[call-overload]
    target, memory = view()
    with pytest.raises(ValueError, match="closed"):
        target[Closing(memory)] = 1  # type: ignore[index]
    target, memory = view()
    with pytest.raises(ValueError, match="closed"):
        target[Closing(memory) :] = bytes(8)
    target, memory = view()
    with pytest.raises(ValueError, match="closed"):
        target[0] = Closing(memory)


def test_items_that_are_none() -> None:
    view = View(Memory.from_buffer(bytearray(8)))
    for index in (8, -9):
        with pytest.raises(IndexError):
            view[index]
        with pytest.raises(IndexError):
            view[index] = 0
    none: Any
    for none in ("a", slice("a", None), slice(0, 8, 2)):
        with pytest.raises((TypeError, ValueError)):
            view[none]
        with pytest.raises((TypeError, ValueError)):
            view[none] = bytes(8)
    for value in (-1, 256, "a", -1.5):
        with pytest.raises((TypeError, ValueError)):
            view[0] = value
    with pytest.raises(TypeError):
        view[:] = 5
    with pytest.raises(ValueError, match="cannot be assigned"):
        view[:] = bytes(7)
    with pytest.raises(TypeError, match="shortened"):
        del view[0]  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="read-only"):
        View(Memory.from_buffer(bytes(8)))[0] = 1
    get_item = ctypes.pythonapi.PySequence_GetItem
    get_item.argtypes, get_item.restype = [ctypes.py_object, ctypes.c_ssize_t], ctypes.py_object
    with pytest.raises(IndexError):
        get_item(view, -9)


def test_views_that_are_none() -> None:
    memory = Memory.from_buffer(bytes(8))
    arguments: tuple[Any, ...]
    for arguments in ((), (memory, "a"), (5,)):
        with pytest.raises(TypeError):
            View(*arguments)
    view = View(memory)
    with pytest.raises(TypeError):
        io.BytesIO(bytes(8)).readinto(view)
    assert memory.uses == 0
    assert len(view[8:]) == len(view[5:3]) == 0


def test_comparing() -> None:
    memory = Memory.from_buffer(bytearray(b"12345678"))
    view = View(memory)
    assert view == b"12345678"
    assert view != b"1234567"
    assert view != b"12345679"
    assert view != 5
    with pytest.raises(TypeError):
        _ = view < b"1"  # type: ignore[operator]
    with pytest.raises(TypeError):
        _ = view > b"1"  # type: ignore[operator]
    with pytest.raises(BufferError):
        _ = view == memoryview(b"1234567812345678")[::2]
    assert memory.uses == 0
    memory.close()
    with pytest.raises(ValueError, match="closed"):
        _ = view == b"12345678"


def test_memory_that_its_release_keeps_comes_to_life_again() -> None:
    kept: list[Memory | None] = []
    memory = Memory.from_buffer(bytearray(8), on_release=lambda: kept.append(reference()))
    reference = weakref.ref(memory)
    del memory
    assert [each is not None and each.released for each in kept] == [True]
    kept.clear()
    assert reference() is None


class Holder:
    """A part of a cycle."""

    memory: Memory
    export: memoryview


@pytest.mark.parametrize("kind", ["a bytearray", "a memoryview", "of nothing", "of closed memory"])
def test_memory_in_use_is_collected_with_its_users(kind: str) -> None:
    released: list[bool] = []
    inner = Memory.from_buffer(bytearray(8))
    storage = ctypes.create_string_buffer(8)
    from_memory = ctypes.pythonapi.PyMemoryView_FromMemory
    from_memory.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int]
    from_memory.restype = ctypes.py_object
    kinds: dict[str, Callable[[], Any]] = {
        "a bytearray": lambda: bytearray(8),
        "a memoryview": lambda: memoryview(bytearray(8)),
        "of nothing": lambda: from_memory(ctypes.addressof(storage), 8, 0x200),
        "of closed memory": lambda: memoryview(View(inner)),
    }
    buffer = kinds[kind]()
    holder = Holder()
    holder.memory = Memory.from_buffer(buffer, on_release=lambda: released.append(True))
    del buffer
    inner.close()
    holder.export = memoryview(View(holder.memory))
    holder.itself = holder  # type: ignore[attr-defined]
    del holder
    gc.collect()
    gc.collect()
    assert released == [True]


@pytest.mark.parametrize("argument", ["a", Refuses(), 2**70, -1, 0, 7])
def test_an_allocator_is_given_what_it_gave(argument: Any) -> None:
    allocator = Allocator(1 << 12, 512)
    with pytest.raises((TypeError, RuntimeError, OverflowError, ValueError)):
        allocator.give(argument)
    if argument != 7:
        with pytest.raises((TypeError, RuntimeError, OverflowError, ValueError)):
            allocator.take(argument)
    assert allocator.in_use == 0


def test_no_memory_for_the_records_of_an_allocator() -> None:
    run_script(
        """
        import asyncio, resource
        from aioblk._native._core import Allocator, QueueCore
        from tests.support.refused_memory import new_device_core

        queue = QueueCore(new_device_core(), 1, -1, None, 1)
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        for ask in (lambda: Allocator(2**31 - 1, 1), lambda: queue.attach_bounce(0, 2**31 - 1, 1)):
            try:
                ask()
            except MemoryError:
                continue
            raise AssertionError
        """
    )


# --- the device ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"request_alignment": 0},
        {"request_alignment": 3},
        {"buf_alignment": 3},
        {"max_segments": 0},
        {"bounce_cap": 0},
    ],
)
def test_limits_that_are_none(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        new_device_core(**options)


def test_regions_that_are_none() -> None:
    core: Any = new_device_core(needs_regions=True)
    core.add_region(4096, 4096)
    core.add_region(16384, 4096)
    for region in ((), ("a", 1), (0, 0), (2**64 - 1, 2), (0, 4097), (8000, 1), (4096, 4096)):
        with pytest.raises((TypeError, ValueError)):
            core.add_region(*region)
    for method in (core.retire_region, core.remove_region):
        for address in ("a", -1, 2**64 - 1, 0, 4097, 1 << 40):
            with pytest.raises((TypeError, OverflowError, KeyError)):
                method(address)
    assert core.region_count == 2
    core.remove_region(4096)
    core.remove_region(16384)


async def test_a_region_that_is_in_use(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    core = slow_device._session("core").core
    async with slow_device.allocate(BLOCK) as region:
        with held(slow_daemon):
            request = slow_device.read_into(0, region)
            with pytest.raises(ValueError, match="1 requests in flight use the region"):
                core.remove_region(region.address)
        await request


async def test_factories_that_make_no_exceptions() -> None:
    """What should have been told is lost, and the mistake is told instead."""

    def make_none(*_: object) -> Any:
        return "no exception"

    def fail(*_: object) -> BaseException:
        raise RuntimeError("no words")

    for make, expected in ((make_none, TypeError), (fail, RuntimeError)):
        core = new_device_core(make_error=make, make_refusal=make)
        submitter = Submitter()
        submitter._core = QueueCore(core, 1, -1, asyncio.get_running_loop(), 1)
        for offset in (1, -1):
            with pytest.raises(expected):
                submitter.read(offset, BLOCK)


# --- the queue ----------------------------------------------------------------------------------------------


def test_queues_that_are_none() -> None:
    core = new_device_core()
    arguments: tuple[Any, ...]
    for arguments in ((), (5, 1, -1, None, 1), (core, 0, -1, None, 1), (core, 1, -1, None, 0)):
        with pytest.raises((TypeError, ValueError)):
            QueueCore(*arguments)
    with pytest.raises(AttributeError):
        QueueCore(core, 1, -1, object(), 1)  # type: ignore[arg-type]


def test_bounce_memory_that_is_none() -> None:
    queue = QueueCore(new_device_core(), 1, -1, None, 1)
    for memory in ((), (0, 0, 512), (0, 4096, 0), (0, 4096, 3), (0, 4097, 512), (0, 2**40, 1)):
        with pytest.raises((TypeError, ValueError)):
            queue.attach_bounce(*memory)
    queue.detach_bounce()
    queue.attach_bounce(0, 4096, 512)
    queue.attach_bounce(0, 8192, 512)
    assert queue.bounce_size == 8192
    queue.detach_bounce()
    assert queue.bounce_size == 0


async def test_bounce_memory_that_is_in_use(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    core = core_of(slow_device)
    with held(slow_daemon):
        request = slow_device.read(0, BLOCK)
        assert core.bounce_in_use == BLOCK
        for change in (core.detach_bounce, lambda: core.attach_bounce(0, 4096, 512)):
            with pytest.raises(ValueError, match="in use"):
                change()
        with pytest.raises(RuntimeError, match="1 requests are in flight"):
            core.dispose()
    await request


async def test_requests_of_others(file_device: aioblk.Device, slow_device: aioblk.Device) -> None:
    core = core_of(file_device)
    request = slow_device.read(0, BLOCK)
    for other in (request, "no request"):
        for call in (
            lambda other: core.admit(other),
            lambda other: core.refuse(other, OSError()),
            lambda other: core.complete(other, 0, None),
            lambda other: core.wait(other, 0),
        ):
            with pytest.raises(TypeError, match="a request of this queue"):
                call(other)
    await request


async def test_requests_that_are_over(file_device: aioblk.Device) -> None:
    """What is still done to them has come too late, and does nothing."""
    core = core_of(file_device)
    request = file_device.read(0, BLOCK)
    await request
    assert core.admit(request)
    core.refuse(request, OSError("too late"))
    core.complete(request, 5, "too late")
    assert await request == bytes(BLOCK)


@pytest.mark.parametrize("name", ["refuse", "complete", "wait", "resume", "attach_bounce"])
async def test_arguments_that_are_missing(file_device: aioblk.Device, name: str) -> None:
    with pytest.raises(TypeError):
        getattr(core_of(file_device), name)()


async def test_calls_out_of_turn(file_device: aioblk.Device) -> None:
    core = core_of(file_device)
    with pytest.raises(RuntimeError, match="not suspended"):
        core.recall()
    for arguments in ((0, -1, 1), (1, -1, 0), (1, -1, 1)):
        with pytest.raises(ValueError, match="recalled or abandoned"):
            core.resume(*arguments)
    with pytest.raises(RuntimeError, match="without a loop"):
        core.wait(None, 0)
    with pytest.raises((TypeError, UnicodeEncodeError)):
        core.close("\ud800")  # type: ignore[arg-type]
    assert await file_device.read(0, BLOCK) == bytes(BLOCK)


async def test_a_submitter_has_a_queue_or_none(file_device: aioblk.Device) -> None:
    submitter = Submitter()
    with pytest.raises(TypeError, match="QueueCore or None"):
        submitter._core = 5  # type: ignore[assignment]
    submitter._core = core_of(file_device)
    assert await submitter.read(0, BLOCK) == bytes(BLOCK)
    submitter._core = None
    assert submitter._core is None
    del submitter._core
    with pytest.raises(AttributeError):
        submitter.read(0, BLOCK)


# --- zones, on a device that has none -----------------------------------------------------------------------

ZONED = (
    *("open_zone", "close_zone", "finish_zone", "reset_zone"),
    *("open_all_zones", "close_all_zones", "finish_all_zones", "reset_all_zones"),
)


@pytest.mark.parametrize("operation", ZONED)
async def test_zones_of_a_device_without(device: aioblk.Device, operation: str) -> None:
    with pytest.raises(aioblk.UnsupportedError) as caught:
        await device._manage_zone(operation, BLOCK)
    assert caught.value.operation == operation
    assert caught.value.offset == (None if "all" in operation else BLOCK)


async def test_a_report_of_zones_of_a_device_without(device: aioblk.Device) -> None:
    with pytest.raises(aioblk.UnsupportedError):
        await device._report_zones(0, 16)


async def test_operations_on_zones_that_are_none(file_device: aioblk.Device) -> None:
    for call in (
        lambda: file_device._manage_zone("read"),
        lambda: file_device._manage_zone(5),  # type: ignore[arg-type]
        lambda: file_device._report_zones("a", 1),  # type: ignore[arg-type]
        lambda: file_device._report_zones(0),  # type: ignore[call-arg]
    ):
        with pytest.raises((TypeError, ValueError)):
            call()


REQUESTS: dict[str, tuple[Any, ...]] = {
    "_report_zones": (0, 1),
    "_manage_zone": ("open_zone", 0),
    "_until_landed": (),
    "flush": (),
    "read_many": ([(0, BLOCK)],),
    "write_many": ([(0, bytes(BLOCK))],),
    "write": (0, bytes(BLOCK)),
    "write_zeroes": (0, BLOCK),
    "discard": (0, BLOCK),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_what_is_closed_refuses(scratch_file: Any, name: str) -> None:
    device = aioblk.IoUring(scratch_file)
    with pytest.raises(aioblk.UsageError):
        getattr(device, name)(*REQUESTS[name])
    async with device:
        queue = device.queue()
    for closed in (device, queue):
        with pytest.raises(aioblk.DeviceClosedError):
            getattr(closed, name)(*REQUESTS[name])


# --- requests -----------------------------------------------------------------------------------------------


async def test_requests_that_are_driven_by_hand(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    with held(slow_daemon):
        flush, read = slow_device.flush(), slow_device.read(0, BLOCK)
        for request in (flush, read):
            assert request.send(None) is request
            request._asyncio_future_blocking = False
        read.close()
        assert not read.done()
    await settled(flush, read)
    for request, result in ((flush, None), (read, bytes(BLOCK))):
        with pytest.raises(StopIteration) as stopped:
            request.send(None)
        assert stopped.value.value == result
    with pytest.raises(StopIteration):
        flush.__next__()  # type: ignore[attr-defined]


async def test_a_cancelled_request_knows_why(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    with held(slow_daemon):
        request: Any = slow_device.read(0, BLOCK)
        assert request._cancel_message is None
        request.cancel("enough")
        assert request._cancel_message == "enough"
        with pytest.raises(asyncio.CancelledError, match="enough"):
            request.result()


class Untrue:
    def __bool__(self) -> bool:
        raise RuntimeError("neither")


async def test_flags_that_are_neither(file_device: aioblk.Device) -> None:
    neither: Any = Untrue()
    pairs = [(0, bytes(BLOCK))]
    for call in (
        lambda: file_device.write(0, bytes(BLOCK), fua=neither),
        lambda: file_device.write_zeroes(0, BLOCK, fua=neither),
        lambda: file_device.write_zeroes(0, BLOCK, no_unmap=neither),
        lambda: file_device.write_zeroes(0, BLOCK, no_fallback=neither),
        lambda: file_device.write_many(pairs, fua=neither),
        lambda: file_device.write_many(pairs, return_exceptions=neither),
        lambda: file_device.read_many([(0, BLOCK)], return_exceptions=neither),
    ):
        with pytest.raises(RuntimeError, match="neither"):
            call()


async def test_arguments_of_requests(file_device: aioblk.Device) -> None:
    wrong: Any = file_device
    calls: list[Callable[[], object]] = [
        lambda: wrong.read(0, BLOCK, offset=0),
        lambda: wrong.read(0, len=BLOCK),
        lambda: wrong.write_zeroes("a", BLOCK),
        lambda: wrong.write_zeroes(0),
        lambda: wrong.discard(0),
        lambda: wrong.discard(0, "a"),
        lambda: wrong.read_many(),
        lambda: wrong.read_many(5),
        lambda: wrong.read_many([5]),
        lambda: wrong.read_many([(1, 2, 3)]),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError)):
            call()
    with pytest.raises(RuntimeError, match="no number"):
        wrong.read(0, Refuses())
    with pytest.raises(RuntimeError, match="no number"):
        wrong.read(Refuses(), BLOCK)


class NoPair:
    def __iter__(self) -> Any:
        raise RuntimeError("no pair")


async def test_pairs_that_raise(file_device: aioblk.Device) -> None:
    with pytest.raises(RuntimeError, match="no pair"):
        file_device.read_many([NoPair()])  # type: ignore[list-item]
    (refused,) = await file_device.read_many([NoPair()], return_exceptions=True)  # type: ignore[list-item]
    assert isinstance(refused, RuntimeError)


async def test_callbacks_need_their_arguments(file_device: aioblk.Device) -> None:
    request: Any = file_device.read(0, BLOCK)
    calls: list[Callable[[], object]] = [
        lambda: request.add_done_callback(),
        lambda: request.add_done_callback(print, print),
        lambda: request.add_done_callback(print, loop=None),
        lambda: request.add_done_callback(print, context=None, loop=None),
        lambda: request.cancel(5, 6),
        lambda: request.throw(),
        lambda: request.throw(5),
        lambda: request.throw(int),
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
    await settled(request)


async def test_what_may_be_thrown_into_a_request(file_device: aioblk.Device) -> None:
    request = file_device.read(0, BLOCK)
    await request
    thrown: tuple[Any, ...]
    for thrown, words in (
        ((ValueError("an instance"),), "an instance"),
        ((ValueError, ValueError("a value")), "a value"),
        ((ValueError, "an argument"), "an argument"),
        ((ValueError, None), "^$"),
        ((ValueError,), "^$"),
    ):
        with pytest.raises(ValueError, match=words):
            request.throw(*thrown)

    class UnmakeableError(Exception):
        def __init__(self) -> None:
            raise RuntimeError("not made")

    with pytest.raises(RuntimeError, match="not made"):
        request.throw(UnmakeableError)


async def test_an_attribute_that_tasks_set(file_device: aioblk.Device) -> None:
    request: Any = file_device.read(0, BLOCK)
    request._asyncio_future_blocking = True
    assert request._asyncio_future_blocking is True
    request._asyncio_future_blocking = False
    assert request._asyncio_future_blocking is False
    with pytest.raises(TypeError):
        request._asyncio_future_blocking = 1
    with pytest.raises(AttributeError):
        request.unknown = True
    await request


def test_device_cores_need_all_limits() -> None:
    with pytest.raises(TypeError):
        DeviceCore()  # type: ignore[call-arg]


async def test_no_context_is_the_present_one(file_device: aioblk.Device) -> None:
    request = file_device.read(0, BLOCK)
    called: list[object] = []
    request.add_done_callback(called.append, context=None)
    await settled(request)
    await asyncio.sleep(0)
    assert called == [request]


def test_a_child_has_nothing_to_submit_and_nothing_to_reap(scratch_file: Any) -> None:
    """What a queue holds when its process forks is the parent's alone, though the child's loop may call."""
    run_script(
        """
        import asyncio, os, sys
        import aioblk

        BLOCK = 4096

        async def main():
            async with aioblk.IoUring(sys.argv[1], num_entries=1) as device:
                core = device.queue()._compiled
                written = device.write(0, bytearray(4 << 20))
                requests = [device.write(0, bytearray(4 << 20)) for _ in range(4)]
                requests[2].cancel()
                before = core.statistics()
                child = os.fork()
                if child == 0:
                    core.flush()
                    core.on_event()
                    after = core.statistics()
                    same = all(before[name] == after[name] for name in ("do_io_calls", "events", "in_flight"))
                    os._exit(0 if same else 1)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                await asyncio.wait([written, *requests])
                assert [request.cancelled() for request in requests] == [False, False, True, False]

        asyncio.run(main())
        """,
        scratch_file,
    )


@pytest.mark.parametrize(
    "change", ["del coroutines._iscoroutine_typecache", "coroutines._iscoroutine_typecache = ()"]
)
def test_an_asyncio_that_keeps_its_types_otherwise_is_left_alone(scratch_file: Any, change: str) -> None:
    run_script(
        f"""
        import asyncio, sys
        from asyncio import coroutines
        import aioblk

        async def main():
            async with aioblk.IoUring(sys.argv[1]) as device:
                request = device.read(0, 4096)
                await request
                before = coroutines._iscoroutine_typecache
                {change}
                assert hash(request) == hash(request)
                coroutines._iscoroutine_typecache = before

        asyncio.run(main())
        """,
        scratch_file,
    )


async def test_a_collection_may_change_the_callbacks_that_are_being_added(file_device: aioblk.Device) -> None:
    """Making room for a second callback runs the collector, and by way of that any code."""
    first = file_device.read(0, BLOCK)
    called: list[object] = []

    def add(change: Callable[[aioblk.Request[None]], object]) -> aioblk.Request[None]:
        request = file_device.read_into(0, bytearray(BLOCK))
        request.add_done_callback(print)

        def collecting(_phase: str, _info: object) -> None:
            gc.callbacks.remove(collecting)
            change(request)

        gc.callbacks.append(collecting)
        thresholds = gc.get_threshold()
        gc.set_threshold(1)
        try:
            request.add_done_callback(called.append)
        finally:
            gc.set_threshold(*thresholds)
        assert collecting not in gc.callbacks
        return request

    requests = [
        add(lambda request: request.remove_done_callback(print)),
        add(lambda request: request.remove_done_callback(print)),
    ]
    await settled(first, *requests)
    await asyncio.sleep(0)
    assert called == requests
