"""Registered and allocated memory: what is mapped, what falls back to bouncing, and how long memory lives."""

import array
import asyncio
import gc
import mmap
import os
import struct
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

import aioblk
from aioblk._native._core import Memory, View

from ..conftest import StorageDaemonFactory

resource_tracker.ensure_running()  # by SharedMemory, and it keeps a descriptor

PAGE = mmap.PAGESIZE
SLOW = 50_000_000  # nanoseconds: long enough to look at a request in flight


@pytest.fixture
async def device(storage_daemon: StorageDaemonFactory, scratch_file: Path) -> AsyncIterator[aioblk.Device]:
    """A device that needs memory regions with a descriptor, backed by ``scratch_file``."""
    async with aioblk.VirtioBlkVhostUser(storage_daemon(scratch_file).socket) as device:
        yield device


@pytest.fixture
async def slow_device(storage_daemon: StorageDaemonFactory) -> AsyncIterator[aioblk.Device]:
    async with aioblk.VirtioBlkVhostUser(storage_daemon(latency_ns=SLOW).socket) as device:
        yield device


@pytest.fixture
async def file_device(scratch_file: Path) -> AsyncIterator[aioblk.Device]:
    """A device that needs no regions."""
    async with aioblk.IoUring(scratch_file) as device:
        yield device


@pytest.fixture
def shared() -> Iterator[mmap.mmap]:
    """Sixteen shared pages."""
    with mmap.mmap(-1, 16 * PAGE) as memory:
        yield memory


def bounced(device: aioblk.Device) -> int:
    return device.statistics().bounced_bytes


# --- allocate -----------------------------------------------------------------------------------------------


async def test_allocated_memory_is_used_without_copying(device: aioblk.Device) -> None:
    async with device.allocate(3 * PAGE) as region:
        assert (len(region), region.mapped, region.zero_copy, region.reason) == (3 * PAGE, True, True, None)
        assert bytes(region) == bytes(3 * PAGE)
        region[512:1024] = b"a" * 512
        await device.write(4096, region[512:1024])
        await device.read_into(4096, region[PAGE : PAGE + 512])
        assert region[PAGE : PAGE + 512] == b"a" * 512
        await device.writev(0, [region[:512], region[2 * PAGE - 256 : 2 * PAGE + 256]])
        assert bounced(device) == 0
    assert await device.read(4096, 512) == b"a" * 512


async def test_any_buffer_of_the_memory_is_used_without_copying(device: aioblk.Device) -> None:
    async with device.allocate(4 * PAGE) as region:
        with memoryview(region) as whole, whole[PAGE : 2 * PAGE].cast("I") as numbers:
            await device.read_into(0, numbers)
            await device.readv(0, [whole[:512], region[512:1024]])
        assert bounced(device) == 0


async def test_allocates_what_was_asked_for(device: aioblk.Device) -> None:
    async with device.allocate(1000) as region:
        assert len(region) == 1000
        assert region.address % PAGE == 0
    for length in (0, -1):
        with pytest.raises(ValueError, match="positive"):
            device.allocate(length)


async def test_allocated_memory_where_no_regions_are_needed(file_device: aioblk.Device) -> None:
    async with file_device.allocate(PAGE) as region:
        assert (region.mapped, region.zero_copy) == (False, True)
        await file_device.read_into(0, region)


# --- views --------------------------------------------------------------------------------------------------


async def test_a_region_is_a_buffer(device: aioblk.Device) -> None:
    async with device.allocate(PAGE) as region:
        struct.pack_into("<IQ", region, 8, 7, 9)
        assert struct.unpack_from("<IQ", region[8:20]) == (7, 9)
        assert region[8] == 7
        region[-1] = 255
        assert region[PAGE - 1 :].tobytes() == b"\xff"
        assert array.array("B", region[8:12]) == array.array("B", [7, 0, 0, 0])
        assert type(region[1:5][1:3]) is View
        assert region[1:5][1:3].address == region.address + 2
        assert not region.readonly
        with pytest.raises(IndexError):
            region[PAGE]
        with pytest.raises(ValueError, match="step"):
            region[::2]
        with pytest.raises(ValueError, match="assigned"):
            region[0:4] = b"123"


# --- register: any buffer, anywhere -------------------------------------------------------------------------


async def test_registers_shared_memory_by_itself(device: aioblk.Device) -> None:
    shared_memory = SharedMemory(create=True, size=4 * PAGE)
    buffer = shared_memory.buf
    assert buffer is not None
    try:
        async with device.register(buffer, required=True) as region:
            assert region.mapped
            await device.read_into(0, region[:PAGE])
            await device.read_into(0, buffer[PAGE : 2 * PAGE])
            assert bounced(device) == 0
        await device.read_into(0, buffer[PAGE : 2 * PAGE])
        assert bounced(device) == PAGE
    finally:
        shared_memory.close()
        shared_memory.unlink()


async def test_registers_a_mapped_file_by_itself(device: aioblk.Device, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8 * PAGE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4 * PAGE, offset=2 * PAGE) as memory:
        async with device.register(memory, required=True) as region:
            await device.write(0, b"x" * 512)
            await device.read_into(0, region[PAGE : PAGE + 512])
    assert path.read_bytes()[3 * PAGE : 3 * PAGE + 512] == b"x" * 512


async def test_registers_part_of_a_mapping(device: aioblk.Device, shared: mmap.mmap) -> None:
    with memoryview(shared)[3 * PAGE : 5 * PAGE] as part:
        async with device.register(part, required=True) as region:
            assert len(region) == 2 * PAGE
            await device.read_into(0, region)
    assert bounced(device) == 0


@pytest.fixture
def memfd() -> Iterator[int]:
    """Four pages."""
    fd = os.memfd_create("test")
    os.truncate(fd, 4 * PAGE)
    yield fd
    os.close(fd)


async def test_takes_an_explicit_descriptor(device: aioblk.Device, memfd: int) -> None:
    fd = os.dup(memfd)
    with mmap.mmap(memfd, 2 * PAGE, offset=2 * PAGE) as memory:
        async with device.register(memory, fd=fd, fd_offset=2 * PAGE, required=True) as region:
            os.close(fd)  # it has been duplicated
            await device.read_into(0, region)
    assert bounced(device) == 0


async def test_does_not_believe_a_wrong_descriptor(
    device: aioblk.Device, memfd: int, shared: mmap.mmap
) -> None:
    with mmap.mmap(memfd, 2 * PAGE, offset=2 * PAGE) as memory:
        async with device.register(memory, fd=memfd, fd_offset=PAGE) as region:
            assert region.reason == f"the memory is at offset {2 * PAGE} of fd, not at {PAGE}"
        async with device.register(shared, fd=memfd) as region:
            assert region.reason == "the memory is a mapping of another file than fd"
        async with device.register(memory, fd=1 << 20) as region:
            assert region.reason is not None
            assert "Bad file descriptor" in region.reason


async def test_a_read_only_buffer_can_be_written_from(device: aioblk.Device, shared: mmap.mmap) -> None:
    shared[:512] = b"r" * 512
    with memoryview(shared).toreadonly() as readonly:
        async with device.register(readonly, required=True) as region:
            assert region.readonly
            await device.write(0, region[:512])
            with pytest.raises((TypeError, BufferError)):
                await device.read_into(0, region[:512])
            with pytest.raises(TypeError, match="read-only"):
                region[0] = 1
    assert await device.read(0, 512) == b"r" * 512


@pytest.mark.parametrize(
    "make",
    [
        lambda: bytearray(8192),
        lambda: bytes(8192),
        lambda: array.array("Q", range(1024)),
        lambda: memoryview(bytearray(8192)),
    ],
    ids=["bytearray", "bytes", "array", "memoryview"],
)
async def test_private_memory_bounces_where_a_descriptor_is_needed(
    device: aioblk.Device, make: Callable[[], bytes]
) -> None:
    async with device.register(make()) as region:
        assert (region.mapped, region.zero_copy) == (False, False)
        assert region.reason is not None
        await device.write(0, region[:512])
        assert bounced(device) == 512
    with pytest.raises(aioblk.RegistrationError) as caught:
        await device.register(make(), required=True).__aenter__()
    assert caught.value.operation == "register"
    assert caught.value.length == 8192


async def test_any_memory_is_fine_where_no_regions_are_needed(file_device: aioblk.Device) -> None:
    async with file_device.register(bytearray(1000), required=True) as region:
        assert (region.mapped, region.zero_copy, region.reason) == (False, True, None)
        await file_device.read_into(0, region)


async def test_direct_io_takes_aligned_memory_only(loop_device: Path) -> None:
    memory = memoryview(mmap.mmap(-1, 3 * PAGE))
    wrong = memory[PAGE + 8 : 2 * PAGE + 8]
    async with aioblk.IoUring(loop_device, direct=True) as device:
        rule = f"multiples of {device.limits.mem_region_alignment}"
        async with device.register(memory[:PAGE], required=True) as region:
            assert (region.zero_copy, region.reason) == (True, None)
            await device.read_into(0, region)
            assert bounced(device) == 0
        async with device.register(wrong) as region:
            assert not region.zero_copy
            assert rule in str(region.reason)
            await device.read_into(0, region)
            assert bounced(device) == PAGE
        with pytest.raises(aioblk.RegistrationError, match=rule):
            await device.register(wrong, required=True).__aenter__()


# --- register: every documented refusal ---------------------------------------------------------------------


async def reason(device: aioblk.Device, buffer: object) -> str:
    """Why the buffer is not mapped; the same whether it is an error or not."""
    async with device.register(buffer) as region:  # type: ignore[arg-type]
        text = region.reason
    assert text is not None
    try:
        await device.register(buffer, required=True).__aenter__()  # type: ignore[arg-type]
    except aioblk.RegistrationError as error:  # not pytest.raises: its traceback would keep the buffer
        assert error.message == text  # noqa: PT017
    else:
        pytest.fail("required=True did not raise")
    return text


async def test_refuses_what_is_no_buffer_or_empty(device: aioblk.Device) -> None:
    with pytest.raises(TypeError):
        device.register("text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty"):
        device.register(b"")
    with pytest.raises(BufferError):
        device.register(memoryview(bytearray(16))[::2])


async def test_an_overlapping_range_is_not_mapped(device: aioblk.Device, shared: mmap.mmap) -> None:
    with memoryview(shared) as view:
        async with device.register(view[2 * PAGE : 6 * PAGE], required=True):
            assert "overlaps" in await reason(device, view[5 * PAGE : 7 * PAGE])
            assert "overlaps" in await reason(device, view[PAGE : 3 * PAGE])
            assert "overlaps" in await reason(device, view)
            async with device.register(view[6 * PAGE : 8 * PAGE], required=True):
                await device.read_into(0, view)  # partly zero-copy
    assert bounced(device) == 10 * PAGE


async def test_a_private_mapping_is_not_mapped(device: aioblk.Device, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), PAGE, mmap.MAP_PRIVATE) as memory:
        assert "private" in await reason(device, memory)


async def test_a_file_open_for_reading_only_is_not_mapped(device: aioblk.Device, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), PAGE, access=mmap.ACCESS_READ) as memory:
        async with device.register(memory, fd=file.fileno()) as region:
            assert region.reason == "fd is not open for reading and writing"


async def test_a_file_shorter_than_its_mapping_is_not_mapped(device: aioblk.Device, memfd: int) -> None:
    with mmap.mmap(memfd, 4 * PAGE) as memory:
        os.truncate(memfd, PAGE)
        async with device.register(memory, fd=memfd) as region:
            assert region.reason is not None
            assert "ends at" in region.reason
        assert "file" in await reason(device, memory)


async def test_the_device_is_never_given_too_many_regions(device: aioblk.Device) -> None:
    most = device.limits.max_mem_regions - 1  # one is the bounce pool's
    with mmap.mmap(-1, 2 * (most + 1) * PAGE) as memory, memoryview(memory) as view:
        regions = [device.register(view[2 * i * PAGE :][:PAGE], required=True) for i in range(most)]
        for region in regions:
            await region.__aenter__()
        assert "more than" in await reason(device, view[2 * most * PAGE :][:PAGE])
        assert len(await device.read(0, PAGE)) == PAGE  # the pool has found its place
        await regions[5].aclose()
        async with device.register(view[2 * most * PAGE :][:PAGE], required=True) as another:
            await device.read_into(0, another)
        for region in regions:
            await region.aclose()
    assert bounced(device) == PAGE


async def test_a_region_is_entered_once(device: aioblk.Device, shared: mmap.mmap) -> None:
    region = device.register(shared)
    async with region:
        with pytest.raises(aioblk.UsageError, match="once"):
            await region.__aenter__()
    with pytest.raises(aioblk.UsageError, match="once"):
        await region.__aenter__()


# --- register: nested, repeated, shared ---------------------------------------------------------------------


async def test_registrations_of_one_range_are_counted(device: aioblk.Device, shared: mmap.mmap) -> None:
    with memoryview(shared) as view:
        async with device.register(view, required=True):
            async with device.register(view, required=True) as again:
                async with device.register(view[PAGE : 2 * PAGE], required=True) as inner:
                    assert inner.mapped
                    assert again.mapped
                await device.read_into(0, view[PAGE : 2 * PAGE])
            await device.read_into(0, view[: 4 * PAGE])
            assert bounced(device) == 0
        await device.read_into(0, view[:PAGE])
        assert bounced(device) == PAGE


async def test_the_outer_registration_may_leave_first(device: aioblk.Device, shared: mmap.mmap) -> None:
    outer = device.register(shared, required=True)
    inner = device.register(memoryview(shared)[PAGE : 2 * PAGE], required=True)
    await outer.__aenter__()
    await inner.__aenter__()
    await outer.aclose()
    await device.read_into(0, inner)
    assert bounced(device) == 0
    await inner.aclose()


async def test_one_range_registered_by_many_tasks_at_once(device: aioblk.Device, shared: mmap.mmap) -> None:
    async def use() -> None:
        async with device.register(shared, required=True) as region:
            await device.read_into(0, region[:PAGE])

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(use())
    assert bounced(device) == 0


async def test_one_range_on_several_devices(
    storage_daemon: StorageDaemonFactory, file_device: aioblk.Device, device: aioblk.Device, shared: mmap.mmap
) -> None:
    async with (
        aioblk.VirtioBlkVhostUser(storage_daemon().socket) as another,
        device.register(shared, required=True) as region,
        another.register(shared, required=True),
        file_device.register(shared, required=True),
    ):
        for each in (device, another, file_device):
            await each.read_into(0, region[:PAGE])
            assert bounced(each) == 0


# --- lifetime -----------------------------------------------------------------------------------------------


async def test_a_registered_buffer_keeps_its_place(file_device: aioblk.Device, shared: mmap.mmap) -> None:
    buffer = bytearray(4096)
    async with file_device.register(buffer), file_device.register(shared):
        with pytest.raises(BufferError):
            buffer.append(0)
        with pytest.raises(BufferError):
            shared.close()
    buffer.append(0)


async def test_leaving_waits_for_requests_in_flight(slow_device: aioblk.Device, shared: mmap.mmap) -> None:
    async with slow_device.register(shared, required=True) as region:
        request = slow_device.read_into(0, region[:512])
        assert not request.done()
    assert request.done()
    await request
    assert bounced(slow_device) == 0


async def test_a_retiring_region_is_not_used_any_more(slow_device: aioblk.Device, shared: mmap.mmap) -> None:
    async with slow_device.allocate(PAGE) as other:
        region = await slow_device.register(shared, required=True).__aenter__()
        first = slow_device.read_into(0, region[:512])
        leaving = asyncio.create_task(region.aclose())
        await asyncio.sleep(0)
        second = slow_device.read_into(0, memoryview(shared)[:512])
        async with slow_device.register(shared, required=True) as again:  # after the first one has left
            assert leaving.done()
            await slow_device.read_into(0, again[:512])
        await asyncio.gather(first, second, leaving)
        assert bounced(slow_device) == 512
        assert other.mapped


async def test_a_cancelled_leave_goes_on_by_itself(slow_device: aioblk.Device, shared: mmap.mmap) -> None:
    region = await slow_device.register(shared, required=True).__aenter__()
    request = slow_device.read_into(0, region[:512])
    leaving = asyncio.create_task(region.aclose())
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    with pytest.raises(BufferError):
        shared.close()  # still mapped, hence pinned
    await request
    async with slow_device.register(shared, required=True) as region:
        pass


async def test_a_cancelled_registration_is_undone(device: aioblk.Device, shared: mmap.mmap) -> None:
    entering = asyncio.ensure_future(device.register(shared, required=True).__aenter__())
    await asyncio.sleep(0)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    async with device.register(shared, required=True):
        pass
    await device.read_into(0, memoryview(shared)[:512])
    assert bounced(device) == 512


async def test_closing_the_device_closes_its_regions(
    storage_daemon: StorageDaemonFactory, shared: mmap.mmap
) -> None:
    device = await aioblk.VirtioBlkVhostUser(storage_daemon().socket).open()
    region = await device.register(shared, required=True).__aenter__()
    allocated = await device.allocate(PAGE).__aenter__()
    view = memoryview(allocated)
    await device.aclose()
    for closed in (region, allocated):
        with pytest.raises(ValueError, match="closed"):
            len(closed)
        await closed.aclose()
    view[0] = 1  # what was exported stays valid
    view.release()
    with pytest.raises(aioblk.DeviceClosedError):
        device.register(shared)


# --- what the collector sees --------------------------------------------------------------------------------


class Buffer(bytearray):
    """May refer to what has been made of it."""

    made: object = None


MAKERS: dict[str, Callable[[aioblk.Device, Buffer], object]] = {
    "region": lambda device, buffer: device.register(buffer),
    "view": lambda _, buffer: View(Memory.from_buffer(buffer)),
    "slice": lambda _, buffer: View(Memory.from_buffer(buffer))[PAGE // 2 :],
    "memoryview": lambda _, buffer: memoryview(View(Memory.from_buffer(buffer))),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
async def test_what_its_own_buffer_refers_to_is_collected(
    file_device: aioblk.Device, make: Callable[[aioblk.Device, Buffer], object]
) -> None:
    buffer = Buffer(PAGE)
    buffer.made = make(file_device, buffer)
    reference = weakref.ref(buffer)
    del buffer
    gc.collect()
    assert reference() is None


async def test_memory_that_is_collected_while_it_is_exported_is_given_back() -> None:
    """What goes with it exports it still when the collector asks for the last wishes."""

    class Holder:
        def __init__(self, buffer: aioblk.ArenaBuffer) -> None:
            self.buffer = buffer
            self.exported = memoryview(buffer)
            self.itself = self

    async with aioblk.Arena(PAGE) as arena:
        Holder(arena.allocate(512))
        assert arena.statistics().buffers == 1
        gc.collect()
        assert arena.statistics().buffers == 0


def test_what_a_release_calls_is_whole_also_when_it_is_collected_with_the_memory() -> None:
    """The collector empties what it takes for garbage, in whatever order: to call that would crash."""
    released: list[int] = []

    class Owner:
        def __init__(self) -> None:
            self.log = released
            self.itself = self

        def give(self) -> None:
            self.log.append(1)

    class Holder:
        def __init__(self, memory: Memory) -> None:
            self.exported = memoryview(View(memory))
            self.itself = self

    for give in (Owner().give, partial(Owner().give)):
        Holder(Memory.from_buffer(bytearray(PAGE), on_release=give))
    del give
    gc.collect()
    assert released == [1, 1]
    gc.collect()
    assert not any(type(found) is Owner for found in gc.get_objects())


def test_a_memoryview_that_is_collected_with_the_memory_is_given_back_whole() -> None:
    """The collector empties memoryviews also while they are exported, and such a one crashes when it goes."""

    class Storage(bytearray):
        user: object

    class Holder:
        def __init__(self, view: View) -> None:
            self.view = view
            self.exported = memoryview(view)
            self.itself = self

    def nested() -> View:
        storage = Storage(PAGE)
        storage.user = memory = Memory.from_buffer(memoryview(View(Memory.from_buffer(storage))))
        return View(Memory.from_buffer(View(memory)))

    view = nested()
    gc.collect()  # what is old is emptied first
    Holder(view)
    del view
    gc.collect()
    assert not any(type(found) in (Holder, Storage) for found in gc.get_objects())


@pytest.mark.parametrize("in_a_cycle", [False, True])
def test_memory_that_is_a_part_of_memory_ever_so_often_goes_without_recursion(in_a_cycle: bool) -> None:
    class Holder:
        def __init__(self, memory: Memory) -> None:
            self.memory = memory
            self.other = self if in_a_cycle else None

    released: list[int] = []
    memory = Memory.from_buffer(bytearray(PAGE), on_release=lambda: released.append(1))
    for _ in range(100_000):
        memory = Memory.from_buffer(View(memory))
    Holder(memory)
    del memory
    gc.collect()
    assert released == [1]


# --- forgotten regions --------------------------------------------------------------------------------------


async def test_a_region_that_is_forgotten_warns(device: aioblk.Device) -> None:
    region = await device.allocate(4096).__aenter__()
    with pytest.warns(ResourceWarning, match="unclosed <MemoryRegion of 4096 bytes"):
        del region


async def test_a_region_that_was_never_entered_warns(device: aioblk.Device) -> None:
    region = device.register(bytearray(4096))
    await device.read_into(0, region[:4096])  # which works, by way of the bounce pool
    with pytest.warns(
        ResourceWarning, match="was never entered, so nothing was registered; use `async with`"
    ):
        del region
