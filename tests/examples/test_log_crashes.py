"""The log store when the power fails: at every request, with whatever the device's cache had written back."""

import asyncio
import random
from collections.abc import Awaitable, Sequence

import pytest
from log_store import LogError, LogStore
from typing_extensions import Buffer

import aioblk
from aioblk.testing import PowerLoss

SIZE = 1 << 20
CRASHES = 12
"""Of each request: before it is made, and after."""


class Crashing(aioblk.Layer[PowerLoss]):
    """Collects what the power might leave if it failed now, with what had been acknowledged by then."""

    def __init__(self, device: PowerLoss, acknowledged: Sequence[bytes]) -> None:
        super().__init__(device)
        self._acknowledged = acknowledged
        self.left: list[tuple[int, PowerLoss]] = []

    def crash(self) -> None:
        for _ in range(CRASHES):
            self.left.append((len(self._acknowledged), self.device.crash(len(self.left))))

    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        self.crash()
        request = super().writev(offset, buffers, fua=fua)
        self.crash()
        return request

    def flush(self) -> Awaitable[None]:
        self.crash()
        return super().flush()

    write = aioblk.BlockDevice.write
    write_many = aioblk.BlockDevice.write_many


async def append_some(log: LogStore, records: list[bytes], acknowledged: list[bytes], seed: int) -> None:
    """Several at a time, so that groups have many; what was acknowledged is in the order of the log."""
    chance = random.Random(seed)
    while records:
        together = [records.pop(0) for _ in range(min(len(records), chance.randrange(1, 5)))]
        appending = [asyncio.ensure_future(log.append(record)) for record in together]
        for record, number in zip(together, appending, strict=True):
            assert await number == len(acknowledged) + 1
            acknowledged.append(record)


@pytest.mark.parametrize("seed", range(4))
async def test_acknowledged_records_survive_a_power_failure(seed: int) -> None:
    chance = random.Random(seed)
    records = [chance.randbytes(chance.choice([1, 100, 500, 4000, 9000])) for _ in range(24)]
    acknowledged: list[bytes] = []
    below = PowerLoss(SIZE)
    await LogStore.format(below)
    device = Crashing(below, acknowledged)
    for part in (records[:10], records[10:]):  # opened twice: by then there is something to find
        async with LogStore(device) as log:
            await append_some(log, list(part), acknowledged, seed)
    assert acknowledged == records

    assert len(device.left) >= 300
    for known, left in device.left:
        async with LogStore(left) as log:
            found = [record.data async for record in log.records()]
            assert found == records[: len(found)], "what is found is a beginning of what was asked for"
            assert len(found) >= known, "what was acknowledged is found"
            assert await log.append(b"and on") == len(found) + 1
        async with LogStore(left, read_only=True) as log:
            assert [record.data async for record in log.records()] == [*found, b"and on"]


@pytest.mark.parametrize("seed", range(2))
async def test_a_crash_while_a_crash_is_recovered_from(seed: int) -> None:
    """Opening writes as well: whatever it leaves behind is opened again."""
    records = [random.Random(seed + number).randbytes(3000) for number in range(8)]
    acknowledged: list[bytes] = []
    below = PowerLoss(SIZE)
    await LogStore.format(below)
    device = Crashing(below, acknowledged)
    async with LogStore(device) as log:
        await append_some(log, list(records), acknowledged, seed)
    for known, left in random.Random(seed).sample(device.left, 20):
        again = Crashing(left, records[:known])
        async with LogStore(again):
            pass
        for _, after in again.left:
            async with LogStore(after, read_only=True) as log:
                found = [record.data async for record in log.records()]
            assert found == records[: len(found)]
            assert len(found) >= known


async def test_formatting_that_is_interrupted_leaves_a_log_or_none() -> None:
    device = Crashing(PowerLoss(SIZE, content=b"something else" * 1000), [])
    await LogStore.format(device, force=True)
    empty = others = 0
    for _, left in device.left:
        try:
            async with LogStore(left) as log:
                assert log.last == 0
            empty += 1
        except LogError:
            others += 1
    assert empty
    assert others
