"""Limits: what a started device accepts, read once and checked before anything relies on it."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast, final

from ..errors import BlkioError, PropertyError
from .properties import NVME_IO_URING, VHOST_USER, VIRTIO, PropertySource, usable_mem_regions

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Limits"]

# libblkio's lengths have 32 bits, the kernel's 31, though max-transfer says "unlimited". A power of two stays
# a multiple of every alignment, and at this size another request costs nothing.
LARGEST_TRANSFER = 1 << 30

# A chain in a virtqueue has a header and a status around the data. One that is longer than the queue never
# fits.
VIRTQUEUE_OVERHEAD = 2


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the device accepts. Lengths, alignments and sizes are in bytes; a largest length of 0: unlimited.

    The values are libblkio's properties of the same names, corrected where libblkio is known to promise too
    much. The defaults are those of a device that takes any bytes from any memory, for block devices of other
    kinds: ``Limits(request_alignment=512)``.
    """

    # requests of every kind
    request_alignment: int = 1
    """Offset and length of every request are multiples of it."""
    optimal_io_alignment: int = 1
    """Offsets and lengths that are multiples of it are fastest."""
    optimal_io_size: int = 0
    """The request length that is fastest; 0: not known."""
    can_grow: bool = False
    """Writes past the end grow the device; reads past the end give zeroes."""
    flush_needed: bool = True
    """A completed write is persistent only after a flush. True also where it cannot be known: vhost-user."""

    # reads and writes
    buf_alignment: int = 1
    """Address and length of a buffer are multiples of it; other buffers bounce."""
    optimal_buf_alignment: int = 1
    """Buffers whose address and length are multiples of it are fastest."""
    max_segments: int = 1024
    """Most buffers of one request."""
    max_segment_len: int = 0
    """Largest length of one buffer."""
    max_transfer: int = 0
    """Largest length of one read or write."""
    supports_fua_natively: bool = False
    """FUA writes are one request to the device, not a write and a flush."""

    # write-zeroes and discards
    max_write_zeroes_len: int = 0
    """Bytes of one request of the driver's; longer ones are split. 0: no limit."""
    max_discard_len: int = 0
    """Bytes of one request of the driver's; longer ones are split. 0: no limit."""
    discard_alignment: int = 0
    """Start (less the offset below) and length of a discard are multiples of it; 0 or 1: any."""
    discard_alignment_offset: int = 0
    """The first byte that can be discarded."""

    # memory regions
    needs_mem_regions: bool = False
    """Buffers outside mapped memory regions bounce."""
    needs_mem_region_fd: bool = False
    """Only memory with a file descriptor can be mapped."""
    may_pin_mem_regions: bool = False
    """Pages of mapped regions may be pinned, so that they cannot be given back (madvise, hole punching)."""
    mem_region_alignment: int = 1
    """Address and length of a region are multiples of it."""
    max_mem_regions: int = 0
    """Most regions that can be mapped at a time, the bounce pool's included."""

    @classmethod
    def read(cls, device: PropertySource, *, sysfs: "str | Path" = "/sys") -> "Limits":
        """Read, correct and validate the limits of a started device.

        Raises BlkioError, naming property, value and rule, if the values contradict themselves: splitting
        requests by such limits could not work.
        """

        def number(name: str) -> int:
            return cast(int, device.get(name))

        def flag(name: str) -> bool:
            return cast(bool, device.get(name))

        needs_mem_regions = flag("needs-mem-regions")
        try:
            may_pin_mem_regions = flag("may-pin-mem-regions")
        except PropertyError:
            may_pin_mem_regions = needs_mem_regions  # a libblkio that does not say
        limits = cls(
            request_alignment=number("request-alignment"),
            optimal_io_alignment=number("optimal-io-alignment"),
            optimal_io_size=number("optimal-io-size"),
            can_grow=flag("can-grow"),
            flush_needed=flag("flush-needed"),
            buf_alignment=number("buf-alignment"),
            optimal_buf_alignment=number("optimal-buf-alignment"),
            max_segments=number("max-segments"),
            max_segment_len=number("max-segment-len"),
            max_transfer=number("max-transfer"),
            supports_fua_natively=flag("supports-fua-natively"),
            max_write_zeroes_len=number("max-write-zeroes-len"),
            max_discard_len=number("max-discard-len"),
            discard_alignment=number("discard-alignment"),
            discard_alignment_offset=number("discard-alignment-offset"),
            needs_mem_regions=needs_mem_regions,
            needs_mem_region_fd=flag("needs-mem-region-fd"),
            may_pin_mem_regions=may_pin_mem_regions,
            mem_region_alignment=number("mem-region-alignment"),
            max_mem_regions=usable_mem_regions(device),
        )
        _validate(limits, device.driver)
        return _correct(limits, device, sysfs)


# --- corrections --------------------------------------------------------------------------------------------


def _correct(limits: Limits, device: PropertySource, sysfs: "str | Path") -> Limits:
    """*limits* with the values that libblkio overstates replaced by what works."""
    transfers = [limits.max_transfer, LARGEST_TRANSFER]
    segments = limits.max_segments
    if device.driver in VIRTIO:
        segments = min(segments, cast(int, device.get("queue-size")) - VIRTQUEUE_OVERHEAD)
    if device.driver == NVME_IO_URING:
        node = os.fstat(cast(int, device.get("fd"))).st_rdev
        transfers.append(nvme_max_transfer(node, sysfs))
    smallest = min(length for length in transfers if length)
    return replace(
        limits,
        max_segments=segments,
        max_transfer=_round_down(smallest, limits),
        # QEMU's backend reports a write-through cache (the field "writeback" is 0) whatever it has.
        flush_needed=limits.flush_needed or device.driver == VHOST_USER,
    )


def _round_down(length: int, limits: Limits) -> int:
    """The largest multiple of the alignments that is not above *length*."""
    for step in (limits.optimal_io_size, limits.request_alignment):
        if 0 < step <= length:
            return length - length % step
    return length


def nvme_max_transfer(node: int, sysfs: "str | Path") -> int:
    """The largest NVMe command the kernel accepts, in bytes; 0 if it does not say. libblkio claims far more.

    *node* is the device number of a namespace's character device, /dev/ng0n1. The limit belongs to the queue
    of the block device beside it, nvme0n1.
    """
    from pathlib import Path  # with what it imports, it takes as long as a tenth of a device

    try:
        character_device = (Path(sysfs) / f"dev/char/{os.major(node)}:{os.minor(node)}").resolve(strict=True)
        block_device = character_device.with_name(character_device.name.replace("ng", "nvme", 1))
        return int((block_device / "queue/max_hw_sectors_kb").read_text()) * 1024
    except (OSError, ValueError):
        return 0


# --- rules --------------------------------------------------------------------------------------------------


def _power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def _multiple(value: int, of: int) -> bool:
    return value == 0 or of == 0 or value % of == 0


# Property, whether it keeps the rule, the rule in words. QEMU applies the first six to a device it opens.
_RULES: tuple[tuple[str, Callable[[Limits], bool], str], ...] = (
    ("request_alignment", lambda it: _power_of_two(it.request_alignment), "must be a power of two"),
    (
        "optimal_io_size",
        lambda it: it.optimal_io_size >= 0 and _multiple(it.optimal_io_size, it.request_alignment),
        "must be 0 or a multiple of request-alignment ({request_alignment})",
    ),
    (
        "max_transfer",
        lambda it: (
            it.max_transfer >= 0
            and _multiple(it.max_transfer, it.request_alignment)
            and _multiple(it.max_transfer, it.optimal_io_size)
        ),
        "must be 0 or a multiple of request-alignment ({request_alignment})"
        " and optimal-io-size ({optimal_io_size})",
    ),
    ("buf_alignment", lambda it: it.buf_alignment > 0, "must be positive"),
    ("optimal_buf_alignment", lambda it: it.optimal_buf_alignment > 0, "must be positive"),
    ("max_segments", lambda it: it.max_segments > 0, "must be positive"),
    ("max_segment_len", lambda it: it.max_segment_len >= 0, "must not be negative"),
    ("discard_alignment", lambda it: it.discard_alignment >= 0, "must not be negative"),
    (
        "discard_alignment",
        lambda it: _multiple(it.discard_alignment, it.request_alignment),
        "must be 0 or a multiple of request-alignment ({request_alignment})",
    ),
    (
        "discard_alignment_offset",
        lambda it: 0 <= it.discard_alignment_offset < max(it.discard_alignment, 1),
        "must be less than discard-alignment ({discard_alignment})",
    ),
    (
        "mem_region_alignment",
        lambda it: it.mem_region_alignment > 0 and _multiple(it.mem_region_alignment, it.buf_alignment),
        "must be a multiple of buf-alignment ({buf_alignment})",
    ),
    (
        "max_mem_regions",
        lambda it: it.max_mem_regions > 0 or not it.needs_mem_regions,
        "must be positive where memory regions are needed",
    ),
)


def _validate(limits: Limits, driver: str) -> None:
    values = {name: getattr(limits, name) for name in limits.__slots__}
    for name, is_kept, rule in _RULES:
        if not is_kept(limits):
            raise BlkioError(
                f"the device's {name.replace('_', '-')} is {values[name]}, but it {rule.format_map(values)}",
                errno=errno.EINVAL,
                driver=driver,
                operation="start",
            )
