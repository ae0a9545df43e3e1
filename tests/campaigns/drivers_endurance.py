"""A million mixed requests on each driver: every byte right, and nothing that grows.

./run campaign endurance
"""

import asyncio
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import aioblk

from ..support.devices import Target, pattern
from .conftest import Report

UNIT = 4096
UNITS_PER_WORKER = 16
WORKERS = 48
PATTERNS = [pattern(UNIT, seed) for seed in range(64)]
ROUNDS = 10
WARM_UP = 2  # rounds; after them nothing may grow any more
GROWTH_ALLOWED = 4 << 20  # bytes; less than four for each request

# Kinds of requests and how often each is drawn.
MIX = {
    "read": 20,
    "read_into": 10,
    "read_region": 10,
    "readv": 6,
    "read_many": 6,
    "write": 16,
    "write_region": 8,
    "writev": 6,
    "write_many": 6,
    "write_zeroes": 4,
    "discard": 2,
    "flush": 2,
    "cancelled_read": 3,
    "refused": 1,
}


@dataclass(frozen=True)
class Usage:
    resident: int
    descriptors: int

    @classmethod
    def now(cls) -> "Usage":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")))


class Worker:
    """Owns some units of the device and knows what they hold."""

    def __init__(self, device: aioblk.Device, region: aioblk.MemoryRegion, number: int) -> None:
        self.device = device
        self.first = number * UNITS_PER_WORKER
        self.held = [bytes(UNIT)] * UNITS_PER_WORKER
        self.random = random.Random(number)
        self.kinds = list(MIX)
        self.weights = list(MIX.values())
        self.region = region[number * 2 * UNIT : (number + 1) * 2 * UNIT]
        self.requests = 0

    async def run(self, requests: int) -> None:
        end = self.requests + requests
        while self.requests < end:
            [kind] = self.random.choices(self.kinds, self.weights)
            await getattr(self, f"_{kind}")(self.random.randrange(UNITS_PER_WORKER - 1))

    def offset(self, unit: int) -> int:
        return (self.first + unit) * UNIT

    def change(self, unit: int) -> bytes:
        self.held[unit] = self.random.choice(PATTERNS)
        return self.held[unit]

    async def _read(self, unit: int) -> None:
        self.requests += 1
        assert await self.device.read(self.offset(unit), UNIT) == self.held[unit]

    async def _read_into(self, unit: int) -> None:
        self.requests += 1
        buffer = bytearray(UNIT)
        await self.device.read_into(self.offset(unit), buffer)
        assert buffer == self.held[unit]

    async def _read_region(self, unit: int) -> None:
        self.requests += 1
        await self.device.read_into(self.offset(unit), self.region[:UNIT])
        assert bytes(self.region[:UNIT]) == self.held[unit]

    async def _readv(self, unit: int) -> None:
        self.requests += 1
        buffer = bytearray(UNIT)
        await self.device.readv(self.offset(unit), [self.region[:UNIT], buffer])
        assert (bytes(self.region[:UNIT]), bytes(buffer)) == (self.held[unit], self.held[unit + 1])

    async def _read_many(self, unit: int) -> None:
        self.requests += 2
        data = await self.device.read_many([(self.offset(unit), UNIT), (self.offset(unit + 1), UNIT)])
        assert data == self.held[unit : unit + 2]

    async def _write(self, unit: int) -> None:
        self.requests += 1
        await self.device.write(self.offset(unit), self.change(unit))

    async def _write_region(self, unit: int) -> None:
        self.requests += 1
        self.region[:UNIT] = self.change(unit)
        await self.device.write(self.offset(unit), self.region[:UNIT])

    async def _writev(self, unit: int) -> None:
        self.requests += 1
        self.region[UNIT:] = self.change(unit + 1)
        await self.device.writev(self.offset(unit), [self.change(unit), self.region[UNIT:]])

    async def _write_many(self, unit: int) -> None:
        self.requests += 2
        await self.device.write_many([(self.offset(u), self.change(u)) for u in (unit, unit + 1)])

    async def _write_zeroes(self, unit: int) -> None:
        self.requests += 1
        self.held[unit] = bytes(UNIT)
        await self.device.write_zeroes(self.offset(unit), UNIT)

    async def _discard(self, unit: int) -> None:
        self.requests += 2
        await self.device.discard(self.offset(unit), UNIT)
        self.held[unit] = await self.device.read(self.offset(unit), UNIT)

    async def _flush(self, _unit: int) -> None:
        self.requests += 1
        await self.device.flush()

    async def _cancelled_read(self, unit: int) -> None:
        self.requests += 1
        task = asyncio.create_task(self.device.read_into(self.offset(unit), bytearray(UNIT)))
        if self.requests % 2:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    async def _refused(self, _unit: int) -> None:
        self.requests += 1
        try:
            self.device.read(-1, UNIT)
        except aioblk.OptionError:
            return
        raise AssertionError("an impossible request was accepted")

    async def check(self) -> None:
        data = await self.device.read(self.offset(0), UNITS_PER_WORKER * UNIT)
        assert data == b"".join(self.held)


async def test_endurance(target: Target, requests_wanted: int, report: Report) -> None:
    each = -(-requests_wanted // (WORKERS * ROUNDS))
    report(f"\n{target.driver}: {requests_wanted} requests by {WORKERS} tasks")
    start = time.monotonic()
    usages = []
    async with target.device() as device, device.allocate(WORKERS * 2 * UNIT) as region:
        workers = [Worker(device, region, number) for number in range(WORKERS)]
        for number in range(ROUNDS):
            await asyncio.gather(*(worker.run(each) for worker in workers))
            await asyncio.gather(*(worker.check() for worker in workers))
            usages.append(Usage.now())
            made = sum(worker.requests for worker in workers)
            report(
                f"  round {number}: {made} requests, {time.monotonic() - start:.0f} s,"
                f" {usages[-1].resident >> 10} KiB resident, {usages[-1].descriptors} descriptors"
            )
        report(f"  {device.statistics()}")
        assert device.statistics().in_flight == 0
    settled, last = usages[WARM_UP], usages[-1]
    assert sum(worker.requests for worker in workers) >= requests_wanted
    assert last.descriptors == settled.descriptors
    assert last.resident - settled.resident <= GROWTH_ALLOWED
    written = target.file.read_bytes()
    for worker in workers:
        assert written[worker.offset(0) : worker.offset(UNITS_PER_WORKER)] == b"".join(worker.held)
