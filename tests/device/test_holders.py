"""Who has a file or disk in use: what the kernel, QEMU and other processes do is found, what we do is not."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import aioblk
from aioblk._device import holders as room
from aioblk._device.holders import Holder, find_holders, in_use_by


@contextmanager
def python(program: str, *arguments: object) -> Iterator[int]:
    """Runs a program that says when it is ready, until the block ends; its process."""
    command = [sys.executable, "-c", f"import fcntl, os, sys\n{program}\nprint(flush=True)\ninput()"]
    with subprocess.Popen(
        [*command, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        yield process.pid
        process.stdin.close()
        process.send_signal(signal.SIGKILL)


def interpreter() -> str:
    return Path(sys.executable).name


def said(path: Path) -> list[str]:
    return [holder.who for holder in find_holders(path)]


# --- processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "how", "writes"), [("O_RDONLY", "for reading", False), ("O_RDWR", "for writing", True)]
)
def test_who_has_it_open_is_told_and_counts_for_nothing_more(
    scratch_file: Path, mode: str, how: str, writes: bool
) -> None:
    with python(f"os.open(sys.argv[1], os.{mode})", scratch_file) as pid, scratch_file.open("r+b"):
        who = f"open {how} in process {pid} ({interpreter()})"
        assert find_holders(scratch_file) == [Holder("process", who, writes)]
        assert in_use_by(scratch_file) is None
    assert find_holders(scratch_file) == []


@pytest.mark.parametrize(
    ("lock", "minds"),
    [
        ("fcntl.lockf(file, fcntl.LOCK_EX)", True),
        ("fcntl.lockf(file, fcntl.LOCK_SH)", False),
        ("fcntl.flock(file, fcntl.LOCK_EX)", True),
    ],
)
def test_locks_of_every_kind_are_told(scratch_file: Path, lock: str, minds: bool) -> None:
    with python(f"file = os.open(sys.argv[1], os.O_RDWR); {lock}", scratch_file) as pid:
        who = f"locked by process {pid} ({interpreter()})"
        assert Holder("lock", who, minds) in find_holders(scratch_file)
        assert in_use_by(scratch_file) == (who if minds else None)


def test_a_lock_for_reading_minds_writers_and_is_not_our_own(scratch_file: Path) -> None:
    program = "import aioblk; lock = aioblk.FileLock(sys.argv[1], read_only=True)"
    with python(program, scratch_file) as pid, aioblk.FileLock(scratch_file, read_only=True):
        assert in_use_by(scratch_file) == f"locked by process {pid} ({interpreter()})"
    with aioblk.FileLock(scratch_file), scratch_file.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert find_holders(scratch_file) == []
        assert in_use_by(scratch_file) is None


def test_of_processes_that_cannot_be_seen_the_lock_is_seen(
    scratch_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for who is not root, of those of others: /proc does not let him list their descriptors."""
    program = (
        "import aioblk; lock = aioblk.FileLock(sys.argv[1])\n"
        "file = open(sys.argv[2], 'w'); fcntl.lockf(file, fcntl.LOCK_EX)"
    )
    other = scratch_file.with_name("other")
    with python(program, scratch_file, other) as pid:
        hide(monkeypatch, pid)
        assert said(scratch_file) == ["locked by an open file description, as QEMU's"]
        assert said(other) == [f"locked by process {pid} ({interpreter()})"]
        with pytest.raises(aioblk.InUseError) as caught:
            aioblk.FileLock(scratch_file)
        assert str(caught.value).endswith(
            "it is used by somebody who cannot be seen from here, perhaps"
            f" process {pid} ({interpreter()}), whose command line names it"
        )
        with pytest.raises(aioblk.InUseError, match=rf"it is written by process {pid} \("):
            aioblk.FileLock(other, read_only=True)
        moved = scratch_file.rename(scratch_file.with_name("elsewhere"))
        with pytest.raises(
            aioblk.InUseError, match="it is used by somebody who cannot be seen from here: a pro"
        ):
            aioblk.FileLock(moved)


def hide(monkeypatch: pytest.MonkeyPatch, pid: int) -> None:
    def list_all(folder: str) -> list[str]:
        if folder in (f"/proc/{pid}/fd", f"/proc/{pid}/fdinfo"):
            raise PermissionError
        return listdir(folder)

    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", list_all)


def test_a_process_has_its_whole_name(scratch_file: Path, tmp_path: Path) -> None:
    """The kernel keeps 15 characters. Control characters do not get into messages."""
    for name, shown in (("a-name-of-more-than-15", "a-name-of-more-than-15"), ("\x1b[7m", r"'\x1b[7m'")):
        (tmp_path / name).symlink_to("/bin/sleep")
        with scratch_file.open() as file:
            process = subprocess.Popen([tmp_path / name, "1000"], stdin=file)
        with process:
            try:
                while not Path(f"/proc/{process.pid}/cmdline").read_bytes():  # it has begun, nearly
                    time.sleep(0.001)
                assert said(scratch_file) == [f"open for reading in process {process.pid} ({shown})"]
            finally:
                process.kill()


# --- the kernel ---------------------------------------------------------------------------------------------


def test_a_loop_device_is_found_behind_which_a_file_is(loop_device: Path, scratch_file: Path) -> None:
    assert in_use_by(scratch_file) == f"behind the loop device {loop_device}"
    assert find_holders(loop_device) == []


def test_a_claim_is_told_unless_it_is_our_own_lock(loop_device: Path) -> None:
    with aioblk.FileLock(loop_device):
        assert find_holders(loop_device) == []
    claim = os.open(loop_device, os.O_RDONLY | os.O_EXCL)
    try:
        assert in_use_by(loop_device) == "claimed for itself by the kernel or a process (O_EXCL)"
    finally:
        os.close(claim)
    assert in_use_by(loop_device) is None


def test_mounts_swap_and_what_is_made_of_a_disk_are_told(
    loop_device: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    number = os.stat(loop_device).st_rdev
    disk = f"{os.major(number)}:{os.minor(number)}"
    (tmp_path / "holders/dm-7/dm").mkdir(parents=True)
    (tmp_path / "holders/dm-7/dm/name").write_text("vg-root\n")
    (tmp_path / "holders/md0").mkdir()
    files = {
        "/proc/self/mountinfo": (
            f"36 35 {disk} / /a\\040mount rw,noatime shared:1 - ext4 /dev/root rw\n"
            f"37 35 0:99 / /pool rw - btrfs {loop_device} rw\n"
            "38 35 0:98 / /proc rw - proc proc rw\n"
        ),
        "/proc/swaps": f"Filename Type Size Used\n{loop_device} partition 8 0 -2\n/gone file 8 0 -2\n",
    }
    original, folder = room._read, room._folder
    monkeypatch.setattr(room, "_read", lambda path: files.get(str(path)) or original(path))
    monkeypatch.setattr(room, "_folder", lambda of: str(tmp_path) if of == number else folder(of))
    assert said(loop_device) == [
        "mounted at /a mount",
        "mounted at /pool",
        "a part of dm-7 (vg-root)",
        "a part of md0",
        "swapped to",
    ]
    first = "mounted at /a mount, mounted at /pool, a part of dm-7 (vg-root)"
    assert in_use_by(loop_device) == f"{first} and 2 more"
    claim = os.open(loop_device, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(aioblk.InUseError, match=re.escape(f"it is {first} and 2 more")):
            aioblk.FileLock(loop_device)
    finally:
        os.close(claim)


def test_a_file_that_is_swapped_to_is_told(scratch_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, original = f"Filename\n{scratch_file} file 8 0 -2\n", room._read
    monkeypatch.setattr(room, "_read", lambda path: lines if str(path) == "/proc/swaps" else original(path))
    assert find_holders(scratch_file) == [Holder("swap", "swapped to")]


def test_what_is_not_there_is_used_by_nobody(tmp_path: Path) -> None:
    assert in_use_by(tmp_path / "not") is None
    with pytest.raises(FileNotFoundError):
        find_holders(tmp_path / "not")
