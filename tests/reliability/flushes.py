"""A flush that fails: a disk that cannot write down what the page cache has taken for it."""

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from pathlib import Path

import aioblk
from aioblk.testing.storage_daemon import StorageDaemon

from ..support.loop_device import LoopDevice, cannot_have_loop_devices
from ..support.verified_load import BLOCK, stamp_of, stamped
from .network import Program
from .row import Setting, fault

SIZE = 8 << 20
SLOTS = (40, 41)
"""Blocks that are written; the disk has no room for them."""
AFTER = "durability.md#after-a-flush-that-failed"
NOT_TRIED = "not tried: this machine gives no loop devices, which root has, as a rule"


@dataclass(frozen=True)
class ThinDisk:
    """A loop device over a file with holes, on a file system that has no room for what goes there."""

    path: Path
    backing: Path
    other: Path
    """What fills the file system."""

    def recover(self) -> None:
        """From now on there is room."""
        self.other.unlink()

    def stored(self) -> list[int]:
        """The numbers of what the disk has in SLOTS, whatever is cached."""
        with self.backing.open("rb") as file:
            return [stamp_of(slot, os.pread(file.fileno(), BLOCK, slot * BLOCK)) for slot in SLOTS]


@contextlib.contextmanager
def thin_disk(setting: Setting, name: str) -> Iterator[ThinDisk]:
    where = setting.directory / name
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", where], check=True)
    try:
        backing, other = where / "backing", where / "other"
        with backing.open("wb") as file:
            file.truncate(SIZE)
        with LoopDevice(backing) as loop:
            with other.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(BLOCK))
            yield ThinDisk(loop.path, backing, other)
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)


async def write(device: aioblk.BlockDevice, number: int) -> int | None:
    return await outcome(device.write_many([(slot * BLOCK, stamped(slot, number)) for slot in SLOTS]))


async def flush(device: aioblk.BlockDevice) -> int | None:
    return await outcome(device.flush())


async def outcome(request: Awaitable[object]) -> int | None:
    """The errno of a request; None: it is done."""
    try:
        await request
    except aioblk.BlkioError as error:
        return error.errno
    return None


async def shown(device: aioblk.BlockDevice) -> list[int]:
    return [stamp_of(slot, await device.read(slot * BLOCK, BLOCK)) for slot in SLOTS]


async def written_again(device: aioblk.BlockDevice, disk: ThinDisk) -> None:
    """Whatever was before: what is written from now on, and flushed, is there."""
    assert await write(device, 2) is None
    assert await flush(device) is None
    assert disk.stored() == [2, 2]


@fault(
    "flush-fails-io-uring",
    "a disk cannot write down what the page cache has taken for it; then it can (io_uring)",
    "The next flush succeeds without it, and reads show it all the same, until it is read from the disk.",
    AFTER,
)
async def io_uring(setting: Setting) -> str:
    if cannot_have_loop_devices():
        return NOT_TRIED
    with thin_disk(setting, "cached") as disk:
        async with aioblk.IoUring(disk.path) as device:
            assert await write(device, 1) is None
            assert [await flush(device), await flush(device)] == [errno.EIO, None]
            assert (await shown(device), disk.stored()) == ([1, 1], [0, 0])
            disk.recover()
            assert await flush(device) is None
            assert disk.stored() == [0, 0]
            await written_again(device, disk)
    with thin_disk(setting, "direct") as disk:
        async with aioblk.IoUring(disk.path, direct=True) as device:
            assert await write(device, 1) in (errno.ENOSPC, errno.EIO)
            assert await flush(device) is None
            disk.recover()
            await written_again(device, disk)
    return (
        "the flush failed with EIO, the next one succeeded, 0 of 2 blocks were there, 2 of 2 were read;"
        " written again, they were there; with direct=True the write failed"
    )


def node(disk: ThinDisk, *, direct: bool) -> dict[str, object]:
    return {"driver": "host_device", "filename": str(disk.path), "cache": {"direct": direct}}


@fault(
    "flush-fails-vhost-user",
    "the same below QEMU's storage daemon, which is killed then",
    "QEMU fails every flush from then on, as long as its process lives. The next process knows nothing of"
    " it.",
    AFTER,
)
async def vhost_user(setting: Setting) -> str:
    if cannot_have_loop_devices():
        return NOT_TRIED
    with thin_disk(setting, "cached") as disk, StorageDaemon(node(disk, direct=False)) as daemon:
        async with aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=60) as device:
            assert await write(device, 1) is None
            assert [await flush(device), await flush(device)] == [errno.EIO] * 2
            disk.recover()
            assert await flush(device) == errno.EIO
            daemon.restart()
            assert await flush(device) is None
            missing = disk.stored().count(0)
            assert missing  # but for what aioblk has written again, to have the flush cover something
            await written_again(device, disk)
    with thin_disk(setting, "direct") as disk, StorageDaemon(node(disk, direct=True)) as daemon:
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
            assert await write(device, 1) in (errno.ENOSPC, errno.EIO)
            assert await flush(device) is None
            disk.recover()
            await written_again(device, disk)
    return (
        f"3 of 3 flushes failed with EIO; that of the next process succeeded, {missing} of 2 blocks were not"
        " there; written again, they were; with cache.direct=on the write failed"
    )


@fault(
    "flush-fails-nbd",
    "the same below NBD servers: qemu-nbd, and the one here with two clients",
    "The server here fails the next flush of each client that was there, once.",
    AFTER,
)
async def nbd(setting: Setting) -> str:
    if cannot_have_loop_devices():
        return NOT_TRIED
    socket = setting.directory / "nbd.sock"
    with thin_disk(setting, "qemu") as disk:
        options = "--persistent", "--shared=8", "--format=raw", f"--socket={socket}"
        with Program(socket, "qemu-nbd", *options, disk.path) as server:
            async with aioblk.Nbd(server.uri) as device:
                assert await write(device, 1) is None
                assert [await flush(device), await flush(device)] == [errno.EIO] * 2
                disk.recover()
                assert await flush(device) == errno.EIO
                assert disk.stored() == [0, 0]
    with thin_disk(setting, "own") as disk:
        program = sys.executable, "-m", "aioblk", "serve", "nbd", "--unix"
        with Program(socket, *program, socket, disk.path, silent=True) as server:
            async with aioblk.Nbd(server.uri) as one, aioblk.Nbd(server.uri) as two:
                assert await write(one, 1) is None
                assert [await flush(two), await flush(one)] == [errno.EIO] * 2
                assert [await flush(two), await flush(one)] == [None] * 2
                disk.recover()
                assert (await shown(one), disk.stored()) == ([1, 1], [0, 0])
                await written_again(one, disk)
    return (
        "qemu-nbd failed 3 of 3 flushes with EIO; the server here one of each client's, though only one had"
        " written; written again, the blocks were there"
    )
