"""How programs open what their users name: locked, unless the address says otherwise."""

import os
from pathlib import Path

import pytest

import aioblk
from aioblk.addresses import open_locked

from ..conftest import StorageDaemonFactory

BLOCK = 4096


def is_locked(path: Path) -> bool:
    try:
        aioblk.FileLock(path).release()
    except aioblk.InUseError:
        return True
    return False


@pytest.mark.parametrize(
    ("before", "options", "properties", "locked"),
    [
        ("", "", {}, True),
        ("io_uring:", "?direct=off", {}, True),
        ("slice,length=4k:throttle,bytes=1G:", "", {}, True),
        ("readonly:", "", {}, True),
        ("io_uring:", "?lock=off", {}, False),
        ("io_uring:", "?lock=off", {"lock": True}, False),
        ("slice,length=4k:io_uring:", "?lock=off", {}, False),
        ("io_uring:", "?lock=on", {"lock": False}, True),
        ("", "", {"lock": False}, False),
    ],
)
async def test_a_file_is_locked_unless_its_address_says_otherwise(
    scratch_file: Path, before: str, options: str, properties: dict[str, bool], locked: bool
) -> None:
    async with open_locked(f"{before}{scratch_file}{options}", **properties) as device:
        assert await device.read(0, BLOCK) == bytes(BLOCK)
        assert is_locked(scratch_file) is locked
    assert not is_locked(scratch_file)


async def test_readers_of_one_file_do_not_exclude_each_other(scratch_file: Path) -> None:
    async with open_locked(scratch_file, read_only=True), open_locked(f"readonly:{scratch_file}"):
        with pytest.raises(aioblk.InUseError):
            await open_locked(scratch_file).open()


async def test_an_overlay_is_locked_as_what_it_lies_over(scratch_file: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay"
    overlay.touch()
    os.truncate(overlay, 32 << 20)
    address = f"cow,overlay={overlay}:{scratch_file}"
    async with open_locked(address):
        assert is_locked(overlay)
        aioblk.FileLock(scratch_file, read_only=True).release()
        with pytest.raises(aioblk.InUseError, match=str(overlay)):
            await open_locked(address).open()
    assert not is_locked(overlay)


async def test_what_cannot_be_locked_is_opened_as_ever(
    scratch_file: Path, storage_daemon: StorageDaemonFactory
) -> None:
    daemon = storage_daemon(scratch_file)
    async with open_locked(f"virtio-blk-vhost-user:{daemon.socket}", num_queues="1") as device:
        assert await device.read(0, BLOCK) == bytes(BLOCK)
    with pytest.raises(aioblk.InUseError, match=rf"used by process {daemon.pid} \(qemu-storage-daemon\)"):
        await open_locked(scratch_file).open()


def test_mistakes_are_refused_as_by_open(scratch_file: Path) -> None:
    with pytest.raises(aioblk.OptionError, match="no property 'drect'"):
        open_locked(f"io_uring:{scratch_file}?drect=on")
    with pytest.raises(aioblk.OptionError, match="lock must be True, False or 'auto', not 'perhaps'"):
        open_locked(scratch_file, lock="perhaps")  # type: ignore[arg-type]
