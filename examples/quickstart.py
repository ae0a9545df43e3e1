"""The main job of aioblk: reading and writing block devices with asyncio.

The same coroutine meets a scratch file through io_uring and then, where QEMU's storage daemon is installed, a
virtual disk through vhost-user. It writes, reads back, zeroes, discards, and says how fast that was.
"""

import asyncio
import contextlib
import mmap
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import aioblk

DISK = 64 << 20
PIECE = 64 << 10
BLOCK = 4 << 10


async def tour(device: aioblk.Device) -> None:
    """Write the whole disk, check what it holds, and change it in every way there is."""
    pieces = [os.urandom(PIECE) for _ in range(DISK // PIECE)]
    offsets = range(0, DISK, PIECE)

    async with device:
        with measured("write", DISK):
            await asyncio.gather(*map(device.write, offsets, pieces))

        with measured("read back", DISK):
            contents = await asyncio.gather(*(device.read(offset, PIECE) for offset in offsets))
        assert contents == pieces

        with measured("flush"):
            await device.flush()

        with measured("write one block through to the medium (FUA)"):
            await device.write(0, bytes(BLOCK), fua=True)

        with measured("write zeroes", DISK // 2):
            await device.write_zeroes(0, DISK // 2)
        assert not any(await device.read(DISK // 2 - PIECE, PIECE))

        with measured("discard", DISK // 2):
            await device.discard(DISK // 2, DISK // 2)

        blocks = range(0, DISK, BLOCK)
        batches = [[(offset, BLOCK) for offset in random.choices(blocks, k=64)] for _ in range(1000)]
        with measured("read random blocks, 64 with each await", 64_000 * BLOCK, count=64_000):
            for batch in batches:
                await device.read_many(batch)

        # Memory that the device knows is read into and written from in place, nothing is copied.
        async with device.allocate(1 << 20) as region:
            with measured("write and read in the device's memory", 2 * len(region)):
                region[:5] = b"hello"
                await device.write(0, region)
                await device.read_into(0, region)

        # Memory of one's own can be made known to it.
        with shared_memory(1 << 20) as (memory, fd):
            async with device.register(memory, fd=fd) as region:
                with measured("read into registered memory", len(region)):
                    await device.read_into(0, region)
            assert memory[:5] == b"hello"

    print("  every byte was as it should be")


@contextlib.contextmanager
def measured(what: str, size: int = 0, *, count: int = 0) -> Generator[None]:
    """Say how long the block took and, given bytes and a number of requests, how fast that is."""
    start = time.perf_counter()
    yield
    seconds = time.perf_counter() - start
    rates = f"{size / seconds / 1e6:9,.0f} MB/s" if size else ""
    rates += f"{count / seconds:12,.0f} reads/s" if count else ""
    print(f"  {what:<44}{seconds * 1e3:9.2f} ms{rates}")


@contextlib.contextmanager
def shared_memory(size: int) -> Generator[tuple[mmap.mmap, int]]:
    """Memory backed by a descriptor, which is how another process, here the storage daemon, can reach it."""
    fd = os.memfd_create("quickstart")
    try:
        os.truncate(fd, size)
        with mmap.mmap(fd, size) as memory:
            yield memory, fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def storage_daemon(image: Path) -> Generator[Path]:
    """QEMU's storage daemon, serving the image as a vhost-user-blk device at the socket it yields."""
    socket, pidfile = image.with_suffix(".sock"), image.with_suffix(".pid")
    blockdev = f"driver=file,node-name=disk,filename={image},discard=unmap"
    export = f"type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={socket}"
    daemon = ["qemu-storage-daemon", "--daemonize", "--pidfile", str(pidfile)]
    subprocess.run([*daemon, "--blockdev", blockdev, "--export", export], check=True)
    try:
        yield socket
    finally:
        os.kill(int(pidfile.read_text()), signal.SIGTERM)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="aioblk-", dir="/var/tmp") as directory:
        image = Path(directory, "disk.img")
        image.touch()
        os.truncate(image, DISK)

        print(f"io_uring, on the {DISK >> 20} MiB file {image}:")
        asyncio.run(tour(aioblk.IoUring(image)))

        if not shutil.which("qemu-storage-daemon"):
            print("qemu-storage-daemon is not installed, so there is no vhost-user device to try.")
            return
        with storage_daemon(image) as socket:
            print(f"\nvirtio-blk-vhost-user, on QEMU's storage daemon at {socket}:")
            asyncio.run(tour(aioblk.VirtioBlkVhostUser(socket)))


if __name__ == "__main__":
    main()
