"""What a device may be opened on, by path and by descriptor, and what stays the owner's of a descriptor."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import aioblk

from ..support.devices import BLOCK, pattern


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)  # a socket's path has little room
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("listener")
        yield tmp_path / "listener"


async def refused(device: aioblk.Device, number: int = errno.EINVAL) -> str:
    async with asyncio.timeout(10):  # none of these waits for anybody
        with pytest.raises(aioblk.OptionError) as caught:
            await device.open()
    assert caught.value.errno == number
    assert caught.value.driver == device.driver
    return str(caught.value)


# --- how a descriptor was opened ----------------------------------------------------------------------------


async def test_a_descriptor_that_appends_is_refused(scratch_file: Path) -> None:
    """Whatever the offset, the kernel would write at the end of the file."""
    fd = os.open(scratch_file, os.O_RDWR | os.O_APPEND)
    try:
        assert "O_APPEND" in await refused(aioblk.IoUring(fd=fd))
    finally:
        os.close(fd)


@pytest.mark.parametrize(("flags", "words"), [(os.O_WRONLY, "writing only"), (os.O_PATH, "O_PATH")])
async def test_a_descriptor_that_cannot_be_read_from_is_refused(
    scratch_file: Path, flags: int, words: str
) -> None:
    fd = os.open(scratch_file, flags)
    try:
        assert words in await refused(aioblk.IoUring(fd=fd))
    finally:
        os.close(fd)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDONLY | os.O_APPEND])
async def test_a_descriptor_that_is_open_for_reading_makes_a_device_that_is(
    scratch_file: Path, flags: int
) -> None:
    fd = os.open(scratch_file, flags)
    try:
        async with aioblk.IoUring(fd=fd) as device:
            assert await device.read(0, BLOCK) == bytes(BLOCK)
            with pytest.raises(aioblk.BlkioError, match="its descriptor for writing") as caught:
                device.write(0, bytes(BLOCK))
            assert caught.value.errno == errno.EBADF
    finally:
        os.close(fd)


@pytest.mark.parametrize("flags", [os.O_SYNC, os.O_DSYNC, os.O_NONBLOCK, os.O_NOATIME])
async def test_harmless_flags_are_left_as_they_are(scratch_file: Path, flags: int) -> None:
    fd = os.open(scratch_file, os.O_RDWR | flags)
    try:
        async with aioblk.IoUring(fd=fd) as device:
            await device.write(BLOCK, pattern(BLOCK))
            await device.flush()
            assert await device.read(BLOCK, BLOCK) == pattern(BLOCK)
        assert os.pread(fd, BLOCK, BLOCK) == pattern(BLOCK)
    finally:
        os.close(fd)


# --- what it refers to --------------------------------------------------------------------------------------


@pytest.mark.parametrize("read_only", [False, True])
async def test_paths_that_are_neither_file_nor_block_device_are_refused(
    tmp_path: Path, pipe: Path, listener: Path, read_only: bool
) -> None:
    for path, words, number in (
        (tmp_path, "directory", errno.EISDIR),
        (pipe, "pipe", errno.EINVAL),
        (listener, "socket", errno.EINVAL),
        (Path("/dev/null"), "character device", errno.EINVAL),
    ):
        text = await refused(aioblk.IoUring(path, read_only=read_only), number)
        assert f"it is a {words}; a regular file or a block device is needed" in text
        assert str(path) in text


async def test_paths_that_are_no_socket_are_refused(
    tmp_path: Path, pipe: Path, scratch_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path has little room
    for path, words, number in (
        (tmp_path, "directory", errno.EISDIR),
        (pipe, "pipe", errno.EINVAL),
        (scratch_file, "regular file", errno.EINVAL),
    ):
        text = await refused(aioblk.VirtioBlkVhostUser(path.relative_to(tmp_path)), number)
        assert f"it is a {words}; the Unix socket of a backend is needed" in text


async def test_descriptors_of_other_things_are_refused(tmp_path: Path, pipe: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    terminal, other_end = os.openpty()
    first, second = socket.socketpair()
    event = os.eventfd(0)
    fifo = os.open(pipe, os.O_RDWR)
    try:
        for fd, words, number in (
            (directory, "directory", errno.EISDIR),
            (terminal, "character device", errno.EINVAL),
            (first.fileno(), "socket", errno.EINVAL),
            (fifo, "pipe", errno.EINVAL),
            (event, "no file", errno.EINVAL),
        ):
            assert f"descriptor {fd} is " in (text := await refused(aioblk.IoUring(fd=fd), number))
            assert words in text
    finally:
        for fd in (directory, terminal, other_end, event, fifo):
            os.close(fd)
        first.close()
        second.close()


async def test_pipes_are_opened_by_no_driver(pipe: Path) -> None:
    assert "pipe" in await refused(aioblk.NvmeIoUring(pipe, read_only=True))
    assert "pipe" in await refused(aioblk.VirtioBlkVhostVdpa(pipe, read_only=True))


async def test_memory_can_be_a_device() -> None:
    fd = os.memfd_create("disk")
    try:
        async with aioblk.IoUring(fd=fd) as device:
            await device.write(0, pattern(BLOCK))
            assert device.capacity == BLOCK
    finally:
        os.close(fd)


# --- the position of a descriptor ---------------------------------------------------------------------------


async def test_the_position_of_the_callers_descriptor_stays_where_it_was(scratch_file: Path) -> None:
    fd = os.open(scratch_file, os.O_RDWR)
    try:
        os.lseek(fd, 4711, os.SEEK_SET)
        async with aioblk.IoUring(fd=fd) as device:
            assert device.capacity == await device.refresh_capacity() == device.properties["capacity"]
            await device.write(BLOCK, pattern(BLOCK))
            await device.write_zeroes(0, BLOCK)
            await device.discard(BLOCK, BLOCK)
            await device.flush()
            assert [extent async for extent in device.extents()]
        assert os.lseek(fd, 0, os.SEEK_CUR) == 4711
    finally:
        os.close(fd)


async def test_a_block_device_tells_its_size_without_looking_for_its_end(loop_device: Path) -> None:
    fd = os.open(loop_device, os.O_RDWR)
    try:
        os.lseek(fd, 4711, os.SEEK_SET)
        async with aioblk.IoUring(fd=fd) as device:
            assert device.capacity == 8 << 20
        assert os.lseek(fd, 0, os.SEEK_CUR) == 4711
    finally:
        os.close(fd)


# --- files that the kernel makes up -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "file_system"),
    [("/proc/version", "procfs"), ("/sys/kernel/mm/transparent_hugepage/enabled", "sysfs")],
)
async def test_a_file_whose_size_says_nothing_is_refused(path: str, file_system: str) -> None:
    """A copy of it would be empty, or end with zeroes that are not there."""
    said = await refused(aioblk.IoUring(path, read_only=True))
    assert f"{path!r}: it is a file of {file_system}, whose size says nothing" in said
    fd = os.open(path, os.O_RDONLY)
    try:
        assert f"descriptor {fd} is a file of {file_system}" in await refused(aioblk.IoUring(fd=fd))
    finally:
        os.close(fd)


async def test_the_link_to_a_descriptor_is_what_that_is_open_on(scratch_file: Path) -> None:
    """Although the link itself is in procfs."""
    fd = os.open(scratch_file, os.O_RDONLY)
    try:
        async with aioblk.IoUring(f"/proc/self/fd/{fd}", read_only=True) as device:
            assert device.capacity == os.fstat(fd).st_size
    finally:
        os.close(fd)
