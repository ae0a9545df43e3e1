"""Where the kernel does all within the call that submits, kicks give nobody more than their share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import aioblk

from ..support.devices import BLOCK
from ..support.turns import Others

ITEMS = 64
LARGE = 256 << 10
FLUSH = 1 << 20  # bytes that one flush transfers, about
EPOCH = 512  # requests
LONGEST_PAUSE = 1024  # epochs from one trial to the next


@pytest.fixture
async def cached(tmp_path: Path) -> AsyncIterator[aioblk.Device]:
    path = tmp_path / "cached"
    path.write_bytes(bytes(16 << 20))
    async with aioblk.IoUring(path) as device:
        yield device


def scattered(length: int) -> list[tuple[int, bytearray]]:
    """None beside another."""
    return [(2 * number * length, bytearray(length)) for number in range(min(ITEMS, (8 << 20) // length))]


@pytest.mark.parametrize("kicks", [False, True])
async def test_the_call_transfers_no_more_than_a_flush(cached: aioblk.Device, kicks: bool) -> None:
    queue = cached.queue()
    queue._compiled.kicks = kicks
    reading = cached.read_into_many(scattered(LARGE))
    assert queue.statistics().parts <= FLUSH // LARGE
    assert queue.statistics().do_io_calls <= 1, "so much is left to a call that gives the GIL away"
    await reading


async def test_batches_in_a_row_let_others_have_their_turn(cached: aioblk.Device) -> None:
    queue = cached.queue()
    items = scattered(BLOCK)
    async with Others() as others:
        for _ in range(5 * EPOCH // ITEMS):
            queue._compiled.kicks = True
            await cached.read_into_many(items)
    assert others.turns >= 4
    assert queue.statistics().inline_completions > 0


async def test_batches_done_within_the_call_are_tried_without_kicks(cached: aioblk.Device) -> None:
    """They paid once; whether they still do is looked at again, also when no task is ever woken."""
    queue = cached.queue()
    queue._compiled.kicks = True
    items = scattered(BLOCK)
    for _ in range(10 * LONGEST_PAUSE * EPOCH // ITEMS):
        await cached.read_into_many(items)
        if not queue._compiled.kicks:
            break
    else:
        pytest.fail("no trial has begun")
