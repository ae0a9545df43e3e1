"""Every way in which asyncio awaits, given requests."""

import asyncio
import contextvars
import functools
import gc
import sys
import traceback
import types
import weakref
from collections.abc import Callable, Generator, Iterable
from typing import Any

import pytest

import aioblk
from aioblk.testing.storage_daemon import StorageDaemon

from ..support.devices import BLOCK, LATENCY, held, settled

ZEROES = bytes(BLOCK)


# --- awaiting -----------------------------------------------------------------------------------------------


async def test_await(slow_device: aioblk.Device) -> None:
    assert await slow_device.read(0, BLOCK) == ZEROES


async def test_submit_many_then_await_each(slow_device: aioblk.Device) -> None:
    requests = [slow_device.read(0, BLOCK) for _ in range(32)]
    assert [await request for request in requests] == [ZEROES] * 32


async def test_await_what_is_done_already(slow_device: aioblk.Device) -> None:
    request = slow_device.read(0, BLOCK)
    assert await request == ZEROES
    assert await request == ZEROES


async def test_several_tasks_may_await_one_request(slow_device: aioblk.Device) -> None:
    request = slow_device.read(0, BLOCK)

    async def wait() -> bytes:
        return await request

    assert await asyncio.gather(*(wait() for _ in range(3))) == [ZEROES] * 3


async def test_gather(slow_device: aioblk.Device) -> None:
    requests = [slow_device.read(0, BLOCK) for _ in range(16)]
    assert await asyncio.gather(*requests, slow_device.flush()) == [*[ZEROES] * 16, None]


async def test_gather_of_the_same_request_twice(slow_device: aioblk.Device) -> None:
    request = slow_device.read(0, BLOCK)
    assert list(await asyncio.gather(request, request)) == [ZEROES] * 2


async def test_gather_with_exceptions_as_results(slow_device: aioblk.Device) -> None:
    good, bad = await asyncio.gather(
        slow_device.read(0, BLOCK),
        slow_device.read(slow_device.capacity, BLOCK),
        return_exceptions=True,
    )
    assert good == ZEROES
    assert isinstance(bad, aioblk.BlkioError)


async def test_wait(slow_device: aioblk.Device) -> None:
    requests = [slow_device.read(0, BLOCK) for _ in range(4)]
    done, pending = await asyncio.wait(requests)  # type: ignore[type-var]
    assert done == set(requests)
    assert not pending
    assert [request.result() for request in requests] == [ZEROES] * 4


async def test_wait_for_the_first_of_requests_and_tasks(slow_device: aioblk.Device) -> None:
    never = asyncio.create_task(asyncio.Event().wait())
    request = slow_device.read(0, BLOCK)
    both: set[Any] = {request, never}
    done, pending = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    assert (done, pending) == ({request}, {never})
    never.cancel()


async def test_wait_with_a_timeout(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    with held(slow_daemon):
        request = slow_device.read(0, BLOCK)
        done, pending = await asyncio.wait([request], timeout=0)  # type: ignore[type-var]
        assert (done, pending) == (set(), {request})
    assert await request == ZEROES


async def test_wait_for(slow_device: aioblk.Device) -> None:
    assert await asyncio.wait_for(slow_device.read(0, BLOCK), 60) == ZEROES
    assert await asyncio.wait_for(slow_device.read(0, BLOCK), None) == ZEROES


async def test_wait_for_too_little_time(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    with held(slow_daemon):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow_device.read(0, BLOCK), LATENCY)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow_device.read(0, BLOCK), 0)


async def test_timeout(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    async with asyncio.timeout(60):
        assert await slow_device.read(0, BLOCK) == ZEROES

    async def read_in_time() -> None:
        async with asyncio.timeout(LATENCY):
            await slow_device.read(0, BLOCK)

    with held(slow_daemon), pytest.raises(TimeoutError):
        await read_in_time()


async def test_shield(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    with held(slow_daemon):
        request = slow_device.read(0, BLOCK)
        shielded = asyncio.shield(request)
        shielded.cancel()
        with pytest.raises(asyncio.CancelledError):
            await shielded
    assert await request == ZEROES
    assert await asyncio.shield(slow_device.read(0, BLOCK)) == ZEROES


async def test_as_completed(slow_device: aioblk.Device) -> None:
    requests = [slow_device.read(0, length * 512) for length in range(1, 5)]
    lengths = [len(await earliest) for earliest in asyncio.as_completed(requests)]
    assert sorted(lengths) == [512, 1024, 1536, 2048]


async def test_create_task(slow_device: aioblk.Device) -> None:
    task = asyncio.create_task(slow_device.read(0, BLOCK), name="reader")
    assert task.get_name() == "reader"
    assert await task == ZEROES


async def test_create_task_of_a_request_that_is_done(slow_device: aioblk.Device) -> None:
    request = slow_device.read(0, BLOCK)
    await request
    assert await asyncio.create_task(request) == ZEROES


async def test_create_task_of_a_request_that_fails(slow_device: aioblk.Device) -> None:
    with pytest.raises(aioblk.BlkioError):
        await asyncio.create_task(slow_device.read(slow_device.capacity, BLOCK))


async def test_task_groups(slow_device: aioblk.Device) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(slow_device.read(0, BLOCK)) for _ in range(4)]
    assert [task.result() for task in tasks] == [ZEROES] * 4


async def test_a_failing_request_cancels_its_task_group(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            never = asyncio.Event()
            tasks.append(group.create_task(never.wait()))
            tasks.append(group.create_task(slow_device.read(slow_device.capacity, BLOCK)))

    with pytest.raises(ExceptionGroup) as caught:
        await run()
    assert tasks[0].cancelled()
    [error] = caught.value.exceptions
    assert isinstance(error, aioblk.BlkioError)


async def test_what_waits_for_many_leaves_requests_as_they_are(slow_device: aioblk.Device) -> None:
    """gather(), wait() and sets hash them; tasks take them all the same, and wait() does after that."""
    requests = [slow_device.read(0, BLOCK) for _ in range(4)]
    await asyncio.gather(*requests)
    await asyncio.wait(requests)  # type: ignore[type-var]
    assert set(requests) == set(requests)
    for request in requests:
        assert await asyncio.create_task(request) == ZEROES
        assert await asyncio.wait_for(asyncio.create_task(request), 60) == ZEROES
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(request) for request in requests]
    assert [task.result() for task in tasks] == [ZEROES] * 4
    pending: set[Any] = {slow_device.read(0, BLOCK) for _ in range(4)}
    tasks += [asyncio.create_task(request) for request in pending]
    while pending:
        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    assert [await task for task in tasks] == [ZEROES] * 8


async def show_tasks_of_requests(device: aioblk.Device) -> None:
    """In every state of a task, and hashed before and after the task is made, repr() shows the request."""

    def is_shown(task: object) -> bool:
        return f"coro=<Request read offset=0 length={BLOCK} " in repr(task)

    for hashed_first in (True, False):
        for cancelled in (True, False):
            request = device.read(0, BLOCK)
            if hashed_first:
                hash(request)
            task = asyncio.create_task(request)
            hash(request)
            assert is_shown(task)
            await asyncio.sleep(0)
            assert is_shown(task)
            if cancelled:
                task.cancel()
                assert is_shown(task)
            await asyncio.wait([task])
            assert is_shown(task)
            await asyncio.wait([request])  # type: ignore[type-var]
            assert is_shown(task)


async def test_a_task_shows_its_request(slow_device: aioblk.Device) -> None:
    await show_tasks_of_requests(slow_device)


async def test_a_task_shows_its_request_in_debug_mode(slow_device: aioblk.Device) -> None:
    """There the loop itself shows the tasks that have kept it for long."""
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0
    await show_tasks_of_requests(slow_device)


async def test_tasks_of_coroutines_are_shown_as_ever(slow_device: aioblk.Device) -> None:
    hash(slow_device.read(0, BLOCK))

    async def rest() -> None:
        pass

    task = asyncio.Task(rest())  # no eager one
    assert "rest() running at " in repr(task)
    await task
    assert "rest() done, defined at " in repr(task)


async def test_ensure_future_returns_the_request_itself(slow_device: aioblk.Device) -> None:
    request = slow_device.read(0, BLOCK)
    assert asyncio.ensure_future(request) is request  # type: ignore[comparison-overlap]
    assert asyncio.isfuture(request)
    await request


async def test_coroutines_may_await_requests_at_any_depth(slow_device: aioblk.Device) -> None:
    async def inner() -> bytes:
        return await slow_device.read(0, BLOCK)

    async def outer() -> bytes:
        return await inner()

    assert await asyncio.wait_for(asyncio.shield(outer()), 60) == ZEROES


async def test_generators_and_classes_may_await_by_hand(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    @types.coroutine
    def read(offset: int) -> Generator[Any, None, bytes]:
        return (yield from slow_device.read(offset, BLOCK).__await__())

    class Read:
        def __await__(self) -> Generator[Any, None, bytes]:
            return slow_device.read(0, BLOCK).__await__()

    async def wait(offset: int) -> None:
        await read(offset)

    assert await read(0) == ZEROES
    assert await Read() == ZEROES
    assert await types.coroutine(slow_device.read)(0, BLOCK) == ZEROES
    with pytest.raises(aioblk.BlkioError):
        await wait(slow_device.capacity)
    with held(slow_daemon):
        cancelled = asyncio.create_task(wait(0))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled


if sys.version_info >= (3, 12):

    async def test_eager_tasks(slow_device: aioblk.Device) -> None:
        async def read() -> bytes:
            return await slow_device.read(0, BLOCK)

        loop = asyncio.get_running_loop()
        tasks = [asyncio.Task(read(), loop=loop, eager_start=True) for _ in range(4)]
        assert slow_device.statistics().in_flight == 4
        assert await asyncio.gather(*tasks) == [ZEROES] * 4

    async def test_eager_tasks_of_requests_themselves(slow_device: aioblk.Device) -> None:
        loop = asyncio.get_running_loop()
        request = slow_device.read(0, BLOCK)
        task: asyncio.Task[bytes] = asyncio.Task(request, loop=loop, eager_start=True)  # type: ignore[arg-type]
        assert await task == ZEROES
        done: asyncio.Task[bytes] = asyncio.Task(request, loop=loop, eager_start=True)  # type: ignore[arg-type]
        assert done.result() == ZEROES


# --- a forgotten await --------------------------------------------------------------------------------------

MISTAKES: dict[str, Callable[[Any], object]] = {
    "join": b"".join,
    "list": list,
    "sum": sum,
    "unpacking": lambda request: [*request],
    "comprehension": lambda request: [item for item in request],  # noqa: C416
    "assignment": lambda request: (lambda a, b: None)(*request),
    "membership": lambda request: b"" in request,
    "index": lambda request: request[0],
    "slice": lambda request: request[:512],
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
async def test_a_request_is_not_what_it_will_give(
    slow_device: aioblk.Device, mistake: Callable[[Any], object]
) -> None:
    """Not even when it is done. Who takes it for that is told to await."""
    request = slow_device.read_many([(0, BLOCK), (BLOCK, BLOCK)])
    assert not isinstance(request, Iterable)
    assert not hasattr(request, "__iter__")
    for _ in range(2):
        with pytest.raises(TypeError, match="has to be awaited"):
            mistake(request)
        await request


# --- the methods of a future --------------------------------------------------------------------------------


async def test_a_pending_request_has_no_outcome(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    with held(slow_daemon):
        request = slow_device.read(0, BLOCK)
        assert (request.done(), request.cancelled()) == (False, False)
        with pytest.raises(asyncio.InvalidStateError):
            request.result()
        with pytest.raises(asyncio.InvalidStateError):
            request.exception()
    await request


async def test_a_finished_request_keeps_its_outcome(slow_device: aioblk.Device) -> None:
    request = slow_device.read(0, BLOCK)
    await settled(request)
    assert (request.done(), request.cancelled()) == (True, False)
    assert request.result() == ZEROES
    assert request.exception() is None
    assert request.cancel() is False


async def test_a_failed_request_keeps_its_error(slow_device: aioblk.Device) -> None:
    request = slow_device.read(slow_device.capacity, BLOCK)
    await settled(request)
    error = request.exception()
    assert isinstance(error, aioblk.BlkioError)
    with pytest.raises(aioblk.BlkioError) as caught:
        request.result()
    assert caught.value is error
    with pytest.raises(aioblk.BlkioError) as caught:
        await request
    assert caught.value is error


class Local:
    """Lives as long as the frame that has it as a local variable."""


async def test_an_error_is_raised_as_it_was_at_first(slow_device: aioblk.Device) -> None:
    """Its traceback does not grow each time, nor keep the frames of those who have caught it before."""
    request = slow_device.read(slow_device.capacity, BLOCK)
    batch = slow_device.read_many([(0, BLOCK), (slow_device.capacity, BLOCK)])
    await settled(request, batch)
    locals_of_frames: list[weakref.ref[Local]] = []

    def ask(failed: aioblk.Request[Any]) -> int:
        local = Local()
        locals_of_frames.append(weakref.ref(local))
        try:
            failed.result()
        except aioblk.BlkioError as error:
            return len(list(traceback.walk_tb(error.__traceback__)))
        raise AssertionError

    async def wait(failed: aioblk.Request[Any]) -> int:
        local = Local()
        locals_of_frames.append(weakref.ref(local))
        try:
            await failed
        except aioblk.BlkioError as error:
            return len(list(traceback.walk_tb(error.__traceback__)))
        raise AssertionError

    for failed in (request, batch):
        assert {ask(failed) for _ in range(5)} == {1}
        assert {await wait(failed) for _ in range(5)} == {1}
        assert [local() for local in locals_of_frames[:-1]] == [None] * 9
        locals_of_frames.clear()


async def test_the_loss_of_a_device_is_raised_as_it_was_at_first(slow_daemon: StorageDaemon) -> None:
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket) as device:
        await device.read(0, BLOCK)
        with held(slow_daemon):
            request = device.read(0, BLOCK)
            device.abandon("given up")
    lengths = set[int]()
    for _ in range(5):
        with pytest.raises(aioblk.DeviceLostError) as caught:
            request.result()
        lengths.add(len(caught.traceback))
    assert lengths == {1}


async def test_an_error_of_a_hook_keeps_what_it_came_with(slow_daemon: StorageDaemon) -> None:
    def refuse(*_: object) -> None:
        raise ValueError

    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket) as device:
        device.queue()._compiled.on_bounce = refuse
        request = device.read(0, BLOCK)
        await settled(request)
        for _ in range(3):
            with pytest.raises(ValueError) as caught:  # noqa: PT011
                request.result()
            names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
            assert names.count("refuse") == 1
            assert len(names) == 2


async def test_a_cancelled_request_raises_what_it_was_cancelled_with(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    with held(slow_daemon):
        request = slow_device.read(0, BLOCK)
        assert request.cancel("enough") is True
    assert request.cancel() is False
    assert (request.done(), request.cancelled()) == (True, True)
    for call in (request.result, request.exception):
        with pytest.raises(asyncio.CancelledError, match="enough"):
            call()


async def test_a_request_knows_its_loop(slow_device: aioblk.Device) -> None:
    request = slow_device.read(0, BLOCK)
    assert request.get_loop() is asyncio.get_running_loop()
    await request


async def test_done_callbacks_are_called_once_in_order(slow_device: aioblk.Device) -> None:
    calls: list[tuple[str, object]] = []
    request = slow_device.read(0, BLOCK)
    for name in "abc":
        request.add_done_callback(functools.partial(lambda name, done: calls.append((name, done)), name))
    await request
    await asyncio.sleep(0)
    assert calls == [("a", request), ("b", request), ("c", request)]


async def test_done_callbacks_of_a_done_request_are_called_soon(slow_device: aioblk.Device) -> None:
    request = slow_device.read(0, BLOCK)
    await request
    calls: list[object] = []
    request.add_done_callback(calls.append)
    assert calls == []
    await asyncio.sleep(0)
    assert calls == [request]


async def test_removed_callbacks_are_not_called(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    removed: list[object] = []
    kept: list[object] = []
    remove = removed.append
    with held(slow_daemon):
        request = slow_device.read(0, BLOCK)
        for callback in (remove, kept.append, remove):
            request.add_done_callback(callback)
        assert request.remove_done_callback(remove) == 2
        assert request.remove_done_callback(remove) == 0
    await request
    await asyncio.sleep(0)
    assert (removed, kept) == ([], [request])


async def test_an_error_in_a_callback_stops_no_other(
    slow_device: aioblk.Device, loop_errors: list[dict[str, object]]
) -> None:
    calls: list[object] = []
    request = slow_device.read(0, BLOCK)
    request.add_done_callback(lambda _: 1 // 0)
    request.add_done_callback(calls.append)
    await request
    await asyncio.sleep(0)
    assert calls == [request]
    assert isinstance(loop_errors.pop()["exception"], ZeroDivisionError)


async def test_requests_can_be_referred_to_weakly(slow_device: aioblk.Device) -> None:
    request = slow_device.read(0, BLOCK)
    reference = weakref.ref(request)
    await request
    assert reference() is request
    del request
    await asyncio.sleep(0)  # what was awaited is held until the task pauses
    assert reference() is None


# --- contexts -----------------------------------------------------------------------------------------------

who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


async def test_tasks_keep_their_context_across_a_request(slow_device: aioblk.Device) -> None:
    async def reader(name: str) -> str:
        who.set(name)
        await slow_device.read(0, BLOCK)
        return who.get()

    names = [str(n) for n in range(8)]
    assert await asyncio.gather(*(asyncio.create_task(reader(name)) for name in names)) == names
    assert who.get() == "nobody"


async def test_callbacks_run_in_the_context_they_were_added_in(slow_device: aioblk.Device) -> None:
    seen: list[str] = []
    request = slow_device.read(0, BLOCK)
    token = who.set("adder")
    request.add_done_callback(lambda _: seen.append(who.get()))
    who.reset(token)
    other = contextvars.copy_context()
    other.run(who.set, "given")
    request.add_done_callback(lambda _: seen.append(who.get()), context=other)
    await request
    await asyncio.sleep(0)
    assert seen == ["adder", "given"]


# --- what nobody waits for ----------------------------------------------------------------------------------


async def test_a_request_that_nobody_awaits_completes(device: aioblk.Device) -> None:
    device.write(0, b"\x11" * BLOCK)
    await device.write(BLOCK, ZEROES)
    async with asyncio.timeout(60):
        while device.statistics().in_flight:
            await device.flush()
    assert await device.read(0, BLOCK) == b"\x11" * BLOCK


async def test_an_error_that_nobody_retrieves_is_reported_once(
    slow_device: aioblk.Device, loop_errors: list[dict[str, object]]
) -> None:
    slow_device.read(slow_device.capacity, BLOCK)
    await slow_device.read(0, BLOCK)
    async with asyncio.timeout(60):
        while slow_device.statistics().in_flight:
            await slow_device.read(0, BLOCK)
    gc.collect()
    [context] = loop_errors
    assert isinstance(context["exception"], aioblk.BlkioError)
    assert "never retrieved" in str(context["message"])
    loop_errors.clear()


async def test_an_error_that_was_retrieved_is_not_reported(slow_device: aioblk.Device) -> None:
    request = slow_device.read(slow_device.capacity, BLOCK)
    await settled(request)
    assert request.exception() is not None
    del request
    gc.collect()


# --- waking -------------------------------------------------------------------------------------------------


def test_an_interrupt_out_of_a_woken_task_loses_no_other_completion(slow_daemon: StorageDaemon) -> None:
    """Runs its loop itself, since a KeyboardInterrupt ends the running of a loop."""
    loop = asyncio.SelectorEventLoop()

    async def read(device: aioblk.Device, interrupt: bool) -> bytes:
        data = await device.read(0, BLOCK)
        if interrupt:
            raise KeyboardInterrupt
        return data

    async def open_device() -> aioblk.Device:
        device = aioblk.VirtioBlkVhostUser(slow_daemon.socket)
        await device.open()
        await device.read(0, BLOCK)
        return device

    async def start(device: aioblk.Device) -> list["asyncio.Task[bytes]"]:
        return [loop.create_task(read(device, i == 2)) for i in range(8)]

    async def finish(device: aioblk.Device, tasks: list["asyncio.Task[bytes]"]) -> list[object]:
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        await device.aclose()
        return list(results)

    device = loop.run_until_complete(open_device())
    with held(slow_daemon):
        tasks = loop.run_until_complete(start(device))
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    interrupted = tasks.pop(2)
    assert isinstance(interrupted.exception(), KeyboardInterrupt)
    assert loop.run_until_complete(finish(device, tasks)) == [ZEROES] * 7
    loop.close()


async def test_tasks_are_woken_from_the_loop_without_a_detour(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    async def read() -> None:
        await slow_device.read(0, BLOCK)

    before = slow_device.statistics().direct_wakes
    with held(slow_daemon):
        task = asyncio.create_task(read())
        await asyncio.sleep(0)
    await task
    assert slow_device.statistics().direct_wakes == before + 1


async def test_a_woken_task_may_close_the_device(slow_daemon: StorageDaemon) -> None:
    device = aioblk.VirtioBlkVhostUser(slow_daemon.socket)
    await device.open()

    async def read_and_close() -> None:
        await device.read(0, BLOCK)
        await device.aclose()

    await asyncio.gather(*(read_and_close() for _ in range(4)))
    assert device.closed
