"""One class per libblkio driver: its options and nothing else; all behaviour is Device's."""

from collections.abc import Mapping

from .._device.device import Device
from .._libblkio.properties import IO_URING, NVME_IO_URING, VFIO_PCI, VHOST_USER, VHOST_VDPA
from .io_uring import IoUring
from .nvme_io_uring import NvmeIoUring
from .virtio_blk import VirtioBlkVfioPci, VirtioBlkVhostUser, VirtioBlkVhostVdpa

__all__ = [
    "CLASSES",
    "IoUring",
    "NvmeIoUring",
    "VirtioBlkVfioPci",
    "VirtioBlkVhostUser",
    "VirtioBlkVhostVdpa",
]

CLASSES: Mapping[str, type[Device]] = {
    IO_URING: IoUring,
    NVME_IO_URING: NvmeIoUring,
    VHOST_USER: VirtioBlkVhostUser,
    VHOST_VDPA: VirtioBlkVhostVdpa,
    VFIO_PCI: VirtioBlkVfioPci,
}
"""The classes under libblkio's names of their drivers."""
