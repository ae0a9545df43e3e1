"""The lazy disk among the examples: nothing is fetched twice, and everything is there in the end."""

import asyncio
import errno
from pathlib import Path

import pytest
from lazy_disk import CHUNK, LazyDisk

import aioblk
from aioblk.export import VhostUser
from aioblk.testing import Fault, Faulty, MemoryDevice, Recorder

SIZE = 3 * CHUNK + 4096
CONTENT = b"".join(bytes([number % 251]) * 4096 for number in range(SIZE // 4096))


async def test_it_is_there_before_its_contents_are(tmp_path: Path) -> None:
    source = Recorder(MemoryDevice(SIZE, content=CONTENT))
    kept, account = MemoryDevice(SIZE), tmp_path / "chunks"
    async with source, kept:
        lazy = LazyDisk(source, kept, account)
        async with (
            VhostUser(lazy, tmp_path / "blk.sock"),
            aioblk.VirtioBlkVhostUser(tmp_path / "blk.sock") as guest,
        ):
            assert await guest.read(CHUNK - 512, 1024) == CONTENT[CHUNK - 512 : CHUNK + 512]
            assert kept.content()[: 2 * CHUNK] == CONTENT[: 2 * CHUNK]
            assert not any(kept.content()[2 * CHUNK :])
            await asyncio.gather(guest.write(2 * CHUNK, b"w" * 4096), guest.read(2 * CHUNK + 8192, 512))
            await guest.flush()
            assert account.read_bytes() == b"\1\1\1\0"
            await lazy.fetch_all()
        assert kept.content() == CONTENT[: 2 * CHUNK] + b"w" * 4096 + CONTENT[2 * CHUNK + 4096 :]
        assert len(source.records) == 4
        again = LazyDisk(source, kept, account)
        assert await again.read(2 * CHUNK, 4096) == b"w" * 4096
        assert len(source.records) == 4


async def test_what_could_not_be_fetched_is_tried_again(tmp_path: Path) -> None:
    source = Faulty(MemoryDevice(SIZE, content=CONTENT), Fault(error=errno.EIO, times=1))
    kept = MemoryDevice(SIZE)
    async with source, kept:
        lazy = LazyDisk(source, kept, tmp_path / "chunks")
        with pytest.raises(OSError, match="read"):
            await lazy.read(0, 512)
        assert await lazy.read(0, 512) == CONTENT[:512]
