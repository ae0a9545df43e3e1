"""Another backend in place of one that died: requests in flight are made again, nothing is lost."""

import asyncio
import contextlib
import dataclasses
import errno
import functools
import mmap
import os
import random
import threading
from collections.abc import AsyncIterator, Callable, Sized
from pathlib import Path
from typing import Any

import pytest

import aioblk
from aioblk._device import loss
from aioblk._device.recovery import incompatibility, release_old
from aioblk._memory.handle_calls import HandleCalls
from aioblk.testing.storage_daemon import StorageDaemon

from ..conftest import StorageDaemonFactory
from ..durability.daemon import LoggedDaemon
from ..durability.write_log import FLUSH
from ..support.devices import BLOCK, held, pattern

PATIENCE = 30  # seconds; more than enough
LATENCY = 0.02  # seconds
SIZE = 32 << 10  # bytes, of a disk whose daemon logs what reaches it


@pytest.fixture
def daemon(storage_daemon: StorageDaemonFactory, scratch_file: Path) -> StorageDaemon:
    return storage_daemon(scratch_file, num_queues=2)


@pytest.fixture
async def device(daemon: StorageDaemon) -> AsyncIterator[aioblk.Device]:
    """Comes back; its bounce pool exists already."""
    async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=2, reconnect_for=PATIENCE) as device:
        await device.read(0, BLOCK)
        yield device


async def until_told(told: Sized) -> None:
    async with asyncio.timeout(PATIENCE):
        while not told:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.001)


async def until_reconnecting(device: aioblk.Device) -> None:
    async with asyncio.timeout(PATIENCE):
        while not device.reconnecting:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.001)


async def until_back(device: aioblk.Device, times: int = 1) -> None:
    async with asyncio.timeout(PATIENCE):
        while device.reconnections < times or device.reconnecting:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.001)


# --- by itself ----------------------------------------------------------------------------------------------


async def test_requests_in_flight_outlive_the_backend(device: aioblk.Device, daemon: StorageDaemon) -> None:
    with held(daemon):
        requests: list[aioblk.Request[object]] = [
            device.write(0, pattern(BLOCK)),
            device.read(BLOCK, BLOCK),
            device.write_zeroes(2 * BLOCK, BLOCK),
            device.discard(3 * BLOCK, BLOCK),
            device.flush(),
            device.write_many([(4 * BLOCK, pattern(BLOCK, 2)), (5 * BLOCK, pattern(BLOCK, 3))]),
            device.read_many([(6 * BLOCK, BLOCK), (7 * BLOCK, BLOCK)]),
        ]
        await asyncio.sleep(0)
        daemon.kill()
        await until_reconnecting(device)
        later = device.read(0, BLOCK)
        assert not any(request.done() for request in [*requests, later])
    daemon.restart()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*requests)
    assert len(await later) == BLOCK
    assert await device.read(0, BLOCK) == pattern(BLOCK)
    assert await device.read(4 * BLOCK, 2 * BLOCK) == pattern(BLOCK, 2) + pattern(BLOCK, 3)
    assert device.lost is None
    assert device.reconnections == 1


async def test_everything_that_was_acknowledged_is_there(
    device: aioblk.Device, daemon: StorageDaemon, scratch_file: Path
) -> None:
    """500 clients, zero-copy, bounced and split, while the backend is killed and restarted twice."""
    size, slots, large = 2 * BLOCK, 480, 1 << 20
    written: dict[int, int] = {}
    wrong: list[int] = []
    go_on = True

    async def client(slot: int, region: aioblk.MemoryRegion) -> None:
        rng = random.Random(slot)
        offset, seed = slot * size, 0
        view = region[offset : offset + size]
        while go_on:
            seed += 1
            if rng.random() < 0.5:
                view[:] = pattern(size, slot * 1000 + seed)
                await device.write(offset, view)
            else:
                await device.write(offset, pattern(size, slot * 1000 + seed))
            written[slot] = slot * 1000 + seed
            data = await device.read(offset, size)
            if data != pattern(size, written[slot]):
                wrong.append(slot)
            await asyncio.sleep(0)

    async def large_client() -> None:
        seed = 0
        while go_on:
            seed += 1
            data = [pattern(large, 7 * seed + part) for part in range(2)]
            await device.writev(slots * size, data)
            if await device.read(slots * size, 2 * large) != b"".join(data):
                wrong.append(-1)

    async with asyncio.timeout(2 * PATIENCE), device.allocate(slots * size) as region:
        clients = [asyncio.create_task(client(slot, region)) for slot in range(slots)]
        clients.append(asyncio.create_task(large_client()))
        for times in (1, 2):
            while device.statistics().in_flight < slots // 2:  # noqa: ASYNC110 (there is no event)
                await asyncio.sleep(0.001)
            daemon.kill()
            await until_reconnecting(device)
            await asyncio.to_thread(daemon.restart)
            await until_back(device, times)
        go_on = False
        await asyncio.gather(*clients)
    assert wrong == []
    with scratch_file.open("rb") as file:
        for slot, seed in written.items():
            file.seek(slot * size)
            assert file.read(size) == pattern(size, seed)


@pytest.mark.parametrize(
    "change",
    [
        lambda device: device.write(BLOCK, pattern(BLOCK)),
        lambda device: device.write_zeroes(BLOCK, BLOCK),
        lambda device: device.discard(BLOCK, BLOCK),
        lambda device: device.write_many([(BLOCK, pattern(BLOCK)), (4 * BLOCK, pattern(BLOCK))]),
    ],
    ids=["write", "write_zeroes", "discard", "write_many"],
)
async def test_a_flush_covers_what_the_former_backend_had_acknowledged(
    tmp_path: Path, change: Callable[[aioblk.Device], "aioblk.Request[object]"]
) -> None:
    """QEMU passes no flush on before the new process has itself written something."""
    with LoggedDaemon(tmp_path, SIZE) as daemon:
        async with aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=PATIENCE) as device:
            await device.write(0, pattern(SIZE, 2), fua=True)
            await change(device)
            before = await device.read(0, SIZE)
            daemon.restart()
            await device.flush()
            assert await device.read(0, SIZE) == before
        second = [entry for (life, _), entry in daemon.logged() if life == 2]
    assert [entry.flags for entry in second] == [0, FLUSH]
    assert second[0].count == 1


@pytest.mark.parametrize("fua", [False, True])
async def test_what_is_durable_is_not_written_again(tmp_path: Path, fua: bool) -> None:
    with LoggedDaemon(tmp_path, SIZE) as daemon:
        async with aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=PATIENCE) as device:
            await device.write(0, pattern(BLOCK), fua=fua)
            if not fua:
                await device.flush()
            daemon.restart()
            assert await device.read(0, BLOCK) == pattern(BLOCK)
        assert {life for (life, _), _ in daemon.logged()} == {1}


async def test_a_backend_that_cannot_make_flushes_cover_it_is_none(
    tmp_path: Path,
) -> None:
    with LoggedDaemon(tmp_path, SIZE) as daemon:
        async with aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=1.0) as device:
            await device.write(0, pattern(BLOCK))
            rule = {"event": "pwritev", "iotype": "write", "errno": errno.EIO}
            daemon.next_node = lambda node: {"driver": "blkdebug", "image": node, "inject-error": [rule]}
            daemon.restart()
            with pytest.raises(aioblk.DeviceLostError, match="Input/output error"):
                await device.flush()


async def test_a_flush_covers_what_was_done_when_it_began(slow_device: aioblk.Device) -> None:
    core = slow_device._life.session.core  # type: ignore[union-attr]
    assert core.unflushed is None
    written, flushed = slow_device.write(2 * BLOCK, bytes(BLOCK)), slow_device.flush()
    await asyncio.gather(written, flushed)
    assert core.unflushed == 2 * BLOCK
    await slow_device.flush()
    assert core.unflushed is None
    await slow_device.write(BLOCK, bytes(BLOCK), fua=True)
    await slow_device.write_zeroes(BLOCK, BLOCK, fua=True)
    assert core.unflushed is None


async def test_requests_are_made_again_in_the_order_of_their_submission(
    device: aioblk.Device, daemon: StorageDaemon
) -> None:
    with held(daemon):
        requests = [device.write(0, pattern(BLOCK, number)) for number in range(400)]
        await asyncio.sleep(0)
        daemon.kill()
        await until_reconnecting(device)
        requests += [device.write(0, pattern(BLOCK, number)) for number in range(400, 420)]
    finished: list[int] = []

    def finish(number: int, _request: object) -> None:
        finished.append(number)

    for number, request in enumerate(requests):
        request.add_done_callback(functools.partial(finish, number))
    daemon.restart()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*requests)
    # The device may finish them in any order within what it has at a time, but it was given them in ours.
    depth = 256
    assert all(number > at - depth for at, number in enumerate(finished))
    assert all(number < at + depth for at, number in enumerate(finished))


async def test_cancelled_requests_end_when_the_backend_is_dead(
    device: aioblk.Device, daemon: StorageDaemon
) -> None:
    async with device.allocate(BLOCK) as region:
        with held(daemon):
            private = device.read(0, BLOCK)
            own = device.read_into(0, region)
            batch = device.read_into_many([(0, region)])
            waiting = [device.read(0, BLOCK) for _ in range(300)]
            await asyncio.sleep(0)
            private.cancel()
            own.cancel()
            batch.cancel()
            assert private.cancelled()
            assert not own.done()
            daemon.kill()
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait([own, batch])  # type: ignore[type-var]
            assert own.cancelled()
            assert batch.cancelled()
            waiting[-1].cancel()
            later = device.read_into(0, region)
            await asyncio.sleep(0)
            later.cancel()  # it has reached no device
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait([later])  # type: ignore[type-var]
        daemon.restart()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*waiting[:-1])
        await device.read_into(0, region)
    assert device.statistics().in_flight == 0


async def test_regions_and_arenas_are_mapped_again(device: aioblk.Device, daemon: StorageDaemon) -> None:
    async with (
        device.allocate(4 * BLOCK) as region,
        device.allocate(BLOCK) as left,
        aioblk.Arena(block_size=1 << 20) as arena,
    ):
        await arena.attach(device)
        await arena.add_block()
        block = arena.allocate(BLOCK)
        block[:] = pattern(BLOCK, 5)
        daemon.kill()
        await until_reconnecting(device)
        leaving = asyncio.create_task(left.aclose())
        entering = asyncio.create_task(device.allocate(BLOCK).__aenter__())
        await asyncio.sleep(0)
        daemon.restart()
        async with asyncio.timeout(PATIENCE):
            await leaving
            new = await entering
        before = device.statistics().bounced_bytes
        await device.write(0, block)
        await device.read_into(0, region[BLOCK : 2 * BLOCK])
        await device.read_into(0, new)
        assert device.statistics().bounced_bytes == before
        assert region[BLOCK : 2 * BLOCK] == new.tobytes() == pattern(BLOCK, 5)
        await new.aclose()


async def test_the_bounce_pool_grows_while_nobody_is_there(
    storage_daemon: StorageDaemonFactory, scratch_file: Path
) -> None:
    daemon = storage_daemon(scratch_file)
    async with aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=PATIENCE) as device:
        daemon.kill()
        requests = [device.write(0, pattern(1 << 20)) for _ in range(8)]  # no loop has turned: nobody knows
        await until_reconnecting(device)
        requests += [device.write(0, pattern(1 << 20)) for _ in range(8)]
        daemon.restart()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*requests)
        assert await device.read(0, 1 << 20) == pattern(1 << 20)


async def test_queues_of_other_loops_come_back_too(device: aioblk.Device, daemon: StorageDaemon) -> None:
    bound, killed = threading.Event(), threading.Event()

    async def elsewhere() -> bytes:
        async with device.queue(1) as queue:
            await queue.read(0, BLOCK)
            daemon.pause()
            requests = [queue.write(BLOCK * number, pattern(BLOCK, number)) for number in range(100)]
            await asyncio.sleep(0)
            bound.set()
            await asyncio.to_thread(killed.wait)
            await asyncio.gather(*requests)
            return await queue.read(99 * BLOCK, BLOCK)

    other = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(elsewhere())))
    await asyncio.to_thread(bound.wait)
    own = device.read(0, BLOCK)
    await asyncio.sleep(0)
    daemon.kill()
    killed.set()
    await until_reconnecting(device)
    daemon.restart()
    async with asyncio.timeout(PATIENCE):
        assert await other == pattern(BLOCK, 99)
        assert len(await own) == BLOCK


async def test_a_queue_bound_meanwhile_waits(device: aioblk.Device, daemon: StorageDaemon) -> None:
    daemon.kill()
    await until_reconnecting(device)
    async with device.queue(1) as queue:
        request = queue.write(0, pattern(BLOCK))
        daemon.restart()
        async with asyncio.timeout(PATIENCE):
            await request
    assert await device.read(0, BLOCK) == pattern(BLOCK)


async def test_a_queue_closed_meanwhile_stays_closed(device: aioblk.Device, daemon: StorageDaemon) -> None:
    queue = device.queue(1)
    await queue.read(0, BLOCK)
    with held(daemon):
        request = queue.write(0, pattern(BLOCK))
        await asyncio.sleep(0)
        daemon.kill()
    await until_reconnecting(device)
    closing = asyncio.create_task(queue.aclose())
    await asyncio.sleep(0)
    with pytest.raises(aioblk.DeviceClosedError):
        queue.read(0, BLOCK)
    daemon.restart()
    async with asyncio.timeout(PATIENCE):
        await closing
    assert request.exception() is None
    with pytest.raises(aioblk.DeviceClosedError):
        queue.read(0, BLOCK)
    assert await device.read(0, BLOCK) == pattern(BLOCK)


async def test_parts_that_were_done_are_not_made_again(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(latency_ns=int(0.1e9))
    async with aioblk.VirtioBlkVhostUser(daemon.socket, queue_size=4, reconnect_for=PATIENCE) as device:
        await device.read(0, BLOCK)
        before = device.statistics().parts
        request = device.read(0, 6 << 20)  # six parts, one after the other
        async with asyncio.timeout(PATIENCE):
            while device.statistics().parts < before + 2:  # noqa: ASYNC110 (there is no event)
                await asyncio.sleep(0.001)
            daemon.kill()
            await until_reconnecting(device)
            daemon.restart()
            assert await request == bytes(6 << 20)
        assert device.statistics().parts == before + 6


async def test_detaching_meanwhile_waits(device: aioblk.Device, daemon: StorageDaemon) -> None:
    with held(daemon):
        request = device.write(0, pattern(BLOCK))
        await asyncio.sleep(0)
        daemon.kill()
    await until_reconnecting(device)
    detaching = asyncio.create_task(device.detach())
    await asyncio.sleep(0)
    daemon.restart()
    async with asyncio.timeout(PATIENCE):
        await detaching
    assert request.exception() is None
    await device.attach()
    assert await device.read(0, BLOCK) == pattern(BLOCK)


async def drop_meanwhile(daemon: StorageDaemon, told: Sized) -> None:
    device = await aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=PATIENCE).open()
    await device.read(0, BLOCK)
    daemon.kill()
    await until_reconnecting(device)
    del device
    daemon.restart()
    await until_told(told)


async def test_a_device_that_is_dropped_meanwhile_comes_back_before_it_ends(daemon: StorageDaemon) -> None:
    with pytest.warns(ResourceWarning, match="unclosed .* open>") as told:
        await drop_meanwhile(daemon, told)  # opened here: its callbacks have the warnings of that context
    async with asyncio.timeout(PATIENCE), aioblk.VirtioBlkVhostUser(daemon.socket):  # the backend is free
        pass


async def test_time_runs_out(daemon: StorageDaemon) -> None:
    async with aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=0.5) as device:
        await device.read(0, BLOCK)
        with held(daemon):
            requests = [device.read(0, BLOCK) for _ in range(300)]
            await asyncio.sleep(0)
            daemon.kill()
            async with asyncio.timeout(PATIENCE):
                results = await asyncio.gather(*requests, return_exceptions=True)
    assert {type(result) for result in results} == {aioblk.DeviceLostError}
    assert "0.5 seconds (reconnect_for)" in str(device.lost)
    assert "connect" in str(device.lost)


async def test_a_backend_that_hangs_up_and_lives_is_not_trusted(daemon: StorageDaemon) -> None:
    async with aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=0.5) as device:
        await device.read(0, BLOCK)
        request = device.read(0, BLOCK)
        daemon.qmp("block-export-del", id="export", mode="hard")
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([request])  # type: ignore[type-var]
            while device.lost is None:  # noqa: ASYNC110 (there is no event)
                await asyncio.sleep(0.01)
        assert f"its process, {daemon.pid}, has not ended" in str(device.lost)


async def test_a_smaller_device_is_another_one(
    device: aioblk.Device, daemon: StorageDaemon, scratch_file: Path
) -> None:
    with held(daemon):
        request = device.read(0, BLOCK)
        await asyncio.sleep(0)
        daemon.kill()
    os.truncate(scratch_file, 4 << 20)
    daemon.restart()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(aioblk.DeviceLostError):
            await request
    assert "4194304 bytes now, and had 8388608" in str(device.lost)


async def test_a_smaller_device_is_refused_by_name(daemon: StorageDaemon, scratch_file: Path) -> None:
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        daemon.kill()
        os.truncate(scratch_file, 4 << 20)
        daemon.restart()
        device.abandon()
        with pytest.raises(aioblk.DeviceLostError, match="4194304 bytes now, and had 8388608") as caught:
            await device.reconnect()
    assert (caught.value.operation, caught.value.filename) == ("reconnect", str(daemon.socket))


async def test_larger_blocks_are_another_device(device: aioblk.Device, daemon: StorageDaemon) -> None:
    daemon.restart(logical_block_size=4096)
    async with asyncio.timeout(PATIENCE):
        while device.lost is None:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.01)
    assert "request-alignment is 4096 now, and was 512" in str(device.lost)


async def test_giving_up_ends_the_search(device: aioblk.Device, daemon: StorageDaemon) -> None:
    with held(daemon):
        request = device.read(0, BLOCK)
        await asyncio.sleep(0)
        daemon.kill()
    await until_reconnecting(device)
    assert repr(device).endswith(" being reconnected>")
    device.abandon("no time for this")
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait([request])  # type: ignore[type-var]
        await device.aclose()
    assert isinstance(request.exception(), aioblk.DeviceLostError)
    assert "no time for this" in str(device.lost)


async def test_closing_meanwhile_waits_for_what_is_in_flight(
    device: aioblk.Device, daemon: StorageDaemon
) -> None:
    with held(daemon):
        request = device.write(0, pattern(BLOCK))
        await asyncio.sleep(0)
        daemon.kill()
    await until_reconnecting(device)
    closing = asyncio.create_task(device.aclose())
    await asyncio.sleep(0)
    daemon.restart()
    async with asyncio.timeout(PATIENCE):
        await closing
    assert request.exception() is None


async def test_closing_meanwhile_with_nothing_in_flight_is_prompt(
    device: aioblk.Device, daemon: StorageDaemon
) -> None:
    daemon.kill()
    await until_reconnecting(device)
    async with asyncio.timeout(PATIENCE / 2):
        await device.aclose()


@pytest.mark.parametrize("operation", ["write_zeroes", "read", "read into a region"])
async def test_closing_meanwhile_ends_with_the_last_request(daemon: StorageDaemon, operation: str) -> None:
    """It is cancelled, so nobody waits for another backend, nor gets one."""
    device = await aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=PATIENCE).open()
    region = None if operation == "write_zeroes" else await device.allocate(BLOCK).__aenter__()
    with held(daemon):
        request: aioblk.Request[Any]
        if region is None:
            request = device.write_zeroes(0, BLOCK)
        elif operation == "read":
            request = device.read(0, BLOCK)
        else:
            request = device.read_into(0, region)
        await asyncio.sleep(0)
        daemon.kill()
    await until_reconnecting(device)
    closing = asyncio.create_task(device.aclose())
    await asyncio.sleep(0)
    request.cancel()
    async with asyncio.timeout(PATIENCE / 2):
        await closing
        daemon.restart()
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as other:
            await other.flush()
    assert not device.reconnecting


async def test_closing_meanwhile_ends_when_time_runs_out(daemon: StorageDaemon) -> None:
    device = await aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=0.5).open()
    with held(daemon):
        request = device.write(0, pattern(BLOCK))
        await asyncio.sleep(0.05)
        daemon.kill()
    await until_reconnecting(device)
    async with asyncio.timeout(PATIENCE):
        await device.aclose()
    assert isinstance(request.exception(), aioblk.BlkioError)


async def test_blocking_queues_prevent_it(device: aioblk.Device, daemon: StorageDaemon) -> None:
    queue = await asyncio.to_thread(device.blocking_queue, 1)
    daemon.kill()
    async with asyncio.timeout(PATIENCE):
        while device.lost is None:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.01)
    assert "blocking queues" in str(device.lost)
    with pytest.raises(aioblk.UsageError, match="close these queues"):
        await device.reconnect()
    await asyncio.to_thread(lambda: None)
    assert queue.in_flight == 0


# --- on request ---------------------------------------------------------------------------------------------


@pytest.fixture
async def plain(daemon: StorageDaemon) -> AsyncIterator[aioblk.Device]:
    """Is lost when its backend dies; its bounce pool exists already."""
    async with aioblk.VirtioBlkVhostUser(daemon.socket, num_queues=2) as device:
        await device.read(0, BLOCK)
        yield device


async def lose(device: aioblk.Device, daemon: StorageDaemon) -> None:
    daemon.kill()
    async with asyncio.timeout(PATIENCE):
        while device.lost is None:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.001)


async def test_a_lost_device_can_be_opened_again_in_place(
    plain: aioblk.Device, daemon: StorageDaemon
) -> None:
    async with plain.allocate(BLOCK) as region, plain.queue(1) as queue:
        region[:] = pattern(BLOCK)
        await lose(plain, daemon)
        with pytest.raises(aioblk.BlkioError):
            await plain.reconnect()
        with pytest.raises(aioblk.DeviceLostError):
            plain.flush()
        daemon.restart()
        await plain.reconnect()
        assert plain.lost is None
        before = plain.statistics().bounced_bytes
        await plain.write(0, region)
        assert plain.statistics().bounced_bytes == before
        assert await queue.read(0, BLOCK) == pattern(BLOCK)
        await lose(plain, daemon)
        daemon.restart()
        await plain.reconnect()
        assert await plain.read(0, BLOCK) == pattern(BLOCK)
        assert plain.reconnections == 2


async def test_queues_of_other_loops_are_opened_again_too(
    plain: aioblk.Device, daemon: StorageDaemon
) -> None:
    bound, back = threading.Event(), threading.Event()

    async def elsewhere() -> bytes:
        async with plain.queue(1) as queue:
            await queue.read(0, BLOCK)
            bound.set()
            await asyncio.to_thread(back.wait)
            await queue.write(0, pattern(BLOCK))
            return await queue.read(0, BLOCK)

    other = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(elsewhere())))
    await asyncio.to_thread(bound.wait)
    await lose(plain, daemon)
    daemon.restart()
    async with asyncio.timeout(PATIENCE):
        await plain.reconnect()
        back.set()
        assert await other == pattern(BLOCK)


@pytest.mark.abandons_memory
async def test_memory_that_the_lost_device_may_write_to_is_not_used_again(
    plain: aioblk.Device, daemon: StorageDaemon
) -> None:
    async with plain.allocate(BLOCK) as region, plain.allocate(BLOCK) as other:
        with held(daemon):
            request = plain.read_into(0, region)
            bounced = plain.read(0, BLOCK)
            await asyncio.sleep(0)
            plain.abandon()
            daemon.kill()
        assert isinstance(request.exception(), aioblk.DeviceLostError)
        assert isinstance(bounced.exception(), aioblk.DeviceLostError)
        daemon.restart()
        await plain.reconnect()
        assert other.mapped
        assert not region.mapped
        await plain.write(0, pattern(BLOCK))
        await plain.read_into(0, region)  # by way of the bounce pool
        assert region == pattern(BLOCK)
    assert region.memory.closed
    assert not region.memory.released


async def test_cancelling_it_while_several_queues_are_told_of_the_loss(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file, num_queues=2) as device, device.queue(1) as other:
        device.abandon()
        returning = asyncio.create_task(device.reconnect())
        await asyncio.sleep(0)
        returning.cancel()
        await asyncio.wait([returning])
        assert returning.cancelled()
        assert device.lost
        await device.reconnect()
        assert await other.read(0, BLOCK) == bytes(BLOCK)


async def test_cancelling_it_leaves_the_device_lost(
    plain: aioblk.Device, daemon: StorageDaemon, storage_daemon: StorageDaemonFactory
) -> None:
    await lose(plain, daemon)
    daemon.restart()
    async with aioblk.VirtioBlkVhostUser(daemon.socket):  # who is served first
        returning = asyncio.create_task(plain.reconnect())
        await asyncio.sleep(0.1)
        with pytest.raises(aioblk.UsageError, match="already"):
            await plain.reconnect()
        returning.cancel()
        await asyncio.wait([returning])
        assert returning.cancelled()
        assert plain.lost is not None
    async with asyncio.timeout(PATIENCE):
        await plain.reconnect()
    assert len(await plain.read(0, BLOCK)) == BLOCK


async def test_a_device_given_up_in_the_turn_in_which_it_comes_back_is_lost(
    plain: aioblk.Device, daemon: StorageDaemon
) -> None:
    loop = asyncio.get_running_loop()

    def give_up() -> None:
        if plain.lost is None:
            plain.abandon("once more")
        elif not returning.done():
            loop.call_soon(give_up)

    plain.abandon()
    returning = asyncio.create_task(plain.reconnect())
    give_up()
    await asyncio.wait([returning])
    assert "once more" in str(plain.lost)
    with pytest.raises(aioblk.DeviceLostError):
        plain.read(0, BLOCK)
    with pytest.raises(aioblk.DeviceLostError):
        plain.queue(1)
    async with asyncio.timeout(PATIENCE), aioblk.VirtioBlkVhostUser(daemon.socket):
        pass  # the backend is free
    await plain.reconnect()
    assert len(await plain.read(0, BLOCK)) == BLOCK


def descriptors_of(file: int) -> int:
    """How many descriptors this process has of the file behind one."""
    wanted = os.fstat(file).st_ino
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            found += os.stat(f"/proc/self/fd/{name}").st_ino == wanted
    return found


@pytest.mark.parametrize("end", ["back", "cancelled", "closed"])
async def test_a_region_left_meanwhile_keeps_its_file_for_as_long_as_a_thread_may_map_it(
    plain: aioblk.Device, daemon: StorageDaemon, end: str
) -> None:
    """Its number would be another file's by then, which the backend would be given."""
    memory = os.memfd_create("region")
    os.ftruncate(memory, BLOCK)
    pages = mmap.mmap(memory, BLOCK)
    region = await plain.register(pages, fd=memory, required=True).__aenter__()
    assert descriptors_of(memory) == 3  # ours, that of the mapping, and that of the region
    plain.abandon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket):  # who is served first
        returning = asyncio.create_task(plain.reconnect())
        async with asyncio.timeout(PATIENCE):
            while plain._session("memory").memory._withdrawal is None:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        async with asyncio.timeout(PATIENCE / 2):
            await region.aclose()
        assert region.memory.closed
        if end == "cancelled":
            returning.cancel()
            await asyncio.wait([returning])
        elif end == "closed":
            async with asyncio.timeout(PATIENCE / 2):
                await plain.aclose()
        assert descriptors_of(memory) == 3  # ours, that of the mapping, and that of the region
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait([returning])
        while descriptors_of(memory) > 2:  # noqa: ASYNC110 (a thread's doing)
            await asyncio.sleep(0.001)
    if end == "closed":
        assert isinstance(returning.exception(), aioblk.DeviceClosedError)
    del region
    pages.close()
    os.close(memory)
    if end == "back":
        assert plain.lost is None
        assert len(await plain.read(0, BLOCK)) == BLOCK


@pytest.mark.parametrize("in_use", [False, pytest.param(True, marks=pytest.mark.abandons_memory)])
async def test_a_region_whose_leaving_has_just_begun_when_the_device_is_told_of_regions_again(
    plain: aioblk.Device, daemon: StorageDaemon, monkeypatch: pytest.MonkeyPatch, in_use: bool
) -> None:
    """Requests that the lost device had are not waited for."""
    region = await plain.allocate(BLOCK).__aenter__()
    leaving: asyncio.Queue[asyncio.Task[None]] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def begin_leaving() -> None:
        leaving.put_nowait(loop.create_task(region.aclose()))

    def release(handle: Any) -> None:
        release_old(handle)
        loop.call_soon_threadsafe(begin_leaving)  # a moment before the thread's return is told

    monkeypatch.setattr(loss, "release_old", release)
    with held(daemon):
        request = plain.read_into(0, region) if in_use else None
        await asyncio.sleep(0)
        plain.abandon()
        daemon.kill()
    assert request is None or isinstance(request.exception(), aioblk.DeviceLostError)
    daemon.restart()
    async with asyncio.timeout(PATIENCE):
        await plain.reconnect()
        await (await leaving.get())
    assert region.memory.closed
    assert len(await plain.read(0, BLOCK)) == BLOCK


async def test_bounce_memory_lasts_for_as_long_as_a_thread_may_map_it(
    plain: aioblk.Device, daemon: StorageDaemon
) -> None:
    region = plain.bounce_pool._region
    assert region is not None
    inode = os.fstat(region.fd).st_ino
    plain.abandon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket):  # who is served first
        returning = asyncio.create_task(plain.reconnect())
        async with asyncio.timeout(PATIENCE):
            while plain._session("memory").memory._withdrawal is None:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            await plain.aclose()
        assert os.fstat(region.fd).st_ino == inode
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(aioblk.DeviceClosedError):
            await returning


async def test_an_attempt_that_was_given_up_spoils_no_later_one(
    plain: aioblk.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread comes to letting go of the lost instance when the device has another one."""
    entered, goes_on, through = threading.Event(), threading.Event(), threading.Event()
    make_here = HandleCalls.make_here

    def late(calls: HandleCalls, function: Callable[[], Any]) -> Any:
        entered.set()
        goes_on.wait(PATIENCE)
        try:
            return make_here(calls, function)
        finally:
            through.set()

    plain.abandon()
    with monkeypatch.context() as patch:
        patch.setattr(HandleCalls, "make_here", late)
        first = asyncio.create_task(plain.reconnect())
        await asyncio.to_thread(entered.wait)
        first.cancel()
        await asyncio.wait([first])
    await plain.reconnect()
    goes_on.set()
    await asyncio.to_thread(through.wait)
    async with asyncio.timeout(PATIENCE):
        assert len(await plain.read(0, BLOCK)) == BLOCK


async def test_closing_ends_it(plain: aioblk.Device, daemon: StorageDaemon) -> None:
    await lose(plain, daemon)
    daemon.restart()
    async with aioblk.VirtioBlkVhostUser(daemon.socket):  # who is served first
        returning = asyncio.create_task(plain.reconnect())
        await asyncio.sleep(0.1)
        async with asyncio.timeout(PATIENCE):
            await plain.aclose()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(aioblk.DeviceClosedError):
            await returning


async def test_it_is_for_lost_devices_with_a_name(plain: aioblk.Device, scratch_file: Path) -> None:
    with pytest.raises(aioblk.UsageError, match="not lost"):
        await plain.reconnect()
    with scratch_file.open("r+b") as file:
        async with aioblk.IoUring(fd=file.fileno()) as device:
            device.abandon()
            with pytest.raises(aioblk.UsageError, match="opened by fd"):
                await device.reconnect()


async def test_files_can_be_opened_again_too(file_device: aioblk.Device) -> None:
    await file_device.write(0, pattern(BLOCK))
    file_device.abandon()
    await file_device.reconnect()
    assert await file_device.read(0, BLOCK) == pattern(BLOCK)


async def test_a_backend_that_was_only_stopped_can_be_found_again(
    plain: aioblk.Device, daemon: StorageDaemon
) -> None:
    with held(daemon):
        request = plain.read(0, BLOCK)
        await asyncio.sleep(0)
        plain.abandon()
        assert isinstance(request.exception(), aioblk.DeviceLostError)
    async with asyncio.timeout(PATIENCE):
        await plain.reconnect()
        assert len(await plain.read(0, BLOCK)) == BLOCK


async def test_a_device_must_accept_what_the_old_one_did(file_device: aioblk.Device) -> None:
    limits = dataclasses.replace(
        file_device.limits, max_transfer=1 << 20, discard_alignment=4096, max_discard_len=0, buf_alignment=512
    )
    assert incompatibility(limits, limits) is None
    wider: dict[str, Any] = {
        "max_transfer": 0,
        "max_segments": limits.max_segments + 1,
        "discard_alignment": 0,
        "buf_alignment": 1,
        "flush_needed": False,
        "optimal_io_size": 1 << 20,
    }
    for name, value in wider.items():
        assert incompatibility(limits, dataclasses.replace(limits, **{name: value})) is None
    tighter: dict[str, Any] = {
        "max_transfer": 1 << 19,
        "max_segments": 1,
        "max_discard_len": 1 << 30,
        "discard_alignment": 8192,
        "buf_alignment": 4096,
        "discard_alignment_offset": 512,
        "needs_mem_regions": True,
        "can_grow": False,
    }
    for name, value in tighter.items():
        problem = incompatibility(limits, dataclasses.replace(limits, **{name: value}))
        assert problem is not None
        assert name.replace("_", "-") in problem
    safe = dataclasses.replace(limits, flush_needed=False)
    assert incompatibility(safe, dataclasses.replace(limits, flush_needed=True)) == "flush-needed is true now"


async def test_a_backend_that_cannot_be_seen_cannot_be_replaced(
    daemon: StorageDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(pid: int) -> int:
        raise ProcessLookupError(pid)

    monkeypatch.setattr(os, "pidfd_open", fail)
    with pytest.raises(aioblk.UnsupportedError, match="cannot be seen"):
        await aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=1).open()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        await device.read(0, BLOCK)


def test_impossible_times_are_refused() -> None:
    for wrong in (0, -1, float("inf"), "soon"):
        with pytest.raises(aioblk.OptionError, match="reconnect_for"):
            aioblk.VirtioBlkVhostUser("blk.sock", reconnect_for=wrong)  # type: ignore[arg-type]
    aioblk.open("virtio-blk-vhost-user", path="blk.sock", reconnect_for="30")
    with pytest.raises(aioblk.OptionError, match="no property"):
        aioblk.open("io_uring", path="disk.img", reconnect_for=30)
