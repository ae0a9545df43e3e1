"""The log store of the examples, on a disk whose power fails: which records it has acknowledged are there."""

import asyncio
import random
import sys
from pathlib import Path

import aioblk
from aioblk.testing import MemoryDevice

from .daemon import LoggedDaemon
from .replay import Replay
from .write_log import SECTOR

sys.path.append(str(Path(__file__).parents[2] / "examples"))

from log_store import LogStore

__all__ = ["lost_records"]

RECORDS = 40
STATES = 3  # of each prefix
END = (1 << 62, 0)


async def lost_records(
    seed: int, device: aioblk.VirtioBlkVhostUser, daemon: LoggedDaemon
) -> tuple[list[str], int, int]:
    """What is missing in states that a power failure may leave, how many were looked at, and of how many
    records."""
    chance = random.Random(seed)
    acknowledged: list[tuple[tuple[int, int], int, bytes]] = []
    await LogStore.format(device)
    formatted = daemon.position()

    async with LogStore(device) as log:

        async def append() -> None:
            data = chance.randbytes(chance.choice((0, 20, 300, 5000)))
            number = await log.append(data)
            acknowledged.append((daemon.position(), number, data))

        left = RECORDS
        while left:
            together = min(left, chance.randrange(1, 8))
            await asyncio.gather(*(append() for _ in range(together)))
            left -= together

    found: list[str] = []
    states = 0
    replay = Replay()
    for position, entry in daemon.logged():
        replay.add(entry)
        if position < formatted:
            continue
        promised = {number: data for when, number, data in acknowledged if when <= position}
        for _ in range(STATES):
            states += 1
            there = await _records(device.capacity, replay.state(chance))
            found += [f"record {n} at {position}" for n, data in promised.items() if there.get(n) != data]
    return found, states, len(acknowledged)


async def _records(size: int, state: dict[int, bytes]) -> dict[int, bytes]:
    async with MemoryDevice(size) as media:
        for sector, data in state.items():
            await media.write(sector * SECTOR, data)
        return await _read(media)


async def _read(media: MemoryDevice) -> dict[int, bytes]:
    async with LogStore(media) as log:
        return {record.number: record.data async for record in log.records()}
