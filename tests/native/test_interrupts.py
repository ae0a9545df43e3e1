"""KeyboardInterrupt and SystemExit are orders, not errors: wherever they arrive, they end a call or the loop.

They are never an item of a batch's results, a request's outcome, or printed and lost; and what was going on
when they arrived goes on as soon as the loop does.
"""

import asyncio
import contextlib
import itertools
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import pytest
import uvloop

import aioblk
from aioblk._device.recovery import Recovery
from aioblk._libblkio.refusals import Refusals
from aioblk._native._core import DeviceCore, Memory, QueueCore
from aioblk.errors import request_error
from aioblk.testing.storage_daemon import StorageDaemon

from ..conftest import StorageDaemonFactory
from ..support.devices import BLOCK, held, settled

T = TypeVar("T")

PATIENCE = 30  # seconds

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture(params=[KeyboardInterrupt, SystemExit])
def order(request: pytest.FixtureRequest) -> type[BaseException]:
    kind: type[BaseException] = request.param
    return kind


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop whose run may be ended by an order."""
    loop = LOOPS[request.param]()
    yield loop
    loop.close()


@pytest.fixture(autouse=True)
def nothing_is_printed_and_lost(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    printed: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    yield
    assert printed == []


@pytest.fixture
def daemon(storage_daemon: StorageDaemonFactory) -> StorageDaemon:
    return storage_daemon()


class Once:
    """Gives *order* the first time that it is called, and calls *function* from then on."""

    def __init__(self, order: type[BaseException], function: Callable[..., Any]) -> None:
        self._order = order
        self._function = function
        self.calls = 0

    def __call__(self, *arguments: Any, **others: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            raise self._order("arrived")
        return self._function(*arguments, **others)


class AtLine:
    """Within the block, an order is given where a function has come to a line, counted from its beginning."""

    def __init__(self, file: str, function: str, line: int, order: type[BaseException]) -> None:
        self._file = f"/{file}"
        self._function = function
        self._left = line
        self._order = order
        self._before: Any = None
        self.came = False

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._enter)

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._before)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        code = frame.f_code
        if code.co_name != self._function or not code.co_filename.endswith(self._file):
            return None
        return self._step(frame, event, argument)

    def _step(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        if not self.came and event in ("call", "line"):
            self._left -= 1
            if self._left < 0:
                self.came = True
                raise self._order("arrived")
        return self._step


def core_of(device: aioblk.Device) -> QueueCore:
    return device.queue()._compiled


def device_core_of(device: aioblk.Device) -> DeviceCore:
    return device._session("core").core


def run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    return loop.run_until_complete(asyncio.wait_for(work, PATIENCE))


def run_once_ended(
    loop: asyncio.AbstractEventLoop, order: type[BaseException], work: Coroutine[Any, Any, T]
) -> T:
    """Run the loop until *order* ends that, and once more until the work is done."""
    task = loop.create_task(work)
    with pytest.raises(order, match="arrived"):
        loop.run_until_complete(asyncio.wait([task], timeout=PATIENCE))
    assert not task.done()
    return loop.run_until_complete(asyncio.wait_for(task, PATIENCE))


# --- in the call --------------------------------------------------------------------------------------------


async def test_in_the_hook_that_finds_memory(daemon: StorageDaemon, order: type[BaseException]) -> None:
    """Whoever submits gets it, and nothing remains of the request."""
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        core = core_of(device)
        core.on_bounce = Once(order, core.on_bounce or print)
        with pytest.raises(order):
            device.read_many([(0, BLOCK), (BLOCK, BLOCK)], return_exceptions=True)
        await device.queue().drain()
        results = await device.read_many([(0, BLOCK), (BLOCK, BLOCK)], return_exceptions=True)
        assert results == [bytes(BLOCK)] * 2


async def test_while_the_items_of_a_batch_are_made(
    file_device: aioblk.Device, order: type[BaseException]
) -> None:
    class Offset:
        def __index__(self) -> int:
            raise order

    for items in ([(0, BLOCK), (Offset(), BLOCK)], (Once(order, int)() for _ in range(2))):
        with pytest.raises(order):
            file_device.read_many(items, return_exceptions=True)  # type: ignore[arg-type]
    assert file_device.statistics().submitted == 0


async def test_while_an_error_is_made_for_who_asks(
    daemon: StorageDaemon, order: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is as it was, for who asks again."""
    monkeypatch.setattr("aioblk._libblkio.refusals.request_error", Once(order, request_error))
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        batch = device.read_many([(device.capacity, BLOCK)])
        await settled(batch)
        with pytest.raises(order):
            await batch
        with pytest.raises(aioblk.BlkioError) as caught:
            await batch
        assert caught.value.offset == device.capacity


# --- in the loop --------------------------------------------------------------------------------------------


def test_in_the_hook_that_tells_of_room(
    daemon: StorageDaemon, loop: asyncio.AbstractEventLoop, order: type[BaseException]
) -> None:
    """Who waits for bounce memory gets it all the same."""

    async def work() -> list[bytes]:
        async with aioblk.VirtioBlkVhostUser(daemon.socket, bounce_pool_size=1 << 16) as device:
            await device.read(0, 1 << 16)
            core = core_of(device)
            core.on_room = Once(order, core.on_room or print)
            return await asyncio.gather(*(device.read(0, 1 << 16) for _ in range(3)))

    assert run_once_ended(loop, order, work()) == [bytes(1 << 16)] * 3


@pytest.mark.parametrize(
    ("file", "function"),
    [
        *(
            ("bounce.py", name)
            for name in ("_resize", "_enqueue", "_serve", "_admit_head", "_start_resizing")
        ),
        *(("handle_calls.py", name) for name in ("make", "_watched")),
        *(("blocking.py", name) for name in ("__init__", "outcome", "take")),
    ],
)
def test_while_the_bounce_pool_is_made(
    daemon: StorageDaemon,
    loop: asyncio.AbstractEventLoop,
    order: type[BaseException],
    file: str,
    function: str,
) -> None:
    """Who waits for its memory gets it all the same, no other is kept, and the pool can be closed."""
    for line in itertools.count():
        arrival = AtLine(file, function, line, order)

        async def work(arrival: AtLine = arrival) -> bytes:
            async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
                with arrival, contextlib.suppress(order):  # which ends the call, if it arrives there
                    await device.read(0, BLOCK)
                data = await device.read(0, BLOCK)
                handle = device._session("look").handle
                assert (len(handle._allocated), len(handle._mapped)) == (1, 1)
                return data

        task = loop.create_task(work())
        for _ in range(2):
            with contextlib.suppress(order):
                loop.run_until_complete(asyncio.wait([task], timeout=5))
        assert task.done(), f"the order arrived before line {line}"
        assert task.result() == bytes(BLOCK)
        if not arrival.came:
            assert line > 0
            break


def test_in_the_hook_that_tells_of_the_end(
    daemon: StorageDaemon, loop: asyncio.AbstractEventLoop, order: type[BaseException]
) -> None:
    """Draining ends all the same."""

    async def work() -> None:
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
            await device.read(0, BLOCK)
            core = core_of(device)
            with held(daemon):
                request = device.read(0, BLOCK)
                draining = asyncio.create_task(device.queue().drain())
                await asyncio.sleep(0)
                assert core.on_idle is not None
                core.on_idle = Once(order, core.on_idle)
            await draining
            await request

    run_once_ended(loop, order, work())


def test_in_the_hook_that_tells_of_a_region(
    daemon: StorageDaemon, loop: asyncio.AbstractEventLoop, order: type[BaseException]
) -> None:
    """The region is unmapped all the same."""

    async def work() -> None:
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
            region = await device.allocate(BLOCK).__aenter__()
            core = device_core_of(device)
            core.on_region_idle = Once(order, core.on_region_idle or print)
            with held(daemon):
                request = device.read_into(0, region)
                leaving = asyncio.create_task(region.aclose())
                await asyncio.sleep(0)
            await leaving
            await request

    run_once_ended(loop, order, work())


def test_while_the_errors_of_a_batch_are_made(
    daemon: StorageDaemon,
    loop: asyncio.AbstractEventLoop,
    order: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aioblk._libblkio.refusals.request_error", Once(order, request_error))

    async def work() -> list[Any]:
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
            return await device.read_many([(0, BLOCK), (device.capacity, BLOCK)], return_exceptions=True)

    good, bad = run_once_ended(loop, order, work())
    assert good == bytes(BLOCK)
    assert isinstance(bad, aioblk.BlkioError)


def test_while_the_device_is_given_up(
    daemon: StorageDaemon,
    loop: asyncio.AbstractEventLoop,
    order: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Everything in flight fails with the loss, and the device closes."""
    refuse = Once(order, Refusals.__call__)
    monkeypatch.setattr(Refusals, "__call__", lambda *arguments: refuse(*arguments))

    async def work() -> list[Any]:
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
            await device.read(0, BLOCK)
            with held(daemon):
                requests = [device.read(0, BLOCK) for _ in range(3)]
                device.abandon("given up")
            return await asyncio.gather(*requests, return_exceptions=True)

    assert [type(outcome) for outcome in run_once_ended(loop, order, work())] == [aioblk.DeviceLostError] * 3


def test_while_another_backend_is_looked_for(
    daemon: StorageDaemon,
    loop: asyncio.AbstractEventLoop,
    order: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody looks for it any more, so the device is lost, and nobody waits."""

    async def look(_: Recovery) -> None:
        raise order("arrived")

    monkeypatch.setattr(Recovery, "run", look)

    async def work() -> object:
        async with aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=PATIENCE) as device:
            await device.read(0, BLOCK)
            with held(daemon):
                request = device.read(0, BLOCK)
                daemon.kill()
            await settled(request)
            return request.exception()

    assert isinstance(run_once_ended(loop, order, work()), aioblk.DeviceLostError)


def test_in_the_loops_handler_of_errors(
    daemon: StorageDaemon, loop: asyncio.AbstractEventLoop, order: type[BaseException]
) -> None:
    """It is told of an error that nobody has retrieved when the request goes, wherever that is."""

    async def work() -> bytes:
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
            loop.set_exception_handler(Once(order, print))
            await settled(device.read(device.capacity, BLOCK))
            await asyncio.sleep(0)
            return await device.read(0, BLOCK)

    assert run_once_ended(loop, order, work()) == bytes(BLOCK)


# --- in the loop's own methods ------------------------------------------------------------------------------


class InterruptedLoop(asyncio.SelectorEventLoop):
    """A loop in whose call_soon() an exception arrives, once, when it is called with a certain callback."""

    arriving: BaseException | None = None
    expected: object = None

    def call_soon(  # type: ignore[override] # not as generic as asyncio's
        self, callback: Any, *arguments: Any, context: Any = None
    ) -> asyncio.Handle:
        if self.arriving is not None and callback == self.expected:
            arriving, self.arriving = self.arriving, None
            raise arriving
        return super().call_soon(callback, *arguments, context=context)


def interrupted_callbacks(path: Path, arriving: BaseException, index: int) -> Coroutine[Any, Any, list[int]]:
    """In which order the callbacks of two requests are called when it arrives at one of them."""

    async def work() -> list[int]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, InterruptedLoop)
        async with aioblk.IoUring(path) as device:
            called: list[int] = []
            finished = asyncio.Event()
            callbacks = [lambda _, n=n: called.append(n) for n in range(4)]
            requests = [device.read(0, BLOCK) for _ in range(3)]
            for callback in callbacks:
                requests[1].add_done_callback(callback)
            requests[2].add_done_callback(lambda _: called.append(4))
            requests[2].add_done_callback(lambda _: finished.set())
            loop.arriving, loop.expected = arriving, callbacks[index]
            await finished.wait()
            assert loop.arriving is None
            return called

    return work()


@pytest.mark.parametrize("index", range(4))
def test_while_a_callback_is_scheduled(scratch_file: Path, order: type[BaseException], index: int) -> None:
    """Every callback is called once, in order."""
    loop = InterruptedLoop()
    work = interrupted_callbacks(scratch_file, order("arrived"), index)
    assert run_once_ended(loop, order, work) == list(range(5))
    loop.close()


@pytest.mark.parametrize("index", range(4))
def test_no_memory_to_schedule_a_callback(scratch_file: Path, index: int) -> None:
    loop = InterruptedLoop()
    assert run(loop, interrupted_callbacks(scratch_file, MemoryError(), index)) == list(range(5))
    loop.close()


def test_while_a_flush_is_scheduled(scratch_file: Path, order: type[BaseException]) -> None:
    """Whoever submits gets it, and nothing is submitted."""
    loop = InterruptedLoop()

    async def work() -> bytes:
        async with aioblk.IoUring(scratch_file) as device:
            first = device.read(0, BLOCK)  # what comes after it needs a flush
            loop.arriving, loop.expected = order("arrived"), core_of(device).flush
            with pytest.raises(order):
                device.read(0, BLOCK)
            assert device.statistics().in_flight == 0
            await first
            return await device.read(0, BLOCK)

    assert run(loop, work()) == bytes(BLOCK)
    loop.close()


# --- elsewhere ----------------------------------------------------------------------------------------------


def test_when_memory_is_released(order: type[BaseException]) -> None:
    """Nobody can be told there; the main thread is, as soon as it executes Python code again."""
    memory = Memory.from_buffer(bytearray(BLOCK), on_release=Once(order, print))

    def release_and_go_on() -> None:
        memory.close()
        for _ in range(1000):
            pass

    with pytest.raises(order):
        release_and_go_on()
    assert memory.released


@pytest.mark.parametrize("kicks", [False, True])
async def test_in_a_thread_without_a_loop(
    storage_daemon: StorageDaemonFactory,
    order: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
    kicks: bool,
) -> None:
    """wait() raises it, and goes on when it is called again; also when the submission has met it already."""
    monkeypatch.setattr("aioblk._libblkio.refusals.request_error", Once(order, request_error))
    daemon = storage_daemon(num_queues=2)
    async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=2) as device:
        with device.blocking_queue(1) as queue:
            queue._compiled.kicks = kicks
            batch = queue.read_many([(0, BLOCK), (device.capacity, BLOCK)], return_exceptions=True)
            with pytest.raises(order):
                queue.wait(batch)
            good, bad = queue.wait(batch)
            assert good == bytes(BLOCK)
            assert isinstance(bad, aioblk.BlkioError)
