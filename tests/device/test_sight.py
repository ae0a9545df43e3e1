"""What is known of requests beyond their outcome: times, errors, instruments, debug mode, and the log."""

import asyncio
import contextvars
import dataclasses
import errno
import gc
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import aioblk

from ..conftest import StorageDaemonFactory
from ..support.devices import BLOCK, held

PATIENCE = 30.0  # seconds
POOL = 64 << 10  # bytes of the smallest bounce pool


# --- counting -----------------------------------------------------------------------------------------------


async def test_each_operation_counts_for_itself(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        await device.write_many([(0, bytes(BLOCK)), (2 * BLOCK, bytes(BLOCK))])
        await device.read(0, 3 * BLOCK)
        await device.write_zeroes(0, BLOCK)
        await device.discard(BLOCK, BLOCK)
        await device.flush()
        before = device.statistics()
        await device.read(0, BLOCK)
        seen = device.statistics()
    done = {name: (each.completed, each.failed, each.bytes) for name, each in before.operations.items()}
    assert done == {
        "read": (1, 0, 3 * BLOCK),
        "write": (2, 0, 2 * BLOCK),
        "write_zeroes": (1, 0, BLOCK),
        "discard": (1, 0, BLOCK),
        "flush": (1, 0, 0),
        "zones": (0, 0, 0),
    }
    assert (seen - before).read == aioblk.OperationStatistics(completed=1, bytes=BLOCK)
    assert (seen - before).completed == 1


async def test_errors_count_by_their_number(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        results = await asyncio.gather(
            *[device.write(1 << 62, bytes(BLOCK)) for _ in range(3)], return_exceptions=True
        )
        (number,) = {result.errno for result in results if isinstance(result, aioblk.BlkioError)}
        assert device.statistics().write.errors == {number: 3}
        outcome = await device.write_many(
            [(0, bytes(BLOCK)), (1 << 62, bytes(BLOCK))], return_exceptions=True
        )
        assert outcome[0] is None
        assert device.statistics().write.errors == {number: 4}
        assert device.statistics().write.failed == 4
        device.abandon("as an example")


async def test_what_a_lost_device_had_has_failed_with_that(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        await device.read(0, BLOCK)
        with held(daemon):
            reading = [device.read(0, BLOCK), device.read_many([(0, BLOCK), (BLOCK, BLOCK)])]
            await asyncio.sleep(0)
            device.abandon("as an example")
            await asyncio.gather(*reading, return_exceptions=True)
        assert device.statistics().read.errors == {errno.ENODEV: 3}
        before = device.statistics()
    assert device.statistics() == before


async def test_nothing_is_forgotten_when_queues_come_and_go(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(num_queues=3)
    async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=3) as device:
        async with device.queue(1) as queue:
            await queue.read(0, BLOCK)

        def use() -> aioblk.BlockingQueue:
            with device.blocking_queue(2) as queue:
                queue.wait(queue.read(0, BLOCK))
            return queue

        blocking = await asyncio.to_thread(use)
        assert queue.statistics().completed == blocking.statistics().completed == 1
        assert device.statistics().completed == 2
        await device.read(0, BLOCK)
        await device.detach()
        assert device.statistics().completed == 3
        await device.attach()
        await device.read(0, BLOCK)
    assert device.statistics().completed == 4
    assert device.statistics().in_flight == 0


def test_what_has_not_been_open_has_no_statistics(scratch_file: Path) -> None:
    with pytest.raises(aioblk.UsageError):
        aioblk.IoUring(scratch_file).statistics()


async def test_waiting_for_bounce_memory_counts(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket, bounce_pool_size=POOL) as device:
        await device.read(0, POOL)
        before = device.statistics()
        with held(daemon):
            reading = [device.read(0, POOL) for _ in range(4)]
            await asyncio.sleep(0)
        await asyncio.gather(*reading)
        waited = device.statistics() - before
        assert waited.bounce_waits == 3
        assert waited.bounce_seconds > 0
    assert (device.statistics() - before).bounce_waits == 3


# --- times --------------------------------------------------------------------------------------------------


async def test_times_are_taken_while_somebody_wants_to_know(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        assert not device.measuring
        await device.read(0, BLOCK)
        assert device.statistics().read.latency.count == 0
        device.measuring = True
        assert device.measuring
        await device.read(0, BLOCK)
        await asyncio.gather(*[device.read(0, BLOCK) for _ in range(8)])
        await device.read_many([(offset * BLOCK, BLOCK) for offset in range(5)])
        await device.flush()
        device.measuring = False
        await device.read(0, BLOCK)
    taken = device.statistics()
    assert taken.read.latency.count == 1 + 8 + 5
    assert taken.flush.latency.count == 1
    assert 0 < taken.read.latency.min <= taken.read.latency.mean <= taken.read.latency.max
    assert taken.read.completed == 16


async def test_a_time_is_that_of_the_device(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        await device.read(0, BLOCK)
        device.measuring = True
        with held(daemon):
            began = time.monotonic()
            reading = [device.read(0, BLOCK) for _ in range(2)]
            await asyncio.sleep(0)  # they are handed over
            since = time.monotonic()
            await asyncio.sleep(0.05)
            waited = time.monotonic() - since
        await asyncio.gather(*reading)
        longest = time.monotonic() - began
        latency = device.statistics().read.latency
        assert latency.count == 2
        assert waited <= latency.min <= latency.max <= longest


async def test_what_began_before_is_not_timed(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        await device.read(0, BLOCK)
        with held(daemon):
            before = device.read(0, BLOCK)
            await asyncio.sleep(0)
            device.measuring = True
            after = device.read(0, BLOCK)
        await asyncio.gather(before, after)
        assert device.statistics().read.latency.count == 1


async def test_what_was_cancelled_is_not_timed(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device, device.allocate(2 * BLOCK) as region:
        device.measuring = True
        with held(daemon):
            reading = [device.read(0, BLOCK), device.read_into(0, region[:BLOCK])]
            new = device.read_into(0, region[BLOCK:])
            await asyncio.sleep(0)
            for request in [*reading, new]:
                request.cancel()
        await asyncio.gather(*reading, new, return_exceptions=True)
        assert device.statistics().cancelled == 3
        assert device.statistics().read.latency.count == 0


async def test_who_is_cancelled_before_the_flush_hides_nobody(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        device.measuring = True
        for _ in range(10):
            reading = [device.read(0, BLOCK) for _ in range(16)]
            reading[-1].cancel()
            await asyncio.gather(*reading, return_exceptions=True)
        counted = device.statistics()
        assert counted.read.latency.count == counted.completed


async def test_no_time_is_longer_than_it_was(storage_daemon: StorageDaemonFactory) -> None:
    """Also of what ends otherwise than by an answer of the device."""
    daemon = storage_daemon()
    began = time.monotonic()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        await device.read(0, BLOCK)
        device.measuring = True
        with held(daemon):
            reading = [device.read(0, BLOCK) for _ in range(3)]
            await asyncio.sleep(0)
            since = time.monotonic()
            await asyncio.sleep(0.01)
            waited = time.monotonic() - since
            device.abandon("as an example")
            await asyncio.gather(*reading, return_exceptions=True)
    latency = device.statistics().read.latency
    assert latency.count == 3
    assert waited <= latency.min <= latency.max <= time.monotonic() - began


@pytest.mark.usefixtures("loop_device")
async def test_discards_outside_libblkio_are_timed(loop_device: Path) -> None:
    async with aioblk.IoUring(loop_device) as device:
        device.measuring = True
        await device.discard(0, BLOCK)
        await asyncio.gather(device.discard(0, BLOCK), device.read(BLOCK, BLOCK))
        latency = device.statistics().discard.latency
        assert latency.count == 2
        assert 0 < latency.min <= latency.max < PATIENCE


async def test_who_only_wants_to_be_told_times_nothing(scratch_file: Path) -> None:
    notes = Notes()
    async with aioblk.IoUring(scratch_file) as device:
        device.add_instrument(notes)
        reading = device.read(0, BLOCK)
        others = [device.read(0, BLOCK) for _ in range(3)]
        device.measuring = True
        await asyncio.gather(reading, *others)
        assert device.statistics().read.latency.count == 0
        await device.read(0, BLOCK)
        assert device.statistics().read.latency.count == 1


async def test_failures_are_timed_as_well(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        device.measuring = True
        with pytest.raises(aioblk.BlkioError):
            await device.write(1 << 62, bytes(BLOCK))
        assert device.statistics().write.latency.count == 1


async def test_other_queues_are_timed_as_well(storage_daemon: StorageDaemonFactory) -> None:
    """Those that are bound already, in another loop or a thread, and those that come."""
    daemon = storage_daemon(num_queues=3)
    switched = threading.Event()
    bound = threading.Barrier(3)
    async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=3) as device:

        async def in_a_loop() -> None:
            async with device.queue(1) as queue:
                await queue.read(0, BLOCK)
                await asyncio.to_thread(bound.wait)
                await asyncio.to_thread(switched.wait)
                await queue.read(0, BLOCK)

        def in_a_thread() -> None:
            with device.blocking_queue(2) as queue:
                queue.wait(queue.read(0, BLOCK))
                bound.wait()
                switched.wait()
                queue.wait(queue.read(0, BLOCK))
                queue.wait(queue.read(0, BLOCK))

        threads = [
            asyncio.create_task(asyncio.to_thread(asyncio.run, in_a_loop())),
            asyncio.create_task(asyncio.to_thread(in_a_thread)),
        ]
        await asyncio.to_thread(bound.wait)
        device.measuring = True
        switched.set()
        await asyncio.gather(*threads)
        latency = device.statistics().read.latency
        assert latency.count == 1 + 1, "a thread hears of it when it waits next"


# --- instruments --------------------------------------------------------------------------------------------

spans: contextvars.ContextVar[str] = contextvars.ContextVar("spans", default="nobody's")


class Notes:
    """All that an instrument is told."""

    def __init__(self) -> None:
        self.begun: list[tuple[aioblk.RequestInfo, str]] = []
        self.finished: list[tuple[aioblk.RequestInfo, BaseException | None]] = []
        self.told: list[tuple[Any, ...]] = []

    def request_begun(self, request: aioblk.RequestInfo) -> None:
        self.begun.append((request, spans.get()))

    def request_finished(self, request: aioblk.RequestInfo, error: BaseException | None) -> None:
        self.finished.append((request, error))

    def device_lost(self, error: aioblk.DeviceLostError) -> None:
        self.told.append(("lost", error))

    def device_searching(self) -> None:
        self.told.append(("searching",))

    def device_returned(self) -> None:
        self.told.append(("returned",))

    def device_resized(self, before: int, capacity: int) -> None:
        self.told.append(("resized", before, capacity))

    def device_closing(self) -> None:
        self.told.append(("closing",))


async def test_an_instrument_is_told_of_each_request(scratch_file: Path) -> None:
    notes = Notes()
    async with aioblk.IoUring(scratch_file) as device:
        device.add_instrument(notes)
        device.add_instrument(notes)  # again
        spans.set("mine")
        await device.write(BLOCK, bytes(BLOCK))
        await device.read_many([(0, BLOCK), (2 * BLOCK, BLOCK)])
        await device.flush()
        with pytest.raises(aioblk.BlkioError) as caught:
            await device.write(1 << 62, bytes(BLOCK))
        device.remove_instrument(notes)
        await device.read(0, BLOCK)
    assert [dataclasses.astuple(request) for request, _ in notes.begun] == [
        ("write", BLOCK, BLOCK, 1),
        ("read", 0, 2 * BLOCK, 2),
        ("flush", 0, 0, 1),
        ("write", 1 << 62, BLOCK, 1),
    ]
    assert {context for _, context in notes.begun} == {"mine"}
    assert notes.finished == [
        (request, error)
        for (request, _), error in zip(notes.begun, [None, None, None, caught.value], strict=True)
    ]


async def test_an_instrument_is_told_what_becomes_of_the_device(
    storage_daemon: StorageDaemonFactory, scratch_file: Path
) -> None:
    daemon, size = storage_daemon(scratch_file), scratch_file.stat().st_size  # noqa: ASYNC240
    notes = Notes()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        device.add_instrument(notes)
        daemon.kill()
        async with asyncio.timeout(PATIENCE):
            while device.lost is None:  # noqa: ASYNC110 (nothing else tells but what is being tested)
                await asyncio.sleep(0.001)
        os.truncate(scratch_file, 2 * size)
        daemon.restart()
        await device.reconnect()
        lost = notes.told[0][1]
    assert notes.told == [("lost", lost), ("returned",), ("resized", size, 2 * size), ("closing",)]


@pytest.mark.abandons_memory
async def test_of_what_is_cancelled_or_lost_the_end_is_told(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon()
    notes = Notes()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device, device.allocate(BLOCK) as region:
        await device.read(0, BLOCK)
        device.add_instrument(notes)
        with held(daemon):
            requests = [device.read(0, BLOCK), device.read_into(0, region), device.read(BLOCK, BLOCK)]
            await asyncio.sleep(0)
            requests[0].cancel()
            assert isinstance(notes.finished[0][1], asyncio.CancelledError)
            requests[1].cancel()
            assert len(notes.finished) == 1, "the device may write to the region"
            device.abandon("as an example")
            await asyncio.gather(*requests, return_exceptions=True)
    ends = [(request.offset, type(error)) for request, error in notes.finished]
    assert sorted(ends, key=str) == [
        (0, asyncio.CancelledError),
        (0, asyncio.CancelledError),
        (BLOCK, aioblk.DeviceLostError),
    ]


async def test_an_instrument_that_fails_is_removed(
    scratch_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Bad:
        def request_begun(self, request: aioblk.RequestInfo) -> None:
            raise ZeroDivisionError(f"of {request.operation}")

    bad, notes = Bad(), Notes()
    async with aioblk.IoUring(scratch_file) as device:
        device.add_instrument(bad)
        device.add_instrument(notes)
        await device.read(0, BLOCK)
        await device.read(0, BLOCK)
        with pytest.raises(aioblk.OptionError, match="is no instrument of the device"):
            device.remove_instrument(bad)
    assert len(notes.begun) == len(notes.finished) == 2
    (record,) = caplog.records
    assert record.name == "aioblk.instruments"
    assert "request_begun() failed" in record.getMessage()
    assert str(scratch_file) in record.getMessage()


@pytest.mark.parametrize("told", ["device_lost", "device_searching", "device_returned"])
@pytest.mark.parametrize("raises", [True, False])
async def test_what_an_instrument_does_when_it_is_told_of_the_device_stops_nothing(
    storage_daemon: StorageDaemonFactory, told: str, raises: bool
) -> None:
    """It raises what is no error, or gives the device up."""
    daemon = storage_daemon()
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: heard.append(context))

    def act(*_: object) -> None:
        device.remove_instrument(clumsy)
        if raises:
            raise asyncio.CancelledError
        device.abandon("by an instrument")

    class Clumsy:
        pass

    clumsy = Clumsy()
    setattr(clumsy, told, act)
    async with asyncio.timeout(PATIENCE):
        async with aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=PATIENCE) as device:
            await device.read(0, BLOCK)
            device.add_instrument(clumsy)
            with held(daemon):
                reading = [device.read(0, BLOCK) for _ in range(3)]
                await asyncio.sleep(0)
                if told == "device_lost":
                    device.abandon("as an example")
                else:
                    daemon.restart()
                await asyncio.gather(*reading, return_exceptions=True)
            if device.lost is not None:
                await device.reconnect()
            await device.read(0, BLOCK)
    asyncio.get_running_loop().set_exception_handler(None)
    assert len(heard) == raises


async def test_an_order_to_end_in_an_instrument_ends_the_program(scratch_file: Path) -> None:
    class Impatient:
        def request_begun(self, _request: aioblk.RequestInfo) -> None:
            raise KeyboardInterrupt

    async def main() -> None:
        async with aioblk.IoUring(scratch_file) as device:
            device.add_instrument(Impatient())
            await device.read(0, BLOCK)
            await asyncio.sleep(PATIENCE)

    with pytest.raises(KeyboardInterrupt):
        await asyncio.to_thread(asyncio.run, main())


async def test_what_has_no_method_is_no_instrument(scratch_file: Path) -> None:
    class Misspelt:
        def on_request_begun(self) -> None:
            raise AssertionError

    async with aioblk.IoUring(scratch_file) as device:
        for thing in (Misspelt(), aioblk.Instrument(), None):
            with pytest.raises(aioblk.OptionError, match="has none of the methods of an instrument"):
                device.add_instrument(thing)
        with pytest.raises(aioblk.OptionError, match="is no instrument"):
            device.remove_instrument(Notes())
    with pytest.raises(aioblk.DeviceClosedError):
        device.add_instrument(Notes())


async def test_an_instrument_may_give_the_device_up(scratch_file: Path) -> None:
    """In the middle of a submission, which is refused then; and its end is told."""

    class Destructive(Notes):
        def request_begun(self, request: aioblk.RequestInfo) -> None:
            super().request_begun(request)
            device.abandon("as an example")

    notes = Destructive()
    async with aioblk.IoUring(scratch_file) as device:
        device.add_instrument(notes)
        for submit in (
            lambda: device.read(0, BLOCK),
            lambda: device.read_many([(0, BLOCK)]),
            lambda: device.discard(0, BLOCK),
        ):
            with pytest.raises(aioblk.DeviceLostError):
                await submit()
            await device.reconnect()
    assert [type(error) for _, error in notes.finished] == [aioblk.DeviceLostError] * len(notes.begun)
    assert len(notes.begun) == 3


async def test_an_instrument_may_be_changed_while_it_is_told(scratch_file: Path) -> None:
    class Once(Notes):
        def request_begun(self, request: aioblk.RequestInfo) -> None:
            super().request_begun(request)
            device.remove_instrument(self)
            device.add_instrument(after)

    once, after = Once(), Notes()
    async with aioblk.IoUring(scratch_file) as device:
        device.add_instrument(once)
        await device.read(0, BLOCK)
        await device.read(BLOCK, BLOCK)
    assert [request.offset for request, _ in once.begun] == [0]
    assert [request.offset for request, _ in after.begun] == [BLOCK]
    assert once.finished == []


# --- debug mode ---------------------------------------------------------------------------------------------


async def test_debug_mode_blames_the_slow_task(
    storage_daemon: StorageDaemonFactory, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = storage_daemon()
    loop = asyncio.get_running_loop()
    was, loop.slow_callback_duration = loop.slow_callback_duration, 0.01
    loop.set_debug(True)
    try:
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:

            async def dawdle() -> None:
                await device.read(0, BLOCK)
                with held(daemon):
                    reading = device.read(0, BLOCK)
                    await asyncio.sleep(0)
                await reading
                time.sleep(0.02)  # noqa: ASYNC251 (which is what it is about)

            caplog.clear()
            await asyncio.create_task(dawdle(), name="dawdler")
    finally:
        loop.set_debug(False)
        loop.slow_callback_duration = was
    blamed = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    slow = [message for message in blamed if message.startswith("Executing")]
    assert any("dawdler" in message for message in slow)
    assert not any("QueueCore" in message for message in slow)


async def test_debug_mode_says_where_a_request_was_made(
    scratch_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    heard: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: heard.append(context))
    try:
        async with aioblk.IoUring(scratch_file) as device:
            device.write(1 << 62, bytes(BLOCK))
            await device.flush()
            gc.collect()
    finally:
        loop.set_debug(False)
        loop.set_exception_handler(None)
    (context,) = heard
    assert context["message"] == "aioblk request's error was never retrieved"
    frames = [frame.name for frame in context["source_traceback"]]
    assert frames[-1] == "test_debug_mode_says_where_a_request_was_made"
    loop.default_exception_handler(context)
    assert "Object created at" in caplog.text


async def test_where_it_was_made_is_no_message_of_a_cancellation(
    storage_daemon: StorageDaemonFactory,
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    try:
        daemon = storage_daemon()
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
            await device.read(0, BLOCK)
            with held(daemon):
                request: Any = device.read(0, BLOCK)
                gathered = asyncio.gather(request, device.read(BLOCK, BLOCK))
                assert request._cancel_message is None
                gathered.cancel("enough")
                with pytest.raises(asyncio.CancelledError):
                    await gathered
                assert request._cancel_message == "enough"
                other: Any = device.read(0, BLOCK)
                other.cancel()
                assert other._cancel_message is None
                with pytest.raises(asyncio.CancelledError) as caught:
                    await other
            assert caught.value.args == ()
    finally:
        loop.set_debug(False)


# --- the log ------------------------------------------------------------------------------------------------


async def test_silence_is_said_before_it_is_taken_for_loss(
    storage_daemon: StorageDaemonFactory, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket, lost_after=0.2) as device:
        await device.read(0, BLOCK)
        with held(daemon):
            with pytest.raises(aioblk.DeviceLostError):
                await device.read(BLOCK, BLOCK)
            messages = [record.getMessage() for record in caplog.records if record.name == "aioblk.device"]
    assert "has not answered for 0.05 seconds or more; the oldest" in messages[0]
    assert f"read at offset {BLOCK}, length {BLOCK}" in messages[0]
    assert "is lost" in messages[1]


async def test_a_pool_that_is_too_small_is_said_once_a_minute(
    storage_daemon: StorageDaemonFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aioblk.memory")
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket, bounce_pool_size=POOL) as device:
        await device.read(0, POOL)
        for _ in range(3):
            with held(daemon):
                reading = [device.read(0, POOL) for _ in range(4)]
                await asyncio.sleep(0)
            await asyncio.gather(*reading)
    (message,) = [record.getMessage() for record in caplog.records if record.name == "aioblk.memory"]
    assert "requests wait for bounce memory" in message
    assert "bounce_pool_size" in message


@pytest.mark.abandons_memory
async def test_memory_that_is_never_released_is_said(
    storage_daemon: StorageDaemonFactory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "aioblk.memory")
    daemon = storage_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device, device.allocate(BLOCK) as region:
        with held(daemon):
            reading = device.read_into(0, region)
            await asyncio.sleep(0)
            device.abandon("as an example")
            with pytest.raises(aioblk.DeviceLostError):
                await reading
    said = [record.getMessage() for record in caplog.records if record.name == "aioblk.memory"]
    assert len(said) == 1
    assert "registered bytes are never released" in said[0]
