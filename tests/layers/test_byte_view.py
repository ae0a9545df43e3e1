"""ByteView: any byte of a device, and writers that do not undo each other."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aioblk
from aioblk.layers.byte_view import ByteView
from aioblk.testing import MemoryDevice
from aioblk.testing.storage_daemon import StorageDaemon

from ..conftest import StorageDaemonFactory
from ..support.devices import held
from ..support.fake_backend import WRITE, FakeBackend

BLOCK = 512
SLOW = 20_000_000  # nanoseconds


@pytest.fixture
async def view(
    storage_daemon: StorageDaemonFactory, scratch_file: Path
) -> AsyncIterator[ByteView[aioblk.Device]]:
    """Of a device with blocks of 512 bytes."""
    async with aioblk.VirtioBlkVhostUser(storage_daemon(scratch_file).socket) as device:
        assert device.limits.request_alignment == BLOCK
        yield ByteView(device)


@pytest.fixture
async def direct_view(loop_device: Path) -> AsyncIterator[ByteView[aioblk.Device]]:
    """Of a block device where memory must be aligned as well."""
    async with aioblk.IoUring(loop_device, direct=True) as device:
        assert device.limits.buf_alignment == BLOCK
        yield ByteView(device)


# --- bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 1),
        (1, 1),
        (511, 1),
        (511, 2),
        (0, 512),
        (512, 512),
        (1, 511),
        (1, 512),
        (100, 300),
        (5, 5000),
        (0, 4097),
    ],
)
async def test_writes_and_reads_any_bytes(view: ByteView[aioblk.Device], offset: int, length: int) -> None:
    await view.device.write(0, b"-" * 8192)
    data = bytes(range(1, 251)) * 21
    await view.write(offset, data[:length])
    expected = b"-" * offset + data[:length] + b"-" * (8192 - offset - length)
    assert await view.device.read(0, 8192) == expected
    assert await view.read(offset, length) == data[:length]
    buffer = bytearray(length)
    await view.read_into(offset, buffer)
    assert buffer == data[:length]


async def test_misaligned_memory_and_bytes_under_direct_io(direct_view: ByteView[aioblk.Device]) -> None:
    await direct_view.write(3, b"abc" * 1000, fua=True)
    assert await direct_view.read(0, 3010) == bytes(3) + b"abc" * 1000 + bytes(7)
    buffer = bytearray(1001)
    await direct_view.read_into(1000, memoryview(buffer)[1:])
    assert buffer[1:5] == b"bcab"


@pytest.mark.parametrize(
    ("offset", "length"), [(10, 20), (0, 512), (500, 600), (100, 2000), (512, 1000), (7, 505)]
)
async def test_zeroes_any_bytes(view: ByteView[aioblk.Device], offset: int, length: int) -> None:
    await view.write(0, b"x" * 4096)
    await view.write_zeroes(offset, length)
    expected = b"x" * offset + bytes(length) + b"x" * (4096 - offset - length)
    assert await view.read(0, 4096) == expected
    await view.flush()


async def test_nothing_is_nothing(view: ByteView[aioblk.Device]) -> None:
    assert await view.read(3, 0) == b""
    await view.write(3, b"")
    await view.read_into(3, bytearray())
    await view.write_zeroes(3, 0)


async def test_refuses_negative_offsets_and_lengths(view: ByteView[aioblk.Device]) -> None:
    with pytest.raises(aioblk.OptionError):
        await view.read(-1, 1)
    with pytest.raises(aioblk.OptionError):
        await view.read(0, -1)
    with pytest.raises(aioblk.OptionError):
        await view.write(-1, b"x")
    with pytest.raises(aioblk.OptionError):
        await view.write_zeroes(-1, 1)


async def test_whole_blocks_are_passed_on(view: ByteView[aioblk.Device]) -> None:
    async with view.device.allocate(4096) as region:
        await view.write(512, region[:1024])
        await view.read_into(512, region[1024:2048])
        assert view.device.statistics().bounced_bytes == 0
        assert view.device.statistics().submitted == 2
        await view.read_into(100, region[:2048])
        assert view.device.statistics().bounced_bytes == 512  # the edges alone


async def test_buffers_may_come_one_after_the_other(view: ByteView[aioblk.Device]) -> None:
    for offset, length in ((0, 512), (1000, 100)):
        await view.writev(offset, (data for data in [b"v" * length]))  # type: ignore[arg-type]
        buffer = bytearray(length)
        await view.readv(offset, (data for data in [buffer]))  # type: ignore[arg-type]
        assert buffer == b"v" * length


async def test_closing_waits_for_nobody_else(view: ByteView[aioblk.Device]) -> None:
    async def go_on() -> None:
        while True:
            await view.device.write(65536, bytes(65536))

    others = [asyncio.create_task(go_on()) for _ in range(4)]
    await asyncio.sleep(0)
    await view.write(1, b"x")
    async with asyncio.timeout(30):
        await view.aclose()
    for other in others:
        other.cancel()
    await asyncio.wait(others)


# --- writers ------------------------------------------------------------------------------------------------


async def test_writers_in_one_block_do_not_undo_each_other(view: ByteView[aioblk.Device]) -> None:
    await asyncio.gather(*(view.write(place, bytes([place % 251])) for place in range(500)))
    assert await view.read(0, 500) == bytes(place % 251 for place in range(500))


async def test_overlapping_writers_take_turns_in_order(view: ByteView[aioblk.Device]) -> None:
    await asyncio.gather(*(view.write(number, bytes([number]) * 1000) for number in range(100)))
    assert await view.read(0, 1099) == bytes([*range(99), *[99] * 1000])


async def test_disjoint_writers_run_concurrently(storage_daemon: StorageDaemonFactory) -> None:
    async with aioblk.VirtioBlkVhostUser(storage_daemon(latency_ns=SLOW).socket) as device:
        view = ByteView(device)
        writes = [asyncio.create_task(view.write(BLOCK * number, b"x")) for number in range(8)]
        same = asyncio.create_task(view.write(1, b"y"))
        for _ in range(4):
            await asyncio.sleep(0)
        assert device.statistics().in_flight == 8  # the ninth waits for the first
        await asyncio.gather(*writes, same)


async def test_a_cancelled_writer_lets_the_next_one_go_on(view: ByteView[aioblk.Device]) -> None:
    first = asyncio.create_task(view.write(0, b"1" * 1000))
    second = asyncio.create_task(view.write(500, b"2" * 1000))
    third = asyncio.create_task(view.write(999, b"3" * 10))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(first, third)
    with pytest.raises(asyncio.CancelledError):
        await second
    assert await view.read(990, 30) == b"1" * 9 + b"3" * 10 + bytes(11)


@pytest.mark.parametrize(("offset", "length"), [(0, BLOCK), (100, BLOCK)])
async def test_a_write_on_its_way_is_left_at_once_and_later_ones_wait_for_it(
    offset: int, length: int
) -> None:
    with FakeBackend() as disk:
        async with aioblk.VirtioBlkVhostUser(disk.socket) as device:
            view = ByteView(device)
            gate = disk.gate(WRITE, 0)
            writing = asyncio.ensure_future(view.write(offset, b"o" * length))
            await gate.reached()
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            assert device.statistics().in_flight == 1
            later = [asyncio.ensure_future(view.write(place, b"n" * 50)) for place in (0, 200)]
            whole = asyncio.ensure_future(view.write(BLOCK, b"w" * BLOCK))
            await view.read(64 * BLOCK, 1)
            assert not any(request.done() for request in later)
            gate.open()
            await asyncio.gather(*later, whole)
            old = (bytes(offset) + b"o" * length).ljust(BLOCK, b"\0")[:BLOCK]
            expected = b"n" * 50 + old[50:200] + b"n" * 50 + old[250:] + b"w" * BLOCK
            assert await view.read(0, 2 * BLOCK) == expected


async def test_an_error_lets_the_next_one_go_on(view: ByteView[aioblk.Device]) -> None:
    end = view.device.capacity
    outcomes = await asyncio.gather(
        view.write(end - 10, b"x" * 20),
        view.write(end - 100, b"y" * 50),
        view.read(end - 1, 2),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], aioblk.BlkioError)
    assert outcomes[1] is None
    assert isinstance(outcomes[2], aioblk.BlkioError)
    assert await view.read(end - 100, 100) == b"y" * 50 + bytes(50)


async def test_a_change_of_whole_blocks_waits_for_one_of_parts(view: ByteView[aioblk.Device]) -> None:
    """The part's block is read, and would be written back with what was there before."""
    for _ in range(20):
        await view.device.write_zeroes(0, 4096)
        await asyncio.gather(view.write(100, b"part"), view.write(0, b"w" * 1024))
        assert await view.read(0, 2048) == b"w" * 1024 + bytes(1024)
        await asyncio.gather(
            view.writev(512, [b"w" * 100, b"w" * 924]),
            view.write(600, b"part"),
            view.discard(1024, 512),
            view.write_zeroes(512, 512),
            view.write(1000, b"part"),
        )
        assert await view.read(512, 512) == bytes(488) + b"part" + bytes(20)


async def test_requests_go_straight_to_the_device_unless_they_share_a_block(
    storage_daemon: StorageDaemonFactory,
) -> None:
    async with aioblk.VirtioBlkVhostUser(storage_daemon(latency_ns=SLOW).socket) as device:
        view = ByteView(device)
        editing = asyncio.ensure_future(view.write(1, b"x"))
        direct = (
            view.write(512, bytes(1024)),
            view.read_into(0, bytearray(512)),
            view.readv(0, [bytearray(5)]),
        )
        assert all(isinstance(request, aioblk.Request) for request in direct)
        waiting = view.write(0, bytes(512))
        assert not isinstance(waiting, aioblk.Request)
        assert isinstance(view.flush(), aioblk.Request)
        await asyncio.gather(editing, *direct, waiting)
        again = view.write(0, bytes(512))
        assert isinstance(again, aioblk.Request)
        await again


async def test_a_cancelled_write_of_whole_blocks_is_over_before_a_part_is_read(
    storage_daemon: StorageDaemonFactory, scratch_file: Path
) -> None:
    """Its memory is the bounce pool's: its task is free at once, and the part waits."""
    daemon = storage_daemon(scratch_file)
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        view = ByteView(device)
        await view.write(0, bytes(512))
        daemon.pause()
        whole = asyncio.ensure_future(view.write(0, b"w" * 512))
        await asyncio.sleep(0)
        whole.cancel()
        assert whole.cancelled()
        part = asyncio.ensure_future(view.write(1, b"part"))
        daemon.resume()
        await part
        assert (await view.read(0, 512))[:6] == b"wpartw"


async def test_a_change_of_parts_of_blocks_reads_them_in_the_call(view: ByteView[aioblk.Device]) -> None:
    requests: list[Awaitable[object]] = []
    for submitted, change in (
        (1, partial(view.write, 1, b"x")),
        (3, partial(view.write_zeroes, 1000, 5000)),  # its first block and its last
        (4, partial(view.write_many, [(7000, b"y")])),
        (4, partial(view.write, 2, b"z")),  # which waits for its turn
    ):
        requests.append(change())
        assert view.device.statistics().submitted == submitted
    await asyncio.gather(*requests)
    assert await view.read(0, 4) == b"\0xz\0"


async def test_a_read_that_is_cancelled_before_its_first_step_is_cancelled_at_the_device(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    view = ByteView(slow_device)
    with held(slow_daemon):
        requests = [view.read(1, 10), view.write(1, b"x"), view.read_many([(1, 10), (600, 10)])]
        assert slow_device.statistics().in_flight == 4
        tasks = [asyncio.ensure_future(request) for request in requests]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        assert slow_device.statistics().cancelled == 4


async def test_closing_ends_the_view_and_not_its_device(view: ByteView[aioblk.Device]) -> None:
    async with view:
        changes = [view.write(place, b"x" * 300) for place in range(0, 3000, 300)]
    assert await view.device.read(0, 3072) == b"x" * 3000 + bytes(72)
    for change in changes:
        await change  # which it has done long since
    with pytest.raises(aioblk.DeviceClosedError, match="the view is closed"):
        _ = view.write(1, b"y")
    await view.aclose()
    await view.device.write(0, bytes(512))


async def test_who_is_cancelled_while_closing_leaves_the_changes_alone(view: ByteView[aioblk.Device]) -> None:
    change = view.write(1, b"x")
    closing = asyncio.ensure_future(view.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await change
    await view.aclose()
    assert await view.device.read(0, 512) == b"\0x" + bytes(510)


async def test_batches_of_any_bytes(view: ByteView[aioblk.Device]) -> None:
    pieces = [(3, b"abc"), (511, b"de"), (512, b"F" * 512), (2000, b""), (5, b"gh")]
    assert await view.write_many(pieces) is None
    assert await view.read(0, 1024) == bytes(3) + b"abgh" + bytes(504) + b"d" + b"F" * 512
    places = [(3, 4), (511, 2), (512, 512)]
    assert await view.read_many(places) == [b"abgh", b"dF", b"F" * 512]
    buffers = [(place, bytearray(length)) for place, length in places]
    assert await view.read_into_many(buffers, return_exceptions=True) == [None, None, None]
    assert [bytes(buffer) for _, buffer in buffers] == [b"abgh", b"dF", b"F" * 512]


async def test_a_batch_of_whole_blocks_is_one_request_unless_it_shares_a_block(
    view: ByteView[aioblk.Device],
) -> None:
    whole = view.write_many([(0, bytes(512)), (512, bytes(512))])
    assert isinstance(whole, aioblk.Request)
    await whole
    part = view.write(1, b"part")
    waits = view.write_many([(512, b"w" * 512), (0, b"w" * 512)])
    assert not isinstance(waits, aioblk.Request)
    again = view.write(2, b"PART")
    await asyncio.gather(part, waits, again)
    assert await view.read(0, 1024) == b"wwPART" + b"w" * 1018


async def test_what_a_request_may_be_handed_to(view: ByteView[aioblk.Device]) -> None:
    async with asyncio.TaskGroup() as group:
        for offset in (0, 512, 1000, 1001):
            group.create_task(view.write(offset, b"x" * 512))
    for offset in (0, 7):
        assert await asyncio.ensure_future(view.read(offset, 512)) == b"x" * 512
        assert await asyncio.create_task(view.read(offset, 512)) == b"x" * 512
        assert await asyncio.wait_for(view.read(offset, 512), 10) == b"x" * 512
        done, _ = await asyncio.wait({asyncio.ensure_future(view.read(offset, 512))})
        assert done.pop().result() == b"x" * 512
    with pytest.raises(aioblk.BlkioError):
        await asyncio.create_task(view.read(view.device.capacity, 7))


async def test_a_task_that_is_cancelled_before_its_first_step_waits_for_its_write(
    view: ByteView[aioblk.Device],
) -> None:
    first = asyncio.ensure_future(view.write(1, b"first"))
    task = asyncio.create_task(view.write(2, b"second"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await first
    assert await view.read(0, 8) == b"\0first\0\0"


@pytest.mark.parametrize("length", [BLOCK, BLOCK - 2])
async def test_a_change_that_waits_outlasts_the_region_of_its_buffer(
    view: ByteView[aioblk.Device], length: int
) -> None:
    async with view.device.allocate(4096) as region:
        region[:length] = b"r" * length
        first = view.write(1, b"first")
        requests = [view.write(0, region[:length]), view.writev(BLOCK, [region[:length]])]
        requests.append(view.writev(0, [region[:1], region[1:length]]))
    await asyncio.gather(first, *requests)
    assert await view.read(0, length) == b"r" * length


async def test_what_was_begun_is_done_whether_it_is_awaited_or_not(view: ByteView[aioblk.Device]) -> None:
    forgotten = view.write(1, b"one")
    view.write(2, b"two").close()
    del forgotten
    await view.write(3, b"three")
    assert await view.read(0, 9) == b"\0ot" + b"three" + b"\0"


async def test_zeroes_without_fallback_are_for_whole_blocks(direct_view: ByteView[aioblk.Device]) -> None:
    await direct_view.write(0, b"x" * 2048)
    with pytest.raises(aioblk.UnsupportedError, match="no_fallback"):
        await direct_view.write_zeroes(1, 1024, no_fallback=True)
    await direct_view.write_zeroes(512, 512, no_unmap=True, fua=True)
    assert await direct_view.read(0, 2048) == b"x" * 512 + bytes(512) + b"x" * 1024


@pytest.mark.parametrize(("offset", "length"), [(0, 4096), (1, 4095), (100, 3000), (5, 10), (511, 513)])
async def test_discards_the_whole_blocks_within(
    direct_view: ByteView[aioblk.Device], offset: int, length: int
) -> None:
    await direct_view.write(0, b"x" * 8192)
    await direct_view.discard(offset, length)
    data = await direct_view.read(0, 8192)
    unit = max(direct_view.device.limits.discard_alignment, BLOCK)
    first, last = -(-offset // unit) * unit, (offset + length) // unit * unit
    assert data[:first] == b"x" * first
    assert data[max(first, last) :] == b"x" * (8192 - max(first, last))


async def test_vectors(view: ByteView[aioblk.Device]) -> None:
    await view.writev(3, [b"abc", b"", bytearray(b"defg")], fua=True)
    buffers = bytearray(2), bytearray(3), bytearray(4)
    await view.readv(2, buffers)
    assert b"".join(buffers) == b"\0abcdefg\0"
    await view.writev(3, [])
    await view.readv(3, [])


# --- against a model ----------------------------------------------------------------------------------------

SPACE = 16 * BLOCK
any_range = st.tuples(st.integers(0, SPACE - 1), st.integers(1, 4 * BLOCK)).map(
    lambda pair: (pair[0], min(pair[1], SPACE - pair[0]))
)
whole_blocks = st.tuples(st.integers(0, 15), st.integers(1, 4)).map(
    lambda pair: (pair[0] * BLOCK, min(pair[1] * BLOCK, SPACE - pair[0] * BLOCK))
)


class Step(NamedTuple):
    kind: str
    where: tuple[int, int]
    cancelled_after: int | None  # turns of the loop

    @property
    def places(self) -> range:
        return range(self.where[0], sum(self.where))

    @property
    def blocks(self) -> set[int]:
        return set(range(self.places.start // BLOCK, -(-self.places.stop // BLOCK)))

    @property
    def is_whole(self) -> bool:
        return self.where[0] % BLOCK == self.where[1] % BLOCK == 0


steps = st.builds(
    Step,
    st.sampled_from(["write", "writev", "zero", "read", "readv"]),
    st.one_of(any_range, whole_blocks),
    st.one_of(st.none(), st.none(), st.integers(0, 12)),
)
rounds_of_steps = st.lists(st.lists(steps, min_size=1, max_size=8), max_size=8)


def begin(view: ByteView[aioblk.Device], step: Step, value: int) -> Coroutine[Any, Any, Any]:
    offset, length = step.where
    match step.kind:
        case "write":
            return view.write(offset, bytes([value]) * length)
        case "writev":
            return view.writev(
                offset, [bytes([value]) * (length // 3), bytes([value]) * (length - length // 3)]
            )
        case "zero":
            return view.write_zeroes(offset, length)
        case "read":
            return view.read(offset, length)
        case _:
            return read_in_pieces(view, offset, length)


async def read_in_pieces(view: ByteView[aioblk.Device], offset: int, length: int) -> bytes:
    pieces = bytearray(length // 2), bytearray(length - length // 2)
    await view.readv(offset, pieces)
    return b"".join(pieces)


async def cancel_after(turns: int, work: "asyncio.Future[Any]") -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    work.cancel()


def orders(changes: list[Step]) -> set[tuple[int, int]]:
    """The pairs of changes, by their numbers, of which the first must take effect before the second."""
    ordered: set[tuple[int, int]] = set()
    for second, after in enumerate(changes):
        for first in reversed(range(second)):
            before = changes[first]
            if before.blocks & after.blocks and not (before.is_whole and after.is_whole):
                ordered.add((first, second))
                if before.cancelled_after is None:  # else it may not have waited for those before it
                    ordered |= {(zeroth, second) for zeroth in range(first) if (zeroth, first) in ordered}
    return ordered


async def check_against_model(view: ByteView[aioblk.Device], rounds: list[list[Step]]) -> None:
    """Each round's requests run concurrently. The model keeps what every byte may be, and learns what it is.

    A change that was not cancelled counts unless one that comes after it covers the byte. A cancelled one may
    or may not count.
    """
    await view.device.write_zeroes(0, SPACE)
    content = bytes(SPACE)
    serial = 0
    for requests in rounds:
        changes: list[Step] = []
        values: list[int] = []
        work: list[asyncio.Future[Any]] = []
        reads: list[tuple[int, asyncio.Future[bytes]]] = []
        for step in requests:
            serial = serial % 255 + 1
            work.append(future := asyncio.ensure_future(begin(view, step, serial)))
            if step.cancelled_after is not None:
                work.append(asyncio.create_task(cancel_after(step.cancelled_after, future)))
            if step.kind.startswith("read"):
                reads.append((step.where[0], future))
            else:
                changes.append(step)
                values.append(0 if step.kind == "zero" else serial)
        for outcome in await asyncio.gather(*work, return_exceptions=True):
            assert outcome is None or isinstance(outcome, (bytes, asyncio.CancelledError))
        ordered = orders(changes)
        found = await view.read(0, SPACE)
        for begin_at, end_at, covering in stretches(changes):
            sure = [number for number in covering if changes[number].cancelled_after is None]
            possible = {
                values[number] for number in covering if not any((number, later) in ordered for later in sure)
            }
            old = content[begin_at:end_at]
            assert holds(found[begin_at:end_at], possible, None if sure else old)
            ever = {values[number] for number in covering}
            for offset, read in reads:
                start, stop = max(begin_at, offset), end_at
                if not read.cancelled() and start < stop:
                    seen = read.result()[start - offset : stop - offset]
                    assert holds(seen, ever, content[start : start + len(seen)])
        content = found


def stretches(changes: list[Step]) -> Iterator[tuple[int, int, list[int]]]:
    """All of the space, in stretches each of which is covered by the same changes: their numbers."""
    ends = sorted({0, SPACE, *(end for step in changes for end in (step.places.start, step.places.stop))})
    for start, stop in pairwise(ends):
        yield start, stop, [number for number, step in enumerate(changes) if start in step.places]


def holds(found: bytes, possible: set[int], old: bytes | None) -> bool:
    """Whether each byte is one of those, or what it was before."""
    if set(found) <= possible or found == old:
        return True
    return old is not None and all(
        byte in possible or byte == before for byte, before in zip(found, old, strict=True)
    )


@given(rounds=rounds_of_steps)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_agrees_with_a_model(view: ByteView[aioblk.Device], rounds: list[list[Step]]) -> None:
    await check_against_model(view, rounds)


@given(rounds=rounds_of_steps)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_agrees_with_a_model_under_direct_io(
    direct_view: ByteView[aioblk.Device], rounds: list[list[Step]]
) -> None:
    await check_against_model(direct_view, rounds)


# --- a file that ends within a block ------------------------------------------------------------------------

ODD = 1_000_000  # bytes; the last block has 64 of them


@pytest.fixture
async def odd_view(tmp_path: Path) -> AsyncIterator[ByteView[aioblk.Device]]:
    path = tmp_path / "odd"
    path.write_bytes(b"-" * ODD)
    async with aioblk.IoUring(path, direct=True) as device:
        assert device.limits.request_alignment == BLOCK
        assert device.limits.can_grow
        yield ByteView(device)


def contents(view: ByteView[aioblk.Device]) -> bytes:
    return Path(str(view.device.properties["path"])).read_bytes()


@pytest.mark.parametrize(("offset", "length"), [(0, ODD), (ODD - 1, 1), (ODD - 70, 70), (ODD - 64, 10)])
async def test_the_last_bytes_are_read_and_written(
    odd_view: ByteView[aioblk.Device], offset: int, length: int
) -> None:
    assert await odd_view.read(offset, length) == b"-" * length
    await odd_view.write(offset, b"x" * length, fua=True)
    assert await odd_view.read(offset, length) == b"x" * length
    assert odd_view.device.capacity == ODD
    assert contents(odd_view) == b"-" * offset + b"x" * length + b"-" * (ODD - offset - length)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 448, 449, 5000])
async def test_a_file_grows_to_the_byte(odd_view: ByteView[aioblk.Device], length: int) -> None:
    await odd_view.write(ODD - 10, b"x" * (10 + length))
    assert contents(odd_view) == b"-" * (ODD - 10) + b"x" * (10 + length)
    await odd_view.write_zeroes(ODD, length + 1)
    assert contents(odd_view) == b"-" * (ODD - 10) + b"x" * 10 + bytes(length + 1)


async def test_zeroes_up_to_the_end_leave_it_where_it_is(odd_view: ByteView[aioblk.Device]) -> None:
    await odd_view.write_zeroes(100, ODD - 100)
    assert contents(odd_view) == b"-" * 100 + bytes(ODD - 100)


async def test_nobody_who_makes_the_file_longer_is_cut_off(odd_view: ByteView[aioblk.Device]) -> None:
    """Changes at and behind the end, begun together, in both orders: whole blocks and parts of them."""
    end = -(-ODD // BLOCK) * BLOCK
    for _ in range(5):
        await asyncio.gather(
            odd_view.write(ODD - 5, b"a" * 5),
            odd_view.write(end + BLOCK, b"b" * BLOCK),
            odd_view.write(end + 3 * BLOCK, b"c" * 7),
            odd_view.write(ODD - 64, b"d" * 3),
        )
        expected = b"-" * (ODD - 64) + b"d" * 3 + b"-" * 56 + b"a" * 5
        expected = expected.ljust(end + BLOCK, b"\0") + b"b" * BLOCK
        assert contents(odd_view) == expected.ljust(end + 3 * BLOCK, b"\0") + b"c" * 7
        await odd_view.device.truncate(ODD)


async def test_a_change_at_the_end_that_is_cancelled_leaves_the_length(
    odd_view: ByteView[aioblk.Device],
) -> None:
    for turns in range(12):
        change = asyncio.ensure_future(odd_view.write(ODD - 1, b"y"))
        for _ in range(turns):
            await asyncio.sleep(0)
        change.cancel()
        await asyncio.wait([change])
        await odd_view.write(ODD - 1, b"-")  # comes after it in the order of changes
        assert odd_view.device.capacity == ODD


async def test_what_is_no_pair_is_refused_in_the_list(view: ByteView[aioblk.Device]) -> None:
    for wrong in (5, (0,), ("0", bytearray()), (0, 1.5)):
        pairs: list[Any] = [(0, bytearray(3)), wrong]
        for call in (view.read_into_many, view.write_many):
            [done, refused] = await call(pairs, return_exceptions=True)
            assert done is None
            assert isinstance(refused, (TypeError, ValueError))
            with pytest.raises((TypeError, ValueError, BufferError)):
                await call(pairs)
    [found, refused] = await view.read_many([(0, 3), cast(Any, 5)], return_exceptions=True)
    assert found == bytes(3)
    assert isinstance(refused, TypeError)


async def test_holes_are_those_of_the_device() -> None:
    device = MemoryDevice(1 << 20, limits=aioblk.Limits(request_alignment=4096))
    await device.write(4096, bytes(range(256)) * 16)
    async with aioblk.ByteView(device) as view:
        assert isinstance(view, aioblk.KnowsExtents)
        found = [(extent.offset, extent.kind) async for extent in view.extents(100, 10_000)]
        assert found == [(100, "hole"), (4096, "data"), (8192, "hole")]
    with pytest.raises(aioblk.DeviceClosedError):
        view.extents()
