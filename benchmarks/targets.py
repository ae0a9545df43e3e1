"""What the contenders read and write."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.model import Case

NULL_DEVICE_SIZE = 1 << 30
FILL_CHUNK = 1 << 20


class UnavailableError(Exception):
    """A case cannot be measured on this machine; the message says what is missing."""


@dataclass(frozen=True)
class Target:
    """An open case: a path (of a file or of a vhost-user socket) and the capacity in bytes."""

    case: Case
    path: Path
    capacity: int


def check_target(case: Case, directory: Path) -> None:
    """Raise UnavailableError when the case cannot be opened on this machine at all."""
    if case.kind == "file":
        refuse_memory_filesystem(directory)
    elif not shutil.which("qemu-storage-daemon"):
        raise UnavailableError("qemu-storage-daemon is not installed")


@contextlib.contextmanager
def open_target(case: Case, directory: Path, file_size: int) -> Generator[Target]:
    if case.kind == "file":
        yield Target(case, scratch_file(directory, file_size), file_size)
    else:
        with null_export(case) as path:
            yield Target(case, path, NULL_DEVICE_SIZE)


def scratch_file(directory: Path, size: int) -> Path:
    """A file of random bytes, wholly in the page cache. It is kept for the next run."""
    directory.mkdir(parents=True, exist_ok=True)
    refuse_memory_filesystem(directory)
    path = directory / "data"
    if not path.exists() or path.stat().st_size != size:
        with path.open("wb") as file:
            for _ in range(0, size, FILL_CHUNK):
                file.write(os.urandom(FILL_CHUNK))
            os.fsync(file.fileno())
    with path.open("rb", buffering=0) as file:
        while file.read(FILL_CHUNK):
            pass
    return path


def refuse_memory_filesystem(directory: Path) -> None:
    """tmpfs cannot promise not to block, so io_uring hands each read to a kernel thread: no fast device."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    holding = [
        (len(fields[1]), fields[2]) for fields in mounts if directory.resolve().is_relative_to(fields[1])
    ]
    kind = max(holding, default=(0, "unknown"))[1]
    if kind in {"tmpfs", "ramfs"}:
        raise UnavailableError(f"{directory} is on {kind}; name a directory on a disk with --directory")


@contextlib.contextmanager
def null_export(case: Case) -> Generator[Path]:
    """A vhost-user export of a null device. The daemon ends with the block or, at the latest, with us."""
    with tempfile.TemporaryDirectory(prefix="aioblk-bench-") as directory:
        socket = Path(directory) / "socket"
        command = [
            *pin(case.daemon_cpu),
            *(["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []),
            "qemu-storage-daemon",
            *("--blockdev", f"driver=null-co,node-name=null,size={NULL_DEVICE_SIZE},read-zeroes=on"),
            "--export",
            "type=vhost-user-blk,id=export,node-name=null,writable=on,num-queues=2"
            f",addr.type=unix,addr.path={socket}",
        ]
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 10
            while not socket.exists():
                if daemon.poll() is not None or time.monotonic() > deadline:
                    raise UnavailableError("qemu-storage-daemon did not offer its socket")
                time.sleep(0.01)
            yield socket
        finally:
            daemon.kill()
            daemon.wait()


def pin(cpu: int | None) -> list[str]:
    """What to put before a command so that it runs on one processor."""
    return [] if cpu is None else ["taskset", "--cpu-list", str(cpu)]
