"""Where the bytes of a device lie, as far as can be told: two devices may be one, by different names."""

import os
import stat
from typing import TYPE_CHECKING, NamedTuple, cast, final

from .._device.device import Device
from .._libblkio.properties import IO_URING
from ..layers.block_device import BlockDevice
from ..layers.byte_view import ByteView
from ..layers.layer import Layer
from ..layers.slice import Slice

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Place", "bypasses_page_cache", "file_of", "place_of"]

SYSFS = "/sys/dev/block"
SECTOR = 512  # sysfs's, whatever the disk's blocks are


@final
class Place(NamedTuple):
    """A stretch of something that has a name of its own."""

    what: tuple[object, ...]
    start: int
    length: int

    def overlaps(self, other: "Place") -> bool:
        return (
            self.what == other.what
            and self.start < other.start + other.length
            and other.start < self.start + self.length
        )


def place_of(device: BlockDevice) -> Place:
    """Of what is a file, a disk or a socket by whatever name; of all else, that it is the same object."""
    start, length = 0, device.capacity
    while isinstance(device, (Layer, ByteView)):
        if isinstance(device, Slice):
            start += device.offset
        device = cast(BlockDevice, device.device)
    if (fd := file_of(device)) is not None:
        what, base = _place_of_file(os.fstat(fd))
        return Place(what, base + start, length)
    if isinstance(device, Device) and device.properties.get("path"):
        try:
            status = os.stat(cast(str, device.properties["path"]))
        except OSError:  # the socket is gone; the device need not be
            return Place((id(device),), start, length)
        return Place((status.st_dev, status.st_ino), start, length)
    name = getattr(device, "uri", None)
    return Place((name,) if isinstance(name, str) else (id(device),), start, length)


def file_of(device: BlockDevice) -> int | None:
    """The descriptor of the file or disk that the device is, and not a layer over it; None: it is none."""
    if isinstance(device, Device) and device.driver == IO_URING:
        return cast(int, device.properties["fd"])
    return None


def bypasses_page_cache(device: BlockDevice) -> bool:
    """Whether it is a file or disk that was opened with ``direct``."""
    return file_of(device) is not None and bool(cast(Device, device).properties["direct"])


def _place_of_file(status: os.stat_result) -> tuple[tuple[object, ...], int]:
    """What it lies on, and where it begins there. A partition is a part of its disk; a loop device is its
    file, where that is the whole of it."""
    if not stat.S_ISBLK(status.st_mode):
        return (status.st_dev, status.st_ino), 0
    return _place_of_disk(_node_of(status.st_rdev)) or (
        ("disk", f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"),
        0,
    )


def _place_of_disk(node: "Path") -> tuple[tuple[object, ...], int] | None:
    """None: nothing is known of it."""
    try:
        if (node / "partition").exists():
            disk = _place_of_disk(node.parent)
            return disk and (disk[0], disk[1] + int((node / "start").read_text()) * SECTOR)
        if (backing := _backing_file(node)) is not None:
            return (backing.st_dev, backing.st_ino), int((node / "loop/offset").read_text())
        return ("disk", (node / "dev").read_text().strip()), 0
    except (OSError, ValueError):
        return None


def _node_of(rdev: int) -> "Path":
    from pathlib import Path  # it takes a while to import, and files need none of it

    return (Path(SYSFS) / f"{os.major(rdev)}:{os.minor(rdev)}").resolve()


def _backing_file(node: "Path") -> os.stat_result | None:
    """Of a loop device."""
    try:
        return os.stat((node / "loop/backing_file").read_text().rstrip("\n"))
    except OSError:
        return None
