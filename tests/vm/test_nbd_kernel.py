"""Linux's own NBD client: file systems on a disk that is served here, and what a power failure leaves."""

import asyncio
import contextlib
import hashlib
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from typing_extensions import Buffer

import aioblk
from aioblk.nbd import Export, Server
from aioblk.testing import PowerLoss

from . import load
from .conftest import RecordProperty
from .programs import FailedError, run

NODE = "/dev/nbd0"
KEPT = 12  # files that are durable before the power fails
CRASHES = 4  # what a power failure may leave, of all that it may
MIB = 1 << 20
FIO = (
    *("--name=load", "--size=8M", "--rw=randwrite", "--bs=16k", "--ioengine=psync", "--fsync=16"),
    *("--verify=crc32c", "--verify_fatal=1", "--end_fsync=1"),
)


class FileSystem(NamedTuple):
    size: int
    """Bytes of the disk: XFS takes no less."""
    make: tuple[str, ...]
    check: tuple[str, ...]
    """Whether all is in order; it changes nothing."""


FILE_SYSTEMS = {
    "ext4": FileSystem(48 * MIB, ("mkfs.ext4", "-q", "-F"), ("e2fsck", "-f", "-n")),
    "xfs": FileSystem(320 * MIB, ("mkfs.xfs", "-q", "-f"), ("xfs_repair", "-n")),
}


@pytest.fixture(params=FILE_SYSTEMS)
def file_system(request: pytest.FixtureRequest, record_property: RecordProperty) -> FileSystem:
    record_property("driver", f"nbd, {request.param}")
    return FILE_SYSTEMS[request.param]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with Server() as server:
        server.listen_at_path(tmp_path / "nbd.sock")
        serving = asyncio.create_task(server.serve())
        yield server
        serving.cancel()
        await asyncio.wait([serving])


@contextlib.asynccontextmanager
async def connected(tmp_path: Path, name: str) -> AsyncGenerator[None]:
    """The export is NODE."""
    await run("nbd-client", "-unix", tmp_path / "nbd.sock", NODE, "-name", name)
    try:
        yield
    finally:
        await run("nbd-client", "-d", NODE)


@contextlib.asynccontextmanager
async def mounted(tmp_path: Path) -> AsyncGenerator[Path]:
    place = tmp_path / "mounted"
    place.mkdir(exist_ok=True)
    await run("mount", NODE, place)
    try:
        yield place
    finally:
        await run("umount", place)


async def test_a_file_system_on_a_served_file(
    file_system: FileSystem, server: Server, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    image.touch()
    os.truncate(image, file_system.size)
    async with aioblk.IoUring(image) as disk:
        await server.add(Export(disk, "disk"))
        async with connected(tmp_path, "disk"):
            await run(*file_system.make, NODE)
            async with mounted(tmp_path) as place:
                await run("fio", f"--directory={place}", *FIO)
                await run("sync")
                full = image.stat().st_blocks
                (place / "load.0.0").unlink()
                await run("sync")
                await run("fstrim", place)
                assert (full - image.stat().st_blocks) * 512 >= 6 * MIB
            await run(*file_system.check, NODE)
        await server.remove("disk")


async def test_what_was_synced_survives_a_power_failure(
    file_system: FileSystem, server: Server, tmp_path: Path
) -> None:
    disk = PowerLoss(file_system.size)
    assert not await wrong_after_power_failures(server, tmp_path, file_system, disk, disk)


async def test_it_would_be_noticed_if_it_did_not(
    server: Server, tmp_path: Path, record_property: RecordProperty
) -> None:
    record_property("driver", "nbd, ext4")
    disk = PowerLoss(FILE_SYSTEMS["ext4"].size)
    careless = Careless(disk)
    assert await wrong_after_power_failures(server, tmp_path, FILE_SYSTEMS["ext4"], careless, disk)


class Careless(aioblk.Layer[PowerLoss]):
    """Says of what is only cached that it is durable."""

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> Awaitable[None]:
        return super().write(offset, data)

    async def flush(self) -> None:
        """Nothing."""


async def wrong_after_power_failures(
    server: Server, tmp_path: Path, file_system: FileSystem, disk: aioblk.BlockDevice, cached: PowerLoss
) -> list[str]:
    """What is lost or damaged of what was synced to *disk*, when the power fails while it is written to."""
    await server.add(Export(disk, "disk"))
    async with connected(tmp_path, "disk"):
        await run(*file_system.make, NODE)
        async with mounted(tmp_path) as place, changing(place) as durable:
            left = [cached.crash(seed) for seed in range(CRASHES)]
            expected = dict(durable)
    await server.remove("disk")
    wrong: list[str] = []
    for seed, media in enumerate(left):
        await server.add(Export(media, "left"))
        async with connected(tmp_path, "left"):
            try:
                async with mounted(tmp_path) as place:
                    # Not on the loop: it has to answer what the kernel asks for the thread.
                    damages = await asyncio.to_thread(lambda place: list(damaged(place, expected)), place)
                    wrong += [f"seed {seed}: {damage}" for damage in damages]
                await run(*file_system.check, NODE)
            except FailedError as error:
                wrong.append(f"seed {seed}: {error}")
        await server.remove("left")
    return wrong


@contextlib.asynccontextmanager
async def changing(place: Path) -> AsyncGenerator[dict[str, str]]:
    """Some files are durable, and others are being changed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, load.__file__, place, "1"), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    durable: dict[str, str] = {}
    while len(durable) < KEPT:
        name, digest = (await process.stdout.readline()).decode().split()
        durable[name] = digest
    try:
        yield durable
    finally:
        process.kill()
        await process.wait()


def damaged(place: Path, expected: dict[str, str]) -> Iterator[str]:
    for name, digest in expected.items():
        if not (file := place / name).exists():
            yield f"{name} is gone"
        elif hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            yield f"{name} is not what was synced"
