"""What the package calls block devices, and one of our own, hold the contract of BlockDevice."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from ram_device import RamDevice
from typing_extensions import Buffer

import aioblk
from aioblk.testing import Fault, Faulty, MemoryDevice, PowerLoss, Recorder
from aioblk.testing.conformance import BLOCK, TURNS, BlockDeviceConformance, Opener

from ..support.devices import LastingDaemons

SIZE = 1 << 20


class TestDeviceOnAFile(BlockDeviceConformance):
    """Any bytes, and it grows."""

    @pytest.fixture
    def opener(self, scratch_file: Path) -> Opener:
        return lambda *, read_only=False: aioblk.IoUring(scratch_file, read_only=read_only)


class TestDeviceOfVhostUser(BlockDeviceConformance):
    """Blocks of 512 bytes, and memory of its own."""

    @pytest.fixture
    def opener(self, lasting_daemon: LastingDaemons) -> Opener:
        return lambda *, read_only=False: vhost_user(lasting_daemon, read_only)


class TestQueue(BlockDeviceConformance):
    @pytest.fixture
    def opener(self, scratch_file: Path) -> Opener:
        @asynccontextmanager
        async def open_queue(*, read_only: bool = False) -> AsyncIterator[aioblk.Queue]:
            device = aioblk.IoUring(scratch_file, read_only=read_only, num_queues=2)
            async with device, device.queue(1) as queue:
                yield queue

        return open_queue


class TestByteView(BlockDeviceConformance):
    @pytest.fixture
    def opener(self, lasting_daemon: LastingDaemons) -> Opener:
        @asynccontextmanager
        async def open_view(*, read_only: bool = False) -> AsyncIterator[aioblk.ByteView]:
            async with (
                vhost_user(lasting_daemon, read_only) as device,
                aioblk.ByteView(device) as view,
            ):
                yield view

        return open_view


class OfLayers(BlockDeviceConformance):
    """Of one that is given a device below, which it does not close."""

    over: Callable[[aioblk.Device], Any]

    @pytest.fixture
    def opener(self, lasting_daemon: LastingDaemons) -> Opener:
        @asynccontextmanager
        async def open_layer(*, read_only: bool = False) -> AsyncIterator[aioblk.BlockDevice]:
            async with (
                vhost_user(lasting_daemon, read_only) as device,
                type(self).over(device) as layer,
            ):
                yield layer

        return open_layer


class TestLayer(OfLayers):
    over = aioblk.Layer


class TestSlice(OfLayers):
    """Over a view, none of whose requests is one of whole blocks."""

    @staticmethod
    def over(device: aioblk.Device) -> Any:
        return aioblk.Slice(aioblk.ByteView(device), 1, device.capacity - BLOCK)


class TestTracked(OfLayers):
    over = aioblk.Tracked


class TestThrottle(OfLayers):
    """Nearly everything has to wait."""

    @staticmethod
    def over(device: aioblk.Device) -> Any:
        rate = aioblk.Rate(operations=20_000, burst_operations=1)
        return aioblk.Throttle(device, aioblk.ThrottleGroup(total=rate))


class TestOpenThrottle(OfLayers):
    @staticmethod
    def over(device: aioblk.Device) -> Any:
        return aioblk.Throttle(device, aioblk.ThrottleGroup())


class TestMirror(OfLayers):
    @staticmethod
    def over(device: aioblk.Device) -> Any:
        other = MemoryDevice(device.capacity, limits=device.limits, read_only=device.read_only)
        return aioblk.Mirror(device, other)


class TestFaultyWithoutFaults(OfLayers):
    over = Faulty


class TestFaultyThatIsSlow(OfLayers):
    @staticmethod
    def over(device: aioblk.Device) -> Any:
        return Faulty(device, Fault(delay=0.0001, probability=0.5), Fault(probability=0.5))


class TestRecorder(OfLayers):
    over = Recorder


class TestCopyOnWrite(BlockDeviceConformance):
    @pytest.fixture
    def opener(self, lasting_daemon: LastingDaemons) -> Opener:
        @asynccontextmanager
        async def open_layer(*, read_only: bool = False) -> AsyncIterator[aioblk.BlockDevice]:
            base = MemoryDevice(SIZE, read_only=True)
            async with (
                vhost_user(lasting_daemon, False) as overlay,
                aioblk.CopyOnWrite(base, overlay) as device,
            ):
                yield aioblk.Slice(device, read_only=True) if read_only else device

        return open_layer


class TestMemoryDevice(BlockDeviceConformance):
    @pytest.fixture(params=[aioblk.Limits(), aioblk.Limits(request_alignment=BLOCK, can_grow=True)])
    def opener(self, request: pytest.FixtureRequest) -> Opener:
        return lambda *, read_only=False: MemoryDevice(SIZE, limits=request.param, read_only=read_only)


class TestPowerLoss(BlockDeviceConformance):
    @pytest.fixture
    def opener(self) -> Opener:
        @asynccontextmanager
        async def open_device(*, read_only: bool = False) -> AsyncIterator[aioblk.BlockDevice]:
            async with PowerLoss(SIZE) as device:
                yield aioblk.Slice(device, read_only=True) if read_only else device

        return open_device


class TestOurOwn(BlockDeviceConformance):
    @pytest.fixture
    def opener(self) -> Opener:
        return lambda *, read_only=False: aclosing(RamDevice(SIZE, read_only=read_only))


class TestByteViewOfOurOwn(BlockDeviceConformance):
    @pytest.fixture
    def opener(self) -> Opener:
        return lambda *, read_only=False: aioblk.ByteView(RamDevice(SIZE, read_only=read_only))


def vhost_user(daemons: LastingDaemons, read_only: bool) -> AbstractAsyncContextManager[aioblk.Device]:
    return daemons(writable=not read_only).device(read_only=read_only)


# --- batches that are made of other requests ----------------------------------------------------------------


class Transfer(asyncio.Future[None]):
    """A read that the device has: cancelled or not, it is over when the device is through."""

    is_cancelled = False

    def cancel(self, msg: object = None) -> bool:
        self.is_cancelled = True
        return True


class Slow(RamDevice):
    def __init__(self) -> None:
        super().__init__(SIZE)
        self.transfers: list[Transfer] = []

    def readv(self, offset: int, buffers: Sequence[Buffer]) -> Awaitable[None]:
        self.transfers.append(Transfer())
        return self.transfers[-1]


@pytest.mark.parametrize("over", [lambda device: device, aioblk.ByteView])
async def test_a_batch_that_is_cancelled_as_it_begins_is_over_when_its_requests_are(
    over: Callable[[aioblk.BlockDevice], aioblk.BlockDevice],
) -> None:
    device = Slow()

    async def read() -> None:
        await over(device).read_into_many([(0, bytearray(BLOCK)), (BLOCK, bytearray(BLOCK))])

    reading = asyncio.create_task(read())
    asyncio.get_running_loop().call_soon(reading.cancel)  # after its first step, in the same turn
    for transfer in (0, 1):
        for _ in range(TURNS):
            await asyncio.sleep(0)
        assert all(other.is_cancelled for other in device.transfers)
        assert not reading.done()
        device.transfers[transfer].set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_a_batch_with_an_error_is_over_when_all_of_it_is() -> None:
    device = Slow()
    reading = asyncio.ensure_future(device.read_into_many([(0, bytearray(BLOCK)), (0, bytearray(BLOCK))]))
    device.transfers[0].set_exception(aioblk.BlkioError("as an example"))
    for _ in range(TURNS):
        await asyncio.sleep(0)
    assert not reading.done()
    device.transfers[1].set_result(None)
    with pytest.raises(aioblk.BlkioError, match="as an example"):
        await reading


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (3, TypeError, "pair is needed, not int"),
        ((0,), ValueError, "pair is needed, not 1 values"),
        ((0, BLOCK, 1), ValueError, "pair is needed, not 3 values"),
    ],
)
async def test_what_is_no_pair_is_refused_as_by_a_device(
    scratch_file: Path, wrong: object, error: type[Exception], words: str
) -> None:
    items: list[Any] = [wrong, (0, BLOCK)]
    async with aioblk.IoUring(scratch_file) as device:
        devices: list[aioblk.BlockDevice] = [device, RamDevice(SIZE)]
        for any_device in devices:
            refusal, content = await any_device.read_many(items, return_exceptions=True)
            assert isinstance(refusal, error)
            assert isinstance(content, bytes)
            with pytest.raises(error, match=rf"\(offset, length\) {words}"):
                any_device.read_many(items)
            with pytest.raises(error, match=rf"\(offset, buffer\) {words}"):
                any_device.read_into_many(items)
            with pytest.raises(error, match=rf"\(offset, buffer\) {words}"):
                any_device.write_many(items)


# --- calls that a device refuses when it has others of them -------------------------------------------------


class Full(Slow):
    """Its reads and zeroing take as long as a test wants. It has room for so many reads and writes."""

    room = 2

    def write_zeroes(self, offset: int, length: int, **options: object) -> Awaitable[None]:
        self.transfers.append(Transfer())
        return self.transfers[-1]

    def readv(self, offset: int, buffers: Sequence[Buffer]) -> Awaitable[None]:
        self._take_room()
        return super().readv(offset, buffers)

    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        self._take_room()
        return super().writev(offset, buffers, fua=fua)

    def _take_room(self) -> None:
        if self.room == 0:
            raise aioblk.BlkioError("it is full")
        self.room -= 1


async def nobody_is_told(device: Full) -> None:
    """What was begun has been given up; how it ends, nobody wants to know."""
    unheard: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    assert all(transfer.is_cancelled for transfer in device.transfers)
    while device.transfers:
        device.transfers.pop().set_exception(aioblk.BlkioError("as an example"))
    await asyncio.sleep(0)
    gc.collect()
    assert not unheard


async def test_a_batch_that_is_refused_gives_up_what_it_has_begun() -> None:
    device = Full()
    device.room = 1
    with pytest.raises(aioblk.BlkioError, match="it is full"):
        device.read_into_many([(0, bytearray(BLOCK)), (BLOCK, bytearray(BLOCK))])
    assert len(device.transfers) == 1
    await nobody_is_told(device)


async def test_zeroing_that_is_refused_in_part_gives_up_the_rest() -> None:
    """The whole blocks are being zeroed when writing the edges is refused."""
    device = Full()
    zeroing = asyncio.ensure_future(aioblk.ByteView(device).write_zeroes(1, 3 * BLOCK))
    device.room = 0
    with pytest.raises(aioblk.BlkioError, match="it is full"):
        await zeroing
    assert len(device.transfers) == 1
    await nobody_is_told(device)


# --- types --------------------------------------------------------------------------------------------------


def can_do_more(device: aioblk.Device) -> tuple[aioblk.MapsMemory, aioblk.KnowsExtents]:
    """What a type checker has to agree with."""
    return device, device


def types(
    device: aioblk.Device, queue: aioblk.Queue, view: aioblk.ByteView[aioblk.Device]
) -> list[aioblk.BlockDevice]:
    """This as well."""
    of_our_own: aioblk.ByteView[RamDevice] = aioblk.ByteView(RamDevice(0))
    of_any: aioblk.ByteView[aioblk.BlockDevice] = view
    own: RamDevice = of_our_own.device
    known: aioblk.Device = view.device
    of_layers: tuple[aioblk.ByteView, aioblk.Slice, aioblk.Throttle, aioblk.Tracked] = (
        aioblk.ByteView(of_our_own),
        aioblk.Slice(own, 0, 0),
        aioblk.Throttle(aioblk.Slice(own, 0, 0), aioblk.ThrottleGroup()),
        aioblk.Tracked(aioblk.Mirror(own)),
    )
    assert all(isinstance(layer, aioblk.BlockDevice) for layer in of_layers)
    return [device, queue, view, own, known, of_any, aioblk.ByteView(queue), aioblk.ByteView(of_our_own)]


async def test_who_can_do_what_is_known_at_run_time_in_every_state(scratch_file: Path) -> None:
    device = aioblk.IoUring(scratch_file)
    known: object = device
    for _ in range(2):
        for protocol in (aioblk.BlockDevice, aioblk.MapsMemory, aioblk.KnowsExtents):
            assert isinstance(known, protocol)
            assert isinstance(RamDevice(SIZE), protocol) == (protocol is aioblk.BlockDevice)
            assert not isinstance(object(), protocol)
        await device.aclose()


def test_what_derives_from_it_must_have_all_of_it() -> None:
    class Half(aioblk.BlockDevice):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]


async def test_an_arena_is_attached_to_what_maps_memory_only() -> None:
    device = RamDevice(SIZE)
    async with aioblk.Arena(1 << 20) as arena:
        with pytest.raises(
            TypeError, match=r"a MapsMemory, and .*RamDevice.* is not; its requests take the arena's"
        ):
            await arena.attach(device)  # type: ignore[arg-type]
        assert arena.attachments == ()


async def test_memory_may_come_from_anywhere(tmp_path: Path) -> None:
    """An arena follows whatever maps memory; a device of our own takes its buffers as they are."""
    async with aioblk.Arena(1 << 20) as arena:
        with arena.allocate(BLOCK) as buffer:
            own = RamDevice(SIZE)
            buffer[:] = b"x" * BLOCK
            await own.write(0, buffer)
            buffer[:] = bytes(BLOCK)
            await own.read_into(0, buffer)
            assert buffer.tobytes() == b"x" * BLOCK
