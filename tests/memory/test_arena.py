"""Arena: buffers from shared blocks, and devices that are kept in step with the blocks."""

import asyncio
import gc
import mmap
import os
import resource
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from typing_extensions import Buffer

import aioblk
from aioblk._memory.arena import Arena, ArenaAttachment, ArenaBlock, ArenaBuffer
from aioblk.errors import RegistrationError

from ..conftest import LoopError, StorageDaemonFactory
from ..support.devices import BLOCK, Target
from ..support.turns import DrivenLoop

T = TypeVar("T")

PAGE = mmap.PAGESIZE
MIB = 1 << 20
SLOW = 50_000_000  # nanoseconds


@pytest.fixture
async def vhost_device(
    storage_daemon: StorageDaemonFactory, scratch_file: Path
) -> AsyncIterator[aioblk.Device]:
    async with aioblk.VirtioBlkVhostUser(storage_daemon(scratch_file).socket) as device:
        yield device


@pytest.fixture
async def other_device(storage_daemon: StorageDaemonFactory) -> AsyncIterator[aioblk.Device]:
    async with aioblk.VirtioBlkVhostUser(storage_daemon().socket) as device:
        yield device


@pytest.fixture
async def ring_device(scratch_file: Path) -> AsyncIterator[aioblk.Device]:
    async with aioblk.IoUring(scratch_file) as device:
        yield device


def bounced(device: aioblk.Device) -> int:
    return device.statistics().bounced_bytes


def resident_pages(arena: Arena) -> int:
    return sum(os.fstat(block.fd).st_blocks * 512 for block in arena.blocks) // PAGE


# --- buffers ------------------------------------------------------------------------------------------------


async def test_hands_out_aligned_buffers() -> None:
    async with Arena(1 * MIB, alignment=512) as arena:
        buffers = [arena.allocate(length) for length in (1, 513, PAGE, 100_000)]
        assert [len(buffer) for buffer in buffers] == [1, 513, PAGE, 100_000]
        assert all(buffer.address % 512 == 0 for buffer in buffers)
        assert arena.statistics().buffers == 4
        assert arena.statistics().in_use == 512 + 1024 + PAGE + 100_352
        for buffer in buffers:
            buffer.release()
        assert arena.statistics().in_use == 0


async def test_a_buffer_is_given_back_when_nothing_uses_it() -> None:
    async with Arena(PAGE) as arena:
        with arena.allocate(PAGE) as buffer:
            view = memoryview(buffer)[:10]
        with pytest.raises(ValueError, match="closed"):
            buffer[0]
        view[0] = 5  # its memory is not handed out again yet
        with pytest.raises(MemoryError):
            arena.allocate(1)
        view.release()
        assert arena.allocate(1)[0] == 5
        gc.collect()
        arena.allocate(PAGE).release()  # the forgotten one has given itself back


async def test_refuses_impossible_lengths() -> None:
    async with Arena(PAGE) as arena:
        for length in (0, -1):
            with pytest.raises(ValueError, match="positive"):
                arena.allocate(length)
        with pytest.raises(MemoryError, match="add a block"):
            arena.allocate(PAGE + 1)
        await arena.add_block(PAGE + 1)
        assert len(arena.allocate(PAGE + 1)) == PAGE + 1


@pytest.mark.parametrize(
    "options", [{"alignment": 256}, {"alignment": 2 * PAGE}, {"alignment": 768}, {"size": -1}]
)
def test_refuses_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Arena(**options)


async def test_acquiring_waits_for_room_in_the_order_of_arrival() -> None:
    async with Arena(4 * PAGE) as arena:
        first, second = await arena.acquire(2 * PAGE), await arena.acquire(2 * PAGE)
        order: list[int] = []

        async def take(length: int) -> None:
            with await arena.acquire(length) as buffer:
                order.append(len(buffer))
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(take(pages * PAGE)) for pages in (4, 1, 3, 2)]
        await asyncio.sleep(0)
        first.release()  # the first needs more, and nobody overtakes it
        await asyncio.sleep(0.01)
        assert order == []
        second.release()
        await asyncio.gather(*tasks)
        assert order == [4 * PAGE, PAGE, 3 * PAGE, 2 * PAGE]
        assert arena.statistics().in_use == 0


async def test_who_can_do_with_less_gets_the_longest_room_there_is() -> None:
    async with aioblk.Arena(8 * PAGE) as arena:
        buffers = [arena.allocate(PAGE) for _ in range(8)]
        for number in (1, 4, 5):
            buffers[number].release()
        part = await arena.acquire(4 * PAGE, at_least=1)
        assert len(part) == 2 * PAGE
        waiting = asyncio.create_task(arena.acquire(4 * PAGE, at_least=2 * PAGE))
        await asyncio.sleep(0.001)
        assert not waiting.done()
        buffers[0].release()
        assert len(await waiting) == 2 * PAGE
        part.release()
        assert len(await arena.acquire(PAGE, at_least=1)) == PAGE
        for at_least in (0, -1, PAGE + 1):
            with pytest.raises(ValueError, match="at_least must be from 1"):
                await arena.acquire(PAGE, at_least=at_least)


async def test_what_never_fits_is_not_waited_for() -> None:
    async with Arena(4 * PAGE) as arena:
        with pytest.raises(MemoryError, match=f"the largest has {4 * PAGE}"):
            await arena.acquire(5 * PAGE)
        with pytest.raises(ValueError, match="positive"):
            await arena.acquire(0)
        with arena.allocate(PAGE):
            waiting = asyncio.create_task(arena.acquire(8 * PAGE))
            larger = asyncio.create_task(arena.acquire(4 * PAGE))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert isinstance(waiting.exception(), MemoryError)
            await arena.add_block(4 * PAGE)
            (await larger).release()
    with pytest.raises(aioblk.UsageError, match="closed"):
        await arena.acquire(PAGE)
    with pytest.raises(aioblk.UsageError, match="allocate a buffer of a closed arena"):
        arena.allocate(PAGE)


async def test_a_cancelled_waiter_for_room_holds_nobody_up() -> None:
    async with Arena(4 * PAGE) as arena:
        held = await arena.acquire(3 * PAGE)
        large = asyncio.create_task(arena.acquire(4 * PAGE))
        small = asyncio.create_task(arena.acquire(PAGE))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not small.done()
        large.cancel()
        with await small:
            assert large.cancelled()
        held.release()


async def test_closing_wakes_who_waits_for_room() -> None:
    arena = await Arena(PAGE).__aenter__()
    held = await arena.acquire(PAGE)
    waiting = asyncio.create_task(arena.acquire(PAGE))
    await asyncio.sleep(0)
    await arena.aclose()
    with pytest.raises(aioblk.UsageError, match="closed"):
        await waiting
    held.release()


async def test_room_made_in_another_thread_or_by_forgetting_is_noticed() -> None:
    async with Arena(PAGE) as arena:
        for _ in range(20):
            held = await arena.acquire(PAGE)
            waiting = asyncio.create_task(arena.acquire(PAGE))
            await asyncio.to_thread(held.release)
            forgotten = await waiting
            waiting = asyncio.create_task(arena.acquire(PAGE))
            await asyncio.sleep(0)
            del forgotten
            (await waiting).release()


async def test_closing_closes_buffers_and_keeps_what_was_made_of_them() -> None:
    async with Arena(PAGE) as arena:
        buffer = arena.allocate(10)
        view = memoryview(buffer)
    with pytest.raises(ValueError, match="closed"):
        bytes(buffer)
    view[0] = 1
    view.release()
    assert buffer.memory.released
    with pytest.raises(aioblk.UsageError, match="closed"):
        await arena.add_block()
    await arena.aclose()


async def test_locked_memory() -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    size = 64 * 1024
    assert limit == resource.RLIM_INFINITY or limit >= size
    async with Arena(size, locked=True) as arena:
        assert resident_pages(arena) == size // PAGE
        with pytest.raises(aioblk.UsageError, match="locked"):
            await arena.trim()


async def test_too_much_memory_leaves_nothing_behind() -> None:
    async with Arena() as arena:
        with pytest.raises(OSError):  # noqa: PT011 (ENOMEM, or EFBIG, as the kernel pleases)
            await arena.add_block(1 << 60)
        assert arena.blocks == ()


# --- devices ------------------------------------------------------------------------------------------------


async def test_all_devices_reach_all_blocks(
    vhost_device: aioblk.Device, other_device: aioblk.Device, ring_device: aioblk.Device
) -> None:
    devices = (vhost_device, other_device, ring_device)
    async with Arena(PAGE) as arena:
        await arena.attach(vhost_device)
        await arena.attach(ring_device)
        await arena.add_block(PAGE)
        await arena.attach(other_device)  # later, and gets all
        await arena.add_block(PAGE)
        buffers = [arena.allocate(PAGE) for _ in range(3)]
        for device in devices:
            await asyncio.gather(*(device.read_into(0, buffer) for buffer in buffers))
            assert bounced(device) == 0
        assert arena.statistics().devices == 3
        await arena.detach(other_device)
        await arena.detach(other_device)
        await other_device.read_into(0, buffers[0])
        assert bounced(other_device) == PAGE
        with pytest.raises(aioblk.UsageError, match="already"):
            await arena.attach(vhost_device)


async def test_an_arena_grows_while_a_device_is_detached_from_its_loop(vhost_device: aioblk.Device) -> None:
    async with Arena(PAGE) as arena:
        attachment = await arena.attach(vhost_device)
        await vhost_device.detach()
        await arena.add_block(PAGE)
        assert attachment.attached
        await vhost_device.attach()
        buffers = [arena.allocate(PAGE) for _ in range(2)]
        await asyncio.gather(*(vhost_device.read_into(0, buffer) for buffer in buffers))
        assert bounced(vhost_device) == 0


async def test_removing_a_block_unregisters_it(vhost_device: aioblk.Device) -> None:
    async with Arena(PAGE) as arena:
        await arena.attach(vhost_device)
        [block] = arena.blocks
        buffer = arena.allocate(10)
        with pytest.raises(aioblk.UsageError, match="1 buffers"):
            await arena.remove_block(block)
        buffer.release()
        for _ in range(40):  # more often than the device has regions
            await arena.remove_block(block)
            block = await arena.add_block(PAGE)
        await arena.remove_block(block)
        assert arena.blocks == ()
        with pytest.raises(ValueError, match="belong"):
            await arena.remove_block(block)


async def test_a_device_that_cannot_take_a_block_is_left_alone(
    vhost_device: aioblk.Device, other_device: aioblk.Device
) -> None:
    most = vhost_device.limits.max_mem_regions - 1
    async with vhost_device.allocate(PAGE), Arena() as arena:  # one region less than the other device
        attachment = await arena.attach(vhost_device)
        await arena.attach(other_device)
        for _ in range(most):
            await arena.add_block(PAGE)
        assert not attachment.attached
        assert isinstance(attachment.error, RegistrationError)
        buffer = arena.allocate(PAGE)
        for device in (vhost_device, other_device):
            await device.read_into(0, buffer)
        assert (bounced(vhost_device), bounced(other_device)) == (PAGE, 0)
        with pytest.raises(RegistrationError):
            await arena.attach(vhost_device)
        async with vhost_device.allocate(PAGE) as region:  # everything of the arena has been rolled back
            assert region.mapped
        assert arena.statistics().devices == 1


async def test_a_buffer_given_back_in_flight_is_not_handed_out_again(
    storage_daemon: StorageDaemonFactory,
) -> None:
    async with (
        aioblk.VirtioBlkVhostUser(storage_daemon(latency_ns=SLOW).socket) as device,
        Arena(PAGE) as arena,
    ):
        await arena.attach(device)
        buffer = arena.allocate(PAGE)
        request = device.read_into(0, buffer)
        buffer.release()
        with pytest.raises(MemoryError):
            arena.allocate(PAGE)
        await request
        assert bytes(arena.allocate(PAGE)) == bytes(PAGE)


async def test_a_closed_device_is_forgotten(storage_daemon: StorageDaemonFactory) -> None:
    async with Arena(PAGE) as arena:
        async with aioblk.VirtioBlkVhostUser(storage_daemon().socket) as device:
            attachment = await arena.attach(device)
        assert not attachment.attached
        await arena.add_block(PAGE)
        assert arena.attachments == ()
        await arena.trim()
        with pytest.raises(aioblk.DeviceClosedError):
            await arena.attach(device)


# --- listeners ----------------------------------------------------------------------------------------------


class Listener:
    def __init__(self, arena: Arena, *, leave: bool = False, fail: bool = False) -> None:
        self.arena, self.leave, self.fail = arena, leave, fail
        self.log: list[str] = []

    async def block_added(self, block: ArenaBlock) -> None:
        self.log.append("added")
        if self.leave:
            self.arena.remove_listener(self)
        if self.fail:
            raise RuntimeError("a listener's own trouble")

    async def block_removed(self, block: ArenaBlock) -> None:
        self.log.append("removed")


async def test_listeners_may_leave_while_they_are_called() -> None:
    async with Arena() as arena:
        leaving = [Listener(arena, leave=True) for _ in range(3)]
        staying = [Listener(arena) for _ in range(3)]
        for pair in zip(leaving, staying, strict=True):
            for listener in pair:
                arena.add_listener(listener)
        await arena.remove_block(await arena.add_block(PAGE))
        assert [listener.log for listener in leaving] == [["added"]] * 3
        assert [listener.log for listener in staying] == [["added", "removed"]] * 3


async def test_a_failing_listener_stops_nobody(loop_errors: list[LoopError]) -> None:
    async with Arena() as arena:
        failing, other = Listener(arena, fail=True), Listener(arena)
        arena.add_listener(failing)
        arena.add_listener(other)
        await arena.add_block(PAGE)
        assert other.log == ["added"]
        [error] = loop_errors
        assert str(error["exception"]) == "a listener's own trouble"
        loop_errors.clear()


# --- trim ---------------------------------------------------------------------------------------------------


async def test_trim_gives_free_pages_back(ring_device: aioblk.Device) -> None:
    async with Arena(16 * PAGE) as arena:
        await arena.attach(ring_device)
        buffers = [arena.allocate(4 * PAGE) for _ in range(4)]
        for buffer in buffers:
            buffer[:] = b"\xff" * len(buffer)
        assert resident_pages(arena) == 16
        buffers[1].release()
        buffers[3].release()
        assert await arena.trim() == 8 * PAGE
        assert resident_pages(arena) == 8
        assert bytes(buffers[0]) == bytes(buffers[2]) == b"\xff" * 4 * PAGE
        assert bytes(arena.allocate(4 * PAGE)) == bytes(4 * PAGE)


class SlowPages:
    """Of a block: giving them back lasts until it is let."""

    def __init__(self, pages: mmap.mmap) -> None:
        self.pages = pages
        self.began, self.may_end = threading.Event(), threading.Event()

    def madvise(self, *arguments: int) -> None:
        self.began.set()
        assert self.may_end.wait(20)
        self.pages.madvise(*arguments)


async def test_who_comes_while_pages_are_given_back_has_its_buffer_afterwards() -> None:
    async with Arena(PAGE) as arena:
        [block] = arena.blocks
        assert block._pages is not None
        pages = SlowPages(block._pages)
        block._pages = pages  # type: ignore[assignment]
        trimming = asyncio.create_task(arena.trim())
        assert await asyncio.to_thread(pages.began.wait, 20)
        waiting = asyncio.create_task(arena.acquire(PAGE))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not waiting.done()
        pages.may_end.set()
        async with asyncio.timeout(20):
            (await waiting).release()
        assert await trimming == PAGE


async def test_trim_is_refused_while_a_device_may_pin(vhost_device: aioblk.Device) -> None:
    async with Arena(PAGE) as arena:
        await arena.attach(vhost_device)
        with pytest.raises(aioblk.UsageError, match="may pin"):
            await arena.trim()
        await arena.detach(vhost_device)
        await arena.trim()


# --- against a model ----------------------------------------------------------------------------------------


class FakeDevice:
    """Has memory registered, as many blocks as there is room for."""

    def __init__(self, room: int, may_pin: bool) -> None:
        self.room = room
        self.registered: list[str] = []
        self.limits = aioblk.Limits(needs_mem_regions=True, may_pin_mem_regions=may_pin, max_mem_regions=room)
        self.closed = False

    @asynccontextmanager
    async def register(
        self, buffer: Buffer, *, fd: int | None = None, fd_offset: int = 0, required: bool = False
    ) -> AsyncIterator[aioblk.View]:
        assert isinstance(buffer, aioblk.View)
        assert fd is not None
        assert required
        name = hex(buffer.address)
        await asyncio.sleep(0)
        if self.room == 0:
            raise RegistrationError("no room", operation="register")
        self.room -= 1
        self.registered.append(name)
        yield buffer
        if name in self.registered:
            self.registered.remove(name)
            self.room += 1
        await asyncio.sleep(0)

    def allocate(self, length: int) -> AbstractAsyncContextManager[aioblk.View]:
        raise NotImplementedError


class ArenaMachine(RuleBasedStateMachine):
    """Blocks, devices and buffers come and go in every order; every device has all blocks or none."""

    loop_name = "asyncio"

    def __init__(self) -> None:
        super().__init__()
        self.driven = DrivenLoop(self.loop_name)
        self.devices: list[FakeDevice] = []
        self.attached: list[tuple[FakeDevice, ArenaAttachment]] = []
        self.buffers: list[tuple[ArenaBuffer, int]] = []  # and what they are filled with
        self.serial = 0
        self.started = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.driven.loop.run_until_complete(work)

    @initialize(alignment=st.sampled_from([512, PAGE]))
    def create(self, alignment: int) -> None:
        self.arena = Arena(alignment=alignment)
        self.alignment = alignment
        self.started = True

    def teardown(self) -> None:
        try:
            if self.started:
                self.close_everything()
        finally:
            self.driven.close()

    def close_everything(self) -> None:
        fds = [block.fd for block in self.arena.blocks]
        self.run(self.arena.aclose())
        for device in self.devices:
            assert device.registered == []
        for buffer, _ in self.buffers:
            with pytest.raises(ValueError, match="closed"):
                len(buffer)
        for fd in fds:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)

    # --- blocks ---------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.arena.blocks) < 8)
    @rule(pages=st.integers(1, 4))
    def add_block(self, pages: int) -> None:
        self.run(self.arena.add_block(pages * PAGE))

    @precondition(lambda self: self.arena.blocks)
    @rule(data=st.data())
    def remove_block(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.arena.blocks))
        if block.buffers:
            with pytest.raises(aioblk.UsageError):
                self.run(self.arena.remove_block(block))
        else:
            self.run(self.arena.remove_block(block))

    @precondition(lambda self: len(self.arena.blocks) < 8)
    @rule(turns=st.integers(0, 6))
    def add_block_and_cancel(self, turns: int) -> None:
        async def cancel() -> None:
            task = asyncio.ensure_future(self.arena.add_block(PAGE))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await self.arena._work.until_done()  # it is finished all the same

        self.run(cancel())

    # --- devices --------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.devices) < 6)
    @rule(room=st.integers(0, 8), may_pin=st.booleans())
    def attach(self, room: int, may_pin: bool) -> None:
        device = FakeDevice(room, may_pin)
        self.devices.append(device)
        if room < len(self.arena.blocks):
            with pytest.raises(RegistrationError):
                self.run(self.arena.attach(device))
            assert device.registered == []
        else:
            self.attached.append((device, self.run(self.arena.attach(device))))

    @precondition(lambda self: self.attached)
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        device, _ = self.attached.pop(data.draw(st.integers(0, len(self.attached) - 1)))
        self.run(self.arena.detach(device))

    @precondition(lambda self: self.attached)
    @rule(data=st.data())
    def close_device(self, data: st.DataObject) -> None:
        device, attachment = self.attached.pop(data.draw(st.integers(0, len(self.attached) - 1)))
        device.closed = True
        device.registered.clear()  # as a real one does
        assert not attachment.attached

    # --- buffers --------------------------------------------------------------------------------------------

    @rule(length=st.integers(1, 2 * PAGE))
    def allocate(self, length: int) -> None:
        try:
            buffer = self.arena.allocate(length)
        except MemoryError:
            return
        assert len(buffer) == length
        assert buffer.address % self.alignment == 0
        self.serial = (self.serial + 1) % 256
        buffer[:] = bytes([self.serial]) * length
        self.buffers.append((buffer, self.serial))

    @precondition(lambda self: self.buffers)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        buffer, _ = self.buffers.pop(data.draw(st.integers(0, len(self.buffers) - 1)))
        buffer.release()

    @rule()
    def trim(self) -> None:
        if any(attachment._may_pin for _, attachment in self.attached):
            with pytest.raises(aioblk.UsageError):
                self.run(self.arena.trim())
        else:
            self.run(self.arena.trim())

    # --- what must hold -------------------------------------------------------------------------------------

    @invariant()
    def every_device_has_all_blocks_or_none(self) -> None:
        blocks = sorted(hex(block.memory.address) for block in self.arena.blocks)
        for device, attachment in self.attached:
            assert sorted(device.registered) == (blocks if attachment.attached else [])
            assert attachment.attached == (attachment.error is None)

    @invariant()
    def buffers_do_not_overlap(self) -> None:
        for buffer, serial in self.buffers:
            assert bytes(buffer) == bytes([serial]) * len(buffer)
        assert self.arena.statistics().buffers == len(self.buffers)


class UvloopArenaMachine(ArenaMachine):
    loop_name = "uvloop"


TestArenaOnAsyncio = ArenaMachine.TestCase
TestArenaOnUvloop = UvloopArenaMachine.TestCase
TestArenaOnAsyncio.settings = TestArenaOnUvloop.settings = settings(
    max_examples=30, stateful_step_count=30, deadline=None
)


# --- nothing waits for the collector ------------------------------------------------------------------------


def memory_files() -> int:
    """Mappings and descriptors of memfds."""
    descriptors = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    with open("/proc/self/maps") as maps:
        return sum("memfd:aioblk-arena" in line for line in [*descriptors, *maps])


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
async def test_a_closed_arena_keeps_nothing(target: Target) -> None:
    before = memory_files()
    async with target.device() as device, Arena(8 << 20) as arena:
        await arena.attach(device)
        with arena.allocate(BLOCK) as buffer:
            await device.read_into(0, buffer)
        kept = memoryview(arena.allocate(BLOCK))
        block = arena.blocks[0]
        assert memory_files() > before
    assert block.fd == -1
    kept.release()
    assert memory_files() == before


@pytest.mark.usefixtures("no_collector")
async def test_a_block_that_is_removed_keeps_nothing() -> None:
    before = memory_files()
    async with Arena() as arena:
        await arena.remove_block(await arena.add_block(1 << 20))
        assert memory_files() == before


@pytest.mark.usefixtures("no_collector")
async def test_entering_that_is_cancelled_leaves_nothing(target: Target) -> None:
    before = memory_files()
    for turns in range(8):
        arena = Arena(1 << 20)
        entering = asyncio.create_task(arena.__aenter__())
        for _ in range(turns):
            await asyncio.sleep(0)
        entering.cancel()
        await asyncio.wait([entering])
        if not entering.cancelled():
            await arena.aclose()
        assert memory_files() == before


async def test_a_forgotten_arena_warns_and_leaves_nothing() -> None:
    before = memory_files()
    arena = await Arena(1 << 20).__aenter__()
    buffer = arena.allocate(BLOCK)
    with pytest.warns(ResourceWarning, match="unclosed <Arena of 1 blocks"):
        del arena
    with pytest.raises(ValueError, match="closed"):
        buffer[0] = 1
    del buffer
    gc.collect()
    assert memory_files() == before


@pytest.mark.parametrize("exponent", [44, 62, 63, 64, 100])
async def test_memory_that_cannot_be_had_is_an_error_of_ours(exponent: int) -> None:
    async with Arena() as arena:
        with pytest.raises(aioblk.BlkioError, match=r"a block of \d+ bytes cannot be had"):
            await arena.add_block(1 << exponent)
        assert arena.blocks == ()
