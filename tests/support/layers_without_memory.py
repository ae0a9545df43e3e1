"""Layers while memory is refused: each allocation of a change's call fails once, from the first to the last.

A process that has the injector runs this, as tests/layers/test_no_memory.py does. What the call has begun may
go on or not, but nobody waits for ever, nor does closing; and what was changed is known to be so.
"""

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count

import aioblk
from aioblk.testing import Fault, Faulty, MemoryDevice, Recorder

from .injector import Injector, Kind

UNIT = 4096
SIZE = 16 * UNIT
OLD, OTHER = b"o" * SIZE, b"?" * SIZE
LIMITS = aioblk.Limits(request_alignment=512)
PATIENCE = 20
EXPECTED = (MemoryError, aioblk.BlkioError, SystemError)
"""The last is CPython's, for a frame that there is no memory for."""

CHANGES: dict[str, Callable[[aioblk.BlockDevice], Awaitable[object]]] = {
    "write": lambda device: device.write(UNIT, b"n" * UNIT),
    "write_many": lambda device: device.write_many([(UNIT, b"n" * UNIT), (5 * UNIT, b"n" * UNIT)]),
}
LAYERS: dict[str, Callable[[MemoryDevice], aioblk.BlockDevice]] = {
    "faulty": lambda below: Faulty(below, Fault()),
    "recorder": Recorder,
    "tracked": lambda below: aioblk.Tracked(below, granularity=UNIT),
    "copy on write": lambda below: aioblk.CopyOnWrite(below, memory(OTHER)),
    "mirror": lambda below: aioblk.Mirror(below, memory(OLD)),
}

injector = Injector()


def memory(content: bytes) -> MemoryDevice:
    return MemoryDevice(SIZE, limits=LIMITS, content=content)


async def attempt(layer: str, change: Callable[[aioblk.BlockDevice], Awaitable[object]], number: int) -> bool:
    """Whether there were as many allocations."""
    below = memory(OLD)
    device = LAYERS[layer](below)
    request: Awaitable[object] | None = None
    gc.collect()  # which empties Python's own lists of free objects; `kept` takes what is freed since
    kept = [((place,), (place, None), (place, None, None), [place]) for place in range(100)]
    injector.arm(Kind.PYTHON, number)
    with suppress(*EXPECTED):
        request = injector.call(change, device)
    refusals = injector.refusals
    injector.disarm()
    kept.clear()
    async with asyncio.timeout(PATIENCE):
        if request is not None:
            with suppress(*EXPECTED):
                await request
        later = device.write(UNIT, OLD[:UNIT])  # what has failed is in nobody's way
        await later
        check(device, below)
        await device.aclose()
    return refusals > 0


def check(device: aioblk.BlockDevice, below: MemoryDevice) -> None:
    content = below.content()
    changed = [place for place in range(0, SIZE, UNIT) if content[place : place + UNIT] != OLD[:UNIT]]
    if isinstance(device, aioblk.Tracked):
        missed = [place for place in changed if not device.dirty.overlaps(place, UNIT)]
        assert not missed, f"{missed} were changed, and are not marked"


async def main() -> None:
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # there is much to report
    sys.unraisablehook = lambda _: None
    gc.freeze()  # spares the many collections what has been imported
    for layer in LAYERS:
        for name, change in CHANGES.items():
            if name == "write_many" and layer != "tracked":  # of all others, it is made of writes
                continue
            for number in count(1):
                try:
                    if not await attempt(layer, change, number):
                        break
                except BaseException:
                    print(f"{name} of {layer}, allocation {number}", file=sys.stderr)
                    raise


if __name__ == "__main__":
    asyncio.run(main())
