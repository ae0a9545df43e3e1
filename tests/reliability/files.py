"""Files that end early, that may only be read, and file systems that are full."""

import asyncio
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import aioblk
from aioblk.testing.storage_daemon import StorageDaemon

from ..support.verified_load import BLOCK, stamped
from .backends import SIZE, image, over
from .row import Setting, fault


@contextmanager
def small_file_system(setting: Setting) -> Iterator[Path]:
    """Of 1 MiB, in memory; seen by this process and what it starts."""
    where = setting.directory / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


async def fill(device: aioblk.BlockDevice) -> tuple[int, aioblk.BlkioError]:
    """Write blocks until one fails; how many were written, and the error."""
    for number in range(4096):
        try:
            await device.write(number * BLOCK, stamped(number, 1))
        except aioblk.BlkioError as error:
            return number, error
    raise AssertionError("it took everything")


FULL = "find out about a disk that is full, a medium that fails"


@fault(
    "full-file-system",
    "a file on a file system of 1 MiB, which another file fills",
    FULL + " BlkioError and its errno (ENOSPC, EIO)",
    "errors.md#what-to-catch",
)
async def full_file_system(setting: Setting) -> str:
    with small_file_system(setting) as where:
        other = where / "other"
        other.write_bytes(bytes(512 << 10))
        async with aioblk.IoUring(where / "disk.img", create=SIZE) as device:
            written, error = await fill(device)
            assert error.errno == errno.ENOSPC, error
            assert os.fspath(where / "disk.img") in str(error), error
            other.unlink()
            await device.write(written * BLOCK, stamped(written, 1))
            await device.flush()
            data = await device.read(0, (written + 1) * BLOCK)
        assert data == b"".join(stamped(number, 1) for number in range(written + 1))
    return f"block {written} failed with ENOSPC, succeeded once there was room; {written + 1} blocks right"


@fault(
    "truncated-file",
    "somebody else cuts a file to nothing, while it is used",
    "a regular file on io_uring grows, and reads there give zeroes (limits.can_grow)",
    "errors.md#what-to-catch",
)
async def truncated_file(setting: Setting) -> str:
    path = image(setting)
    async with aioblk.IoUring(path) as device:
        await device.write_many([(number * BLOCK, stamped(number, 1)) for number in range(64)])
        os.truncate(path, 0)
        assert device.capacity == 0
        assert await device.read(0, 64 * BLOCK) == bytes(64 * BLOCK)
        await device.write(BLOCK, stamped(1, 2))
        assert device.capacity == 2 * BLOCK
        assert await device.read(0, 2 * BLOCK) == bytes(BLOCK) + stamped(1, 2)
    with StorageDaemon(over(path)) as daemon:
        os.truncate(path, SIZE)
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as other:
            os.truncate(path, 0)
            outcome = (await asyncio.gather(other.read(0, BLOCK), return_exceptions=True))[0]
            assert outcome == bytes(BLOCK) or isinstance(outcome, aioblk.BlkioError), outcome
            assert other.lost is None
    grown = "256 KiB read as zeroes, a write made it grow to 8 KiB"
    return f"{grown}; a backend's device answered, and was not lost"


@fault(
    "read-only",
    "a file without permission to write, and a backend that takes no writes",
    "BlkioError with EBADF for writing to a read-only device. Nothing was submitted.",
    "errors.md#where-they-are-raised",
)
async def read_only(setting: Setting) -> str:
    path = image(setting)
    seen: list[str] = []
    async with aioblk.IoUring(path, read_only=True) as device:
        assert await device.read(0, BLOCK) == bytes(BLOCK)
        changes: list[Callable[[], object]] = [
            lambda: device.write(0, bytes(BLOCK)),
            lambda: device.write_zeroes(0, BLOCK),
            lambda: device.discard(0, BLOCK),
        ]
        for change in changes:
            try:
                change()
            except aioblk.BlkioError as error:
                seen.append(errno.errorcode[error.errno or 0])
        assert device.statistics().in_flight == 0
    assert seen == ["EBADF"] * 3, seen
    with StorageDaemon({**over(path), "read-only": True}, writable=False) as daemon:
        with pytest.raises(aioblk.BlkioError, match="read_only=True") as caught:
            await aioblk.VirtioBlkVhostUser(daemon.socket).open()
        assert caught.value.errno == errno.EROFS
        async with aioblk.VirtioBlkVhostUser(daemon.socket, read_only=True) as other:
            assert await other.read(0, BLOCK) == bytes(BLOCK)
    refused = "3 of 3 kinds of changes refused at the call with EBADF"
    return f"{refused}; of a backend, the error says read_only=True"
