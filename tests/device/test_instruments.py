"""Who is told of each request of a device, and of what becomes of it."""

import asyncio
import contextvars
import dataclasses
import gc
import os
from pathlib import Path
from typing import Any

import pytest

import aioblk

from ..conftest import StorageDaemonFactory
from ..support.devices import BLOCK, held
from ..support.scripts import run_script

PATIENCE = 30.0  # seconds
POOL = 64 << 10  # bytes of the smallest bounce pool


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


def test_an_instrument_that_forks_has_nothing_submitted_in_the_child(scratch_file: Path) -> None:
    """The ring is the parent's."""
    run_script(
        f"""
        import asyncio, os
        import aioblk

        class Forking:
            def request_begun(self, request):
                self.child = os.fork()

        async def main():
            async with aioblk.IoUring({str(scratch_file)!r}) as device:
                forking = Forking()
                device.add_instrument(forking)
                try:
                    await device.write(0, b"x" * 4096)
                except aioblk.UsageError as error:
                    os._exit(0 if "fork" in str(error) and not forking.child else 1)
                assert os.waitpid(forking.child, 0)[1] == 0
                assert device.statistics().completed == 1

        asyncio.run(main())
        """
    )


async def test_who_finds_a_request_before_it_is_submitted_may_cancel_it(scratch_file: Path) -> None:
    class Digging:
        def request_begun(self, _request: aioblk.RequestInfo) -> None:
            for each in gc.get_objects():
                if isinstance(each, aioblk.Request) and not each.done():
                    each.cancel()

    async with aioblk.IoUring(scratch_file) as device:
        device.add_instrument(Digging())
        for submit in (lambda: device.read(0, BLOCK), lambda: device.read_many([(0, BLOCK)])):
            request: aioblk.Request[Any] = submit()
            assert request.cancelled()
            with pytest.raises(asyncio.CancelledError):
                await request
        assert device.statistics().in_flight == 0
