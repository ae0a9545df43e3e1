"""NVMe namespaces through io_uring passthrough."""

import os
from pathlib import Path

import pytest

import aioblk

BLOCK = 4096
MIB = 1 << 20


def block_device(namespace: Path) -> str:
    """The name of the block device beside a namespace's character device: ng0n1, nvme0n1."""
    return namespace.name.replace("ng", "nvme", 1)


def kernels_largest_transfer(namespace: Path) -> int:
    return 1024 * int(Path("/sys/block", block_device(namespace), "queue/max_hw_sectors_kb").read_text())


async def test_the_largest_transfer_is_what_the_kernel_takes(nvme: Path) -> None:
    async with aioblk.NvmeIoUring(nvme) as device:
        assert device.limits.max_transfer == kernels_largest_transfer(nvme)
        assert device.properties["max-transfer"] == 256 * MIB  # libblkio's claim, which fails with EINVAL
        data = os.urandom(MIB)
        await device.write(0, data)
        assert device.statistics().parts == MIB // device.limits.max_transfer
        assert await device.read(0, MIB) == data


async def test_registered_memory_keeps_to_the_largest_transfer(nvme: Path) -> None:
    async with aioblk.NvmeIoUring(nvme) as device, device.allocate(MIB) as region:
        region[-4:] = b"last"
        await device.write(0, region)
        region[-4:] = b"gone"
        await device.read_into(0, region)
        assert region[-4:] == b"last"


async def test_writes_through_by_itself(nvme: Path) -> None:
    async with aioblk.NvmeIoUring(nvme) as device:
        assert device.limits.supports_fua_natively
        await device.write(0, b"\x01" * BLOCK, fua=True)
        assert device.statistics().parts == 1
        assert await device.read(0, BLOCK) == b"\x01" * BLOCK


async def test_cannot_be_opened_by_its_block_device(nvme: Path) -> None:
    with pytest.raises(aioblk.BlkioError):
        await aioblk.NvmeIoUring(f"/dev/{block_device(nvme)}").open()


async def test_has_no_poll_queues(nvme: Path) -> None:
    async with aioblk.NvmeIoUring(nvme) as device:
        assert device.properties["supports-poll-queues"] is False
    with pytest.raises(aioblk.OptionError, match="num_poll_queues"):
        aioblk.open("nvme-io_uring", path=nvme, num_poll_queues=1)


async def test_discarding_past_the_end_is_a_hint(nvme: Path) -> None:
    async with aioblk.NvmeIoUring(nvme) as device:
        await device.discard(device.capacity, BLOCK)
        with pytest.raises(aioblk.BlkioError):
            await device.write_zeroes(device.capacity, BLOCK)


# --- the zoned namespace; the guest's has zones of 4 MiB ----------------------------------------------------


async def test_a_zoned_namespace_has_zone_properties(zns: Path) -> None:
    async with aioblk.NvmeIoUring(zns) as device:
        assert device.properties["zoned"] == 2
        assert device.properties["zone-size"] == 4 * MIB
        assert device.properties["nr-zones"] == 16
        assert device.properties["max-open-zones"] == 8
        assert device.properties["max-active-zones"] == 16


async def test_a_plain_namespace_has_none(nvme: Path) -> None:
    async with aioblk.NvmeIoUring(nvme) as device:
        assert device.properties["zoned"] == 0
