"""Incremental backups of a disk that is in use, by clients that know what is dirty from the server alone."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

import aioblk
from aioblk.testing import MemoryDevice

from ..support.nbd_in_process import serving
from . import wire
from .wire import Client

SIZE = 16 << 20
UNIT = 64 << 10
CONTEXT = b"qemu:dirty-bitmap:nightly"
DIRTY = 1


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator["aioblk.Tracked[aioblk.IoUring]"]:
    """A file that somebody has written to, and that is tracked from now on."""
    path = tmp_path / "disk"
    with path.open("wb") as file:
        for place in range(0, SIZE, 1 << 20):
            file.seek(place)
            file.write(random.Random(place).randbytes(100_000))
        file.truncate(SIZE)
    async with aioblk.IoUring(path) as device, aioblk.Tracked(device, granularity=UNIT) as tracked:
        yield tracked


async def tool(*command: str | Path) -> str:
    """What a program prints that must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, f"{command[0]} failed: {errors.decode()}"
    return output.decode()


def dirty_ranges(client: Client) -> list[tuple[int, int]]:
    """All that a client is told is dirty, asked for as much at a time as it is told."""
    found: list[tuple[int, int]] = []
    offset = 0
    while offset < SIZE:
        (states,) = client.call(wire.BLOCK_STATUS, offset, SIZE - offset).states.values()
        for length, state in states:
            if state == DIRTY:
                found.append((offset, length))
            offset += length
    return found


class PulledOutError(Exception):
    """The backup has ended before its time."""


def copy_what_is_dirty(server: Path, backup: Path, *, extended: bool, most: int | None = None) -> int:
    """A small program for incremental backups; how much it has copied. After *most* pieces it breaks down."""
    copied = 0
    with Client(server).connect(extended=extended, contexts=(CONTEXT,)) as client, backup.open("r+b") as file:
        for number, (offset, length) in enumerate(dirty_ranges(client)):
            if number == most:
                raise PulledOutError
            file.seek(offset)
            while length:
                piece = min(length, 1 << 20)
                reply = client.call(wire.READ, offset, piece)
                assert reply.error == 0
                assert len(reply.data) == piece
                file.write(reply.data)
                copied, offset, length = copied + piece, offset + piece, length - piece
    return copied


@contextlib.asynccontextmanager
async def a_busy_client(server: Path, seed: int) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """A client that changes this and that, until it has done so a number of times since it was asked."""
    chance = random.Random(seed)
    with await asyncio.to_thread(lambda: Client(server).connect(structured=True)) as client:

        def change_something(times: int) -> None:
            for _ in range(times):
                offset, length = chance.randrange(SIZE), chance.randrange(1, 100_000)
                length = min(length, SIZE - offset)
                match chance.randrange(4):
                    case 0:
                        reply = client.call(wire.WRITE_ZEROES, offset, length)
                    case 1:
                        reply = client.call(wire.TRIM, offset, length)
                    case _:
                        reply = client.call(wire.WRITE, offset, length, data=chance.randbytes(length))
                assert reply.error == 0

        yield lambda times: asyncio.to_thread(change_something, times)


@pytest.mark.parametrize("extended", [False, True])
async def test_an_incremental_backup_of_a_live_disk(
    disk: "aioblk.Tracked[aioblk.IoUring]", tmp_path: Path, extended: bool
) -> None:
    """A full one by nbdcopy, then what has changed, while a client goes on; and again, what it has changed
    meanwhile. In the end they are alike, and little was copied."""
    socket, backup = tmp_path / "nbd.sock", tmp_path / "backup"
    async with serving(disk, socket) as uri, a_busy_client(socket, seed=1) as change:
        nightly = disk.add_bitmap("nightly", granularity=UNIT)
        full = asyncio.create_task(tool("nbdcopy", uri, backup))
        await change(20)
        await full

        await change(5)
        with nightly.taking() as taken:
            copying = asyncio.to_thread(copy_what_is_dirty, socket, backup, extended=extended)
            copied, _ = await asyncio.gather(copying, change(20))
        assert copied == sum(length for _, length in taken) < SIZE

        with nightly.taking():
            await asyncio.to_thread(copy_what_is_dirty, socket, backup, extended=extended)
        assert not nightly.dirty
    await disk.flush()
    assert (tmp_path / "disk").read_bytes() == backup.read_bytes()


async def test_a_backup_that_fails_midway_loses_nothing(
    disk: "aioblk.Tracked[aioblk.IoUring]", tmp_path: Path
) -> None:
    socket, backup = tmp_path / "nbd.sock", tmp_path / "backup"
    async with serving(disk, socket) as uri, a_busy_client(socket, seed=2) as change:
        nightly = disk.add_bitmap("nightly", granularity=UNIT)
        await tool("nbdcopy", uri, backup)
        await change(20)
        before = {unit for offset, length in nightly.dirty for unit in range(offset, offset + length, UNIT)}
        for most in (0, 1, 3):
            with pytest.raises(PulledOutError), nightly.taking():  # noqa: PT012
                await change(2)
                await asyncio.to_thread(copy_what_is_dirty, socket, backup, extended=True, most=most)
        after = {unit for offset, length in nightly.dirty for unit in range(offset, offset + length, UNIT)}
        assert before <= after
        copying = None
        with contextlib.suppress(asyncio.CancelledError), nightly.taking():
            copying = asyncio.current_task()
            assert copying is not None
            copying.cancel()
            await asyncio.sleep(0)
        assert copying is not None
        copying.uncancel()
        assert after == {
            unit for offset, length in nightly.dirty for unit in range(offset, offset + length, UNIT)
        }
        with nightly.taking():
            await asyncio.to_thread(copy_what_is_dirty, socket, backup, extended=True)
        assert not nightly.dirty
    assert (tmp_path / "disk").read_bytes() == backup.read_bytes()


async def test_the_tools_people_use_read_bitmaps(tmp_path: Path) -> None:
    """Several of one export, beside its holes, under layers."""
    disk = aioblk.Tracked(MemoryDevice(SIZE, limits=aioblk.Limits(request_alignment=512)))
    socket = tmp_path / "nbd.sock"
    disk.add_bitmap("nightly", granularity=UNIT)
    await disk.write(5 * UNIT, bytes(UNIT + 512))
    disk.add_bitmap("of the week", granularity=1 << 20)
    await disk.write(8 << 20, b"x" * 4096)
    async with serving(aioblk.Throttle(disk, aioblk.ThrottleGroup()), socket, "disk 1") as uri:
        found = json.loads(await tool("nbdinfo", "--json", f"--map={CONTEXT.decode()}", uri))
        assert [(extent["offset"], extent["length"], extent["type"]) for extent in found] == [
            (0, 5 * UNIT, 0),
            (5 * UNIT, 2 * UNIT, DIRTY),
            (7 * UNIT, (8 << 20) - 7 * UNIT, 0),
            (8 << 20, UNIT, DIRTY),
            ((8 << 20) + UNIT, SIZE - (8 << 20) - UNIT, 0),
        ]
        assert {extent["description"] for extent in found} == {"clean", "dirty"}
        week = await tool("nbdinfo", "--json", "--map=qemu:dirty-bitmap:of the week", uri)
        assert [extent["offset"] for extent in json.loads(week) if extent["type"]] == [8 << 20]
        (export,) = json.loads(await tool("nbdinfo", "--json", "--no-content", uri))["exports"]
        assert export["contexts"] == [
            *("base:allocation", "qemu:dirty-bitmap:nightly", "qemu:dirty-bitmap:of the week")
        ]
        image = f"driver=nbd,server.type=unix,server.path={socket},export=disk 1"
        image += f",x-dirty-bitmap={CONTEXT.decode()}"
        mapped = json.loads(await tool("qemu-img", "map", "--output=json", "--image-opts", image))
        # What is dirty is "not data" in its eyes: it has no other word.
        assert [(extent["start"], extent["length"]) for extent in mapped if not extent["data"]] == [
            (5 * UNIT, 2 * UNIT),
            (8 << 20, UNIT),
        ]
