"""io_uring on a file of a real file system, over a device that logs all writes (dm-log-writes): what was
promised is in the file, whenever the power fails and the file system is mounted again.
"""

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import aioblk

from ..durability.replay import Replay
from ..durability.workload import SIZE, Kept, Position, Workload
from ..durability.write_log import MARK, SECTOR, Entry, entries
from ..support.loop_device import LoopDevice
from .conftest import RecordProperty

MIB = 1 << 20
LOG = 24 * MIB
STATES = 3  # after which the power fails
OPERATIONS = 5
NAME = "logged"
WITHOUT_UDEV = {"DM_DISABLE_UDEV": "1"}  # dmsetup makes the device's file by itself
FILE_SYSTEMS = {
    "ext4": (48 * MIB, ("mkfs.ext4", "-q", "-F")),
    "xfs": (320 * MIB, ("mkfs.xfs", "-q", "-f")),  # which takes no less
}


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | WITHOUT_UDEV)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}"


def sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


class LoggedDisk:
    """A device of the kernel's that logs what reaches a disk; marks in its log are positions."""

    def __init__(self, disk: Path, log: Path, size: int) -> None:
        self.path = Path(f"/dev/mapper/{NAME}")
        self._marks = 0
        run("dmsetup", "create", NAME, "--table", f"0 {size // SECTOR} log-writes {disk} {log}")

    def position(self) -> Position:
        self._marks += 1
        run("dmsetup", "message", NAME, "0", "mark", str(self._marks))
        return self._marks, 0

    def close(self) -> None:
        run("dmsetup", "remove", NAME)


@contextmanager
def mounted(device: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    run("mount", device, place)
    try:
        yield place
    finally:
        run("umount", place)


def left_by(disk: Path, base: Path, state: dict[int, bytes]) -> None:
    """Make *disk* what was at first, with these sectors."""
    run("cp", "--sparse=always", base, disk)
    with disk.open("r+b") as file:
        for sector, data in state.items():
            os.pwrite(file.fileno(), data, sector * SECTOR)


def wrong_in(disk: Path, place: Path, kept: Kept) -> list[str]:
    """What the file lacks of what was promised, once the file system has recovered."""
    with LoopDevice(disk) as loop, mounted(loop.path, place):
        data = (place / "disk.img").read_bytes().ljust(SIZE, b"\0")
    found = [kept.wrong(at // SECTOR, data[at : at + SECTOR]) for at in range(0, SIZE, SECTOR)]
    return [str(each) for each in found if each is not None]


def positions(log: list[Entry]) -> Iterator[tuple[Position, Entry]]:
    """Of each entry, which mark was before it."""
    mark = 0
    for entry in log:
        if entry.flags & MARK and entry.data is not None and entry.data.isdigit():
            mark = int(entry.data)
        yield (mark, 0), entry


@pytest.fixture(params=FILE_SYSTEMS)
def file_system(request: pytest.FixtureRequest, record_property: RecordProperty) -> str:
    record_property("driver", f"io_uring, {request.param}")
    return str(request.param)


async def written(path: Path, disk: LoggedDisk, seed: int, *, direct: bool, careless: bool) -> Workload:
    """What a workload has been promised, in a file that is new."""
    async with aioblk.IoUring(path, create=SIZE, direct=direct) as device:
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        await device.flush()
        disk.position()
        over = Careless(device) if careless else device
        workload = Workload(seed, over, disk, operations=OPERATIONS)
        await workload.run()
    return workload


class Careless(aioblk.Layer[aioblk.Device]):
    """Says of what is only cached that it is durable."""

    async def flush(self) -> None:
        """Nothing."""


async def wrong_after_power_failures(
    tmp_path: Path, file_system: str, *, direct: bool, careless: bool = False
) -> tuple[list[str], int]:
    """What is wrong in states that a power failure may leave, and how many promises there were."""
    size, make = FILE_SYSTEMS[file_system]
    place, base = tmp_path / "mounted", tmp_path / "base"
    data, log_file = sparse(tmp_path / "data", size), sparse(tmp_path / "log", LOG)
    run(*make, data)
    run("cp", "--sparse=always", data, base)
    with LoopDevice(data) as lower, LoopDevice(log_file) as log:
        disk = LoggedDisk(lower.path, log.path, size)
        try:
            with mounted(disk.path, place):
                workload = await written(place / "disk.img", disk, 1, direct=direct, careless=careless)
        finally:
            disk.close()
    logged = list(positions(list(entries(log_file.read_bytes()))))
    first = next(at for at, (position, _) in enumerate(logged) if position >= (1, 0))
    chance = random.Random(1)
    ends = sorted(chance.sample(range(first, len(logged)), STATES))
    replay, kept, found = Replay(), Kept(workload), list[str]()
    for at, (position, entry) in enumerate(logged):
        replay.add(entry)
        kept.until(position)
        if at in ends:
            left_by(tmp_path / "left", base, replay.state(chance))
            found += wrong_in(tmp_path / "left", place, kept)
    return found, len(workload.promises)


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
async def test_what_was_flushed_survives_a_power_failure(
    tmp_path: Path, file_system: str, direct: bool
) -> None:
    wrong, promises = await wrong_after_power_failures(tmp_path, file_system, direct=direct)
    assert not wrong
    assert promises


async def test_what_is_not_flushed_is_found_out(tmp_path: Path, record_property: RecordProperty) -> None:
    record_property("driver", "io_uring, ext4")
    wrong, _ = await wrong_after_power_failures(tmp_path, "ext4", direct=False, careless=True)
    assert wrong
