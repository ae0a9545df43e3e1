"""Devices that change by chance: their capacity at any call, their properties at the next connection."""

import asyncio
from pathlib import Path

import pytest

import aioblk

from .caller import Caller
from .devices import BLOCK, SIZE, device_on, new_disk, pattern, until
from .library import Death, Disk, Driver, Simulator

STEP = 4096


# --- capacity -----------------------------------------------------------------------------------------------


async def _capacities(disk: Disk, times: int = 200) -> list[int]:
    async with device_on(disk) as dev:
        return [await dev.refresh_capacity() for _ in range(times)]


async def test_the_capacity_grows_by_chance_to_twice_of_what_it_was(
    virtio_disk: Disk, simulator: Simulator
) -> None:
    simulator.configure(seed=1, resize=300)
    found = await _capacities(virtio_disk)
    assert min(found) >= SIZE
    assert max(found) <= 2 * SIZE
    assert len(set(found)) > 20
    assert not any(capacity % STEP for capacity in found)
    assert simulator.counts["capacity changes"] >= len(set(found))


async def test_the_capacity_does_not_fall_below_the_floor(virtio_disk: Disk, simulator: Simulator) -> None:
    simulator.configure(seed=2, resize=300, floor=SIZE // 2)
    found = await _capacities(virtio_disk)
    assert SIZE // 2 <= min(found) < SIZE < max(found) <= 2 * SIZE


async def test_a_file_is_made_longer_and_shorter_by_chance(simulator: Simulator, tmp_path: Path) -> None:
    simulator.configure(seed=1, resize=300, floor=SIZE // 2)
    disk = new_disk(simulator, Driver.IO_URING, tmp_path)
    found = set()
    async with device_on(disk) as dev:
        for _ in range(100):
            await dev.read(0, BLOCK)
            found.add(disk.path.stat().st_size)
            assert await dev.refresh_capacity() == disk.path.stat().st_size
    assert SIZE // 2 <= min(found) < SIZE < max(found) <= 2 * SIZE


async def test_a_floor_above_all_lets_nothing_change(disk: Disk, simulator: Simulator) -> None:
    simulator.configure(seed=2, resize=1000, floor=2 * SIZE + 1)
    assert set(await _capacities(disk, 20)) == {SIZE}


async def test_below_the_floor_everything_is_safe(disk: Disk, simulator: Simulator) -> None:
    floor = 64 * BLOCK
    simulator.configure(seed=3, resize=300, floor=floor, late=2)
    async with device_on(disk) as dev:
        for turn in range(20):
            await asyncio.gather(*(dev.write(i * BLOCK, pattern(turn + i)) for i in range(64)))
            found = await asyncio.gather(*(dev.read(i * BLOCK, BLOCK) for i in range(64)))
            assert found == [pattern(turn + i) for i in range(64)]
    assert simulator.counts["capacity changes"] > 5


async def test_what_lay_above_a_smaller_capacity_is_gone(virtio_disk: Disk, simulator: Simulator) -> None:
    async with device_on(virtio_disk) as dev:
        await dev.write(SIZE - BLOCK, pattern(1))
        virtio_disk.resize(SIZE // 2)
        with pytest.raises(aioblk.BlkioError):
            await dev.read(SIZE - BLOCK, BLOCK)
        virtio_disk.resize(SIZE)
        assert await dev.read(SIZE - BLOCK, BLOCK) == bytes(BLOCK)


# --- properties ---------------------------------------------------------------------------------------------

VARIED = ("max_segments", "max_segment_len", "max_transfer", "max_write_zeroes_len", "max_discard_len")


async def test_properties_change_from_one_connection_to_the_next(disk: Disk, simulator: Simulator) -> None:
    simulator.configure(seed=4, props=500)
    seen: set[tuple[int, ...]] = set()
    for turn in range(60):
        async with device_on(disk) as dev:
            seen.add(tuple(getattr(dev.limits, name) for name in VARIED))
            data = pattern(turn, 64 * BLOCK)
            await dev.write(0, data)
            assert await dev.read(0, 64 * BLOCK) == data
            await dev.write_zeroes(BLOCK, 32 * BLOCK, fua=True)
    assert len(seen) > 10
    assert simulator.counts["better property"] > 10
    assert simulator.counts["worse property"] > 10


async def test_who_comes_back_can_go_on_half_of_the_time(simulator: Simulator, tmp_path: Path) -> None:
    outcomes = {True: 0, False: 0}
    for seed in range(1, 41):
        directory = tmp_path / str(seed)
        directory.mkdir()
        backend = new_disk(simulator, Driver.VHOST_USER, directory)
        # In the middle of all that it may be; it can get better and worse.
        backend.override(max_segments=7, max_segment_len=65536, max_transfer=65536, max_mem_regions=16)
        async with device_on(backend) as dev:
            backend.die(Death.KILLED)
            await until(lambda: dev.lost)
            backend.restart()
            simulator.configure(seed=seed, props=1000)
            (result,) = await asyncio.gather(dev.reconnect(), return_exceptions=True)
            assert result is None or "another device answers" in str(result)
            outcomes[result is None] += 1
            simulator.configure(props=0)
    assert outcomes[True] > 20, "those that are only better, and those whose worse properties nobody minds"
    assert outcomes[False] > 5


def test_the_same_seed_gives_the_same_properties(simulator: Simulator, tmp_path: Path) -> None:
    hashes = []
    for seed in (1, 1, 2):
        simulator.reset()
        simulator.configure(seed=seed, props=1000, resize=500)
        disk = new_disk(simulator, Driver.VFIO_PCI, tmp_path)
        for _ in range(10):
            with Caller(disk) as caller:
                caller.write(0, 0, BLOCK)
                caller.do_io()
        hashes.append(simulator.trace_hash)
    assert hashes[0] == hashes[1] != hashes[2]
