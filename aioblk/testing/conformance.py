"""The contract of a BlockDevice, as tests: what its documentation promises, of whatever keeps it.

It needs pytest and pytest-asyncio. A class of tests derives from :class:`BlockDeviceConformance` and says how
its device is opened::

    from aioblk.testing.conformance import BlockDeviceConformance, Opener

    class TestMyDevice(BlockDeviceConformance):
        @pytest.fixture
        def opener(self) -> Opener:
            return lambda *, read_only=False: MyDevice(1 << 20, read_only=read_only)
"""

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import pytest
import pytest_asyncio

from .._libblkio.limits import Limits
from ..errors import AlignmentError, BlkioError, DeviceClosedError, OptionError
from ..layers.block_device import BlockDevice

__all__ = ["BLOCK", "BlockDeviceConformance", "Opener"]

BLOCK = 4096  # a multiple of what any device here asks for
SOON = 30.0  # seconds; by then, what goes on by itself is done
TURNS = 5  # of the loop; what asyncio puts around a request may take some to know that it is done
OLD, NEW = b"o" * BLOCK, b"n" * BLOCK


class Opener(Protocol):
    """Opens a device that begins with at least 64 blocks of zeroes, and closes it when it is left."""

    def __call__(self, *, read_only: bool = False) -> AbstractAsyncContextManager[BlockDevice]: ...


Call = Callable[[BlockDevice], Awaitable[object]]

READS: dict[str, Call] = {
    "read": lambda device: device.read(0, BLOCK),
    "read_into": lambda device: device.read_into(0, bytearray(BLOCK)),
    "readv": lambda device: device.readv(0, [bytearray(BLOCK), bytearray(BLOCK)]),
    "read_many": lambda device: device.read_many([(0, BLOCK), (BLOCK, BLOCK)]),
    "read_into_many": lambda device: device.read_into_many([(0, bytearray(BLOCK))]),
}
CHANGES: dict[str, Call] = {
    "write": lambda device: device.write(0, NEW),
    "write through": lambda device: device.write(0, NEW, fua=True),
    "writev": lambda device: device.writev(0, [NEW[:100], NEW[100:]]),
    "write_zeroes": lambda device: device.write_zeroes(0, BLOCK),
    "write_many": lambda device: device.write_many([(0, NEW)]),
}
CALLS: dict[str, Call] = {
    **READS,
    **CHANGES,
    "discard": lambda device: device.discard(0, BLOCK),
    "flush": lambda device: device.flush(),
}


async def until(device: BlockDevice, offset: int, content: bytes) -> None:
    """Wait until it is there, by way of requests of one's own."""
    async with asyncio.timeout(SOON):
        while await device.read(offset, len(content)) != content:  # noqa: ASYNC110 (nobody else tells)
            await asyncio.sleep(0)


@pytest.mark.asyncio
class BlockDeviceConformance:
    """Derive from it, and define the fixture ``opener``."""

    @pytest.fixture
    def opener(self) -> Opener:
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def device(self, opener: Opener) -> AsyncIterator[BlockDevice]:
        async with opener() as device:
            yield device

    # --- what it is -----------------------------------------------------------------------------------------

    async def test_it_is_known_as_one_open_or_closed(self, device: BlockDevice) -> None:
        assert isinstance(device, BlockDevice)
        await device.aclose()
        assert isinstance(device, BlockDevice)

    async def test_it_says_what_it_accepts_and_how_large_it_is(self, device: BlockDevice) -> None:
        limits = device.limits
        assert isinstance(limits, Limits)
        assert limits.request_alignment & (limits.request_alignment - 1) == 0
        assert BLOCK % limits.request_alignment == 0
        assert device.capacity >= 64 * BLOCK
        assert device.read_only is False

    # --- beginning ------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("call", CALLS)
    async def test_a_request_is_counted_by_the_call(self, device: BlockDevice, call: str) -> None:
        before = device.statistics().submitted
        request = CALLS[call](device)
        assert device.statistics().submitted > before
        await request

    @pytest.mark.parametrize("call", CHANGES)
    async def test_what_nobody_awaits_is_done(self, device: BlockDevice, call: str) -> None:
        await device.write(0, OLD)
        _ = CHANGES[call](device)
        await until(device, 0, bytes(BLOCK) if call == "write_zeroes" else NEW)

    async def test_a_buffer_is_filled_though_nobody_awaits_it(self, device: BlockDevice) -> None:
        await device.write(0, NEW)
        buffer = bytearray(BLOCK)
        _ = device.read_into(0, buffer)
        async with asyncio.timeout(SOON):
            while bytes(buffer) != NEW:  # noqa: ASYNC110 (there is nothing else to see)
                await asyncio.sleep(0)

    async def test_requests_may_be_handed_to_asyncio(self, device: BlockDevice) -> None:
        ended = asyncio.Event()
        write = asyncio.ensure_future(device.write(0, NEW))
        write.add_done_callback(lambda _: ended.set())
        await ended.wait()
        assert write.done()
        assert write.result() is None
        found = await asyncio.gather(*(device.read(place, BLOCK) for place in (0, BLOCK)))
        assert found == [NEW, bytes(BLOCK)]
        async with asyncio.timeout(SOON):
            assert await asyncio.wait_for(device.read(0, BLOCK), SOON) == NEW

    # --- reading and changing -------------------------------------------------------------------------------

    async def test_what_is_written_is_read(self, device: BlockDevice) -> None:
        await device.write(BLOCK, NEW, fua=True)
        await device.writev(2 * BLOCK, [OLD[:1000], NEW[1000:], OLD])
        content = NEW + OLD[:1000] + NEW[1000:] + OLD
        assert await device.read(0, 5 * BLOCK) == bytes(BLOCK) + content + bytes(BLOCK)
        whole, pieces = bytearray(3 * BLOCK), [bytearray(1), bytearray(BLOCK), bytearray(2 * BLOCK - 1)]
        await asyncio.gather(device.read_into(BLOCK, whole), device.readv(BLOCK, pieces))
        assert whole == b"".join(pieces) == content

    async def test_zeroes_and_discards(self, device: BlockDevice) -> None:
        await device.write(0, 4 * OLD)
        for no_unmap in (False, True):
            await device.write_zeroes(BLOCK, BLOCK, no_unmap=no_unmap, fua=no_unmap)
            assert await device.read(0, 3 * BLOCK) == OLD + bytes(BLOCK) + OLD
        await device.discard(2 * BLOCK, BLOCK)
        assert await device.read(3 * BLOCK, BLOCK) == OLD
        await device.flush()

    async def test_nothing_is_nothing(self, device: BlockDevice) -> None:
        assert await device.read(0, 0) == b""
        await asyncio.gather(
            device.read_into(0, bytearray()),
            device.readv(0, []),
            device.write(0, b""),
            device.writev(0, []),
            device.write_zeroes(0, 0),
            device.discard(0, 0),
        )
        assert await device.read_many([]) == []
        assert await device.read_into_many([]) is None
        assert await device.write_many([]) is None

    # --- many with one await --------------------------------------------------------------------------------

    async def test_batches(self, device: BlockDevice) -> None:
        places, content = (5 * BLOCK, 3 * BLOCK, 4 * BLOCK), [bytes([place]) * BLOCK for place in (5, 3, 4)]
        assert await device.write_many(zip(places, content, strict=True), fua=True) is None
        assert await device.read_many((place, BLOCK) for place in places) == content
        buffers = [bytearray(BLOCK) for _ in places]
        assert await device.read_into_many(zip(places, buffers, strict=True)) is None
        assert [bytes(buffer) for buffer in buffers] == content

    async def test_batches_with_an_error(self, device: BlockDevice) -> None:
        pairs = [(0, NEW), (1 << 62, NEW), (BLOCK, NEW)]
        with pytest.raises(BlkioError):
            await device.write_many(pairs)
        outcomes = await device.write_many(pairs, return_exceptions=True)
        assert [outcome is None for outcome in outcomes] == [True, False, True]
        assert isinstance(outcomes[1], BlkioError)
        assert await device.read(0, 2 * BLOCK) == 2 * NEW

    async def test_batches_of_reads_with_an_error(self, device: BlockDevice) -> None:
        ranges = [(0, BLOCK), (device.capacity, BLOCK), (BLOCK, BLOCK)]
        found = await device.read_many(ranges, return_exceptions=True)
        into = await device.read_into_many(
            [(place, bytearray(length)) for place, length in ranges], return_exceptions=True
        )
        assert (found[0], found[2]) == (bytes(BLOCK), bytes(BLOCK))
        assert (into[0], into[2]) == (None, None)
        if device.limits.can_grow:
            assert (found[1], into[1]) == (bytes(BLOCK), None)
            return
        assert isinstance(found[1], BlkioError)
        assert isinstance(into[1], BlkioError)
        with pytest.raises(BlkioError):
            await device.read_many(ranges)

    async def test_batches_with_a_refusal(self, device: BlockDevice) -> None:
        with pytest.raises(OptionError):
            _ = device.read_many([(0, BLOCK), (-BLOCK, BLOCK)])
        found = await device.read_many([(0, BLOCK), (-BLOCK, BLOCK)], return_exceptions=True)
        assert found[0] == bytes(BLOCK)
        assert isinstance(found[1], OptionError)
        with pytest.raises((BufferError, TypeError)):
            _ = device.read_into_many([(0, bytes(BLOCK))])
        outcomes = await device.write_many([(-BLOCK, NEW), (0, NEW)], return_exceptions=True)
        assert isinstance(outcomes[0], OptionError)
        assert outcomes[1] is None
        assert await device.read(0, BLOCK) == NEW

    # --- errors ---------------------------------------------------------------------------------------------

    async def test_wrong_arguments_are_refused_by_the_call(self, device: BlockDevice) -> None:
        before = device.statistics().submitted
        for offset, length in ((-BLOCK, BLOCK), (0, -BLOCK)):
            for call in (device.read, device.write_zeroes, device.discard):
                with pytest.raises(OptionError):
                    _ = call(offset, length)
        with pytest.raises(OptionError):
            _ = device.write(-BLOCK, NEW)
        with pytest.raises((BufferError, TypeError)):
            _ = device.read_into(0, bytes(BLOCK))
        if (alignment := device.limits.request_alignment) > 1:
            wrong: tuple[Callable[[], Awaitable[object]], ...] = (
                lambda: device.read(1, alignment),
                lambda: device.read(0, 1),
                lambda: device.read_into(1, bytearray(alignment)),
                lambda: device.write(0, bytes(1)),
                lambda: device.writev(alignment // 2, [NEW]),
                lambda: device.write_zeroes(1, alignment),
                lambda: device.read_many([(1, alignment)]),
            )
            for call_wrongly in wrong:
                with pytest.raises(AlignmentError):
                    _ = call_wrongly()
        assert device.statistics().submitted == before

    async def test_beyond_the_end(self, device: BlockDevice) -> None:
        end = device.capacity
        if device.limits.can_grow:
            await device.write(end, NEW)
            assert device.capacity == end + BLOCK
            assert await device.read(end, BLOCK) == NEW
            return
        calls: tuple[Call, ...] = (
            lambda device: device.read(end, BLOCK),
            lambda device: device.read_into(end - BLOCK, bytearray(2 * BLOCK)),
            lambda device: device.write(end, NEW),
        )
        for call in calls:
            request = call(device)
            with pytest.raises(BlkioError):
                await request
        assert device.capacity == end

    async def test_read_only(self, opener: Opener) -> None:
        async with opener(read_only=True) as device:
            assert device.read_only is True
            for name in (*CHANGES, "discard"):
                with pytest.raises(BlkioError) as refused:
                    _ = CALLS[name](device)
                assert refused.value.errno == errno.EBADF
            for read in READS.values():
                await read(device)
            await device.flush()

    # --- cancellation ---------------------------------------------------------------------------------------

    async def test_what_comes_after_a_cancelled_change_stays(self, device: BlockDevice) -> None:
        for turns in range(12):
            change = asyncio.ensure_future(device.write(0, OLD))
            for _ in range(turns):
                await asyncio.sleep(0)
            change.cancel()
            if turns == 0:
                await asyncio.sleep(0)  # a task that has not begun hears of it in its first step
            await device.write(0, NEW)
            await asyncio.wait([change])
            assert await device.read(0, BLOCK) == NEW

    async def test_after_a_cancelled_read_the_buffer_is_the_callers(self, device: BlockDevice) -> None:
        for turns in range(12):
            buffer = bytearray(BLOCK)
            read = asyncio.ensure_future(device.read_into(0, buffer))
            for _ in range(turns):
                await asyncio.sleep(0)
            read.cancel()
            await asyncio.wait([read])
            buffer[:] = NEW
            await device.read(0, BLOCK)  # as long as a request takes
            assert buffer == NEW

    # --- closing --------------------------------------------------------------------------------------------

    async def test_a_closed_one_refuses_every_call(self, device: BlockDevice) -> None:
        await device.aclose()
        await device.aclose()
        for call in CALLS.values():
            with pytest.raises(DeviceClosedError):
                _ = call(device)

    async def test_closing_waits_for_changes(self, device: BlockDevice) -> None:
        changes = [asyncio.ensure_future(device.write(place * BLOCK, NEW)) for place in range(32)]
        await asyncio.gather(device.aclose(), device.aclose())
        for _ in range(TURNS):
            await asyncio.sleep(0)
        assert all(change.done() and change.exception() is None for change in changes)
