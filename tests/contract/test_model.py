"""Random operations on the device and on a bytearray, which must stay alike.

Several workers have a part of the device each and run at the same time. AIOBLK_OPERATIONS says how many
operations there are in all; 100000 is a thorough run.
"""

import asyncio
import os
import random

import aioblk

OPERATIONS = int(os.environ.get("AIOBLK_OPERATIONS", "800"))
WORKERS = 8
SHARE = 1 << 20


class Worker:
    """One part of the device and the model of it."""

    def __init__(self, device: aioblk.Device, number: int, seed: int) -> None:
        self.device = device
        self.start = number * SHARE
        self.model = bytearray(SHARE)
        self.random = random.Random(seed + number)
        self.unit = max(device.limits.request_alignment, device.limits.discard_alignment, 1)

    async def run(self, operations: int) -> None:
        await self.device.write_zeroes(self.start, SHARE)
        choices = [self.read, self.read_into, self.readv, self.read_many]
        choices += [self.write, self.writev, self.write_many, self.write_zeroes, self.discard, self.flush]
        for _ in range(operations):
            await self.random.choice(choices)()
        assert await self.device.read(self.start, SHARE) == self.model

    def range(self) -> tuple[int, int]:
        """Start and length of a range of the share; short ones are the most frequent."""
        blocks = SHARE // self.unit
        length = min(int(2 ** self.random.uniform(0, 20)) // self.unit + 1, blocks)
        return self.random.randrange(blocks - length + 1) * self.unit, length * self.unit

    def pieces(self, length: int) -> list[int]:
        """Lengths that add up to the length; buffers need no alignment."""
        cuts = sorted(self.random.randrange(length + 1) for _ in range(self.random.randrange(6)))
        return [b - a for a, b in zip([0, *cuts], [*cuts, length], strict=True)]

    def fua(self) -> bool:
        return self.random.random() < 0.1

    async def read(self) -> None:
        at, length = self.range()
        assert await self.device.read(self.start + at, length) == self.model[at : at + length]

    async def read_into(self) -> None:
        at, length = self.range()
        buffer = bytearray(length)
        await self.device.read_into(self.start + at, buffer)
        assert buffer == self.model[at : at + length]

    async def readv(self) -> None:
        at, length = self.range()
        buffers = [bytearray(size) for size in self.pieces(length)]
        await self.device.readv(self.start + at, buffers)
        assert b"".join(buffers) == self.model[at : at + length]

    async def read_many(self) -> None:
        ranges = [self.range() for _ in range(self.random.randrange(5))]
        found = await self.device.read_many([(self.start + at, length) for at, length in ranges])
        assert found == [self.model[at : at + length] for at, length in ranges]

    async def write(self) -> None:
        at, length = self.range()
        data = self.random.randbytes(length)
        await self.device.write(self.start + at, data, fua=self.fua())
        self.model[at : at + length] = data

    async def writev(self) -> None:
        at, length = self.range()
        data = [self.random.randbytes(size) for size in self.pieces(length)]
        await self.device.writev(self.start + at, data, fua=self.fua())
        self.model[at : at + length] = b"".join(data)

    async def write_many(self) -> None:
        at, length = self.range()
        data = self.random.randbytes(length)
        cut = length // self.unit // 2 * self.unit
        await self.device.write_many([(self.start + at, data[:cut]), (self.start + at + cut, data[cut:])])
        self.model[at : at + length] = data

    async def write_zeroes(self) -> None:
        at, length = self.range()
        await self.device.write_zeroes(
            self.start + at, length, fua=self.fua(), no_unmap=self.random.random() < 0.5
        )
        self.model[at : at + length] = bytes(length)

    async def discard(self) -> None:
        """What was discarded is as before or zero, from block to block."""
        at, length = self.range()
        await self.device.discard(self.start + at, length)
        found = await self.device.read(self.start + at, length)
        for block in range(0, length, self.unit if self.unit > 1 else length):
            size = self.unit if self.unit > 1 else length
            now, before = found[block : block + size], self.model[at + block : at + block + size]
            assert now in (before, bytes(len(now)))
        self.model[at : at + length] = found

    async def flush(self) -> None:
        await self.device.flush()


async def test_random_operations_agree_with_a_model(device: aioblk.Device) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    workers = [Worker(device, number, seed) for number in range(WORKERS)]
    await asyncio.gather(*(worker.run(OPERATIONS // WORKERS) for worker in workers))
