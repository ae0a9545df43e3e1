"""The load of ``aioblk bench``: what is done in which order, what is written, and what is found again."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import Buffer

import aioblk
from aioblk.cli._load.job import Clocked, Signals, Verified, buffers_of, run_job
from aioblk.cli._load.order import CHUNK, FEW, Order
from aioblk.cli._load.pattern import MAGIC, Pattern, is_ours, stamp
from aioblk.cli._load.plan import KINDS, Plan
from aioblk.cli._load.search import Search
from aioblk.testing import Fault, Faulty, MemoryDevice

BLOCK = 4096
SIZE = 1 << 20


def plan(kind: str = "randread", **others: Any) -> Plan:
    name, random = KINDS[kind]
    return Plan(**{"address": "memory", "kind": name, "random": random, "size": SIZE, "seconds": 1, **others})


async def read(_offset: int, _buffer: object) -> None:
    """Stands for reading."""


async def write(_offset: int, _buffer: object) -> None:
    """Stands for writing."""


async def flush(_offset: int, _buffer: object) -> None:
    """Stands for flushing."""


def order(plan: Plan, job: int = 0) -> Order:
    return Order(plan, job, read, write, flush)


def some(order: Order, count: int = CHUNK * 2 + 10) -> list[tuple[Any, int]]:
    return list(itertools.islice(order.requests, count))


# --- the order of requests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, (FEW + 1) * BLOCK])
def test_random_requests_are_blocks_of_the_range_each_as_likely(size: int) -> None:
    found = some(order(plan(offset=8 * BLOCK, size=size)), 20 * 256)
    offsets = [offset for _, offset in found]
    assert {operation for operation, _ in found} == {read}
    assert all(8 * BLOCK <= offset < 8 * BLOCK + size and offset % BLOCK == 0 for offset in offsets)
    if size == SIZE:
        assert set(offsets) == set(range(8 * BLOCK, 8 * BLOCK + size, BLOCK))
        assert max(Counter(offsets).values()) < 60  # of 20 on average


@pytest.mark.parametrize("size", [3 * BLOCK, SIZE, (CHUNK + 5) * BLOCK])
def test_sequential_requests_go_through_the_range_and_begin_again(size: int) -> None:
    offsets = [offset for _, offset in some(order(plan("read", size=size)))]
    blocks = range(0, size, BLOCK)
    assert offsets == list(itertools.islice(itertools.cycle(blocks), len(offsets)))


def test_sequential_jobs_have_parts_of_their_own_that_cover_the_range() -> None:
    asked = plan("write", jobs=3)
    parts = [{offset for _, offset in some(order(asked, job))} for job in range(3)]
    assert set.union(*parts) == set(range(0, SIZE, BLOCK))
    assert sum(map(len, parts)) == SIZE // BLOCK


@pytest.mark.parametrize("reads", [0, 30, 100])
def test_a_mix_has_so_many_reads(reads: float) -> None:
    found = Counter(operation for operation, _ in some(order(plan("randrw", reads=reads)), 10_000))
    assert abs(found[read] / 100 - reads) < 3
    assert found[read] + found[write] == 10_000


def test_a_flush_comes_after_so_many_writes() -> None:
    operations = [operation for operation, _ in some(order(plan("randrw", fsync=7)))]
    writes = 0
    for operation in operations:
        if operation is flush:
            assert writes == 7
            writes = 0
        writes += operation is write
    assert operations.count(flush) == operations.count(write) // 7


def test_the_same_seed_gives_the_same_order_and_another_job_another() -> None:
    first = some(order(plan(seed=1)))
    assert some(order(plan(seed=1))) == first
    assert some(order(plan(seed=2))) != first
    assert some(order(plan(seed=1), job=1)) != first


@pytest.mark.parametrize("fsync", [0, 3])
def test_an_order_that_is_stopped_gives_nothing_more(fsync: int) -> None:
    stopped = order(plan("randwrite", fsync=fsync))
    some(stopped, 10)
    stopped.stop()
    assert list(stopped.requests) == []


# --- what is written ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [512, 1536, 4096, 65536])
def test_a_block_is_right_where_and_when_it_was_written_and_nowhere_else(size: int) -> None:
    pattern, buffer = Pattern(size, seed=1), memoryview(bytearray(size))
    pattern.fill(buffer, 3 * size, 2)
    assert pattern.check(buffer, 3 * size, 2) is None
    assert "number 2: a write is lost" in (pattern.check(buffer, 3 * size, 3) or "")
    assert f"belongs to offset {3 * size}: a write went" in (pattern.check(buffer, 4 * size, 2) or "")
    assert "there is zeroes" in (pattern.check(bytes(size), 3 * size, 2) or "")
    assert "something else" in (pattern.check(b"x" * size, 3 * size, 2) or "")


@given(at=st.integers(min_value=8, max_value=8191), bit=st.integers(min_value=0, max_value=7))
def test_each_bit_that_flips_is_noticed(at: int, bit: int) -> None:
    pattern, buffer = Pattern(8192, seed=0), memoryview(bytearray(8192))
    pattern.fill(buffer, 0, 1)
    buffer[at] ^= 1 << bit
    assert f"at offset {at // 4096 * 4096}: written 1 times" in (pattern.check(buffer, 0, 1) or "")


def test_a_block_that_is_torn_between_two_writes_is_noticed() -> None:
    pattern = Pattern(8192, seed=0)
    old, new = memoryview(bytearray(8192)), memoryview(bytearray(8192))
    pattern.fill(old, 0, 1)
    pattern.fill(new, 0, 2)
    for cut in (512, 4096, 4608):
        torn = bytes(new[:cut]) + bytes(old[cut:])
        assert pattern.check(torn, 0, 2) is not None


@pytest.mark.parametrize("size", [1, 511, 512, 4096, 10_000])
def test_what_a_benchmark_has_written_is_recognised_as_its_own(size: int) -> None:
    buffer = memoryview(bytearray(size))
    stamp(buffer, 0)
    assert is_ours(bytes(buffer), 0) is None or size < len(MAGIC)
    if size % 512 == 0:
        Pattern(size, 0).fill(buffer, 0, 1)
        assert is_ours(bytes(buffer), 0) is None


def test_what_is_not_its_own_is_found_wherever_it_begins() -> None:
    buffer = memoryview(bytearray(8192))
    stamp(buffer[:4096], 0)
    assert is_ours(bytes(buffer), 0) is None
    buffer[5000] = 1
    assert is_ours(bytes(buffer), 1 << 20) == (1 << 20) + 5000


# --- jobs ---------------------------------------------------------------------------------------------------


class Forgetful(MemoryDevice):
    """Acknowledges each tenth write, and forgets it."""

    count = 0

    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        self.count += 1
        return super().writev(offset, buffers, fua=fua) if self.count % 10 else self.flush()


async def do(asked: Plan, device: aioblk.BlockDevice, turns: int = 200) -> tuple[Verified, Clocked]:
    """Do a job for so many turns of the loop."""
    signals, clocked = Signals(), Clocked(asked.block_size)
    async with buffers_of(asked, device, 1) as [buffers]:
        task = asyncio.create_task(run_job(asked, 0, device, buffers, signals, clocked))
        await asyncio.wrap_future(signals.ready)
        signals.go.set_result(None)
        for _ in range(turns):
            await asyncio.sleep(0)
        signals.stop.set_result(None)
        return await task, clocked


@pytest.mark.parametrize("kind", KINDS)
async def test_a_job_counts_what_the_device_does(kind: str) -> None:
    device = MemoryDevice(SIZE, limits=aioblk.Limits(request_alignment=512))
    _, clocked = await do(plan(kind, depth=4, fsync=5 if "w" in kind else 0), device)
    counted, done = device.statistics().operations, clocked.statistics()
    assert done["read"].completed == counted["read"].completed
    for name in ("write", "discard", "flush"):
        assert done.get(name, aioblk.OperationStatistics()).completed == counted[name].completed
    assert sum(each.completed for each in done.values()) > 50
    assert all(each.latency.count == each.completed for each in done.values())


async def test_what_was_read_is_not_written_elsewhere() -> None:
    device = MemoryDevice(SIZE)
    await device.write(0, b"secret!!" * (SIZE // 8))
    await do(plan("randrw", depth=4), device)
    data = await device.read(0, SIZE)
    blocks = {data[at : at + 8] for at in range(0, SIZE, BLOCK)}
    assert blocks == {b"secret!!", MAGIC}


async def test_a_limit_of_the_rate_is_kept() -> None:
    device = MemoryDevice(SIZE)
    _, clocked = await do(plan("randread", iops=10), device, turns=500)
    assert clocked.statistics()["read"].completed <= 10


async def test_who_waits_for_the_rate_when_it_is_over_waits_no_longer() -> None:
    async with asyncio.timeout(60):  # by the rate, it would be hours
        _, clocked = await do(plan("randread", depth=4, rate=1), MemoryDevice(SIZE))
    assert clocked.statistics()["read"].completed >= 4


@pytest.mark.parametrize("kind", ["write", "randwrite", "rw", "randrw"])
async def test_what_was_written_is_verified(kind: str) -> None:
    verified, clocked = await do(plan(kind, depth=4, verify=True), MemoryDevice(SIZE))
    assert verified.wrong == 0
    assert verified.blocks > 10
    assert clocked.statistics()["write"].completed > 10


@pytest.mark.parametrize("kind", ["write", "randrw"])
async def test_writes_that_were_lost_are_found(kind: str) -> None:
    verified, _ = await do(plan(kind, depth=4, size=64 * BLOCK, verify=True), Forgetful(SIZE))
    assert 0 < verified.wrong < verified.blocks
    assert "written" in verified.faults[0]
    assert len(verified.faults) <= 10


async def test_a_request_that_fails_ends_the_job() -> None:
    device = Faulty(MemoryDevice(SIZE), Fault(operations={"read"}, after=20, error=5))
    with pytest.raises(BaseExceptionGroup) as caught:
        await do(plan(depth=4), device)
    assert caught.group_contains(aioblk.BlkioError)


# --- the search ---------------------------------------------------------------------------------------------


@given(most=st.integers(min_value=1, max_value=5000), fast=st.integers(min_value=0, max_value=6000))
def test_the_search_finds_the_highest_depth_that_is_fast_enough(most: int, fast: int) -> None:
    search, tried = Search(most), []
    while search.next is not None:
        tried.append(search.next)
        search.note(fast_enough=search.next <= fast)
    assert search.best == min(fast, most)
    assert len(tried) == len(set(tried)) <= 26
