"""Zeroes: by the device where it can, written where it cannot; and files that grow by them."""

import asyncio
import ctypes
import os
import select
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import aioblk
import aioblk._device.connection
import aioblk._device.loss
import aioblk._device.recovery
from aioblk._device.recovery import Again
from aioblk._libblkio.handle import Blkio
from aioblk._libblkio.limits import Limits

from ..support.devices import BLOCK, pattern
from ..support.fake_backend import WRITE, FakeBackend

MIB = 1 << 20
LONG = 5 * MIB + BLOCK  # several pieces, the last of them short


@pytest.fixture
async def in_memory() -> AsyncIterator[aioblk.Device]:
    """A file of tmpfs, which can punch holes, and cannot zero a range without them."""
    fd = os.memfd_create("disk")
    try:
        async with aioblk.IoUring(fd=fd, num_queues=2) as device:
            yield device
    finally:
        os.close(fd)


def change_limits(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Of devices that are opened from now on."""

    def read(handle: Blkio) -> Limits:
        return replace(Limits.read(handle), **changes)

    monkeypatch.setattr(aioblk._device.connection, "Limits", type("_", (), {"read": staticmethod(read)}))


@pytest.fixture
async def behind_regions(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[aioblk.Device]:
    """The same as a device that reaches registered memory only: what is written there bounces."""
    change_limits(monkeypatch, needs_mem_regions=True, max_mem_regions=100)
    fd = os.memfd_create("disk")
    try:
        async with aioblk.IoUring(fd=fd, bounce_pool_size=1 << 20) as device:
            yield device
    finally:
        os.close(fd)


# --- files grow ---------------------------------------------------------------------------------------------

FLAGS = {
    "plain": {},
    "durable": {"fua": True},
    "no_unmap": {"no_unmap": True},
    "no_fallback": {"no_fallback": True},
}


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
async def test_zeroes_past_the_end_grow_a_file(tmp_path: Path, flags: dict[str, bool], direct: bool) -> None:
    path = tmp_path / "file"
    path.touch()
    async with aioblk.IoUring(path, direct=direct) as device:
        await device.write_zeroes(BLOCK, BLOCK, **flags)  # a hole before it
        assert device.capacity == 2 * BLOCK
        await device.write(2 * BLOCK, pattern(BLOCK))
        await device.write_zeroes(2 * BLOCK, 3 * BLOCK, **flags)  # across the end
        assert device.capacity == 5 * BLOCK
        assert await device.read(0, 5 * BLOCK) == bytes(5 * BLOCK)
        await device.write_zeroes(BLOCK, BLOCK, **flags)  # within
        assert device.capacity == 5 * BLOCK
        await device.write_zeroes(7 * BLOCK, 0, **flags)  # nothing
        assert device.capacity == 5 * BLOCK


async def test_zeroes_of_any_length_grow_a_file_exactly_as_far(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    async with aioblk.IoUring(path) as device:
        await device.write_zeroes(999, 502)
        assert device.capacity == 1501
        await device.write_zeroes(1501, 1)
        assert device.capacity == 1502
        assert await device.read(0, 1502) == b"x" * 999 + bytes(503)


async def test_growing_by_zeroes_takes_no_space_but_for_the_last_block(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    async with aioblk.IoUring(path) as device:
        await device.write_zeroes(0, 1 << 40)
        await device.flush()
        assert device.capacity == 1 << 40
    assert os.stat(path).st_blocks * 512 < MIB


async def test_discarding_past_the_end_grows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * BLOCK)
    async with aioblk.IoUring(path) as device:
        await device.discard(0, 4 * BLOCK)
        assert device.capacity == BLOCK
        assert await device.read(0, BLOCK) == bytes(BLOCK)


async def test_a_sparse_image_is_copied_whole(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.touch()
    os.truncate(source, 16 * MIB)
    with source.open("r+b") as file:
        file.seek(MIB)
        file.write(pattern(MIB))
    target.touch()
    async with aioblk.IoUring(source) as old, aioblk.IoUring(target) as new:
        view = aioblk.ByteView(new)
        async for extent in old.extents():
            if extent.kind is aioblk.ExtentKind.HOLE:
                await view.write_zeroes(extent.offset, extent.length)
            else:
                await view.write(extent.offset, await old.read(extent.offset, extent.length))
    assert target.read_bytes() == source.read_bytes()


@pytest.fixture
def taken_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The numbers of descriptors that a lost device gives back are another file's before it returns."""
    kept: list[int] = []
    other = tmp_path / "other"
    other.touch()
    os.truncate(other, 1 << 40)

    def connect_again(*arguments: Any) -> Again:
        kept.extend(os.open(other, os.O_RDWR) for _ in range(32))
        return connect_again_as_ever(*arguments)

    connect_again_as_ever = aioblk._device.recovery.connect_again
    monkeypatch.setattr(aioblk._device.loss, "connect_again", connect_again)
    yield
    for fd in kept:
        os.close(fd)


@pytest.mark.usefixtures("taken_numbers")
async def test_growing_goes_on_after_a_return(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        device.abandon("as an example")
        await device.reconnect()
        end = device.capacity
        await device.write_zeroes(end, BLOCK)
        assert device.capacity == end + BLOCK


@pytest.mark.usefixtures("taken_numbers")
async def test_discarding_goes_on_after_a_return(loop_device: Path) -> None:
    async with aioblk.IoUring(loop_device) as device:
        await device.write(0, pattern(BLOCK), fua=True)
        device.abandon("as an example")
        await device.reconnect()
        await device.discard(0, BLOCK)
        assert await device.read(0, BLOCK) == bytes(BLOCK)


# --- zeroes that are written --------------------------------------------------------------------------------


@pytest.mark.parametrize("fua", [False, True])
async def test_zeroes_are_written_where_the_device_has_none(in_memory: aioblk.Device, fua: bool) -> None:
    for length in (BLOCK, 1, MIB, LONG):
        await in_memory.write(0, b"x" * (length + 2 * BLOCK))
        await in_memory.write_zeroes(BLOCK, length, no_unmap=True, fua=fua)
        expected = b"x" * BLOCK + bytes(length) + b"x" * BLOCK
        assert await in_memory.read(0, len(expected)) == expected
    zeroed = in_memory.statistics().write_zeroes
    assert (zeroed.completed, zeroed.failed, zeroed.bytes) == (4, 0, BLOCK + 1 + MIB + LONG)


async def test_only_who_rules_writing_out_is_refused(in_memory: aioblk.Device) -> None:
    await in_memory.write(0, b"x" * BLOCK)
    with pytest.raises(aioblk.UnsupportedError) as caught:
        await in_memory.write_zeroes(0, BLOCK, no_unmap=True, no_fallback=True)
    assert (caught.value.offset, caught.value.length) == (0, BLOCK)
    assert await in_memory.read(0, BLOCK) == b"x" * BLOCK
    await in_memory.write_zeroes(0, BLOCK, no_fallback=True)  # by punching a hole
    assert await in_memory.read(0, BLOCK) == bytes(BLOCK)


async def test_zeroes_that_are_written_grow_a_file(in_memory: aioblk.Device) -> None:
    await in_memory.write_zeroes(BLOCK, LONG, no_unmap=True)
    assert in_memory.capacity == BLOCK + LONG
    view = aioblk.ByteView(in_memory)
    await view.write_zeroes(7, LONG + 2 * BLOCK, no_unmap=True)
    assert in_memory.capacity == LONG + 2 * BLOCK + 7


async def test_many_at_once(in_memory: aioblk.Device) -> None:
    await in_memory.write(0, b"x" * 64 * BLOCK)
    await asyncio.gather(
        *(in_memory.write_zeroes(place * BLOCK, BLOCK, no_unmap=True) for place in range(0, 64, 2))
    )
    assert await in_memory.read(0, 64 * BLOCK) == (bytes(BLOCK) + b"x" * BLOCK) * 32


async def test_zeroes_are_written_block_by_block_if_need_be(monkeypatch: pytest.MonkeyPatch) -> None:
    change_limits(monkeypatch, request_alignment=512, max_transfer=512)
    fd = os.memfd_create("disk")
    try:
        async with aioblk.IoUring(fd=fd) as device:
            await device.write(0, b"x" * BLOCK)
            parts = device.statistics().parts
            await device.write_zeroes(512, 2048, no_unmap=True)
            assert device.statistics().parts >= parts + 4
            assert await device.read(0, BLOCK) == b"x" * 512 + bytes(2048) + b"x" * (BLOCK - 2560)
    finally:
        os.close(fd)


async def test_writing_zeroes_out_can_be_cancelled(in_memory: aioblk.Device) -> None:
    await in_memory.write(0, b"x" * (64 * MIB))
    zeroing = in_memory.write_zeroes(0, 64 * MIB, no_unmap=True)
    while await in_memory.read(0, 1) != b"\0":  # noqa: ASYNC110 (nobody tells)
        await asyncio.sleep(0)
    zeroing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await zeroing
    async with asyncio.timeout(30):
        while in_memory.statistics().in_flight:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0)
    assert await in_memory.read(64 * MIB - 1, 1) == b"x"


async def test_a_thread_without_a_loop_writes_zeroes_out(in_memory: aioblk.Device) -> None:
    await in_memory.write(0, b"x" * LONG)

    def zero() -> None:
        with in_memory.blocking_queue(1) as queue:
            queue.wait(queue.write_zeroes(0, LONG, no_unmap=True))

    await asyncio.to_thread(zero)
    assert await in_memory.read(0, LONG) == bytes(LONG)


# --- by way of bounce memory --------------------------------------------------------------------------------


async def test_zeroes_are_written_through_bounce_memory(behind_regions: aioblk.Device) -> None:
    device = behind_regions
    await device.write(0, b"x" * (LONG + BLOCK))
    bounced = device.statistics().bounced_bytes
    await device.write_zeroes(0, LONG, no_unmap=True)
    assert await device.read(0, LONG) == bytes(LONG)
    assert await device.read(LONG, BLOCK) == b"x" * BLOCK
    assert device.bounce_pool.statistics().in_use == 0
    assert bounced < device.statistics().bounced_bytes


async def test_a_virtio_device_need_not_offer_zeroes() -> None:
    with FakeBackend(size=4 * MIB, write_zeroes=False) as disk:
        async with aioblk.VirtioBlkVhostUser(disk.socket) as device:
            disk.data[:] = b"x" * len(disk.data)
            await device.write_zeroes(BLOCK, MIB)
            assert disk.data == b"x" * BLOCK + bytes(MIB) + b"x" * (3 * MIB - BLOCK)
            with pytest.raises(aioblk.UnsupportedError):
                await device.write_zeroes(0, BLOCK, no_fallback=True)
            assert {kind for kind, _, _ in disk.carried_out} == {WRITE}


async def test_zeroes_that_the_device_does_not_make_go_on_among_others() -> None:
    with FakeBackend(size=4 * MIB, write_zeroes=False) as disk:
        async with aioblk.VirtioBlkVhostUser(disk.socket, bounce_pool_size=8 * MIB) as device:
            disk.data[:] = b"x" * len(disk.data)
            await device.read(0, 4 * MIB)  # there is bounce memory for all
            await asyncio.gather(
                device.read(0, BLOCK),
                device.read(0, MIB),
                device.write_zeroes(2 * MIB, MIB),
                device.write(MIB, b"y" * MIB),  # too much for the same turn
            )
            assert disk.data == b"x" * MIB + b"y" * MIB + bytes(MIB) + b"x" * MIB


async def test_zeroes_that_nobody_wants_any_more_end_with_the_piece_that_the_device_has() -> None:
    with FakeBackend(size=4 * MIB, write_zeroes=False) as disk:
        async with aioblk.VirtioBlkVhostUser(disk.socket) as device:
            gate = disk.gate(WRITE, 0)
            zeroing = device.write_zeroes(0, 4 * MIB)
            await gate.reached()
            zeroing.cancel()
            gate.open()
            async with asyncio.timeout(30):
                await device.write(4 * MIB - BLOCK, b"x" * BLOCK)  # which waits for what may still land
            first, last = disk.carried_out
            assert first[:2] == (WRITE, 0)
            assert first[2] < 4 * MIB
            assert last == (WRITE, 4 * MIB - BLOCK, BLOCK)


async def test_zeroes_wait_for_bounce_memory_as_others_do(behind_regions: aioblk.Device) -> None:
    device = behind_regions
    await device.write(0, b"x" * (16 * MIB))
    zeroing = [device.write_zeroes(n * MIB, MIB, no_unmap=True) for n in range(16)]
    writing = [device.write(n * MIB, b"y" * MIB) for n in range(16, 24)]
    await asyncio.gather(*zeroing, *writing)
    assert await device.read(0, 16 * MIB) == bytes(16 * MIB)
    assert await device.read(16 * MIB, 8 * MIB) == b"y" * (8 * MIB)
    assert device.bounce_pool.statistics().waits > 0
    assert device.bounce_pool.statistics().in_use == 0


async def test_zeroes_that_wait_for_bounce_memory_can_be_cancelled_or_lost(
    behind_regions: aioblk.Device,
) -> None:
    device = behind_regions
    await device.write(0, b"x" * MIB)
    zeroing = [device.write_zeroes(0, MIB, no_unmap=True) for n in range(16)]
    async with asyncio.timeout(30):
        while not device.bounce_pool.statistics().waiting:  # noqa: ASYNC110
            await asyncio.sleep(0)
    for request in zeroing[::2]:
        request.cancel()
    device.abandon("as an example")
    outcomes = await asyncio.gather(*zeroing, return_exceptions=True)
    lost = [outcome for outcome in outcomes if isinstance(outcome, aioblk.DeviceLostError)]
    assert lost
    kinds = (aioblk.DeviceLostError, asyncio.CancelledError)
    assert all(outcome is None or isinstance(outcome, kinds) for outcome in outcomes)


@pytest.mark.parametrize("meanwhile", ["nothing", "cancelled", "found", "lost"])
async def test_an_order_while_zeroes_seek_bounce_memory(
    behind_regions: aioblk.Device, meanwhile: str
) -> None:
    """It is raised in the loop. Memory is sought again, unless the request is over or has been given some."""
    device = behind_regions
    core: Any = device.queue()._compiled
    memory = ctypes.create_string_buffer(MIB)
    as_ever, sought = core.on_bounce, []

    def seek(request: aioblk.Request[None], need: int) -> None:
        sought.append(need)
        core.on_bounce = as_ever
        if meanwhile == "cancelled":
            request.cancel()
        elif meanwhile == "lost":
            device.abandon("as an example")
        elif meanwhile == "found":
            core.attach_bounce(ctypes.addressof(memory), MIB, 512)
            assert core.admit(request)
        raise KeyboardInterrupt

    def take_turns() -> None:
        for _ in range(1000):
            core.flush()
            select.select([device.queue()._fd], [], [], 0.02)  # unless the flush has taken what it tells of
            core.on_event()

    core.on_bounce = seek
    request = device.write_zeroes(0, BLOCK, no_unmap=True)
    with pytest.raises(KeyboardInterrupt):
        take_turns()
    assert sought == [BLOCK]
    assert request.cancelled() == (meanwhile == "cancelled")
    await asyncio.wait([request])  # type: ignore[type-var]
    if meanwhile == "found":
        core.detach_bounce()
    if meanwhile == "lost":
        assert isinstance(request.exception(), aioblk.DeviceLostError)
    elif meanwhile != "cancelled":
        await request
        assert await device.read(0, 2 * BLOCK) == bytes(2 * BLOCK)
