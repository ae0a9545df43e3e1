# ruff: noqa: ASYNC221, ASYNC240 - these tests run programs on the image, and do nothing else meanwhile
"""Partition tables that other programs have written, and damaged ones."""

import json
import random
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aioblk
from aioblk.testing import MemoryDevice

from ..support.loop_device import LoopDevice

SIZE = 16 << 20
SECTOR = 512
PIECE = 64 << 10


def disk_of(content: bytes | bytearray, request_alignment: int = SECTOR) -> MemoryDevice:
    disk = MemoryDevice(len(content), limits=aioblk.Limits(request_alignment=request_alignment))
    for start in range(0, len(content), PIECE):
        piece = bytes(content[start : start + PIECE])
        if piece.strip(b"\0"):
            disk._media.write(start, piece)
    return disk


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


def sfdisk(image: Path, script: str, *options: str) -> list[dict[str, Any]]:
    """Have it write a table; gives what it reads from it."""
    subprocess.run(["sfdisk", "--quiet", *options, image], input=script, text=True, check=True)
    read = subprocess.run(["sfdisk", "--json", image], stdout=subprocess.PIPE, check=True)
    found: list[dict[str, Any]] = json.loads(read.stdout)["partitiontable"]["partitions"]
    return found


def number_of(entry: dict[str, Any]) -> int:
    return int(entry["node"].rpartition(".img")[2])


GPT = """label: gpt
size=1MiB, type=linux, name="the first one"
size=1MiB, type=uefi, name="b\u00fccher", attrs="LegacyBIOSBootable"
start=5MiB, size=1MiB, type=swap
size=4MiB, type=lvm
"""
MBR = """label: dos
label-id: 0x1b2c3d4e
size=1MiB, type=83
size=2MiB, type=c, bootable
start=5MiB, size=10MiB, type=5
start=6MiB, size=1MiB, type=82
start=8MiB, size=2MiB, type=83
start=11MiB, size=3MiB, type=8e
"""


async def test_what_sfdisk_has_written_as_gpt(image: Path) -> None:
    expected = sfdisk(image, GPT)
    found = await aioblk.partitions(disk_of(image.read_bytes()))
    assert [
        (part.number, part.offset, part.length, part.type.upper(), part.uuid.upper(), part.name)
        for part in found
    ] == [
        (
            number_of(entry),
            entry["start"] * SECTOR,
            entry["size"] * SECTOR,
            entry["type"],
            entry["uuid"],
            entry.get("name", ""),
        )
        for entry in expected
    ]
    assert [part.bootable for part in found] == [False, True, False, False]
    assert await aioblk.partitions(disk_of(image.read_bytes()), backup=True) == found


async def test_what_sfdisk_has_written_as_mbr(image: Path) -> None:
    expected = [entry for entry in sfdisk(image, MBR) if entry["type"] != "5"]
    found = await aioblk.partitions(disk_of(image.read_bytes()))
    assert [(part.number, part.offset, part.length, int(part.type, 16), part.bootable) for part in found] == [
        (
            number_of(entry),
            entry["start"] * SECTOR,
            entry["size"] * SECTOR,
            int(entry["type"], 16),
            entry.get("bootable", False),
        )
        for entry in expected
    ]
    assert [part.number for part in found] == [1, 2, 5, 6, 7]
    assert found[0].uuid == "1b2c3d4e-01"


async def test_what_sgdisk_has_written(image: Path) -> None:
    subprocess.run(
        [
            *("sgdisk", "--new=3:2048:+1M", "--change-name=3:third", "--typecode=3:8300"),
            *("--new=1:4M:+1M", "--new=128:8M:0", image),
        ],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    found = await aioblk.partitions(disk_of(image.read_bytes()))
    assert [(part.number, part.offset, part.length, part.name) for part in found[:2]] == [
        (1, 4 << 20, 1 << 20, ""),
        (3, 1 << 20, 1 << 20, "third"),
    ]
    assert found[2].number == 128
    assert found[1].type == "0fc63daf-8483-4772-8e79-3d69d8477de4"


async def test_on_a_real_device(image: Path) -> None:
    expected = sfdisk(image, GPT)
    async with aioblk.IoUring(image) as device:
        [first, *others] = await aioblk.partitions(device)
        assert len(others) == len(expected) - 1
        async with first.slice(device) as part:
            await part.write(0, b"here")
        with pytest.raises(aioblk.BlkioError):
            first.slice(device, read_only=True).write(0, b"here")
    assert image.read_bytes()[first.offset : first.offset + 4] == b"here"


@pytest.fixture
def large_sectors(image: Path, loop_device: Path) -> Path:
    """Where there are loop devices at all."""
    with LoopDevice(image, block_size=4096) as loop:
        sfdisk(loop.path, "label: gpt\nsize=1MiB\nsize=2MiB\n", "--no-reread", "--no-tell-kernel")
    return image


@pytest.mark.parametrize("request_alignment", [1, 512, 4096])
async def test_sectors_of_4096_bytes(large_sectors: Path, request_alignment: int) -> None:
    device = disk_of(large_sectors.read_bytes(), request_alignment)
    assert [part.length for part in await aioblk.partitions(device)] == [1 << 20, 2 << 20]
    if request_alignment < 4096:
        assert await aioblk.partitions(device, sector_size=4096)
        with pytest.raises(aioblk.PartitionTableError, match="should be in sector 1"):
            await aioblk.partitions(device, sector_size=512)


async def test_where_there_is_no_table() -> None:
    for content in (b"", bytes(1), bytes(512), bytes(SIZE), random.Random(1).randbytes(1 << 16)):
        assert await aioblk.partitions(disk_of(content, 1)) == []
    fat = bytearray(SIZE)
    fat[510:512], fat[54:59], fat[446:462] = b"\x55\xaa", b"FAT16", b"a message: boot "
    assert await aioblk.partitions(disk_of(fat)) == []
    with pytest.raises(ValueError, match="sector_size must be a power of two from 512 on, not 1000"):
        await aioblk.partitions(disk_of(bytes(SIZE)), sector_size=1000)


# --- damage -------------------------------------------------------------------------------------------------


@pytest.fixture
def gpt(image: Path) -> bytearray:
    sfdisk(image, GPT)
    return bytearray(image.read_bytes())


@pytest.fixture
def mbr(image: Path) -> bytearray:
    sfdisk(image, MBR)
    return bytearray(image.read_bytes())


async def refusal_of(table: bytes | bytearray) -> str:
    with pytest.raises(aioblk.PartitionTableError) as refused:
        await aioblk.partitions(disk_of(table))
    assert isinstance(refused.value, ValueError)
    return str(refused.value)


async def test_every_bit_of_a_gpt_counts(gpt: bytearray) -> None:
    """Of the header and of the entries that are used; the copy is whole, and found."""
    device = disk_of(gpt)
    whole = await aioblk.partitions(device)
    for place in [*range(512, 512 + 92), *range(1024, 1024 + 4 * 128)]:
        start = place - place % SECTOR
        sector = bytearray(gpt[start : start + SECTOR])
        sector[place - start] ^= 1 << (place % 8)
        await device.write(start, sector)
        with pytest.raises(
            aioblk.PartitionTableError, match="copy at the end is whole: backup=True reads that"
        ):
            await aioblk.partitions(device)
        assert await aioblk.partitions(device, backup=True) == whole
        await device.write(start, gpt[start : start + SECTOR])
    assert await aioblk.partitions(device) == whole


async def test_where_both_copies_of_a_gpt_are_damaged(gpt: bytearray) -> None:
    gpt[520] ^= 1
    gpt[-512 + 20] ^= 1
    assert "backup" not in await refusal_of(gpt)
    with pytest.raises(aioblk.PartitionTableError):
        await aioblk.partitions(disk_of(gpt), backup=True)


async def test_a_gpt_without_its_protective_mbr(gpt: bytearray) -> None:
    gpt[:512] = bytes(512)
    assert "no protective MBR" in await refusal_of(gpt)


async def test_a_device_that_has_become_smaller(gpt: bytearray) -> None:
    assert "the device has" in await refusal_of(gpt[: SIZE // 2])


def with_entry(gpt: bytearray, number: int, **changes: int) -> bytearray:
    """Of which the checksums are right."""
    changed = bytearray(gpt)
    for name, place in (("first", 32), ("last", 40)):
        if name in changes:
            struct.pack_into("<Q", changed, 1024 + 128 * number + place, changes[name])
    return with_checksums(changed)


def with_checksums(gpt: bytearray) -> bytearray:
    count, size = struct.unpack_from("<II", gpt, 512 + 80)
    struct.pack_into("<I", gpt, 512 + 88, zlib.crc32(gpt[1024 : 1024 + min(count * size, 1 << 20)]))
    gpt[512 + 16 : 512 + 20] = bytes(4)
    struct.pack_into("<I", gpt, 512 + 16, zlib.crc32(gpt[512 : 512 + 92]))
    return gpt


async def test_a_gpt_that_contradicts_itself(gpt: bytearray) -> None:
    assert "outside of" in await refusal_of(with_entry(gpt, 0, first=1))
    assert "outside of" in await refusal_of(with_entry(gpt, 0, last=SIZE // SECTOR))
    assert "outside of" in await refusal_of(with_entry(gpt, 0, first=5000, last=4999))
    assert "outside of" in await refusal_of(with_entry(gpt, 0, last=(1 << 64) - 1))
    assert "partitions 1 and 2 overlap" in await refusal_of(with_entry(gpt, 0, last=11_000))
    for place, value, form, words in (
        (512 + 12, 1 << 20, "<I", "claims to have 1048576 bytes"),
        (512 + 12, 91, "<I", "claims to have 91 bytes"),
        (512 + 80, 1 << 31, "<I", "entries of 128 bytes"),
        (512 + 84, 0, "<I", "entries of 0 bytes"),
        (512 + 84, 192, "<I", "entries of 192 bytes"),
        (512 + 72, 2048, "<Q", "lie where partitions may be"),
        (512 + 72, (1 << 64) - 1, "<Q", "entries is wrong"),
        (512 + 24, 7, "<Q", "says that it is in 7"),
        (512 + 48, 1 << 60, "<Q", "the device has"),
        (512 + 40, (1 << 64) - 1, "<Q", "the device has"),
        (512 + 40, 0, "<Q", "may be in sector 0, it says, which the table is in"),
        (512 + 40, 1, "<Q", "may be in sector 1, it says, which the table is in"),
        (512 + 32, 5000, "<Q", "may be in sector 5000, it says, which the table is in"),
    ):
        changed = bytearray(gpt)
        struct.pack_into(form, changed, place, value)
        assert words in await refusal_of(with_checksums(changed)), (place, value)


async def test_an_mbr_that_contradicts_itself(mbr: bytearray) -> None:
    def changed(change: Callable[[bytearray], object]) -> bytearray:
        table = bytearray(mbr)
        change(table)
        return table

    def put(place: int, value: int) -> Callable[[bytearray], object]:
        return lambda table: struct.pack_into("<I", table, place, value)

    first_record = struct.unpack_from("<I", mbr, 446 + 32 + 8)[0] * SECTOR
    for words, change in (
        ("neither bootable nor not", lambda table: table.__setitem__(446, 0x17)),
        ("partition 1 is in sectors 0", put(446 + 8, 0)),
        ("outside of", put(446 + 12, 1 << 31)),
        ("partitions 1 and 2 overlap", put(446 + 12, 9000)),
        ("two extended partitions", lambda table: table.__setitem__(446 + 4, 0x0F)),
        ("no record of a logical partition", lambda table: table.__setitem__(first_record + 510, 0)),
        ("has no end", put(first_record + 446 + 16 + 8, 0)),
        ("leaves the extended one", put(first_record + 446 + 16 + 8, 1 << 30)),
        ("partition 5 is in sectors", put(first_record + 446 + 12, 1 << 30)),
    ):
        found = await refusal_of(changed(change))
        assert words in found or (words == "has no end" and "leaves" in found), (words, found)


async def test_whatever_the_bytes_are(gpt: bytearray, mbr: bytearray) -> None:
    """A table, or a refusal, or nothing: never anything else, and soon."""
    for number in range(150):
        chance = random.Random(number)
        table = bytearray(chance.choice([gpt, mbr])[: 1 << 20])
        for _ in range(chance.randrange(1, 30)):
            table[chance.choice([*range(446, 512), *range(512, 604), *range(1024, 1200)])] = chance.randrange(
                256
            )
        if chance.random() < 0.5 and table[512:520] == b"EFI PART":
            with_checksums(table)
        try:
            found = await aioblk.partitions(disk_of(bytes(table)))
        except aioblk.PartitionTableError:
            continue
        assert all(part.offset > 0 and part.offset + part.length <= len(table) for part in found)
