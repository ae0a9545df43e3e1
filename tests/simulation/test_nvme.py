"""NVMe namespaces, as far as nothing goes past libblkio: all but zones."""

import asyncio
from pathlib import Path

import pytest

import aioblk

from .devices import BLOCK, SIZE, device_on, new_disk, pattern, until_held
from .library import Disk, Driver, Simulator


@pytest.fixture
def namespace(simulator: Simulator, tmp_path: Path) -> Disk:
    return new_disk(simulator, Driver.NVME_IO_URING, tmp_path)


async def test_it_has_blocks_and_writes_through_by_itself(namespace: Disk, simulator: Simulator) -> None:
    async with device_on(namespace) as dev:
        assert (dev.capacity, dev.limits.request_alignment) == (SIZE, BLOCK)
        assert dev.limits.supports_fua_natively
        assert dev.properties["zoned"] == 0
        parts = dev.statistics().parts
        await dev.write(0, pattern(1), fua=True)
        assert dev.statistics().parts == parts + 1
        assert namespace.outcomes(0) == {pattern(1)}
        with pytest.raises(aioblk.AlignmentError):
            await dev.write(1, pattern(1))


async def test_discarding_past_the_end_is_a_hint(namespace: Disk, simulator: Simulator) -> None:
    async with device_on(namespace) as dev:
        await dev.write(0, pattern(1))
        await dev.discard(0, BLOCK)
        assert await dev.read(0, BLOCK) == bytes(BLOCK)
        await dev.discard(SIZE, BLOCK)
        with pytest.raises(aioblk.BlkioError):
            await dev.write_zeroes(SIZE, BLOCK)


async def test_it_is_opened_by_a_descriptor_and_more_than_once(namespace: Disk, simulator: Simulator) -> None:
    with namespace.path.open("r+b", buffering=0) as file:
        async with aioblk.NvmeIoUring(fd=file.fileno()) as first, device_on(namespace) as second:
            await first.write(0, pattern(1))
            assert await second.read(0, BLOCK) == pattern(1)


async def test_queues_are_added(namespace: Disk, simulator: Simulator) -> None:
    async with device_on(namespace) as dev:
        index = await dev.add_queue()
        async with dev.queue(index) as queue:
            simulator.configure(seed=1, late=4, reorder=1)
            await asyncio.gather(*(queue.write(i * BLOCK, pattern(i)) for i in range(20)))
            assert await queue.read(19 * BLOCK, BLOCK) == pattern(19)


@pytest.mark.abandons_memory
async def test_the_kernel_writes_late_to_what_was_given_up(namespace: Disk, simulator: Simulator) -> None:
    simulator.configure(abandons=1)
    async with device_on(namespace) as dev:
        await dev.read(0, BLOCK)
        simulator.configure(hold=1)
        reads = [asyncio.ensure_future(dev.read(i * BLOCK, BLOCK)) for i in range(3)]
        await until_held(simulator, 3)
        dev.abandon()
        assert {type(each) for each in await asyncio.gather(*reads, return_exceptions=True)} == {
            aioblk.DeviceLostError
        }
        simulator.configure(hold=0)
        await dev.reconnect()
        assert simulator.haunt() == 3 * BLOCK
        assert await asyncio.gather(*(dev.read(0, BLOCK) for _ in range(8))) == [bytes(BLOCK)] * 8
