"""Several queues: threads with loops of their own, threads without, polling, and moving to another loop."""

import asyncio
import contextlib
import dataclasses
import sysconfig
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

import aioblk

from ..support.devices import BLOCK, held, pattern

if TYPE_CHECKING:
    from ..conftest import StorageDaemonFactory

HAS_GIL = not sysconfig.get_config_var("Py_GIL_DISABLED")

T = TypeVar("T")
DATA = pattern(256 * BLOCK)


@pytest.fixture(params=["io_uring", "vhost_user"])
async def device(
    request: pytest.FixtureRequest, scratch_file: Path, storage_daemon: "StorageDaemonFactory"
) -> AsyncIterator[aioblk.Device]:
    """Holds DATA; three queues."""
    with scratch_file.open("r+b") as file:
        file.write(DATA)
    if request.param == "io_uring":
        device: aioblk.Device = aioblk.IoUring(scratch_file, num_queues=3)
    else:
        socket = storage_daemon(scratch_file, num_queues=3).socket
        device = aioblk.VirtioBlkVhostUser(socket, num_queues=3)
    async with device:
        yield device


@pytest.fixture
async def polled_device(
    scratch_file: Path, storage_daemon: "StorageDaemonFactory"
) -> AsyncIterator[aioblk.Device]:
    """Holds DATA; a queue and a poll queue."""
    with scratch_file.open("r+b") as file:
        file.write(DATA)
    socket = storage_daemon(scratch_file, num_queues=2).socket
    async with aioblk.VirtioBlkVhostUser(socket, num_queues=1, num_poll_queues=1) as device:
        yield device


async def in_another_loop(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What *work* gives in a thread with a loop of its own."""
    return await asyncio.to_thread(lambda: asyncio.run(work()))


# --- threads with loops -------------------------------------------------------------------------------------


async def test_threads_with_loops_of_their_own_share_a_device(device: aioblk.Device) -> None:
    async def read_all(index: int) -> bytes:
        async with device.queue(index) as queue:
            blocks = [queue.read(at, BLOCK) for at in range(0, len(DATA), BLOCK)]
            return b"".join(await asyncio.gather(*blocks))

    own, *others = await asyncio.gather(
        asyncio.gather(*[device.read(at, BLOCK) for at in range(0, len(DATA), BLOCK)]),
        in_another_loop(lambda: read_all(1)),
        in_another_loop(lambda: read_all(2)),
    )
    assert b"".join(own) == DATA
    assert others == [DATA, DATA]


async def test_a_queue_can_be_bound_again_once_it_is_closed(device: aioblk.Device) -> None:
    for _ in range(3):
        async with device.queue(1) as queue:
            assert await queue.read(0, BLOCK) == DATA[:BLOCK]
        with pytest.raises(aioblk.DeviceClosedError):
            queue.read(0, BLOCK)


async def test_a_queue_that_is_being_closed_is_not_handed_out(device: aioblk.Device) -> None:
    queue = device.queue(1)
    request = queue.read(0, BLOCK)
    queue._close_soon()
    with pytest.raises(aioblk.UsageError, match=r"queue 1 of .* is being closed; await its aclose"):
        device.queue(1)
    await asyncio.gather(request, queue.aclose())
    async with device.queue(1) as queue:
        assert await queue.read(0, BLOCK) == DATA[:BLOCK]


async def test_the_default_queue_is_queue_0(device: aioblk.Device) -> None:
    await device.queue(0).read(0, BLOCK)
    assert device.queue() is device.queue(0)
    assert device.statistics().bytes_read == BLOCK


async def test_a_queue_that_is_bound_elsewhere_is_refused(device: aioblk.Device) -> None:
    async def bind_default() -> None:
        with pytest.raises(aioblk.UsageError, match=r"queue 0 of .* is the default queue"):
            device.queue(0)
        with pytest.raises(aioblk.UsageError, match="another thread"):
            device.read(0, BLOCK)

    await in_another_loop(bind_default)


async def test_a_queue_that_does_not_exist_is_refused(device: aioblk.Device) -> None:
    for index in (3, -1, 1 << 40):
        with pytest.raises(aioblk.UsageError, match="no queue"):
            device.queue(index)
    with pytest.raises(aioblk.UsageError, match="no poll queue"):
        device.poll_queue(0)


async def test_queues_come_and_go_where_the_driver_can(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        index = await device.add_queue()
        async with device.queue(index) as queue:
            await queue.write(0, DATA)
            with pytest.raises(aioblk.UsageError, match="in use"):
                await device.remove_queue(index)
        await device.remove_queue(index)
        with pytest.raises(aioblk.UsageError, match="no queue"):
            device.queue(index)
        assert await device.read(0, len(DATA)) == DATA


async def test_where_queues_cannot_be_added_it_is_said(polled_device: aioblk.Device) -> None:
    with pytest.raises(aioblk.UnsupportedError):
        await polled_device.add_queue()


# --- polling ------------------------------------------------------------------------------------------------


async def test_a_poll_queue_works_without_events(polled_device: aioblk.Device) -> None:
    async with polled_device.poll_queue() as queue:
        blocks = [queue.read(at, BLOCK) for at in range(0, len(DATA), BLOCK)]
        assert b"".join(await asyncio.gather(*blocks)) == DATA
        await queue.write(0, bytes(BLOCK))
        await queue.flush()
        assert queue.statistics().events == 0
    assert await polled_device.read(0, BLOCK) == bytes(BLOCK)


async def test_a_device_may_have_poll_queues_only(storage_daemon: "StorageDaemonFactory") -> None:
    socket = storage_daemon(num_queues=1).socket
    async with aioblk.VirtioBlkVhostUser(socket, num_queues=0, num_poll_queues=1) as device:
        assert await device.read(0, BLOCK) == bytes(BLOCK)


async def test_spinning_changes_nothing_but_the_time(device: aioblk.Device) -> None:
    queue = device.queue()
    queue.spin = 0.0001
    assert queue.spin == pytest.approx(0.0001)
    blocks = [device.read(at, BLOCK) for at in range(0, len(DATA), BLOCK)]
    assert b"".join(await asyncio.gather(*blocks)) == DATA
    for at in range(0, 8 * BLOCK, BLOCK):
        assert await device.read(at, BLOCK) == DATA[at : at + BLOCK]
    wrongs: tuple[Any, ...] = (-1, 0.1, float("nan"), 10**400, True, "soon")
    for wrong in wrongs:
        with pytest.raises(aioblk.OptionError, match=f"spin must be .* not {wrong!r}"):
            queue.spin = wrong


# --- threads without loops ----------------------------------------------------------------------------------


async def test_a_thread_without_a_loop_blocks_until_requests_are_done(device: aioblk.Device) -> None:
    def work() -> bytes:
        with device.blocking_queue(1) as queue:
            queue.wait(queue.write(0, bytes(BLOCK)))
            first = queue.wait(queue.read(0, BLOCK))
            rest = queue.wait(queue.read_many([(at, BLOCK) for at in range(BLOCK, len(DATA), BLOCK)]))
            return first + b"".join(rest)

    assert await asyncio.to_thread(work) == bytes(BLOCK) + DATA[BLOCK:]


async def test_a_blocking_poll_queue_polls(polled_device: aioblk.Device) -> None:
    def work() -> list[bytes]:
        with polled_device.blocking_queue(poll=True) as queue:
            return queue.wait(queue.read_many([(at, BLOCK) for at in range(0, len(DATA), BLOCK)]))

    assert b"".join(await asyncio.to_thread(work)) == DATA


async def test_more_than_a_blocking_queues_bounce_memory_goes_through_it(device: aioblk.Device) -> None:
    def work() -> bytes:
        with device.blocking_queue(1) as queue:
            return queue.wait(queue.read(0, 8 << 20))

    assert (await asyncio.to_thread(work))[: len(DATA)] == DATA


@pytest.mark.parametrize("kicks", [False, True])
async def test_a_blocking_queue_may_hand_over_before_its_thread_waits(
    device: aioblk.Device, kicks: bool
) -> None:
    blocks = len(DATA) // BLOCK

    def work() -> None:
        with device.blocking_queue(1) as queue:
            queue._compiled.kicks = kicks
            begun: deque[tuple[int, aioblk.Request[bytes]]] = deque()
            for number in range(4):
                begun.append((number, queue.read(number * BLOCK, BLOCK)))
            # Without a GIL a thread's queue is shared with whoever looks at it, and kicks nothing.
            assert (queue.statistics().do_io_calls > 0) is (kicks and HAS_GIL)
            for number in range(4, 2000):
                begun.append((number, queue.read(number % blocks * BLOCK, BLOCK)))
                done, request = begun.popleft()
                at = done % blocks * BLOCK
                assert queue.wait(request) == DATA[at : at + BLOCK]
            for done, request in begun:
                at = done % blocks * BLOCK
                assert queue.wait(request) == DATA[at : at + BLOCK]

    await asyncio.to_thread(work)


async def test_waiting_has_an_end(storage_daemon: "StorageDaemonFactory") -> None:
    socket = storage_daemon(latency_ns=200_000_000, num_queues=2).socket

    def work(device: aioblk.Device) -> bytes:
        with device.blocking_queue(1) as queue:
            request = queue.read(0, BLOCK)
            with pytest.raises(TimeoutError):
                queue.wait(request, timeout=0)
            return queue.wait(request)

    async with aioblk.VirtioBlkVhostUser(socket, num_queues=2) as device:
        assert await asyncio.to_thread(work, device) == bytes(BLOCK)


async def test_waiting_for_no_time_is_polling(device: aioblk.Device) -> None:
    """Each look submits what there is and takes what has completed."""

    def work() -> bytes:
        with device.blocking_queue(1) as queue:
            request = queue.read(0, BLOCK)
            end = time.monotonic() + 30
            while time.monotonic() < end:
                with contextlib.suppress(TimeoutError):
                    return queue.wait(request, timeout=0)
            raise AssertionError(f"not done: {queue.statistics()}")

    assert await asyncio.to_thread(work) == DATA[:BLOCK]


async def test_a_queue_is_not_given_up_while_its_thread_waits(
    storage_daemon: "StorageDaemonFactory",
) -> None:
    """The closing device may have found the thread not waiting a moment ago."""
    daemon = storage_daemon(num_queues=2)
    bound, begin, queues = threading.Event(), threading.Event(), list[aioblk.BlockingQueue]()

    def work(device: aioblk.Device) -> bytes:
        with device.blocking_queue(1) as queue:
            queues.append(queue)
            bound.set()
            begin.wait(30)
            return queue.wait(queue.read(0, BLOCK))

    async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=2) as device:
        thread = asyncio.create_task(asyncio.to_thread(work, device))
        await asyncio.to_thread(bound.wait, 30)
        [queue] = queues
        with held(daemon):
            begin.set()
            async with asyncio.timeout(30):
                while not queue._is_waiting:  # noqa: ASYNC110 (there is no event of it)
                    await asyncio.sleep(0)
            assert not queue._give_up(aioblk.DeviceLostError("not any more"))
            assert queue.in_flight == 1
        assert await thread == bytes(BLOCK)


async def test_a_blocking_queues_requests_cannot_be_awaited(device: aioblk.Device) -> None:
    with device.blocking_queue(1) as queue:
        request = queue.read(0, BLOCK)
        with pytest.raises(aioblk.UsageError, match=r"wait\(\)") as caught:
            request.add_done_callback(print)
        assert (caught.value.operation, caught.value.driver) == ("read", device.driver)
        assert queue.wait(request) == DATA[:BLOCK]


async def test_who_awaits_a_blocking_queues_request_is_told_what_to_do(
    storage_daemon: "StorageDaemonFactory", scratch_file: Path
) -> None:
    daemon = storage_daemon(scratch_file, num_queues=2)
    async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=2) as device:
        with device.blocking_queue(1) as queue:
            with held(daemon):
                request = queue.read(0, BLOCK)
                with pytest.raises(aioblk.UsageError, match=r"wait\(\)"):
                    await request
            assert queue.wait(request) == bytes(BLOCK)


async def test_the_default_queue_is_nobody_elses(device: aioblk.Device) -> None:
    words = r"queue 0 of .* is the default queue, .*; take another one \(num_queues\)"
    with pytest.raises(aioblk.UsageError, match=words):
        device.blocking_queue()


async def test_what_queues_refuse_names_queue_and_device(device: aioblk.Device) -> None:
    name = str(device.properties["path"])
    with device.blocking_queue(1) as blocking:
        pass
    async with device.queue(2) as queue:

        async def close() -> None:
            await queue.aclose()

        with pytest.raises(
            aioblk.UsageError, match=r"queue 2 of .* belongs to another event loop"
        ) as elsewhere:
            await in_another_loop(close)
    refusals: list[aioblk.BlkioError] = [elsewhere.value]
    for refused, words in (
        (lambda: blocking.read(0, BLOCK), "BlockingQueue: queue 1 of .* is closed"),
        (lambda: queue.read(0, BLOCK), "the queue is closed"),
        (lambda: device.queue(7), r"there is no queue 7; the device has 3 \(num_queues\)"),
        (device.poll_queue, r"there is no poll queue 0; the device has none \(num_poll_queues\)"),
    ):
        with pytest.raises(aioblk.BlkioError, match=words) as caught:
            refused()
        refusals.append(caught.value)
    assert [(error.driver, error.filename) for error in refusals] == [(device.driver, name)] * 5


async def test_a_blocking_queue_belongs_to_its_thread(device: aioblk.Device) -> None:
    with device.blocking_queue(1) as queue:
        refusals: list[BaseException] = []

        def misuse() -> None:
            for attempt in (lambda: queue.read(0, BLOCK), queue.close):
                try:
                    attempt()
                except aioblk.UsageError as error:
                    refusals.append(error)

        thread = threading.Thread(target=misuse)
        thread.start()
        thread.join()
        assert len(refusals) == 2


# --- moving to another loop ---------------------------------------------------------------------------------


async def test_a_detached_device_goes_on_in_another_loop(device: aioblk.Device) -> None:
    async def elsewhere() -> bytes:
        await device.attach()
        try:
            await device.write(0, bytes(BLOCK))
            return await device.read(0, 2 * BLOCK)
        finally:
            await device.detach()

    pending = device.read(0, BLOCK)
    await device.detach()
    assert await pending == DATA[:BLOCK]
    with pytest.raises(aioblk.UsageError, match="attach"):
        device.read(0, BLOCK)
    assert await in_another_loop(elsewhere) == bytes(BLOCK) + DATA[BLOCK : 2 * BLOCK]
    await device.attach()
    assert await device.read(0, BLOCK) == bytes(BLOCK)


async def test_a_detached_device_can_be_closed(device: aioblk.Device) -> None:
    await device.detach()
    await device.aclose()
    assert device.closed


async def test_detaching_goes_on_without_a_task_that_is_cancelled(device: aioblk.Device) -> None:
    pending = device.read(0, BLOCK)
    detaching = asyncio.create_task(device.detach())
    await asyncio.sleep(0)
    detaching.cancel()
    await asyncio.wait([detaching])
    with pytest.raises(aioblk.UsageError, match="detached"):
        device.read(0, BLOCK)
    with pytest.raises(aioblk.UsageError, match="detached"):
        device.queue()
    with contextlib.suppress(aioblk.UsageError):  # it may be over already
        await device.detach()
    assert await pending == DATA[:BLOCK]
    await device.attach()
    assert await device.read(0, BLOCK) == DATA[:BLOCK]


async def test_closing_waits_until_a_device_is_detached(device: aioblk.Device) -> None:
    detaching = asyncio.create_task(device.detach())
    await asyncio.sleep(0)
    await device.aclose()
    assert device.closed
    await detaching


@pytest.mark.parametrize("attach", [False, True])
async def test_a_device_that_is_lost_while_it_is_detached_can_be_closed(
    device: aioblk.Device, attach: bool
) -> None:
    pending = device.read(0, BLOCK)
    detaching = asyncio.create_task(device.detach())
    await asyncio.sleep(0)
    device.abandon()
    await asyncio.wait([pending, detaching])  # type: ignore[type-var] # asyncio takes more than its types say
    if attach:
        await device.attach()
        with pytest.raises(aioblk.DeviceLostError):
            device.read(0, BLOCK)
    await device.aclose()
    assert device.closed
    assert pending.exception() is None or isinstance(pending.exception(), aioblk.DeviceLostError)


async def test_a_device_that_is_lost_while_it_is_detached_comes_back(device: aioblk.Device) -> None:
    detaching = asyncio.create_task(device.detach())
    await asyncio.sleep(0)
    device.abandon()
    await detaching
    await device.attach()
    await device.reconnect()
    assert await device.read(0, BLOCK) == DATA[:BLOCK]
    assert device.queue() is device.queue(0)


# --- counters -----------------------------------------------------------------------------------------------


async def test_without_queues_nothing_is_counted(device: aioblk.Device) -> None:
    async with device.queue():
        pass
    assert device.statistics().submitted == 0


def is_closed(queue: aioblk.BlockingQueue) -> bool:
    """To be asked in another thread than the queue's."""
    with pytest.raises((aioblk.DeviceClosedError, aioblk.UsageError)) as caught:
        queue.read(0, BLOCK)
    return caught.type is aioblk.DeviceClosedError


async def test_the_counters_can_be_read_while_a_thread_closes_its_queue(
    storage_daemon: "StorageDaemonFactory",
) -> None:
    """The backend, which it waits for, is stopped. Closing the device meanwhile disturbs it neither."""
    daemon = storage_daemon(num_queues=2)
    queues: list[aioblk.BlockingQueue] = []
    bound, goes_on = threading.Event(), threading.Event()
    device = await aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=2).open()

    def use() -> None:
        with device.blocking_queue(1) as queue:
            queues.append(queue)
            queue.wait(queue.read(0, BLOCK))
            bound.set()
            goes_on.wait()
            daemon.pause()
        assert not queue.in_flight

    def counters() -> aioblk.QueueStatistics:
        """But for what the loop's own queue counts: a backend may have said there that it has begun."""
        return dataclasses.replace(device.statistics(), do_io_calls=0, events=0, empty_events=0)

    thread = asyncio.create_task(asyncio.to_thread(use))
    await asyncio.to_thread(bound.wait)
    before = counters()
    goes_on.set()
    while not is_closed(queues[0]):
        assert counters() == before
        await asyncio.sleep(0.001)
    assert counters() == before
    closing = asyncio.create_task(device.aclose())
    await asyncio.sleep(0)
    daemon.resume()
    await thread
    await closing


async def test_a_hundred_devices_share_a_loop(scratch_file: Path) -> None:
    devices = [aioblk.IoUring(scratch_file, num_entries=8) for _ in range(100)]
    await asyncio.gather(*[device.open() for device in devices])
    blocks = await asyncio.gather(*[device.read(0, BLOCK) for device in devices])
    await asyncio.gather(*[device.aclose() for device in devices])
    assert set(blocks) == {bytes(BLOCK)}


# --- zones --------------------------------------------------------------------------------------------------


async def test_a_device_without_zones_says_so(device: aioblk.Device) -> None:
    with pytest.raises(aioblk.UnsupportedError, match="no zones"):
        aioblk.Zones(device)
