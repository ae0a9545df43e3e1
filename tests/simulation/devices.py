"""aioblk's devices on simulated disks."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aioblk

from .library import Disk, Driver, Place, SimulatedRequest, Simulator

__all__ = ["BLOCK", "SIZE", "device_on", "new_disk", "pattern", "until", "until_held"]

SIZE = 1 << 20
BLOCK = 512
PATIENCE = 20  # seconds, for what takes no time


def new_disk(simulator: Simulator, driver: Driver, directory: Path, size: int = SIZE) -> Disk:
    """An empty disk for the driver, at a place that the driver takes for one."""
    path = {
        Driver.IO_URING: directory / "file",
        Driver.VHOST_USER: directory / "socket",
        Driver.VHOST_VDPA: Path("/dev/null"),  # a character device, as vDPA ones and namespaces are
        Driver.VFIO_PCI: directory / "0000:00:01.0",
        Driver.NVME_IO_URING: Path("/dev/zero"),
    }[driver]
    if driver is Driver.IO_URING:
        with path.open("wb") as file:
            file.truncate(size)
    disk = simulator.disk(driver, path, size)
    if driver is Driver.NVME_IO_URING:  # with more, where memory happens to lie would decide about bouncing
        disk.override(buf_alignment=4)
    return disk


def device_on(disk: Disk, **options: Any) -> aioblk.Device:
    """A device that is to be opened on the disk."""
    kinds: dict[Driver, Callable[..., aioblk.Device]] = {
        Driver.IO_URING: aioblk.IoUring,
        Driver.VHOST_USER: aioblk.VirtioBlkVhostUser,
        Driver.VHOST_VDPA: aioblk.VirtioBlkVhostVdpa,
        Driver.VFIO_PCI: aioblk.VirtioBlkVfioPci,
        Driver.NVME_IO_URING: aioblk.NvmeIoUring,
    }
    return kinds[disk.driver](disk.path, **options)


def pattern(seed: int, length: int = BLOCK) -> bytes:
    """Bytes that no other seed gives."""
    return (seed.to_bytes(8, "little") * (length // 8 + 1))[:length]


async def until(happened: Callable[[], object]) -> None:
    """Let the loop take its turns until it is so."""
    async with asyncio.timeout(PATIENCE):
        for _ in iter(lambda: bool(happened()), True):
            await asyncio.sleep(0)


async def until_held(simulator: Simulator, count: int) -> list[SimulatedRequest]:
    """The requests that devices have, once there are so many."""

    def held() -> list[SimulatedRequest]:
        return [request for request in simulator.requests() if request.place is Place.AT_DEVICE]

    await until(lambda: len(held()) >= count)
    return held()
