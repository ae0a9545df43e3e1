"""Who never has to wait lets others run all the same: after so many requests, or so long.

What it takes is said by the tests: the clock is theirs.
"""

import asyncio

import pytest

import aioblk

from ..support.turns import Others
from .devices import BLOCK, device_on
from .library import Disk, Simulator

COUNT = 512  # requests, after which a turn passes anyhow
MICROSECOND = 1e-6


async def turns_beside(dev: aioblk.Device, simulator: Simulator, seconds: float) -> int:
    """How many turns others have while a task reads, with so much time passing for each."""
    before = dev.statistics().inline_completions
    async with Others() as others:
        await asyncio.sleep(0)
        for number in range(COUNT):
            await dev.read(0, BLOCK)
            simulator.clock(6 + number * seconds)
    assert dev.statistics().inline_completions - before == COUNT
    return others.turns


@pytest.mark.parametrize(("seconds", "least", "most"), [(0.1, 0, 2), (20.0, 5, 9), (1000.0, 7, 9)])
async def test_others_run_after_half_a_millisecond(
    disk: Disk, simulator: Simulator, seconds: float, least: int, most: int
) -> None:
    """As it is seen at every 64th request."""
    async with device_on(disk) as dev:
        await dev.read(0, BLOCK)
        simulator.configure(record=0)
        simulator.clock(5)
        assert least <= await turns_beside(dev, simulator, seconds * MICROSECOND) <= most
        simulator.clock(None)
