"""The memory of requests and their parts: found, refused, told of, given back."""

import asyncio
import ctypes
import gc
from typing import Any

import pytest

import aioblk
from aioblk._native._core import Memory, View

from ..support.bench import BLOCK, Bench


def test_memory_that_is_not_there_is_told_of_when_it_is_asked_for(bench: Bench) -> None:
    """The hook that finds bounce memory may be missing, and may fail."""
    other = Bench(needs_regions=True)
    loop: Any = other.loop
    asyncio._set_running_loop(loop)
    request = other.submitter.read(0, BLOCK)
    other.loop.run()
    with pytest.raises(RuntimeError, match="no bounce pool"):
        request.result()

    def refuse(*_: object) -> None:
        raise OSError("no room")

    other.core.on_bounce = refuse
    request = other.submitter.read(0, BLOCK)
    other.loop.run()
    with pytest.raises(OSError, match="no room"):
        request.result()

    def end(request: aioblk.Request[Any], _need: int) -> None:
        request.cancel()
        raise OSError("no room")

    other.core.on_bounce = end
    assert other.submitter.read(0, BLOCK).cancelled()
    other.end()
    asyncio._set_running_loop(loop)


def test_memory_that_was_found_before_its_hook_failed_is_used() -> None:
    bench = Bench(needs_regions=True)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    core: Any = bench.core

    def find(request: aioblk.Request[Any], need: int) -> None:
        core.attach_bounce(1 << 20, need, BLOCK)
        assert core.admit(request)
        raise OSError("too late")

    core.on_bounce = find
    request = bench.submitter.read(0, BLOCK)
    assert not request.done()
    assert core.bounce_in_use == BLOCK
    core.abandon(OSError("lost"))
    assert request.exception() is not None
    core.abandon_bounce()
    bench.end()
    asyncio._set_running_loop(None)


def test_regions_whose_end_could_not_be_told() -> None:
    """It is told in a later turn, of each once more."""
    bench = Bench(needs_regions=True)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    device: Any = bench.device
    buffers = [bytearray(BLOCK) for _ in range(3)]
    addresses = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in buffers]
    told: list[int] = []
    refusals = [MemoryError(), MemoryError(), MemoryError(), MemoryError()]

    def tell(address: int) -> None:
        if refusals:
            raise refusals.pop()
        told.append(address)
        device.remove_region(address)

    device.on_region_idle = tell
    requests = []
    for other in (4096, 2**60):  # which nobody uses, and nobody gives back
        device.add_region(other, BLOCK)
    for buffer, address in zip(buffers, addresses, strict=True):
        device.add_region(address, BLOCK)
        requests.append(bench.submitter.read_into(0, buffer))
        assert device.retire_region(address) == 1
    bench.core.abandon(OSError("lost"))
    for _ in range(6):
        bench.core.flush()
    assert sorted(told) == sorted(addresses)
    assert device.region_count == 2
    for request in requests:
        request.exception()
    bench.end()
    asyncio._set_running_loop(None)


def test_a_part_that_was_refused_and_one_that_is_lost() -> None:
    """The first error counts."""
    bench = Bench(needs_regions=True, bounce_cap=BLOCK)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    core: Any = bench.core
    core.on_bounce = None
    request = bench.submitter.read(0, BLOCK)
    core.flush()
    with pytest.raises(RuntimeError, match="no bounce pool"):
        request.result()
    core.attach_bounce(1 << 20, BLOCK, BLOCK)
    core.on_bounce = lambda *_: None
    request = bench.submitter.read(0, 2 * BLOCK)
    core.refuse(request, OSError("no room"))
    assert not request.done()
    core.abandon(OSError("lost"))
    with pytest.raises(OSError, match="no room"):
        request.result()
    core.abandon_bounce()
    core.abandon_bounce()
    bench.end()
    asyncio._set_running_loop(None)


def test_a_part_that_was_refused_and_one_that_nobody_wants_any_more() -> None:
    bench = Bench(needs_regions=True, bounce_cap=BLOCK)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    core: Any = bench.core
    core.attach_bounce(1 << 20, BLOCK, BLOCK)
    core.on_bounce = lambda *_: None
    request = bench.submitter.read(0, 2 * BLOCK)
    core.refuse(request, OSError("no room"))
    request.cancel()
    core.flush()
    assert request.cancelled()
    assert (core.in_flight, core.bounce_in_use) == (0, 0)
    bench.end()
    asyncio._set_running_loop(None)


def test_who_refers_to_memory_of_requests_can_be_asked(bench: Bench) -> None:
    buffers = [bytearray(BLOCK) for _ in range(3)]
    batch = bench.submitter.write_many([(0, buffer) for buffer in buffers])
    several = bench.submitter.readv(0, buffers)
    for buffer in buffers:
        referrers = gc.get_referrers(buffer)
        assert any(each is batch for each in referrers)
        assert any(each is several for each in referrers)


def test_pairs_may_be_in_a_tuple(bench: Bench) -> None:
    batch = bench.submitter.read_many(((0, BLOCK), (BLOCK, BLOCK)))
    assert repr(batch) == "<Request batch of read, items=2 pending>"
    batch.cancel()


def test_lengths_beyond_all_memory(bench: Bench) -> None:
    with pytest.raises(MemoryError, match="9223372036854775296 bytes of a read"):
        bench.submitter.read(0, 2**63 - 512)
    views = [View(Memory(4096, 1 << 62)) for _ in range(3)]
    with pytest.raises(OSError, match="refused"):
        bench.submitter.writev(0, views)


def test_a_file_that_tells_no_length_is_zeroed_like_a_disk(bench: Bench) -> None:
    bench.device.file_fd = 2**31 - 1
    request = bench.submitter.write_zeroes(0, 2 * BLOCK)
    assert not request.done()
    bench.core.abandon(OSError("lost"))
    assert isinstance(request.exception(), OSError)


def test_bounce_memory_that_holds_no_block() -> None:
    bench = Bench(needs_regions=True, bounce_cap=BLOCK // 2)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    with pytest.raises(OSError, match="refused"):
        bench.submitter.read(0, BLOCK)
    bench.end()
    asyncio._set_running_loop(None)


def test_an_order_while_memory_is_sought() -> None:
    bench = Bench(needs_regions=True)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)

    def arrive(*_: object) -> None:
        raise KeyboardInterrupt

    bench.core.on_bounce = arrive
    with pytest.raises(KeyboardInterrupt):
        bench.submitter.read(0, BLOCK)
    bench.core.flush()
    assert bench.core.in_flight == 0
    bench.end()
    asyncio._set_running_loop(None)


@pytest.mark.parametrize("lost", [False, True])
def test_an_order_while_memory_is_sought_for_what_was_held(lost: bool) -> None:
    bench = Bench(suspended=False, needs_regions=True, discard_method=2)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    core: Any = bench.core
    core.on_discard = lambda *_: None
    discard = bench.submitter.discard(0, BLOCK)
    discard.cancel()
    read = bench.submitter.read(0, BLOCK)

    def arrive(*_: object) -> None:
        if lost:
            core.abandon(OSError("lost"))
        raise KeyboardInterrupt

    core.on_bounce = arrive
    core.suspend()
    core.complete(discard, 0, None)
    with pytest.raises(KeyboardInterrupt):
        core.flush()
    assert isinstance(read.exception(), OSError)
    bench.end()
    asyncio._set_running_loop(None)
