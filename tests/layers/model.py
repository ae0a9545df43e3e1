"""What any block device may read as, after any requests at once, some of which failed or were cancelled."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

from hypothesis import strategies as st

import aioblk

BLOCK = 512
BLOCKS = 48
SPACE = BLOCK * BLOCKS
UNKNOWN = b""
"""Among the contents that a block may have: anything."""


class Step(NamedTuple):
    """A request, and after how many turns of the loop it is cancelled."""

    operation: str
    block: int
    blocks: int
    cancel_after: int | None
    pieces: int


steps = st.builds(
    lambda operation, block, blocks, cancel_after, pieces: Step(
        operation, block, min(blocks, BLOCKS - block), cancel_after, pieces
    ),
    st.sampled_from(
        [
            *("read", "read_into", "readv", "read_many", "write", "write", "writev", "write_many"),
            *("write_zeroes", "discard", "flush", "write_through"),
        ]
    ),
    st.integers(0, BLOCKS - 1),
    st.integers(0, 12),
    st.one_of(st.none(), st.none(), st.integers(0, 6)),
    st.integers(1, 3),
)
rounds_of_steps = st.lists(st.lists(steps, min_size=1, max_size=5), min_size=1, max_size=6)


Begun: TypeAlias = "tuple[asyncio.Future[Any], bytes | None, Callable[[Any], bytes] | None]"
"""A request, what it writes, and how to have what it has read of its result."""


class Model:
    """Each block's content, as soon as it has been read; and what each may be until then."""

    def __init__(self, content: bytes = bytes(SPACE)) -> None:
        self.known = [content[place : place + BLOCK] for place in range(0, SPACE, BLOCK)]
        self._number = 0

    async def play(self, device: aioblk.BlockDevice, steps: Sequence[Step]) -> None:
        """All of them at once; then everything is read, twice: what a block reads as does not change."""
        begun = [(step, *self._begin(device, step)) for step in steps]
        await asyncio.gather(*(_await(request, step.cancel_after) for step, request, _, _ in begun))
        ever = [{content} for content in self.known]
        changed: list[set[bytes]] = [set() for _ in self.known]
        overwritten: set[int] = set()
        for step, request, content, _ in begun:
            if content is None:
                continue
            blocks = range(step.block, step.block + step.blocks)
            for number, block in enumerate(blocks):
                changed[block].add(content[number * BLOCK : (number + 1) * BLOCK])
                ever[block] |= changed[block]
            if _is_done(request):
                overwritten.update(blocks)
        for step, request, _, result in begun:
            if result is not None and _is_done(request):
                _check(result(request.result()), step.block, ever)
        found = await self._read_all(device)
        possible = [
            new if block in overwritten else old
            for block, (new, old) in enumerate(zip(changed, ever, strict=True))
        ]
        _check(found, 0, possible)
        self.known = [found[place : place + BLOCK] for place in range(0, SPACE, BLOCK)]

    async def _read_all(self, device: aioblk.BlockDevice) -> bytes:
        """However many of the attempts fail by chance."""
        while True:
            try:
                found = await device.read(0, SPACE)
                assert await device.read(0, SPACE) == found
            except aioblk.BlkioError:
                continue
            return found

    def _begin(self, device: aioblk.BlockDevice, step: Step) -> Begun:
        offset, length = step.block * BLOCK, step.blocks * BLOCK
        self._number += 1
        content = random.Random(self._number).randbytes(length)
        buffer = bytearray(length)
        pieces = [(offset + place, BLOCK) for place in range(0, length, BLOCK)]
        match step.operation:
            case "read":
                return _future(device.read(offset, length)), None, bytes
            case "read_into":
                return _future(device.read_into(offset, buffer)), None, lambda _: bytes(buffer)
            case "readv":
                views = _cut(memoryview(buffer), step.pieces)
                return _future(device.readv(offset, views)), None, lambda _: bytes(buffer)
            case "read_many":
                return _future(device.read_many(pieces)), None, b"".join
            case "write":
                return _future(device.write(offset, content)), content, None
            case "write_through":
                return _future(device.write(offset, content, fua=True)), content, None
            case "writev":
                views = _cut(memoryview(content), step.pieces)
                return _future(device.writev(offset, views)), content, None
            case "write_many":
                pairs = [(place, content[place - offset : place - offset + BLOCK]) for place, _ in pieces]
                return _future(device.write_many(pairs)), content, None
            case "write_zeroes":
                return _future(device.write_zeroes(offset, length)), bytes(length), None
            case "discard":
                return _future(device.discard(offset, length)), UNKNOWN * step.blocks, None
            case _:
                return _future(device.flush()), None, None


def _check(found: bytes, block: int, possible: Sequence[set[bytes]]) -> None:
    for number in range(len(found) // BLOCK):
        content = found[number * BLOCK : (number + 1) * BLOCK]
        assert UNKNOWN in possible[block + number] or content in possible[block + number], (
            f"block {block + number} has {content[:8]!r}, and may be"
            f" {[possibly[:8] for possibly in possible[block + number]]}"
        )


async def _await(request: "asyncio.Future[Any]", cancel_after: int | None) -> None:
    if cancel_after is not None:
        for _ in range(cancel_after):
            await asyncio.sleep(0)
        request.cancel()
    await asyncio.wait([request])
    if not request.cancelled():
        request.exception()  # whatever it is, it has been heard


def _is_done(request: "asyncio.Future[Any]") -> bool:
    return not request.cancelled() and request.exception() is None


def _future(request: Awaitable[Any]) -> "asyncio.Future[Any]":
    return asyncio.ensure_future(request)


def _cut(view: memoryview, pieces: int) -> list[memoryview]:
    """In places that suit no block."""
    places = [0, *(len(view) * place // pieces - place for place in range(1, pieces)), len(view)]
    return [view[start:end] for start, end in pairwise(places) if start <= end]
