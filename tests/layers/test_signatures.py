"""What is recognised on a device."""

import asyncio
import subprocess
from pathlib import Path

import pytest

import aioblk
from aioblk.layers.signatures import _places
from aioblk.testing import MemoryDevice

SIZE = 1 << 20

MARKS = list(_places(SIZE))


async def recognised(device: aioblk.BlockDevice) -> list[str]:
    return [each.name for each in await aioblk.signatures(device)]


async def test_a_blank_device_holds_nothing_that_is_known() -> None:
    assert await recognised(MemoryDevice(SIZE)) == []
    assert await recognised(MemoryDevice(0)) == []


@pytest.mark.parametrize("block", [1, 512, 4096])
async def test_each_mark_is_found_where_it_is(block: int) -> None:
    for signature, magic in MARKS:
        device = MemoryDevice(SIZE, limits=aioblk.Limits(request_alignment=block))
        await aioblk.ByteView(device).write(signature.offset, magic)
        assert await aioblk.signatures(device) == [signature]


@pytest.mark.parametrize("size", [1, 511, 512, 4096, 70_000, 135_168])
async def test_small_devices_are_looked_at_as_well(size: int) -> None:
    device = MemoryDevice(size, limits=aioblk.Limits(request_alignment=1))
    assert await recognised(device) == []
    await device.write(0, b"\xff" * size)
    assert await recognised(device) == []


async def test_a_boot_sector_is_a_partition_table_unless_it_is_something_else() -> None:
    device = MemoryDevice(SIZE)
    await device.write(0, bytes(510) + b"\x55\xaa")
    [found] = await aioblk.signatures(device)
    assert (found.offset, found.kind, found.name) == (
        510,
        "partition table",
        "an MBR partition table, or a boot sector",
    )
    await device.write(0, b"\xeb\x52\x90NTFS    ".ljust(510, b"\0") + b"\x55\xaa")
    assert await recognised(device) == ["an NTFS file system"]


async def test_what_is_both_at_the_beginning_and_at_the_end_is_told_once() -> None:
    device = MemoryDevice(SIZE)
    for offset in (512, SIZE - 512):
        await device.write(offset, b"EFI PART".ljust(512, b"\0"))
    assert await aioblk.signatures(device) == [
        aioblk.Signature(512, "partition table", "a GPT partition table")
    ]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["sfdisk", "-q"], "a GPT partition table"),
        (["qemu-img", "create", "-q", "-f", "qcow2"], "a qcow2 disk image"),
        (["qemu-img", "create", "-q", "-f", "vmdk"], "a VMDK disk image"),
        (["qemu-img", "create", "-q", "-f", "vpc"], "a VHD disk image"),
        (["qemu-img", "create", "-q", "-f", "vhdx"], "a VHDX disk image"),
        (["qemu-img", "create", "-q", "-f", "vdi"], "a VDI disk image"),
        (["qemu-img", "create", "-q", "-f", "qed"], "a QED disk image"),
        (["qemu-img", "create", "-q", "-f", "parallels"], "a Parallels disk image"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_what_others_write_is_recognised(scratch_file: Path, command: list[str], name: str) -> None:
    size = ["8M"] if command[0] == "qemu-img" else []
    subprocess.run([*command, scratch_file, *size], input="label: gpt\n", text=True, check=True)

    async def look() -> list[str]:
        async with aioblk.IoUring(scratch_file) as device:
            return await recognised(device)

    assert asyncio.run(look()) == [name]
