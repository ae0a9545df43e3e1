"""Faulty: which requests a rule is for, and what becomes of them."""

import asyncio
import errno
import random
import sys
from types import FrameType
from typing import Any

import pytest

import aioblk
from aioblk.testing import Fault, Faulty, MemoryDevice

BLOCK = 512
SIZE = 1 << 16


def faulty(*faults: Fault, seed: int = 0) -> Faulty:
    return Faulty(MemoryDevice(SIZE, limits=aioblk.Limits(request_alignment=BLOCK)), *faults, seed=seed)


async def fails(device: Faulty, block: int = 0) -> bool:
    [outcome] = await device.read_many([(block * BLOCK, BLOCK)], return_exceptions=True)
    if isinstance(outcome, bytes):
        return False
    assert isinstance(outcome, aioblk.BlkioError)
    assert (outcome.driver, outcome.operation, outcome.offset) == ("faulty", "read", block * BLOCK)
    return True


async def test_which_requests_a_rule_is_for() -> None:
    device = faulty(Fault(operations={"read"}, offset=4 * BLOCK, length=1, error=errno.EIO))
    assert [await fails(device, block) for block in (3, 4, 5)] == [False, True, False]
    with pytest.raises(aioblk.BlkioError):
        await device.read(0, 5 * BLOCK)
    await device.write(4 * BLOCK, bytes(BLOCK))
    await device.flush()
    assert device.faults[0].hits == 2

    device = faulty(Fault(after=2, times=3, error=errno.EIO))
    assert [await fails(device) for _ in range(8)] == [False, False, True, True, True, False, False, False]
    device = faulty(Fault(offset=2 * BLOCK, error=errno.EIO))
    assert [await fails(device, block) for block in (0, 1, 2, 100)] == [False, False, True, True]
    await device.flush()  # a range is no flush's, unless it is named
    device.add(Fault(operations={"flush"}, error=errno.EIO))
    with pytest.raises(aioblk.BlkioError):
        await device.flush()


async def test_chance_comes_of_the_seed() -> None:
    runs = [
        [await fails(device) for _ in range(200)]
        for seed in (1, 1, 2)
        for device in [faulty(Fault(probability=0.3, error=errno.EIO), seed=seed)]
    ]
    assert runs[0] == runs[1] != runs[2]
    assert 30 < sum(runs[0]) < 90


async def test_what_fails_was_executed_or_not() -> None:
    for executed in (False, True):
        device = faulty(Fault(operations={"write"}, error=errno.EIO, executed=executed))
        with pytest.raises(aioblk.BlkioError):
            await device.write(0, b"x" * BLOCK)
        assert (device.device.content()[:1] == b"x") is executed


async def test_an_exception_of_ones_own() -> None:
    device = faulty(Fault(error=aioblk.UnsupportedError("not today")))
    with pytest.raises(aioblk.UnsupportedError, match="not today"):
        await device.discard(0, BLOCK)


async def test_delays_add_up() -> None:
    loop = asyncio.get_running_loop()
    drawn: list[float] = []

    def draw(chance: random.Random) -> float:
        drawn.append(chance.uniform(0.001, 0.002))
        return drawn[-1]

    device = faulty(Fault(delay=0.01), Fault(operations={"write"}, delay=draw))
    before = loop.time()
    await device.write(0, bytes(BLOCK))
    assert loop.time() - before >= 0.01 + drawn[0] - 0.001
    assert device.statistics().in_flight == 0


async def test_corruption_is_one_bit_and_silent() -> None:
    device = faulty(Fault(corrupt=True))
    found = await device.read(0, BLOCK)
    pieces = [bytearray(100), bytearray(BLOCK - 100)]
    await device.readv(0, pieces)
    content = b"\xff" * BLOCK
    await device.write(0, content)
    wrong = device.device.content()[:BLOCK]
    for one, other in ((found, bytes(BLOCK)), (b"".join(pieces), bytes(BLOCK)), (wrong, content)):
        assert sum((left ^ right).bit_count() for left, right in zip(one, other, strict=True)) == 1
    assert await device.read(0, 0) == b""


async def test_loss() -> None:
    device = faulty(Fault(operations={"write"}, delay=60))
    write = asyncio.ensure_future(device.write(0, b"x" * BLOCK))
    await asyncio.sleep(0)
    assert device.statistics().in_flight == 1
    device.lose("the cable was pulled")
    with pytest.raises(aioblk.DeviceLostError, match="the cable was pulled"):
        await write
    with pytest.raises(aioblk.DeviceLostError, match="the cable was pulled"):
        device.read(0, BLOCK)
    assert isinstance(device.lost, aioblk.DeviceLostError)
    await device.reconnect()
    assert device.lost is None
    assert await device.read(0, BLOCK) == bytes(BLOCK)


async def test_no_counter_falls_whatever_becomes_of_what_waits() -> None:
    """One that did would be taken for that of a new process, which has counted all of it anew."""
    device = faulty(Fault(operations={"write"}, delay=60))
    before = device.statistics()

    def look() -> aioblk.QueueStatistics:
        nonlocal before
        now = device.statistics()
        _ = now - before
        before = now
        return now

    writes = [asyncio.ensure_future(device.write(0, bytes(BLOCK))) for _ in range(4)]
    await asyncio.sleep(0)
    assert look().submitted == 4
    for write in writes[:2]:
        write.cancel()
    while not writes[1].done():
        look()
        await asyncio.sleep(0)
    device.lose()
    look()
    await asyncio.wait(writes)
    look()
    await asyncio.sleep(0)
    found = look()
    assert (found.submitted, found.cancelled, found.failed, found.in_flight) == (4, 2, 2, 0)
    assert [type(write.exception()) for write in writes[2:]] == [aioblk.DeviceLostError] * 2


async def test_what_waits_may_be_counted_by_another_thread_meanwhile() -> None:
    device = faulty(Fault(operations={"write"}, delay=60))
    writes = [asyncio.ensure_future(device.write(0, bytes(BLOCK)))]

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_name in ("added_to", "<genexpr>"):  # as the loop may, between any two lines
            writes.append(asyncio.ensure_future(device.write(0, bytes(BLOCK))))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        device.statistics()
    finally:
        sys.settrace(before)
    assert len(writes) > 3
    device.lose()
    await asyncio.wait(writes)
    for write in writes:
        assert isinstance(write.exception(), aioblk.DeviceLostError)


async def test_a_delayed_request_that_is_cancelled_was_never_made() -> None:
    device = faulty(Fault(operations={"write"}, delay=60))
    write = asyncio.ensure_future(device.write(0, b"x" * BLOCK))
    await asyncio.sleep(0)
    write.cancel()
    await asyncio.wait([write])
    assert write.cancelled()
    assert device.statistics().cancelled == 1
    async with device:
        pass
    assert device.device.content() == bytes(SIZE)


async def test_a_buffer_is_the_callers_again_when_its_delayed_read_is_over() -> None:
    for ending in ("cancelled", "lost", "done"):
        device = faulty(Fault(delay=0 if ending == "done" else 60, corrupt=True))
        buffer = bytearray(BLOCK)
        read = asyncio.ensure_future(device.read_into(0, buffer))
        await asyncio.sleep(0)
        if ending == "cancelled":
            read.cancel()
        elif ending == "lost":
            device.lose()
        await asyncio.wait([read])
        assert read.cancelled() or read.exception() is None or ending == "lost"
        await asyncio.sleep(0)
        buffer.append(0)


async def test_each_of_a_batch_has_its_faults() -> None:
    device = faulty(Fault(after=1, times=1, error=errno.EIO))
    found = await device.read_many([(block * BLOCK, BLOCK) for block in range(3)], return_exceptions=True)
    assert [isinstance(content, bytes) for content in found] == [True, False, True]
    rule = device.faults[0]
    device.remove(rule)
    assert device.faults == ()
    with pytest.raises(ValueError, match="not in list"):
        device.remove(rule)


async def test_what_is_no_rule() -> None:
    with pytest.raises(
        aioblk.OptionError, match="delay must be seconds, or a function that chooses them, not -1"
    ):
        Fault(delay=-1)
    with pytest.raises(aioblk.OptionError, match=r"probability must be from 0 to 1, not 1.5"):
        Fault(probability=1.5)
    with pytest.raises(aioblk.OptionError, match="needs an error"):
        Fault(executed=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"operations": {"writes"}}, "operations are some of read, write, write_zeroes, discard, flush, not"),
        ({"operations": "write_zeroes"}, "operations are some of"),
        ({"error": "EIO"}, "error is an errno or an exception, not 'EIO'"),
        ({"error": KeyboardInterrupt()}, "error is an errno or an exception"),
        ({"offset": -1}, "offset must not be negative, as -1 is"),
        ({"times": -1}, "times must not be negative"),
    ],
)
def test_what_could_never_hit_is_no_rule(options: dict[str, Any], words: str) -> None:
    with pytest.raises(aioblk.OptionError, match=words):
        Fault(**options)
    with pytest.raises(TypeError, match="a Fault is needed"):
        faulty([Fault()])  # type: ignore[arg-type]


async def test_chance_depends_on_what_was_asked_and_not_on_when() -> None:
    found = []
    for pause in (0, 10):
        device = faulty(
            Fault(operations={"read"}, corrupt=True),
            Fault(operations={"write"}, probability=0.5, error=errno.EIO),
            seed=1,
        )
        read = asyncio.ensure_future(device.read(0, BLOCK))
        for _ in range(pause):
            await asyncio.sleep(0)
        writes = [asyncio.ensure_future(device.write(0, bytes(BLOCK))) for _ in range(20)]
        await asyncio.wait([read, *writes])
        found.append((read.result(), [write.exception() is None for write in writes]))
    assert found[0] == found[1]
