"""Who waits for requests, and how they are woken: in order, so many in a turn, and shielded if need be."""

import asyncio
import contextvars
import importlib
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import aioblk
from aioblk._native._core import QueueCore, Submitter

from ..support.bench import BLOCK, Bench, closed
from ..support.refused_memory import new_device_core
from ..support.scripts import run_script


def test_the_first_builtin_that_waits_is_no_task(scratch_file: Path) -> None:
    run_script(
        """
        import asyncio, sys
        import aioblk

        async def main():
            async with aioblk.IoUring(sys.argv[1]) as device:
                called, reported = [], []
                asyncio.get_running_loop().set_exception_handler(lambda _, what: reported.append(what))
                request = device.read_into(0, bytearray(4096))
                request = device.read_into(0, bytearray(4096))
                request.add_done_callback(str.maketrans)  # of no object, and content with no request
                while not reported:
                    await asyncio.sleep(0)
                request = device.read_into(0, bytearray(4096))
                request = device.read_into(0, bytearray(4096))
                request.add_done_callback(called.append)
                request.add_done_callback(print)
                request.add_done_callback(asyncio.current_task().set_name)
                while not called:
                    await asyncio.sleep(0)
                await asyncio.sleep(0)
                assert called == [request]
                assert asyncio.current_task().get_name() == str(request)

        asyncio.run(main())
        """,
        scratch_file,
    )


def test_more_are_woken_than_a_turn_may_wake(bench: Bench) -> None:
    """The others in the next one."""
    requests = [bench.read() for _ in range(600)]
    bench.core.abandon(OSError("lost"))
    bench.loop.run()
    assert bench.called == requests[::-1]
    bench.called.clear()


def test_those_that_a_turn_did_not_wake_are_woken_in_the_next() -> None:
    bench = Bench()
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    requests = [bench.read() for _ in range(600)]
    for request in requests:
        bench.loop.errors.append(MemoryError())
        request.cancel()
        bench.loop.errors.clear()
    bench.loop.calls.clear()
    bench.core.flush()
    assert len(bench.loop.calls) == 512 + 1  # and the next turn
    bench.loop.run()
    assert bench.called == requests
    bench.end()
    asyncio._set_running_loop(None)


def test_who_submits_is_not_concerned_with_others(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that were to be woken meanwhile, an error is printed."""
    printed: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", printed.append)
    request = bench.read()
    bench.loop.errors.append(MemoryError())
    request.cancel()
    bench.loop.errors.append(closed())
    bench.submitter.read(0, BLOCK).cancel()
    assert len(printed) == 1
    assert bench.called == []


def waiting(bench: Bench, request: aioblk.Request[Any], **options: Any) -> asyncio.Task[None]:
    """A task on the loop that waits for the request."""

    async def wait() -> None:
        await request

    loop: Any = bench.loop
    calls, bench.loop.calls = bench.loop.calls, []
    task = asyncio.Task(wait(), loop=loop, **options)
    bench.loop.run()
    bench.loop.calls = calls
    assert not task.done()
    return task


def test_a_task_in_whose_context_somebody_runs_is_woken_by_the_loop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody may enter a context twice."""
    monkeypatch.delitem(sys.modules, "anyio._backends._asyncio", raising=False)
    context, inner = contextvars.copy_context(), contextvars.copy_context()
    request = bench.submitter.read_into(0, bytearray(BLOCK))
    task = waiting(bench, request, context=context)
    assert request.cancel()
    bench.loop.calls.clear()
    context.run(inner.run, bench.core.flush)
    assert request.done()
    assert not task.done()
    bench.loop.run()
    assert task.cancelled()


def test_a_task_that_runs_its_loop_may_end_what_others_wait_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are woken meanwhile, by the loop: the task may be waiting for them."""
    monkeypatch.delitem(sys.modules, "anyio._backends._asyncio", raising=False)
    request, other = bench.submitter.read_into(0, bytearray(BLOCK)), bench.read()

    async def wait() -> None:
        with suppress(asyncio.CancelledError):
            await request
        bench.core.flush()  # as the loop does when it is run from here
        bench.loop.calls.clear()
        other.cancel()
        bench.loop.run()
        assert bench.called == [other]

    loop: Any = bench.loop
    bench.loop.calls.clear()
    task = asyncio.Task(wait(), loop=loop)
    bench.loop.run()
    request.cancel()
    bench.core.flush()
    assert task.done()
    task.result()


def test_shields_that_cannot_be_had(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where anyio is in use, who waits although it is cancelled is shielded; that fails, and is said."""
    importlib.import_module("anyio._backends._asyncio")
    monkeypatch.setitem(sys.modules, "aioblk._sync.scopes", None)
    printed: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", printed.append)
    request = bench.submitter.read_into(0, bytearray(BLOCK))
    assert request.throw(asyncio.CancelledError) is request
    request.add_done_callback(bench.called.append)
    assert request.cancel()
    assert len(printed) == 1
    with pytest.raises(ValueError, match="thrown"):
        request.throw(ValueError("thrown"))
    request.close()
    assert len(printed) == 3
    bench.core.abandon(OSError("lost"))
    bench.loop.run()
    assert not request.cancel()
    assert bench.called == [request]


def test_a_task_that_cannot_be_shielded_goes_on_waiting(bench: Bench) -> None:
    """The loop takes no call for it, nor would it take another."""
    importlib.import_module("anyio._backends._asyncio")
    request = bench.submitter.read_into(0, bytearray(BLOCK))
    task = waiting(bench, request)
    bench.loop.errors.append(closed())
    assert request.cancel()
    assert not bench.loop.errors
    bench.end()
    assert task.cancelled()


def test_a_task_that_cannot_be_shielded_may_be_lost_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the loop looks for memory, the request ends; then the loop is closed."""
    importlib.import_module("anyio._backends._asyncio")
    printed: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", printed.append)
    request = bench.submitter.read_into(0, bytearray(BLOCK))
    task: Any = waiting(bench, request)
    bench.loop.before = lambda: bench.core.abandon(OSError("lost"))
    bench.loop.errors += [MemoryError(), closed()]
    assert request.cancel()
    assert not bench.loop.errors
    assert len(printed) == 1
    assert request.cancelled()
    assert not task.done()
    task._log_destroy_pending = False


def test_a_request_without_a_loop_needs_no_shield() -> None:
    importlib.import_module("anyio._backends._asyncio")
    core = QueueCore(new_device_core(), 1, -1, None, 8)
    core.suspend()
    submitter = Submitter()
    submitter._core = core
    request = submitter.read_into(0, bytearray(BLOCK))
    assert request.cancel()
    assert not request.done()
    core.abandon(OSError("lost"))
    assert request.cancelled()
