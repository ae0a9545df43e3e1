"""Whatever is done to a device, it holds what a bytearray would hold.

A program is a list of steps; the operations of a step are in flight together and touch different blocks.
Reads are compared at once, the whole device at the end.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import aioblk

from ..support.devices import Target, pattern, settled

UNIT = 512
UNITS = 256
SIZE = UNITS * UNIT

KINDS = (
    "read",
    "read_into",
    "read_region",
    "readv",
    "read_many",
    "write",
    "write_fua",
    "write_region",
    "writev",
    "write_many",
    "write_zeroes",
    "discard",
    "flush",
    "cancelled_read",
)


@dataclass(frozen=True)
class Operation:
    kind: str
    start: int
    units: int
    seed: int

    @property
    def offset(self) -> int:
        return self.start * UNIT

    @property
    def length(self) -> int:
        return self.units * UNIT


@st.composite
def steps(draw: st.DrawFn) -> list[Operation]:
    """Operations on disjoint ranges, from left to right."""
    operations = []
    at = 0
    for _ in range(draw(st.integers(1, 12))):
        at += draw(st.integers(0, 30))
        units = draw(st.integers(1, 40))
        if at + units > UNITS:
            break
        operations.append(Operation(draw(st.sampled_from(KINDS)), at, units, draw(st.integers(1, 10**6))))
        at += units
    return operations


class Checked:
    """A device and what it must hold."""

    def __init__(self, device: aioblk.Device, region: aioblk.MemoryRegion) -> None:
        self.device = device
        self.region = region
        self.model = bytearray(SIZE)

    def held(self, it: Operation) -> bytes:
        return bytes(self.model[it.offset : it.offset + it.length])

    async def run(self, it: Operation) -> None:
        await getattr(self, f"_{it.kind}")(it)

    # Each reads and compares, or writes and remembers.

    async def _read(self, it: Operation) -> None:
        assert await self.device.read(it.offset, it.length) == self.held(it)

    async def _read_into(self, it: Operation) -> None:
        buffer = bytearray(it.length + 3)
        await self.device.read_into(it.offset, memoryview(buffer)[3:])
        assert buffer == bytes(3) + self.held(it)

    async def _read_region(self, it: Operation) -> None:
        view = self.region[it.offset : it.offset + it.length]
        await self.device.read_into(it.offset, view)
        assert bytes(view) == self.held(it)

    async def _readv(self, it: Operation) -> None:
        cut = it.seed % it.length
        private, shared = bytearray(cut), self.region[it.offset + cut : it.offset + it.length]
        await self.device.readv(it.offset, [private, shared])
        assert bytes(private) + bytes(shared) == self.held(it)

    async def _read_many(self, it: Operation) -> None:
        units = await self.device.read_many([(it.offset + i * UNIT, UNIT) for i in range(it.units)])
        assert b"".join(units) == self.held(it)

    async def _write(self, it: Operation) -> None:
        await self.device.write(it.offset, self._change(it))

    async def _write_fua(self, it: Operation) -> None:
        await self.device.write(it.offset, bytearray(self._change(it)), fua=True)

    async def _write_region(self, it: Operation) -> None:
        view = self.region[it.offset : it.offset + it.length]
        view[:] = self._change(it)
        await self.device.write(it.offset, view)

    async def _writev(self, it: Operation) -> None:
        data, cut = self._change(it), it.seed % it.length
        shared = self.region[it.offset + cut : it.offset + it.length]
        shared[:] = data[cut:]
        await self.device.writev(it.offset, [data[:cut], shared])

    async def _write_many(self, it: Operation) -> None:
        data = self._change(it)
        await self.device.write_many(
            [(it.offset + i * UNIT, data[i * UNIT : (i + 1) * UNIT]) for i in range(it.units)]
        )

    async def _write_zeroes(self, it: Operation) -> None:
        await self.device.write_zeroes(it.offset, it.length, no_unmap=it.seed % 2 == 0, fua=it.seed % 3 == 0)
        self.model[it.offset : it.offset + it.length] = bytes(it.length)

    async def _discard(self, it: Operation) -> None:
        """Each unit is what it was, or zeroes."""
        before = self.held(it)
        await self.device.discard(it.offset, it.length)
        after = await self.device.read(it.offset, it.length)
        for at in range(0, it.length, UNIT):
            assert after[at : at + UNIT] in {before[at : at + UNIT], bytes(UNIT)}
        self.model[it.offset : it.offset + it.length] = after

    async def _flush(self, it: Operation) -> None:
        await self.device.flush()

    async def _cancelled_read(self, it: Operation) -> None:
        buffer = bytearray(it.length)
        request = self.device.read_into(it.offset, buffer)
        request.cancel()
        await settled(request)
        assert request.cancelled() or bytes(buffer) == self.held(it)

    def _change(self, it: Operation) -> bytes:
        data = pattern(it.length, it.seed)
        self.model[it.offset : it.offset + it.length] = data
        return data


async def run_program(
    device: aioblk.Device, region: aioblk.MemoryRegion, program: list[list[Operation]]
) -> None:
    async with asyncio.timeout(60):
        await device.write_zeroes(0, SIZE)
        checked = Checked(device, region)
        for step in program:
            await asyncio.gather(*(checked.run(operation) for operation in step))
        assert await device.read(0, SIZE) == checked.model


@pytest.fixture
async def region(device: aioblk.Device) -> AsyncIterator[aioblk.MemoryRegion]:
    async with device.allocate(SIZE) as region:
        yield region


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(program=st.lists(steps(), min_size=1, max_size=12))
async def test_a_device_holds_what_a_bytearray_would(
    device: aioblk.Device, region: aioblk.MemoryRegion, program: list[list[Operation]]
) -> None:
    await run_program(device, region, program)


async def test_the_bytes_are_on_the_disk_after_closing(target: Target) -> None:
    async with target.device() as device, device.allocate(SIZE) as region:
        checked = Checked(device, region)
        for seed, kind in enumerate(KINDS, 1):
            await checked.run(Operation(kind, seed * 8, 6, seed * 77))
        await device.flush()
    assert target.file.read_bytes()[:SIZE] == checked.model
