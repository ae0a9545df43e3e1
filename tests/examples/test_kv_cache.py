"""The cache of pages: a test for each complaint that there is about others, what it promises, and a model."""

import asyncio
import errno
import mmap
import os
import random
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kv_cache import CacheFullError, DamagedPageError, KvCache

import aioblk
from aioblk.testing import Fault, Faulty, MemoryDevice

from ..conftest import StorageDaemonFactory
from ..support.devices import LATENCY, pattern
from ..support.nbd_server import EXAMPLES

KIB = 1 << 10
PAGE = 64 * KIB
BLOCK = 512
TIME_LIMIT = 60


def memory(length: int) -> memoryview:
    """Aligned, as the memory of engines is."""
    return memoryview(mmap.mmap(-1, max(length, 1)))[:length]


async def until(happened: Callable[[], object]) -> None:
    while not happened():  # noqa: ASYNC110 (there is no event of it)
        await asyncio.sleep(0)


def key(number: int) -> bytes:
    return number.to_bytes(8)


def in_memory(pages: int, *faults: Fault) -> Faulty[MemoryDevice]:
    return Faulty(MemoryDevice(pages * PAGE, limits=aioblk.Limits(request_alignment=BLOCK)), *faults)


@asynccontextmanager
async def direct_disk(path: Path, pages: int = 16) -> AsyncGenerator[aioblk.Device]:
    async with aioblk.IoUring(path, create=pages * PAGE, direct=True) as device:
        yield device


@pytest.fixture
def disk(tmp_path: Path) -> Callable[..., Any]:
    return lambda name="disk", pages=16: direct_disk(tmp_path / name, pages)


# --- what users of such engines have reported of others -----------------------------------------------------


async def test_an_unaligned_page_spoils_no_batch(disk: Callable[..., Any]) -> None:
    lengths = [PAGE, PAGE, 40_001, PAGE, PAGE]
    async with disk() as device:
        cache = KvCache([device], page_size=PAGE)
        pages = [(key(n), memory(length)) for n, length in enumerate(lengths)]
        for number, (_, content) in enumerate(pages):
            content[:] = pattern(len(content), number + 1)
        assert await cache.store(pages) == lengths
        wanted = [(key(n), memory(PAGE)) for n in range(len(lengths))]
        before = device.statistics()
        loading = asyncio.ensure_future(cache.load(wanted))
        await until(lambda: device.statistics().submitted > before.submitted)
        began = device.statistics().submitted  # all of them, in one turn
        assert await loading == lengths
        after = device.statistics()
        assert began == after.submitted
        assert [bytes(buffer[:length]) for (_, buffer), length in zip(wanted, lengths, strict=True)] == [
            bytes(content) for _, content in pages
        ]
        assert after.bounced_bytes - before.bounced_bytes == BLOCK


@pytest.mark.parametrize("length", [PAGE - 1, PAGE - BLOCK + 1, 50_000])
async def test_the_tail_of_a_page_is_copied_alone(disk: Callable[..., Any], length: int) -> None:
    async with disk() as device:
        cache = KvCache([device], page_size=PAGE)
        content = memory(length)
        content[:] = pattern(length)
        assert await cache.store([(b"tail", content)]) == [length]
        assert device.statistics().bounced_bytes <= 2 * BLOCK  # the block is read before it is written
        before = device.statistics().bounced_bytes
        into = memory(length)
        assert await cache.load([(b"tail", into)]) == [length]
        assert device.statistics().bounced_bytes - before == BLOCK
        assert into == content


async def test_one_bad_page_is_one_outcome() -> None:
    device = in_memory(16)
    cache = KvCache([device], page_size=PAGE)
    pages = [(key(n), pattern(PAGE, n + 1)) for n in range(8)]
    await cache.store(pages)
    device.add(Fault(operations={"read"}, offset=3 * PAGE, length=1, error=errno.EIO, times=1))
    wanted = [(key(n), bytearray(PAGE)) for n in range(8)]
    outcomes = await cache.load(wanted)
    bad = outcomes.pop(3)
    assert isinstance(bad, OSError)
    assert bad.errno == errno.EIO
    assert outcomes == [PAGE] * 7
    assert await cache.load(wanted) == [PAGE] * 3 + [None] + [PAGE] * 4  # it is to be computed anew
    assert await cache.store([pages[3]]) == [PAGE]


@pytest.mark.parametrize(
    ("buffer", "error"),
    [(bytes(PAGE), ValueError), (bytearray(10), ValueError), ("text", TypeError), (None, TypeError)],
)
async def test_a_buffer_that_will_not_do_is_one_outcome(buffer: Any, error: type[Exception]) -> None:
    cache = KvCache([in_memory(4)], page_size=PAGE)
    await cache.store([(b"one", pattern(PAGE)), (b"two", pattern(PAGE))])
    first, second = await cache.load([(b"one", buffer), (b"two", bytearray(PAGE))])
    assert isinstance(first, error)
    assert second == PAGE


@pytest.mark.parametrize("page", [b"", bytes(PAGE + 1), "text"])
async def test_a_page_that_cannot_be_is_one_outcome(page: Any) -> None:
    cache = KvCache([in_memory(4)], page_size=PAGE)
    first, second = await cache.store([(b"one", page), (b"two", pattern(PAGE))])
    assert isinstance(first, (ValueError, TypeError))
    assert second == PAGE
    assert b"one" not in cache


async def test_a_backend_that_is_gone_leaves_the_other_disks_pages(
    storage_daemon: StorageDaemonFactory, disk: Callable[..., Any]
) -> None:
    daemon = storage_daemon(latency_ns=int(LATENCY * 1e9))
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as gone, disk() as there:
        cache = KvCache([gone, there], page_size=PAGE)
        await cache.store([(key(n), pattern(PAGE, n + 1)) for n in range(8)])
        wanted = [(key(n), bytearray(PAGE)) for n in range(8)]
        loading = asyncio.ensure_future(cache.load(wanted))
        await until(lambda: gone.statistics().in_flight)
        daemon.kill()
        for outcomes in (await loading, await cache.load(wanted[1::2])):
            assert sum(outcome == PAGE for outcome in outcomes) == 4
        (refused,) = await cache.store([(key(8), pattern(PAGE))])
        assert isinstance(refused, aioblk.DeviceLostError)


async def test_all_memory_is_registered_in_one_piece_and_used_where_it_lies(
    storage_daemon: StorageDaemonFactory,
) -> None:
    """Also beyond a gigabyte, and from views of it at any place."""
    daemon = storage_daemon()
    fd = os.memfd_create("kv")
    size = (3 << 30) + PAGE
    os.truncate(fd, size)
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        with mmap.mmap(fd, size) as engine:
            async with device.register(engine, fd=fd, required=True) as region:
                assert region.zero_copy
                assert len(region) == size
                cache = KvCache([device], page_size=PAGE)
                with memoryview(engine) as view:
                    places = [0, (1 << 30) - 100, (2 << 30) + 7, 3 << 30]
                    pages = [(key(n), view[at : at + PAGE]) for n, at in enumerate(places)]
                    assert await cache.store(pages) == [PAGE] * 4
                    assert await cache.load(pages) == [PAGE] * 4
                    while pages:
                        pages.pop()[1].release()
        assert device.statistics().bounced_bytes == 0
    os.close(fd)


async def test_memory_that_is_being_filled_stays(storage_daemon: StorageDaemonFactory) -> None:
    """It can be neither resized nor given back, whatever becomes of who waits."""
    daemon = storage_daemon(latency_ns=int(LATENCY * 1e9))
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device, device.allocate(PAGE) as region:
        cache = KvCache([device], page_size=PAGE)
        await cache.store([(b"page", region)])
        buffer = bytearray(PAGE)
        loading = asyncio.ensure_future(cache.load([(b"page", buffer), (b"page", region)]))
        await until(lambda: device.statistics().in_flight == 2)
        loading.cancel()
        with pytest.raises(BufferError):
            buffer.clear()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert device.statistics().in_flight == 0  # the region is in place: nobody writes to it now
        assert await cache.load([(b"page", region)]) == [PAGE]


async def test_a_batch_is_in_flight_as_a_whole(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(latency_ns=int(LATENCY * 1e9))
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device, device.allocate(32 * PAGE) as region:
        cache = KvCache([device], page_size=PAGE)
        pages = [(key(n), region[n * PAGE : (n + 1) * PAGE]) for n in range(32)]
        await cache.store(pages)
        loading = asyncio.ensure_future(cache.load(pages))
        deepest = 0
        while not loading.done():
            deepest = max(deepest, device.statistics().in_flight)
            await asyncio.sleep(0)
        assert await loading == [PAGE] * 32
        assert deepest == 32


# --- what else it promises ----------------------------------------------------------------------------------


async def test_pages_go_to_all_disks_in_turn() -> None:
    devices = [in_memory(8) for _ in range(3)]
    cache = KvCache(devices, page_size=PAGE)
    await cache.store([(key(n), pattern(PAGE, n + 1)) for n in range(12)])
    assert [device.statistics().bytes_written for device in devices] == [4 * PAGE] * 3


async def test_the_page_that_was_not_used_for_the_longest_time_makes_room() -> None:
    cache = KvCache([in_memory(3)], page_size=PAGE)
    await cache.store([(key(n), pattern(PAGE, n + 1)) for n in range(3)])
    await cache.load([(key(0), bytearray(PAGE))])
    assert await cache.store([(key(3), pattern(PAGE, 4))]) == [PAGE]
    assert [key(n) in cache for n in range(4)] == [True, False, True, True]
    assert (len(cache), cache.counts.evicted) == (3, 1)


async def test_a_page_that_is_being_loaded_is_not_written_over() -> None:
    device = in_memory(1)
    cache = KvCache([device], page_size=PAGE)
    await cache.store([(b"old", pattern(PAGE, 1))])
    gate = device.add(Fault(operations={"read"}, delay=0.01))
    buffer = bytearray(PAGE)
    loading = asyncio.ensure_future(cache.load([(b"old", buffer)]))
    await until(lambda: gate.hits)
    (full,) = await cache.store([(b"new", pattern(PAGE, 2))])
    assert isinstance(full, CacheFullError)
    cache.drop(b"old")
    (full,) = await cache.store([(b"new", pattern(PAGE, 2))])
    assert isinstance(full, CacheFullError)
    assert await loading == [PAGE]
    assert buffer == pattern(PAGE, 1)
    assert await cache.store([(b"new", pattern(PAGE, 2))]) == [PAGE]


async def test_a_page_that_is_stored_twice_is_there_once() -> None:
    device = in_memory(2)
    cache = KvCache([device], page_size=PAGE)
    page = (b"page", pattern(PAGE))
    assert await cache.store([page, page]) == [PAGE, PAGE]
    assert await cache.store([page]) == [PAGE]
    assert len(cache) == 1
    assert await cache.store([(b"other", pattern(PAGE, 2))]) == [PAGE]  # where the second copy was
    assert await cache.load([(b"page", bytearray(PAGE))]) == [PAGE]


async def test_a_slot_that_cannot_be_written_is_not_tried_again() -> None:
    device = in_memory(2, Fault(operations={"write"}, offset=0, length=1, error=errno.EIO))
    cache = KvCache([device], page_size=PAGE)
    first, second = await cache.store([(b"one", pattern(PAGE, 1)), (b"two", pattern(PAGE, 2))])
    assert isinstance(first, OSError)
    assert second == PAGE
    assert await cache.store([(b"three", pattern(PAGE, 3))]) == [PAGE]
    assert b"three" in cache
    assert b"two" not in cache


async def test_what_a_disk_has_changed_is_no_hit() -> None:
    device = in_memory(4)
    cache = KvCache([device], page_size=PAGE, verify=True)
    await cache.store([(key(n), pattern(PAGE, n + 1)) for n in range(2)])
    device.add(Fault(operations={"read"}, offset=0, length=1, corrupt=True))
    first, second = await cache.load([(key(n), bytearray(PAGE)) for n in range(2)])
    assert isinstance(first, DamagedPageError)
    assert second == PAGE
    assert "at 0 of" in str(first)


async def test_a_store_that_is_cancelled_has_stored_nothing_and_lost_no_room(
    storage_daemon: StorageDaemonFactory, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(2 * PAGE))
    async with aioblk.VirtioBlkVhostUser(storage_daemon(disk).socket) as device:
        cache = KvCache([device], page_size=PAGE)
        storing = asyncio.ensure_future(cache.store([(key(n), pattern(PAGE, 1)) for n in range(2)]))
        await until(lambda: device.statistics().submitted)
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
        assert len(cache) == 0
        pages = [(key(n), pattern(PAGE, 7 + n)) for n in range(2)]
        assert await cache.store(pages) == [PAGE, PAGE]
        into = [bytearray(PAGE) for _ in pages]
        assert await cache.load([(key(n), into[n]) for n in range(2)]) == [PAGE, PAGE]
        assert into == [content for _, content in pages]  # and not what was cancelled, late


@pytest.mark.parametrize("size", [0, PAGE - BLOCK, PAGE + 1, (1 << 20) + BLOCK])
async def test_sizes_of_pages_that_cannot_be(size: int) -> None:
    with pytest.raises(
        ValueError, match=f"page_size is {size}; it must be from 65536 to 1048576, and a mult"
    ):
        KvCache([in_memory(64)], page_size=size)


async def test_a_device_smaller_than_a_page() -> None:
    with pytest.raises(ValueError, match="no room for a page of 65536 bytes on any device"):
        KvCache([MemoryDevice(PAGE - 1)], page_size=PAGE)


# --- a model ------------------------------------------------------------------------------------------------


@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32))
async def test_a_hit_is_what_was_stored_under_its_key(seed: int) -> None:
    """Whatever else is loaded, stored, dropped and cancelled beside it, and whichever requests fail."""
    chance = random.Random(seed)
    slow = lambda chance: chance.choice([0, 0, 1e-4])  # noqa: E731
    devices = [
        Faulty(
            MemoryDevice(4 * PAGE, limits=aioblk.Limits(request_alignment=BLOCK)),
            Fault(probability=0.03, error=errno.EIO),
            Fault(probability=0.5, delay=slow),
            seed=seed + number,
        )
        for number in range(2)
    ]
    cache = KvCache(devices, page_size=PAGE)

    def content(name: bytes) -> bytes:
        return pattern(1 + (name[-1] * 7919) % PAGE, name[-1] + 1)

    async def client() -> None:
        for _ in range(8):
            names = [key(chance.randrange(14)) for _ in range(chance.randint(1, 4))]
            what = chance.random()
            if what < 0.1:
                cache.drop(names[0])
                continue
            if what < 0.5:
                work: Any = cache.store([(name, content(name)) for name in names])
                buffers = None
            else:
                buffers = [bytearray(PAGE) for _ in names]
                work = cache.load(list(zip(names, buffers, strict=True)))
            task = asyncio.ensure_future(work)
            if chance.random() < 0.2:
                for _ in range(chance.randint(0, 4)):
                    await asyncio.sleep(0)
                task.cancel()
            try:
                outcomes = await task
            except asyncio.CancelledError:
                continue
            for name, outcome, buffer in zip(names, outcomes, buffers or names, strict=True):
                if buffers is not None and isinstance(outcome, int):
                    assert bytes(buffer[:outcome]) == content(name)
                if isinstance(outcome, BaseException):
                    assert isinstance(outcome, (OSError, CacheFullError))

    async with asyncio.timeout(TIME_LIMIT):
        await asyncio.gather(*(client() for _ in range(6)))
    for device in devices:
        await device.aclose()


def test_the_program_says_how_fast_it_is(tmp_path: Path) -> None:
    program = [sys.executable, str(EXAMPLES / "kv_cache.py")]
    done = subprocess.run(
        [*program, "--pages", "40", "--batch", "8"],
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=True,
    )
    assert "pages were there, 0 were not" in done.stdout
    assert done.stderr == ""
    refused = subprocess.run(
        [*program, "--page-size", "5"], capture_output=True, text=True, timeout=TIME_LIMIT, check=False
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("kv_cache: page_size is 5; it must be from")
