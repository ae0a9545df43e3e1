"""A disk of this machine that aioblk serves outside of it, in a program that is killed all the time."""

import os
from pathlib import Path

import pytest

from .conftest import RecordProperty
from .programs import run

FIO = (
    *("--name=load", "--size=24M", "--rw=randwrite", "--bsrange=4k-64k", "--ioengine=libaio", "--iodepth=16"),
    *("--direct=1", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--loops=2", "--end_fsync=1"),
)


@pytest.fixture
def disk(record_property: RecordProperty) -> Path:
    record_property("driver", "exported")
    return Path(os.environ["AIOBLK_VM_EXPORTED"])


async def test_a_file_system_outlives_whoever_serves_it(disk: Path, tmp_path: Path) -> None:
    place = tmp_path / "mounted"
    place.mkdir()
    await run("mkfs.ext4", "-q", "-F", disk)
    await run("mount", disk, place)
    try:
        await run("fio", f"--directory={place}", *FIO)
        (place / "load.0.0").unlink()
        await run("sync")
        assert "trimmed" in await run("fstrim", "-v", place)
    finally:
        await run("umount", place)
    await run("e2fsck", "-f", "-n", disk)


async def test_the_disk_is_what_its_server_says(disk: Path) -> None:
    settings = Path("/sys/block", disk.name)
    said = {
        name: (settings / name).read_text().strip()
        for name in ("serial", "size", "ro", "queue/logical_block_size")
    }
    assert said == {"serial": "exported", "size": "131072", "ro": "0", "queue/logical_block_size": "512"}
    assert int((settings / "queue/discard_max_bytes").read_text()) == 64 << 20
    assert len(list((settings / "mq").iterdir())) >= 1
