"""The driver classes: their options, and what is refused before libblkio is asked."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from aioblk import (
    BlkioError,
    Device,
    IoUring,
    NvmeIoUring,
    OptionError,
    VirtioBlkVfioPci,
    VirtioBlkVhostUser,
    VirtioBlkVhostVdpa,
)
from aioblk.drivers import CLASSES

from ..conftest import StorageDaemonFactory
from ..support.devices import SCRATCH_SIZE

Driver = Callable[..., Device]
ALL: list[Driver] = list(CLASSES.values())
BY_PATH_OR_FD: list[Driver] = [IoUring, NvmeIoUring, VirtioBlkVhostVdpa]
VIRTIO: list[Driver] = [VirtioBlkVhostUser, VirtioBlkVhostVdpa, VirtioBlkVfioPci]
RINGS: list[Driver] = [IoUring, NvmeIoUring]


def refuses(driver: Callable[..., object], message: str, *arguments: object, **options: object) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        driver(*arguments, **options)
    assert isinstance(caught.value, ValueError)


# --- options ------------------------------------------------------------------------------------------------


def test_every_driver_of_libblkio_has_a_class() -> None:
    assert {name: kind.__name__ for name, kind in CLASSES.items()} == {
        "io_uring": "IoUring",
        "nvme-io_uring": "NvmeIoUring",
        "virtio-blk-vhost-user": "VirtioBlkVhostUser",
        "virtio-blk-vhost-vdpa": "VirtioBlkVhostVdpa",
        "virtio-blk-vfio-pci": "VirtioBlkVfioPci",
    }


@pytest.mark.parametrize("driver", ALL)
def test_a_class_says_what_it_needs_and_how_to_try_it(driver: Driver) -> None:
    text = " ".join((driver.__doc__ or "").split())
    assert "It needs " in text
    assert "To try it" in text
    assert ":raises OptionError:" in text


@pytest.mark.parametrize("driver", BY_PATH_OR_FD)
def test_one_of_path_and_fd_is_needed(driver: Driver) -> None:
    refuses(driver, "path or fd is needed")
    refuses(driver, "path and fd exclude each other", "x", fd=3)


@pytest.mark.parametrize("driver", [VirtioBlkVhostUser, VirtioBlkVfioPci])
def test_a_path_is_needed(driver: Driver) -> None:
    with pytest.raises(TypeError, match="path"):
        driver()


@pytest.mark.parametrize("driver", ALL)
@pytest.mark.parametrize(
    ("path", "message"),
    [
        (3, "path must be a string or a path object, not 3"),
        (b"x", "path must be a string, not b'x'"),
        ("", "path must not be empty"),
        ("a\0b", "path must not contain null characters"),
        ("a\udcff", "path must be UTF-8"),
    ],
)
def test_a_path_must_make_sense(driver: Driver, path: object, message: str) -> None:
    refuses(driver, message, path)


def test_a_socket_path_must_fit_its_address() -> None:
    refuses(VirtioBlkVhostUser, "path must not be longer than 107 bytes.* this one has 108", "x" * 108)
    refuses(VirtioBlkVhostUser, "this one has 108", "é" * 54)
    VirtioBlkVhostUser("x" * 107)


@pytest.mark.parametrize("driver", BY_PATH_OR_FD)
@pytest.mark.parametrize(
    ("fd", "message"),
    [
        (-1, "fd must be from 0 to 2147483647, not -1"),
        (2**31, "fd must be from 0 to 2147483647"),
        (True, "fd must be an integer, not True"),
        ("3", "fd must be an integer, not '3'"),
    ],
)
def test_a_descriptor_must_be_one(driver: Driver, fd: object, message: str) -> None:
    refuses(driver, message, fd=fd)


def test_options_without_effect_are_refused() -> None:
    refuses(IoUring, "direct has no effect with fd", fd=3, direct=True)
    refuses(IoUring, "read_only has no effect with fd", fd=3, read_only=True)


@pytest.mark.parametrize("driver", ALL)
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("read_only", 1, "read_only must be True or False, not 1"),
        ("read_only", "yes", "read_only must be True or False, not 'yes'"),
        ("num_queues", -1, "num_queues must be from 0"),
        ("num_queues", 2**31, "num_queues must be from 0 to 2147483647"),
        ("num_queues", 1.0, "num_queues must be an integer"),
        ("num_queues", True, "num_queues must be an integer"),
        ("num_queues", 0, "num_queues must be at least 1"),
        ("bounce_pool_size", 0, "bounce_pool_size must be from 65536"),
        ("bounce_pool_size", None, "bounce_pool_size must be an integer"),
    ],
)
def test_an_option_must_have_its_type_and_range(
    driver: Driver, option: str, value: object, message: str
) -> None:
    refuses(driver, message, "x", **{option: value})


@pytest.mark.parametrize("driver", [IoUring, *VIRTIO])
def test_poll_queues_must_be_a_number(driver: Driver) -> None:
    refuses(driver, "num_poll_queues must be from 0", "x", num_poll_queues=-1)
    driver("x", num_queues=0, num_poll_queues=1)


@pytest.mark.parametrize("driver", RINGS)
@pytest.mark.parametrize("entries", [0, -1, 32769, "1"])
def test_a_ring_has_1_to_32768_entries(driver: Driver, entries: object) -> None:
    refuses(driver, "num_entries must be ", "x", num_entries=entries)


@pytest.mark.parametrize("driver", VIRTIO)
@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 48, 32769, 65536, -4, "256"])
def test_a_virtqueue_that_would_hang_is_refused(driver: Driver, size: object) -> None:
    refuses(driver, "queue_size must be ", "x", queue_size=size)


@pytest.mark.parametrize("driver", ALL)
def test_options_have_names_and_unknown_ones_are_errors(driver: Driver) -> None:
    with pytest.raises(TypeError):
        driver("x", 3)
    with pytest.raises(TypeError, match="no_such_option"):
        driver("x", no_such_option=1)


@pytest.mark.parametrize("driver", ALL)
def test_a_driver_class_is_final(driver: Driver) -> None:
    assert getattr(driver, "__final__", False)


# --- opening ------------------------------------------------------------------------------------------------


async def test_a_file_is_opened_with_its_options(scratch_file: Path) -> None:
    async with IoUring(scratch_file, direct=True, num_queues=2, num_entries=64) as device:
        assert device.properties["direct"] is True
        assert device.properties["num-queues"] == 2
        assert device.properties["num-entries"] == 64
        assert device.capacity == SCRATCH_SIZE


async def test_a_block_device_is_opened(loop_device: Path) -> None:
    async with IoUring(loop_device, direct=True) as device:
        assert device.limits.request_alignment == 512
        assert await device.read(0, 512) == bytes(512)


async def test_a_descriptor_is_opened_and_stays_the_callers(scratch_file: Path) -> None:
    fd = os.open(scratch_file, os.O_RDWR | os.O_DIRECT)
    try:
        async with IoUring(fd=fd) as device:
            assert device.properties["direct"] is True
            assert await device.read(0, 4096) == bytes(4096)
        assert stat.S_ISREG(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


async def test_a_vhost_user_device_is_opened_with_its_options(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(num_queues=2)
    async with VirtioBlkVhostUser(daemon.socket, num_queues=2, queue_size=64) as device:
        assert device.properties["num-queues"] == 2
        assert device.properties["queue-size"] == 64
        assert device.limits.max_segments == 62
        assert await device.read(0, 4096) == bytes(4096)


async def test_a_read_only_backend_is_opened_for_reading_or_not_at_all(
    storage_daemon: StorageDaemonFactory,
) -> None:
    daemon = storage_daemon(writable=False)
    with pytest.raises(BlkioError, match="start") as caught:
        await VirtioBlkVhostUser(daemon.socket).open()
    assert caught.value.errno == errno.EROFS
    async with VirtioBlkVhostUser(daemon.socket, read_only=True) as device:
        assert await device.read(0, 512) == bytes(512)


@pytest.mark.parametrize(
    ("driver", "path", "number"),
    [
        (IoUring, "/no/such/file", errno.ENOENT),
        (IoUring, "/dev/null", errno.EINVAL),
        (NvmeIoUring, "/no/such/device", errno.ENOENT),
        (NvmeIoUring, "/dev/null", errno.ENOTTY),
        (VirtioBlkVhostUser, "/no/such/socket", errno.ENOENT),
        (VirtioBlkVhostVdpa, "/no/such/device", errno.ENOENT),
        (VirtioBlkVhostVdpa, "/dev/null", errno.EIO),
        (VirtioBlkVfioPci, "/no/such/directory", errno.ENOENT),
    ],
)
async def test_a_device_that_is_not_there_is_named(driver: Driver, path: str, number: int) -> None:
    with pytest.raises(BlkioError, match=f"connect '{path}'") as caught:
        await driver(path).open()
    assert caught.value.errno == number
    assert caught.value.filename == path


async def test_more_queues_than_the_device_has_are_refused(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(num_queues=2)
    with pytest.raises(BlkioError, match="must not be greater than 2"):
        await VirtioBlkVhostUser(daemon.socket, num_queues=3).open()


async def test_poll_queues_where_there_are_none_are_refused(scratch_file: Path) -> None:
    with pytest.raises(BlkioError, match="Poll queues not supported"):
        await IoUring(scratch_file, num_poll_queues=1).open()
