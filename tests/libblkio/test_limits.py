"""Limits: what is read, what is corrected, and what contradicts itself."""

import errno
import mmap
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from aioblk._libblkio.handle import Blkio
from aioblk._libblkio.limits import LARGEST_TRANSFER, Limits, nvme_max_transfer
from aioblk._libblkio.properties import PropertyValue, State
from aioblk._native._blkio import ffi
from aioblk.errors import BlkioError, PropertyError

from ..conftest import StorageDaemonFactory
from ..support.blocking_io import BlockingQueue

KIB = 1024
PLAIN: Mapping[str, PropertyValue] = {
    "request-alignment": 512,
    "optimal-io-alignment": 4096,
    "optimal-io-size": 0,
    "can-grow": False,
    "flush-needed": True,
    "buf-alignment": 512,
    "optimal-buf-alignment": 4096,
    "max-segments": 126,
    "max-segment-len": 0,
    "max-transfer": 0,
    "supports-fua-natively": False,
    "max-write-zeroes-len": 0,
    "max-discard-len": 0,
    "discard-alignment": 512,
    "discard-alignment-offset": 0,
    "needs-mem-regions": False,
    "needs-mem-region-fd": False,
    "may-pin-mem-regions": False,
    "mem-region-alignment": 4096,
    "max-mem-regions": 32,
    "queue-size": 256,
}


class Source:
    """A device with the properties that a test is about."""

    def __init__(self, driver: str = "io_uring", **changes: PropertyValue) -> None:
        self.driver = driver
        self.state = State.STARTED
        self.properties = {**PLAIN, **{name.replace("_", "-"): value for name, value in changes.items()}}

    def get(self, name: str, /) -> PropertyValue:
        try:
            return self.properties[name]
        except KeyError:
            raise PropertyError(f"this version of libblkio does not have {name}") from None


def test_a_buffered_file_has_no_alignment(scratch_file: Path) -> None:
    with Blkio("io_uring") as device:
        device.set("path", str(scratch_file))
        device.connect()
        device.start()
        limits = Limits.read(device)
    assert limits == Limits(
        request_alignment=1,
        optimal_io_alignment=4096,
        optimal_io_size=0,
        can_grow=True,
        flush_needed=True,
        buf_alignment=1,
        optimal_buf_alignment=4096,
        max_segments=1024,
        max_segment_len=0,
        max_transfer=LARGEST_TRANSFER,
        supports_fua_natively=False,
        max_write_zeroes_len=0,
        max_discard_len=0,
        discard_alignment=1,
        discard_alignment_offset=0,
        needs_mem_regions=False,
        needs_mem_region_fd=False,
        may_pin_mem_regions=False,
        mem_region_alignment=1,
        max_mem_regions=2**64 - 1,
    )


def test_a_direct_block_device_is_aligned_to_its_blocks(loop_device: Path) -> None:
    with Blkio("io_uring") as device:
        device.set("path", str(loop_device))
        device.set("direct", True)
        device.connect()
        device.start()
        limits = Limits.read(device)
    assert limits.request_alignment == limits.buf_alignment == 512
    assert limits.can_grow is False


def test_vhost_user_needs_regions_of_which_one_is_libblkios(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(block_size=4096)
    with Blkio("virtio-blk-vhost-user") as device:
        device.set("path", str(daemon.socket))
        device.connect()
        device.start()
        limits = Limits.read(device)
        assert limits.max_mem_regions == cast(int, device.get("max-mem-regions")) - 1
    assert limits.request_alignment == 4096
    assert (limits.needs_mem_regions, limits.needs_mem_region_fd, limits.may_pin_mem_regions) == (True,) * 3
    assert limits.max_segments == 126
    assert limits.max_discard_len == limits.max_write_zeroes_len == 16 << 20


@pytest.mark.parametrize(("queue_size", "most"), [(4, 2), (64, 62), (128, 126), (1024, 126)])
def test_a_vector_is_never_longer_than_its_virtqueue(
    storage_daemon: StorageDaemonFactory, queue_size: int, most: int
) -> None:
    """libblkio says 126 whatever the queue's size; a request with more than fits is never answered."""
    daemon = storage_daemon()
    with Blkio("virtio-blk-vhost-user") as device:
        device.set("path", str(daemon.socket))
        device.connect()
        device.set("queue-size", queue_size)
        device.start()
        limits = Limits.read(device)
        assert limits.max_segments == most
        region = device.alloc_mem_region(mmap.PAGESIZE)
        device.map_mem_region(region)
        assert BlockingQueue(device).readv(0, [(region.address, 512)] * most) == 0


def test_a_transfer_of_the_largest_size_works(tmp_path: Path) -> None:
    """libblkio calls transfers unlimited, and refuses those of 4 GiB."""
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, LARGEST_TRANSFER)
    with Blkio("io_uring") as device, mmap.mmap(-1, mmap.PAGESIZE) as memory:
        device.set("path", str(path))
        device.connect()
        device.start()
        queue, at = BlockingQueue(device), int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))
        assert queue.read(0, at, 1 << 32) == -errno.EINVAL
        assert Limits.read(device).max_transfer == LARGEST_TRANSFER


@pytest.mark.parametrize(
    ("claimed", "optimal", "corrected"),
    [
        (0, 0, LARGEST_TRANSFER),
        (1 << 20, 0, 1 << 20),
        (0, 3 * 512, LARGEST_TRANSFER - LARGEST_TRANSFER % (3 * 512)),
    ],
)
def test_the_largest_transfer_stays_a_multiple(claimed: int, optimal: int, corrected: int) -> None:
    limits = Limits.read(Source(max_transfer=claimed, optimal_io_size=optimal))
    assert limits.max_transfer == corrected


def test_a_backend_that_denies_its_cache_is_not_believed(storage_daemon: StorageDaemonFactory) -> None:
    """QEMU reports a write-through cache, and answers a write once it is in the page cache."""
    daemon = storage_daemon()
    with Blkio("virtio-blk-vhost-user") as device:
        device.set("path", str(daemon.socket))
        device.connect()
        device.start()
        assert device.get("flush-needed") is False
        assert Limits.read(device).flush_needed is True


@pytest.mark.parametrize("needed", [True, False])
def test_hardware_is_believed(needed: bool) -> None:
    assert Limits.read(Source("virtio-blk-vfio-pci", flush_needed=needed)).flush_needed is needed


@pytest.mark.parametrize("needed", [True, False])
def test_a_libblkio_that_does_not_say_may_pin_what_it_needs(needed: bool) -> None:
    source = Source(needs_mem_regions=needed)
    del source.properties["may-pin-mem-regions"]
    assert Limits.read(source).may_pin_mem_regions is needed


# --- NVMe ---------------------------------------------------------------------------------------------------


@pytest.fixture
def nvme(tmp_path: Path) -> tuple[int, Path, Path]:
    """Device number of ng0n1, a sysfs that has it, and the file that holds its limit."""
    controller = tmp_path / "devices/pci0000:00/0000:00:04.0/nvme/nvme0"
    (controller / "ng0n1").mkdir(parents=True)
    limit = controller / "nvme0n1/queue/max_hw_sectors_kb"
    limit.parent.mkdir(parents=True)
    limit.write_text("128\n")
    numbers = tmp_path / "dev/char"
    numbers.mkdir(parents=True)
    (numbers / "240:7").symlink_to(controller / "ng0n1")
    return os.makedev(240, 7), tmp_path, limit


def test_nvme_transfers_are_as_large_as_the_kernel_allows(nvme: tuple[int, Path, Path]) -> None:
    node, sysfs, limit = nvme
    assert nvme_max_transfer(node, sysfs) == 128 * KIB
    assert nvme_max_transfer(os.makedev(240, 8), sysfs) == 0
    limit.write_text("rubbish")
    assert nvme_max_transfer(node, sysfs) == 0
    limit.unlink()
    assert nvme_max_transfer(node, sysfs) == 0


def test_nvme_limits_take_the_kernels_word_over_libblkios(nvme: tuple[int, Path, Path]) -> None:
    _, sysfs, limit = nvme
    with open("/dev/null") as node:
        number = os.fstat(node.fileno()).st_rdev
        (sysfs / f"dev/char/{os.major(number)}:{os.minor(number)}").symlink_to(limit.parents[2] / "ng0n1")
        source = Source("nvme-io_uring", fd=node.fileno(), max_transfer=256 << 20)
        assert Limits.read(source, sysfs=sysfs).max_transfer == 128 * KIB
        limit.write_text("1048576")
        assert Limits.read(source, sysfs=sysfs).max_transfer == 256 << 20
        limit.write_text("130")
        source.properties.update({"request-alignment": 4096, "discard-alignment": 4096})
        assert Limits.read(source, sysfs=sysfs).max_transfer == 128 * KIB


# --- rules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "others", "rule"),
    [
        ("request_alignment", 0, {}, "must be a power of two"),
        ("request_alignment", 768, {}, "must be a power of two"),
        ("request_alignment", -512, {}, "must be a power of two"),
        ("optimal_io_size", 1000, {}, r"must be 0 or a multiple of request-alignment \(512\)"),
        ("optimal_io_size", -512, {}, "must be 0 or a multiple"),
        ("max_transfer", 1000, {}, r"must be 0 or a multiple of request-alignment \(512\)"),
        ("max_transfer", 4096, {"optimal_io_size": 1536}, r"and optimal-io-size \(1536\)"),
        ("buf_alignment", 0, {}, "must be positive"),
        ("optimal_buf_alignment", 0, {}, "must be positive"),
        ("max_segments", 0, {}, "must be positive"),
        ("max_segment_len", -1, {}, "must not be negative"),
        ("discard_alignment", -512, {}, "must not be negative"),
        ("discard_alignment", 1000, {}, r"must be 0 or a multiple of request-alignment \(512\)"),
        ("discard_alignment_offset", 512, {}, r"must be less than discard-alignment \(512\)"),
        ("mem_region_alignment", 100, {}, r"must be a multiple of buf-alignment \(512\)"),
        (
            "max_mem_regions",
            0,
            {"needs_mem_regions": True},
            "must be positive where memory regions are needed",
        ),
    ],
)
def test_a_device_that_contradicts_itself_is_refused(
    name: str, value: int, others: dict[str, PropertyValue], rule: str
) -> None:
    property_name = name.replace("_", "-")
    changes: dict[str, Any] = {name: value, **others}
    with pytest.raises(BlkioError, match=f"the device's {property_name} is {value}, but it .*{rule}"):
        Limits.read(Source(**changes))


def test_limits_are_values() -> None:
    limits = Limits.read(Source())
    assert limits == Limits.read(Source())
    assert replace(limits, max_segments=1) != limits
    with pytest.raises(AttributeError):
        limits.max_segments = 1  # type: ignore[misc]
