"""The table of drivers: how each is opened here, which properties it has, and what it cannot do and why.

The tests hold the table against the device in both directions: what is not listed must work, and what is
listed must be refused in the way a user is promised.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pytest

import aioblk

from ..support.devices import LastingDaemons
from ..support.exporter import Exporter
from ..support.loop_device import cannot_have_loop_devices

Feature: TypeAlias = Literal[
    "adding queues",
    "bytes instead of blocks",
    "growing",
    "memory without a descriptor",
    "opening by descriptor",
    "page cache",
    "polling",
    "sharing",
    "zones",
]
Can: TypeAlias = Callable[[Feature], bool]

MIB = 1 << 20
UNLIMITED = 2**64 - 1

# Where the device of a test is: the value of the driver's path.
Locate: TypeAlias = Callable[[pytest.FixtureRequest], Path]


@dataclass(frozen=True)
class Driver:
    """One column of the table."""

    name: str
    """What the column is called."""
    libblkio_name: str
    locate: Locate
    properties: Mapping[str, bool | int]
    """What the device reports."""
    lacks: Mapping[Feature, str]
    """What it cannot do, and why."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Properties it is always opened with."""


FIXED_SIZE = "a block device does not grow"
BLOCKS = "the device transfers whole blocks"
ONE_CLIENT = "the device serves one client at a time"
NO_DESCRIPTOR = "libblkio takes this device's path only"
FIXED_QUEUES = "virtqueues are set up when the device starts"
NEEDS_FILE = "the device's other side maps the memory by its descriptor"
NOTHING_TO_POLL = "only direct I/O can be polled"
DISK_CANNOT_POLL = "the disk under it has no poll queues"
LOOP_CANNOT_POLL = "the kernel's loop devices cannot be polled"
NVME_CANNOT_POLL = "libblkio has no poll queues for it"
NO_ZONES = "only zoned namespaces of NVMe have zones"
NO_PAGE_CACHE = "the driver bypasses the page cache, there is nothing to choose"


def scratch_file(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue("scratch_file")
    return path


def loop_device(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue("loop_device")
    return path


def vhost_user_socket(request: pytest.FixtureRequest) -> Path:
    daemon: LastingDaemons = request.getfixturevalue("lasting_daemon")
    return daemon(num_queues=2).path


def exported_socket(request: pytest.FixtureRequest) -> Path:
    """Of an export of aioblk's own, of a file."""
    file = scratch_file(request)
    exporter = Exporter(file.parent, lambda: aioblk.IoUring(file), queues=2)
    exporter.__enter__()
    request.addfinalizer(lambda: exporter.__exit__(None, None, None))
    return exporter.socket


def device_named_by(variable: str) -> Locate:
    return lambda _: Path(os.environ[variable])


def disk_has_poll_queues() -> bool:
    """Whether completions on the disk that scratch files are on can be polled for."""
    number = os.stat(tempfile.gettempdir()).st_dev
    disk = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    settings = [place / "queue/io_poll" for place in (disk, disk.parent)]  # of the disk, or of its partition
    return any(setting.exists() and setting.read_text() == "1\n" for setting in settings)


IO_URING_PROPERTIES: Mapping[str, bool | int] = {
    "needs-mem-regions": False,
    "needs-mem-region-fd": False,
    "may-pin-mem-regions": False,
    "max-mem-regions": UNLIMITED,
    "max-segments": 1024,
    "max-write-zeroes-len": 0,
    "max-discard-len": 0,
    "can-add-queues": True,
    "flush-needed": True,
}

BUFFERED = Driver(
    "file",
    "io_uring",
    scratch_file,
    {
        **IO_URING_PROPERTIES,
        "request-alignment": 1,
        "buf-alignment": 1,
        "mem-region-alignment": 1,
        "can-grow": True,
    },
    {"polling": NOTHING_TO_POLL, "zones": NO_ZONES},
)

DIRECT = Driver(
    "direct",
    "io_uring",
    scratch_file,
    {
        **IO_URING_PROPERTIES,
        "request-alignment": 512,
        "buf-alignment": 512,
        "mem-region-alignment": 512,
        "can-grow": True,
    },
    {
        "bytes instead of blocks": BLOCKS,
        "zones": NO_ZONES,
        **({} if disk_has_poll_queues() else {"polling": DISK_CANNOT_POLL}),
    },
    options={"direct": True},
)

LOOP = Driver(
    "loop device",
    "io_uring",
    loop_device,
    {
        **IO_URING_PROPERTIES,
        "request-alignment": 512,
        "buf-alignment": 512,
        "mem-region-alignment": 512,
        "can-grow": False,
    },
    {
        "bytes instead of blocks": BLOCKS,
        "growing": FIXED_SIZE,
        "polling": LOOP_CANNOT_POLL,
        "zones": NO_ZONES,
    },
    options={"direct": True},
)

VIRTIO_PROPERTIES: Mapping[str, bool | int] = {
    "needs-mem-regions": True,
    "may-pin-mem-regions": True,
    "buf-alignment": 1,
    "request-alignment": 512,
    "max-transfer": 0,
    "can-add-queues": False,
    "can-grow": False,
    "supports-fua-natively": False,
    "max-queues": 2,
}
VIRTIO_LACKS: Mapping[Feature, str] = {
    "adding queues": FIXED_QUEUES,
    "bytes instead of blocks": BLOCKS,
    "page cache": NO_PAGE_CACHE,
    "growing": FIXED_SIZE,
    "sharing": ONE_CLIENT,
    "zones": NO_ZONES,
}

VHOST_USER = Driver(
    "vhost-user",
    "virtio-blk-vhost-user",
    vhost_user_socket,
    {
        **VIRTIO_PROPERTIES,
        "flush-needed": False,
        "needs-mem-region-fd": True,
        "mem-region-alignment": 1,
        "max-segments": 126,
        "max-write-zeroes-len": 16 * MIB,
        "max-discard-len": 16 * MIB,
    },
    {**VIRTIO_LACKS, "memory without a descriptor": NEEDS_FILE, "opening by descriptor": NO_DESCRIPTOR},
)

EXPORTED = Driver(
    "exported",
    "virtio-blk-vhost-user",
    exported_socket,
    {
        **VHOST_USER.properties,
        "flush-needed": True,
        "max-write-zeroes-len": 64 * MIB,
        "max-discard-len": 64 * MIB,
    },
    VHOST_USER.lacks,
)

VDUSE = Driver(
    "vduse",
    "virtio-blk-vhost-vdpa",
    device_named_by("AIOBLK_VM_VDPA"),
    {
        **VIRTIO_PROPERTIES,
        "flush-needed": True,
        "needs-mem-region-fd": True,
        "max-mem-regions": UNLIMITED,
        "mem-region-alignment": 4096,
        "max-segments": 254,
        "max-write-zeroes-len": 16 * MIB,
        "max-discard-len": 16 * MIB,
        "discard-alignment": 512,
    },
    {**VIRTIO_LACKS, "memory without a descriptor": NEEDS_FILE},
)

VFIO = Driver(
    "vfio",
    "virtio-blk-vfio-pci",
    device_named_by("AIOBLK_VM_VFIO"),
    {
        **VIRTIO_PROPERTIES,
        "flush-needed": True,
        "needs-mem-region-fd": False,
        "max-mem-regions": 65535,
        "mem-region-alignment": 4096,
        "max-segments": 254,
        "max-write-zeroes-len": 2147483136,
        "max-discard-len": 2147483136,
        "discard-alignment": 512,
    },
    {**VIRTIO_LACKS, "opening by descriptor": NO_DESCRIPTOR},
)

NVME = Driver(
    "nvme",
    "nvme-io_uring",
    device_named_by("AIOBLK_VM_NVME"),
    {
        "needs-mem-regions": False,
        "needs-mem-region-fd": False,
        "may-pin-mem-regions": False,
        "max-mem-regions": UNLIMITED,
        "mem-region-alignment": 4096,
        "request-alignment": 4096,
        "buf-alignment": 4096,
        "max-segments": 1024,
        "can-add-queues": True,
        "supports-poll-queues": False,
        "supports-fua-natively": True,
        "flush-needed": True,
        "max-write-zeroes-len": 256 * MIB,
        "max-discard-len": (2**32 - 1) * 4096,
        "discard-alignment": 4096,
    },
    {
        "bytes instead of blocks": BLOCKS,
        "growing": FIXED_SIZE,
        "page cache": NO_PAGE_CACHE,
        "polling": NVME_CANNOT_POLL,
        "zones": NO_ZONES,
    },
)

RBD = replace(VHOST_USER, name="rbd", locate=device_named_by("AIOBLK_RBD"))

IN_GUEST = "AIOBLK_VM_NVME" in os.environ


def drivers_here() -> list[Driver]:
    """Those whose devices this machine has."""
    if IN_GUEST:
        return [NVME, VDUSE, VFIO]
    if "AIOBLK_RBD" in os.environ:
        return [RBD]
    with_loop_devices = [LOOP] if cannot_have_loop_devices() is None else []
    return [BUFFERED, DIRECT, *with_loop_devices, VHOST_USER, EXPORTED]


class Opener:
    """Opens the device of one test."""

    def __init__(self, driver: Driver, path: Path) -> None:
        self.driver = driver
        self.path = path

    def __call__(self, **properties: Any) -> aioblk.Device:
        """A device that is not yet open, with the properties given."""
        device = aioblk.open(
            self.driver.libblkio_name, **{"path": str(self.path), **self.driver.options, **properties}
        )
        assert isinstance(device, aioblk.Device)
        return device
