"""What a thread makes for a task has one owner at every moment, also when the task is cancelled meanwhile.

A task can be cancelled before the thread has returned, when it has but the loop does not know yet, and in the
very turn in which the result is delivered. Whenever it is: what was made is given back, or somebody has it.
Tasks are made as asyncio.Task: an eager one would be a turn ahead, and might be done.
"""

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import aioblk
from aioblk._sync.blocking import BlockingCall, call_elsewhere, run_blocking
from aioblk._sync.threads import NAME, dismiss
from aioblk.testing.storage_daemon import StorageDaemon

from ..conftest import StorageDaemonFactory
from ..support.devices import BLOCK, Target
from ..support.scripts import run_script

PATIENCE = 15  # seconds; more than enough
MOST_TURNS = 40


def join_workers() -> None:
    """Let the loop stand still until every worker thread has delivered."""
    dismiss()
    for thread in threading.enumerate():
        if thread.name == NAME:
            thread.join(PATIENCE)


def cancel_before_delivery(task: asyncio.Task[Any]) -> None:
    """The thread has returned; the loop has not been told."""
    join_workers()
    task.cancel()


def cancel_in_the_turn_of_delivery(task: asyncio.Task[Any]) -> None:
    """The loop is told, and the task cancelled, before the task runs."""
    join_workers()
    asyncio.get_running_loop().call_soon(task.cancel)


MOMENTS = [cancel_before_delivery, cancel_in_the_turn_of_delivery]
Cancel = Callable[[asyncio.Task[Any]], None]


async def require_free(target: Target) -> None:
    """Whoever was given up has let the backend go: it serves one client at a time."""
    async with asyncio.timeout(PATIENCE), target.device() as device:
        await device.read(0, BLOCK)


@pytest.fixture
def daemon(storage_daemon: StorageDaemonFactory, scratch_file: Any) -> StorageDaemon:
    return storage_daemon(scratch_file, num_queues=2)


# --- opening ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cancel", MOMENTS)
async def test_a_connection_nobody_waits_for_any_more_is_given_back(target: Target, cancel: Cancel) -> None:
    device = target.device()
    opening = asyncio.Task(device.open())
    await asyncio.sleep(0)
    cancel(opening)
    await asyncio.wait([opening])
    assert opening.cancelled()
    assert device.closed
    await require_free(target)


async def test_opening_can_be_cancelled_in_any_turn(target: Target) -> None:
    for turns in range(MOST_TURNS):
        device = target.device()
        opening = asyncio.Task(device.open())
        for _ in range(turns):
            await asyncio.sleep(0)
            join_workers()
        opening.cancel()
        await asyncio.wait([opening])
        if not opening.cancelled():
            await device.aclose()
            break
        await device.aclose()
    else:
        pytest.fail(f"opening took more than {MOST_TURNS} turns")
    assert turns > 1
    await require_free(target)


async def test_cancelling_twice_gives_back_too(target: Target) -> None:
    """Once while opening, once while what was opened is given back."""
    device = target.device()
    opening = asyncio.Task(device.open())
    await asyncio.sleep(0)
    cancel_in_the_turn_of_delivery(opening)
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    await device.aclose()
    await require_free(target)


# --- reconnecting -------------------------------------------------------------------------------------------


async def test_reconnecting_can_be_cancelled_in_any_turn(target: Target, daemon: StorageDaemon) -> None:
    """It leaves the device lost, to be reconnected again, or back: watched, and in use."""
    ends: set[str] = set()
    async with asyncio.timeout(2 * PATIENCE):
        for turns in range(MOST_TURNS):
            async with target.device() as device:
                device.abandon()
                again = asyncio.Task(device.reconnect())
                for _ in range(turns):
                    await asyncio.sleep(0)
                    join_workers()
                asyncio.get_running_loop().call_soon(again.cancel)
                await asyncio.wait([again])
                ends.add("lost" if device.lost else "cancelled, and back" if again.cancelled() else "back")
                if device.lost:
                    await device.reconnect()
                assert await device.read(0, BLOCK) == bytes(BLOCK)
                assert device.reconnections == 1
            if not again.cancelled():
                break
    assert ends >= {"lost", "back"}
    await require_free(target)


async def test_a_device_that_came_back_is_watched_whenever_the_task_was_cancelled(
    daemon: StorageDaemon,
) -> None:
    for turns in range(MOST_TURNS):
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
            device.abandon()
            again = asyncio.Task(device.reconnect())
            for _ in range(turns):
                await asyncio.sleep(0)
                join_workers()
            asyncio.get_running_loop().call_soon(again.cancel)
            await asyncio.wait([again])
            if device.lost:
                continue
            daemon.restart()
            async with asyncio.timeout(PATIENCE):
                while device.lost is None:  # noqa: ASYNC110 (there is no event)
                    await asyncio.sleep(0.001)
            if not again.cancelled():
                break
    else:
        pytest.fail(f"reconnecting took more than {MOST_TURNS} turns")


async def test_a_reconnection_that_hangs_is_given_up_at_once_and_tried_again(daemon: StorageDaemon) -> None:
    """Somebody else has the backend."""
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        device.abandon()
        async with aioblk.VirtioBlkVhostUser(daemon.socket):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(device.reconnect(), 0.1)
        async with asyncio.timeout(PATIENCE):
            await device.reconnect()
            assert await device.read(0, BLOCK) == bytes(BLOCK)


# --- queues -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cancel", MOMENTS)
async def test_a_queue_that_was_added_for_nobody_is_removed(
    file_device: aioblk.Device, cancel: Cancel
) -> None:
    adding = asyncio.Task(file_device.add_queue())
    await asyncio.sleep(0)
    cancel(adding)
    await asyncio.wait([adding])
    assert adding.cancelled()
    join_workers()
    await asyncio.to_thread(join_workers)
    assert await file_device.add_queue() == 1


# --- the call itself ----------------------------------------------------------------------------------------


async def test_a_result_is_taken_or_undone() -> None:
    undone: list[str] = []
    assert await run_blocking(lambda: "taken", undo=undone.append) == "taken"
    call = BlockingCall(lambda: "dropped", undo=undone.append)
    call.drop()
    await asyncio.to_thread(join_workers)
    assert undone == ["dropped"]


async def test_what_a_call_raises_comes_to_who_takes_it() -> None:
    with pytest.raises(ZeroDivisionError):
        await run_blocking(lambda: 1 // 0)


async def test_an_error_of_a_thread_goes_with_who_has_caught_it() -> None:
    """Its traceback has the frames of those who waited, and whatever they hold: a device, for one."""

    class Held:
        pass

    async def wait(_held: Held) -> None:
        with contextlib.suppress(ZeroDivisionError):
            await run_blocking(lambda: 1 // 0)

    held = Held()
    reference = weakref.ref(held)
    gc.disable()
    try:
        await wait(held)
        del held
        join_workers()
        assert reference() is None
    finally:
        gc.enable()


async def test_who_waits_can_be_met_by_an_error_and_the_result_is_undone() -> None:
    undone: list[str] = []
    goes_on = threading.Event()

    def slow() -> str:
        assert goes_on.wait(PATIENCE)
        return "late"

    call = BlockingCall(slow, undo=undone.append)
    asyncio.get_running_loop().call_soon(call.abort, KeyError("meanwhile"))
    with pytest.raises(KeyError, match="meanwhile"):
        await call.outcome()
    goes_on.set()
    await asyncio.to_thread(join_workers)
    assert undone == ["late"]


def test_a_result_for_a_loop_that_is_closed_is_undone() -> None:
    undone: list[str] = []
    goes_on = threading.Event()

    def slow() -> str:
        assert goes_on.wait(PATIENCE)
        return "late"

    async def start() -> None:
        BlockingCall(slow, undo=undone.append)

    asyncio.run(start())
    goes_on.set()
    join_workers()
    assert undone == ["late"]


def test_a_result_that_a_closed_loop_was_told_of_is_undone() -> None:
    """The thread has delivered; the loop is closed without another turn."""
    undone: list[str] = []

    async def start() -> None:
        BlockingCall(lambda: "untaken", undo=undone.append)
        join_workers()

    asyncio.run(start())
    join_workers()
    assert undone == ["untaken"]


async def test_without_a_thread_nothing_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    called: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(aioblk.BlkioError, match="there is none to be had: can't start new thread"):
            await run_blocking(lambda: called.append("by a thread"))
        assert called == []
        call_elsewhere(lambda: called.append("here"))
    assert called == ["here"]


def test_what_is_given_back_when_the_interpreter_ends_is_given_back_at_once() -> None:
    """No thread comes to run any more then: who starts one waits for ever."""
    done = run_script(
        """
        import functools, os
        from aioblk._sync.blocking import call_elsewhere

        class Owner:
            def __init__(self):
                self.give_back = functools.partial(call_elsewhere, functools.partial(os.write, 1, b"done"))

            def __del__(self):
                self.give_back()

        owner = Owner()
        """
    )
    assert done.stdout == "done"
