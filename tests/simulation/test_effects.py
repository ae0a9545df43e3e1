"""When a request that is never answered stops having effects on the media."""

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

import aioblk

from .caller import Caller
from .devices import BLOCK, device_on, new_disk, pattern, until_held
from .library import Death, Disk, Driver, Simulator

SECTORS = 16
FILLED = b"\1" * (SECTORS * BLOCK)
SEEDS = range(1, 25)

LINGERING = [
    (Driver.IO_URING, Death.BROKEN),
    (Driver.NVME_IO_URING, Death.BROKEN),
    (Driver.VHOST_USER, Death.SILENT),
    (Driver.VHOST_USER, Death.HUNG_UP),
    (Driver.VHOST_VDPA, Death.SILENT),
    (Driver.VFIO_PCI, Death.BROKEN),
]
"""Devices that may have effects after their death."""


def _content(disk: Disk) -> bytes:
    return disk.content(0, SECTORS * BLOCK)


def _write_and_die(caller: Caller, disk: Disk, death: Death, simulator: Simulator, seed: int) -> bytes:
    """Writes of two sectors each are in flight as the device dies; what it has done of them by then."""
    caller.memory[0 : 2 * BLOCK] = FILLED[: 2 * BLOCK]
    simulator.configure(seed=seed, hold=1, abandons=1)
    for sector in range(0, SECTORS, 2):
        caller.write(sector * BLOCK, 0, 2 * BLOCK)
    caller.do_io()
    disk.die(death)
    return _content(disk)


def _keeps_to_what_was_written(content: bytes) -> bool:
    sectors = {content[i : i + BLOCK] for i in range(0, len(content), BLOCK)}
    return sectors <= {bytes(BLOCK), FILLED[:BLOCK]}


@pytest.mark.parametrize(("driver", "death"), LINGERING, ids=lambda it: it.name.lower())
def test_a_dead_device_has_effects_until_it_is_destroyed(
    driver: Driver, death: Death, simulator: Simulator, tmp_path: Path
) -> None:
    changed_later = changed_at_the_end = untouched = torn = 0
    for seed in SEEDS:
        simulator.reset()
        disk = new_disk(simulator, driver, tmp_path)
        with Caller(disk) as caller:
            at_death = _write_and_die(caller, disk, death, simulator, seed)
            for _ in range(3):
                caller.try_io()
            later = _content(disk)
            caller.destroy()
            last = _content(disk)
        changed_later += later != at_death
        changed_at_the_end += last != later
        untouched += any(last[i : i + 2 * BLOCK] == bytes(2 * BLOCK) for i in range(0, len(last), 2 * BLOCK))
        torn += any(
            last[i : i + BLOCK] != last[i + BLOCK : i + 2 * BLOCK] for i in range(0, len(last), 2 * BLOCK)
        )
        assert _keeps_to_what_was_written(last)
        with Caller(disk) as other:
            for _ in range(5):
                other.do_io()
            assert _content(disk) == last
    assert min(changed_later, changed_at_the_end, untouched, torn) > len(SEEDS) // 4


def test_a_killed_backends_requests_have_no_effects_later(simulator: Simulator, tmp_path: Path) -> None:
    for seed in SEEDS:
        simulator.reset()
        disk = new_disk(simulator, Driver.VHOST_USER, tmp_path)
        with Caller(disk) as caller:
            at_death = _write_and_die(caller, disk, Death.KILLED, simulator, seed)
            caller.write(0, 0, 2 * BLOCK)
            for _ in range(5):
                caller.try_io()
            caller.destroy()
            assert _content(disk) == at_death
            disk.restart()
            assert _content(disk) == at_death


def test_what_is_submitted_to_a_dead_device_may_be_done(simulator: Simulator, tmp_path: Path) -> None:
    done = 0
    for seed in SEEDS:
        simulator.reset()
        disk = new_disk(simulator, Driver.VFIO_PCI, tmp_path)
        with Caller(disk) as caller:
            _write_and_die(caller, disk, Death.SILENT, simulator, seed)
            caller.write(SECTORS * BLOCK, 0, BLOCK)
            caller.destroy()
            done += disk.content(SECTORS * BLOCK, BLOCK) == FILLED[:BLOCK]
    assert 0 < done < len(SEEDS)


def test_a_live_device_that_is_given_up_has_effects_until_it_is_destroyed(
    simulator: Simulator, tmp_path: Path
) -> None:
    changed = 0
    for seed in SEEDS:
        simulator.reset()
        disk = new_disk(simulator, Driver.VHOST_USER, tmp_path)
        with Caller(disk) as caller:
            simulator.configure(seed=seed, hold=1, abandons=1)
            caller.memory[0:BLOCK] = FILLED[:BLOCK]
            caller.write(0, 0, BLOCK)
            caller.do_io()
            caller.destroy()
        changed += disk.content(0, BLOCK) == FILLED[:BLOCK]
    assert 0 < changed < len(SEEDS)


def _serve_again(disk: Disk) -> None:
    disk.restart()


def _connect_again(disk: Disk) -> None:
    Caller(disk).close()


@pytest.mark.parametrize(
    ("driver", "death", "anew"),
    [
        (Driver.VHOST_USER, Death.HUNG_UP, _serve_again),
        (Driver.VHOST_USER, Death.SILENT, _serve_again),
        (Driver.VHOST_USER, Death.HUNG_UP, _connect_again),
        (Driver.VHOST_VDPA, Death.SILENT, _connect_again),
        (Driver.VFIO_PCI, Death.BROKEN, _connect_again),
    ],
)
def test_a_disk_that_is_served_anew_has_no_old_effects(
    driver: Driver, death: Death, anew: Callable[[Disk], None], simulator: Simulator, tmp_path: Path
) -> None:
    changed = 0
    for seed in SEEDS:
        simulator.reset()
        disk = new_disk(simulator, driver, tmp_path)
        with Caller(disk) as caller:
            at_death = _write_and_die(caller, disk, death, simulator, seed)
            simulator.configure(hold=0)
            anew(disk)
            then = _content(disk)
            caller.write(0, 0, 2 * BLOCK)
            for _ in range(5):
                caller.try_io()
            caller.destroy()
            assert _content(disk) == then
        changed += then != at_death
    assert changed > len(SEEDS) // 2


@pytest.mark.parametrize("driver", list(Driver), ids=lambda it: it.name.lower())
def test_nothing_has_effects_after_a_power_failure(
    driver: Driver, simulator: Simulator, tmp_path: Path
) -> None:
    for seed in SEEDS:
        simulator.reset()
        disk = new_disk(simulator, driver, tmp_path)
        with Caller(disk) as caller:
            caller.memory[0:BLOCK] = FILLED[:BLOCK]
            simulator.configure(seed=seed, hold=1, abandons=1)
            for sector in range(SECTORS):
                caller.write(sector * BLOCK, 0, BLOCK)
            caller.do_io()
            disk.power_failure()
            left = _content(disk)
            caller.write(0, 0, BLOCK)
            for _ in range(5):
                caller.try_io()
            caller.destroy()
            assert _content(disk) == left


async def test_what_was_done_as_the_power_failed_and_was_not_told_is_not_told(
    virtio_disk: Disk, simulator: Simulator
) -> None:
    """It may be lost, though it was FUA: nobody relies on it."""
    simulator.configure(abandons=1)
    async with device_on(virtio_disk) as dev:
        await dev.read(0, BLOCK)
        simulator.configure(hold=1)
        write = asyncio.ensure_future(dev.write(0, pattern(1), fua=True))
        (held, *_) = await until_held(simulator, 1)
        simulator.complete(held)
        virtio_disk.power_failure()
        await asyncio.sleep(0)
        dev.abandon("the power has failed")
        with pytest.raises(aioblk.DeviceLostError):
            await write


async def test_old_data_does_not_come_over_new(simulator: Simulator, tmp_path: Path) -> None:
    """aioblk makes a write again when the process has ended, and its own is the last word."""
    for seed in SEEDS:
        simulator.reset()
        simulator.configure(seed=seed)
        backend = new_disk(simulator, Driver.VHOST_USER, tmp_path)
        async with device_on(backend, reconnect_for=20) as dev:
            await dev.read(0, BLOCK)
            simulator.configure(hold=1)
            write = asyncio.ensure_future(dev.write(0, pattern(1, 4 * BLOCK)))
            await until_held(simulator, 1)
            backend.die(Death.HUNG_UP)
            backend.die(Death.KILLED)
            simulator.configure(hold=0)
            backend.restart()
            await write
            await dev.write(0, pattern(2, 4 * BLOCK))
            for _ in range(5):
                assert await dev.read(0, 4 * BLOCK) == pattern(2, 4 * BLOCK)


@pytest.mark.parametrize("driver", [Driver.VHOST_VDPA, Driver.VFIO_PCI])
async def test_a_device_file_is_open_once_at_a_time(
    driver: Driver, simulator: Simulator, tmp_path: Path
) -> None:
    """Or what somebody has given up would land on what another has written since."""
    disk = new_disk(simulator, driver, tmp_path)
    async with device_on(disk):
        with pytest.raises(aioblk.BlkioError) as refused:
            await device_on(disk).open()
        assert refused.value.errno == errno.EBUSY
    async with device_on(disk) as dev:
        await dev.read(0, BLOCK)
