"""What a device is: all that can be known of it without changing it, also where it does not open."""

import errno
import os
import stat
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Literal, TypeAlias, final

from .._device.device import Device
from .._device.extents import ExtentKind
from .._device.holders import Holder, find_holders
from .._libblkio.properties import IO_URING
from .._sync.blocking import run_blocking
from ..addresses import Openable, parse_address
from ..errors import BlkioError, UnsupportedError
from ..layers.block_device import BlockDevice, KnowsExtents
from ..layers.partitions import Partition, partitions
from ..layers.signatures import Signature, signatures
from ..layers.zones import Zones
from . import machine, system
from .parameters import Opener

__all__ = ["Description", "ExtentsSummary", "FileFacts", "ZonesSummary", "describe"]

MOST_EXTENTS = 100_000  # a file in more pieces is summed up as far as that

FileKind: TypeAlias = Literal["file", "block device", "character device", "socket", "directory", "other"]
_KINDS: Mapping[int, FileKind] = {
    stat.S_IFREG: "file",
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
    stat.S_IFSOCK: "socket",
    stat.S_IFDIR: "directory",
}


@final
@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the address leads to, as the file system has it. Sizes in bytes."""

    path: str
    kind: FileKind
    size: int | None
    """Of a file."""
    allocated: int | None
    """What of it takes space."""
    whose: str
    """As ``ls -l`` says: "-rw-r--r-- root:disk"."""
    writable: bool
    """Whether this process may write to it."""


@final
@dataclass(frozen=True, slots=True)
class ZonesSummary:
    """Sizes in bytes."""

    count: int
    size: int
    max_open: int
    max_active: int
    states: dict[str, int]
    """How many are in each state."""


@final
@dataclass(frozen=True, slots=True)
class ExtentsSummary:
    """Bytes that hold something, and bytes that are holes."""

    data: int
    holes: int
    pieces: int
    complete: bool
    """False: there are more pieces than were counted."""


@final
@dataclass(slots=True)
class Description:
    """None, or empty, is what does not apply or could not be found out."""

    address: str
    driver: str
    """What opens it, below all layers: libblkio's driver, or nbd."""
    file: FileFacts | None = None
    holders: list[Holder] = field(default_factory=list[Holder])
    error: str | None = None
    """Why it could not be opened, or read."""
    remedies: list[str] = field(default_factory=list[str])
    capacity: int | None = None
    read_only: bool | None = None
    limits: dict[str, int | bool] = field(default_factory=dict[str, int | bool])
    properties: dict[str, int | bool | str] = field(default_factory=dict[str, int | bool | str])
    signatures: list[Signature] = field(default_factory=list[Signature])
    partitions: list[Partition] = field(default_factory=list[Partition])
    partition_error: str | None = None
    extents: ExtentsSummary | None = None
    zones: ZonesSummary | None = None


async def describe(opener: Opener) -> Description:
    """Open a device for reading, look at it, and close it. What goes wrong is in the description."""
    found = Description(opener.address, opener.innermost.name)
    if opener.path is not None:
        found.file, found.holders = await run_blocking(partial(_look_at_file, opener.path))
    try:
        device = await _open(opener)
        async with aclosing(device):
            await _look_at_device(found, device)
    except OSError as error:
        found.error = str(error)
        found.remedies = await run_blocking(partial(_remedies, found, error))
    if found.file is not None and found.driver == IO_URING and found.read_only is not None:
        # it was opened for reading, whatever it is
        found.read_only = _is_for_reading(opener) or not found.file.writable
    return found


def _is_for_reading(opener: Opener) -> bool:
    """Whether the address itself allows no changes."""
    address = parse_address(opener.address)
    while address.name != "readonly" and address.options.get("read_only") is not True:
        if address.base is None or address.name == "cow":  # what lies below that is only read in any case
            return False
        address = address.base
    return True


async def _open(opener: Opener) -> Openable:
    """Open it, for reading where that is enough to learn everything: closing what could have been written to
    makes the system look at it anew."""
    if opener.innermost.name == IO_URING:
        return await opener(read_only=True).open()
    device = opener()
    try:
        await device.open()
    except BlkioError as error:
        if error.errno != errno.EROFS:
            raise
        return await opener(read_only=True).open()
    return device


def _look_at_file(path: str) -> tuple[FileFacts | None, list[Holder]]:
    try:
        status = os.stat(path)
        holders = find_holders(path)
    except OSError:
        return None, []
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "other")
    regular = kind == "file"
    _may, whose = system.who_may(path)
    writable = os.access(path, os.W_OK, effective_ids=True)
    if kind == "block device":
        numbers = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        writable = writable and system.read(f"/sys/dev/block/{numbers}/ro") != "1"
    size, allocated = (status.st_size, status.st_blocks * 512) if regular else (None, None)
    return FileFacts(path, kind, size, allocated, whose, writable), holders


async def _look_at_device(found: Description, device: BlockDevice) -> None:
    found.capacity, found.read_only = device.capacity, device.read_only
    found.limits = asdict(device.limits)
    if isinstance(device, Device):
        found.properties = dict(device.properties)
        found.zones = await _sum_up_zones(device)
    if isinstance(device, KnowsExtents):
        found.extents = await _sum_up_extents(device)
    found.signatures = await signatures(device)
    try:
        found.partitions = await partitions(device) if device.capacity else []
    except BlkioError as error:
        found.partition_error = error.message or str(error)


async def _sum_up_extents(device: KnowsExtents) -> ExtentsSummary:
    lengths = dict.fromkeys(ExtentKind, 0)
    pieces = 0
    async with aclosing(device.extents()) as extents:
        async for extent in extents:
            lengths[extent.kind] += extent.length
            pieces += 1
            if pieces == MOST_EXTENTS:
                return ExtentsSummary(
                    lengths[ExtentKind.DATA], lengths[ExtentKind.HOLE], pieces, complete=False
                )
    return ExtentsSummary(lengths[ExtentKind.DATA], lengths[ExtentKind.HOLE], pieces, complete=True)


async def _sum_up_zones(device: Device) -> ZonesSummary | None:
    try:
        zones = Zones(device)
    except UnsupportedError:
        return None
    states: dict[str, int] = {}
    async for zone in zones.report():
        name = zone.state.name.lower()
        states[name] = states.get(name, 0) + 1
    return ZonesSummary(zones.count, zones.zone_size, zones.max_open, zones.max_active, states)


def _remedies(found: Description, error: OSError) -> list[str]:
    """What would let it be opened: the machine's remedies for the driver, and the file's."""
    remedies: list[str] = []
    if (
        error.errno in (errno.EACCES, errno.EPERM)
        and found.file is not None
        and not _may_read(found.file.path)
    ):
        group = found.file.whose.rpartition(":")[2]
        remedies.append(f"{found.file.path} is {found.file.whose}: become root, or join the group {group}")
    elif error.errno == errno.EPERM and found.driver == IO_URING and found.file is not None:
        remedies.append(
            "the permissions allow it, and the kernel refuses it all the same: a container needs the device "
            "by --device, and a security module a rule"
        )
    states = {state.driver: state for state in machine.examine().drivers}
    if found.driver in states and error.errno not in (errno.ENOENT, errno.ENOTDIR):
        remedies += [
            f"{check.found}; {check.remedy}" if check.remedy else check.found
            for check in states[found.driver].checks
            if check.state == "fails"
        ]
    if found.holders and error.errno in (errno.EBUSY, errno.ETIMEDOUT, errno.EAGAIN):
        remedies += [f"it is {holder.who}" for holder in found.holders]
    return remedies


def _may_read(path: str) -> bool:
    return os.access(path, os.R_OK, effective_ids=True)
