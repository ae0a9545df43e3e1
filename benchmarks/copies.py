"""`aioblk copy` beside nbdcopy, qemu-img and cp: the same bytes, from command to exit, durable by then."""

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from benchmarks import tables
from benchmarks.paths import ROOT
from benchmarks.progress import steps
from benchmarks.sheets import Sheet
from benchmarks.targets import FILL_CHUNK, UnavailableError, scratch_file

STARTING_SECONDS = 10.0
SETTLING_SECONDS = 5.0
QUIET_SECONDS = 0.2
SPARSE_PIECE = 1 << 20  # of data, then three times as much of a hole
AIOBLK = "aioblk"


@dataclass(frozen=True)
class Sample:
    seconds: float
    """From the command to its exit."""
    cpu: float
    """Seconds of the processors, of the command and what it has started."""


@dataclass(frozen=True)
class Cell:
    """A kind of copy; each tool's command for it, that of a tool that cannot do it left out."""

    title: str
    commands: dict[str, list[str]]
    before: Callable[[], None]
    """Makes the destination as it is to be found; it is not measured."""
    content: Path | None
    """A file that must be equal to the source afterwards."""
    source: Path


def measure(
    console: Console, *, rounds: int, seconds: float, directory: Path, file_size: int
) -> tuple[Sheet, dict[str, dict[str, list[Sample]]]]:
    """Print a table of the medians and of the ratios within rounds; that, and what was measured, by cell and
    tool. *seconds* means nothing here: a copy takes as long as it takes."""
    for program in ("nbdcopy", "qemu-img", "qemu-storage-daemon", "qemu-nbd"):
        if not shutil.which(program):
            raise UnavailableError(f"{program} is not installed")
    sheet = Sheet.begin(f"aioblk copy beside nbdcopy, qemu-img and cp, {file_size >> 20} MiB")
    samples: dict[str, dict[str, list[Sample]]] = {}
    with contextlib.ExitStack() as stack:
        full = scratch_file(directory, file_size)
        sparse = sparse_file(directory, full, file_size)
        where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="copies-", dir=directory)))
        cells = list(stack.enter_context(cells_of(full, sparse, where)))
        begin = stack.enter_context(steps(rounds * sum(len(cell.commands) for cell in cells)))
        for cell in cells:
            for number in range(rounds):
                tools = list(cell.commands)
                for tool in tools[number % len(tools) :] + tools[: number % len(tools)]:
                    begin(f"round {number + 1} of {rounds}: {cell.title}, {tool}")
                    sample = run_once(cell, tool, check=number == 0)
                    samples.setdefault(cell.title, {}).setdefault(tool, []).append(sample)
    sheet = replace(sheet, grid=grid(samples, file_size, rounds))
    sheet.show(console)
    return sheet, samples


# --- what is copied -----------------------------------------------------------------------------------------


def sparse_file(directory: Path, full: Path, size: int) -> Path:
    """A quarter of the other file, in pieces with holes between them; wholly in the page cache."""
    path = directory / "sparse"
    with full.open("rb") as source, path.open("wb") as file:
        for offset in range(0, size, 4 * SPARSE_PIECE):
            source.seek(offset)
            file.seek(offset)
            file.write(source.read(SPARSE_PIECE))
        file.truncate(size)
        os.fsync(file.fileno())
    with path.open("rb", buffering=0) as file:
        while file.read(FILL_CHUNK):
            pass
    return path


@contextlib.contextmanager
def cells_of(full: Path, sparse: Path, where: Path) -> Generator[list[Cell]]:
    with contextlib.ExitStack() as stack:
        cells = [
            file_to_file("file to file", full, where / "copy"),
            file_to_file("sparse file to file", sparse, where / "copy"),
        ]
        exported = where / "exported"
        with exported.open("wb") as file:
            file.truncate(full.stat().st_size)
        socket, uri = stack.enter_context(daemon_exports(exported, where))
        for title, source in (("file to vhost-user", full), ("sparse file to vhost-user", sparse)):
            cells.append(file_to_vhost_user(title, source, exported, socket, uri))
        server = stack.enter_context(nbd_export(full, where))
        cells.append(nbd_to_file("NBD to file", full, server, where / "copy"))
        yield cells


def file_to_file(title: str, source: Path, destination: Path) -> Cell:
    commands = {
        AIOBLK: aioblk(str(source), str(destination)),
        "nbdcopy": ["nbdcopy", "--flush", str(source), str(destination)],
        "qemu-img": qemu_img(str(source), str(destination)),
        "cp": [
            "sh",
            "-c",
            f"cp --reflink=never --sparse=auto '{source}' '{destination}' && sync '{destination}'",
        ],
    }
    return Cell(title, commands, lambda: destination.unlink(missing_ok=True), destination, source)


def file_to_vhost_user(title: str, source: Path, exported: Path, socket: Path, uri: str) -> Cell:
    """nbdcopy knows no vhost-user, and qemu-img does where it has libblkio's drivers: they come to the same
    daemon by NBD. What it has was something else before, all of it data."""
    commands = {
        AIOBLK: aioblk(str(source), f"virtio-blk-vhost-user:{socket}"),
        "nbdcopy, by NBD": ["nbdcopy", "--flush", str(source), uri],
        "qemu-img, by NBD": [*qemu_img(str(source), uri), "-n"],
    }
    if has_libblkio():
        target = f"driver=raw,file.driver=virtio-blk-vhost-user,file.path={socket},file.cache.direct=on"
        commands["qemu-img"] = [
            *("qemu-img", "convert", "-n", "-W", "-t", "none", "-f", "raw", str(source)),
            *("--target-image-opts", target),
        ]
    return Cell(title, commands, lambda: overwrite(exported), exported, source)


def overwrite(exported: Path) -> None:
    """With what no copy has, kept where it is: the daemon has the file open."""
    size = exported.stat().st_size
    with exported.open("r+b") as file:
        for _ in range(0, size, FILL_CHUNK):
            file.write(b"\xaa" * min(FILL_CHUNK, size - file.tell()))
        os.fsync(file.fileno())


def nbd_to_file(title: str, source: Path, uri: str, destination: Path) -> Cell:
    commands = {
        AIOBLK: aioblk(uri, str(destination)),
        "nbdcopy": ["nbdcopy", "--flush", uri, str(destination)],
        "qemu-img": qemu_img(uri, str(destination)),
    }
    return Cell(title, commands, lambda: destination.unlink(missing_ok=True), destination, source)


def aioblk(source: str, destination: str) -> list[str]:
    return [sys.executable, "-m", "aioblk", "copy", "--quiet", source, destination]


def qemu_img(source: str, destination: str) -> list[str]:
    """With a cache mode that flushes at the end, and writes in any order, as the others do."""
    return ["qemu-img", "convert", "-W", "-t", "writeback", "-f", "raw", "-O", "raw", source, destination]


def has_libblkio() -> bool:
    done = subprocess.run(["qemu-img", "--help"], capture_output=True, text=True)
    return "virtio-blk-vhost-user" in done.stdout


# --- servers ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def daemon_exports(file: Path, where: Path) -> Generator[tuple[Path, str]]:
    """One node, as a vhost-user device and by NBD."""
    socket, nbd_socket = where / "blk.sock", where / "daemon.sock"
    command = [
        *("qemu-storage-daemon", "--blockdev"),
        f"driver=file,node-name=file,filename={file},discard=unmap,cache.direct=off",
        "--export",
        "type=vhost-user-blk,id=export,node-name=file,writable=on,addr.type=unix,addr.path=" + str(socket),
        *("--nbd-server", f"addr.type=unix,addr.path={nbd_socket}"),
        *("--export", "type=nbd,id=nbd,name=disk,node-name=file,writable=on"),
    ]
    with running("qemu-storage-daemon", command, socket):
        yield socket, f"nbd+unix:///disk?socket={nbd_socket}"


@contextlib.contextmanager
def nbd_export(file: Path, where: Path) -> Generator[str]:
    socket = where / "nbd.sock"
    command = [
        *("qemu-nbd", "--format=raw", "--read-only", "--persistent", "--shared=8"),
        *(f"--socket={socket}", str(file)),
    ]
    with running("qemu-nbd", command, socket):
        yield f"nbd+unix:///?socket={socket}"


@contextlib.contextmanager
def running(name: str, command: list[str], socket: Path) -> Generator[None]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + STARTING_SECONDS
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise UnavailableError(f"{name} did not offer its socket")
            time.sleep(0.01)
        yield
    finally:
        process.terminate()
        process.wait()


# --- samples ------------------------------------------------------------------------------------------------


def run_once(cell: Cell, tool: str, *, check: bool) -> Sample:
    """What others have written is on the disk by then; the source is in the page cache, the copy is not."""
    cell.before()
    os.sync()
    wait_for_disk(cell.source)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(ROOT)
    began = time.perf_counter()
    process = subprocess.Popen(
        cell.commands[tool],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stderr is not None
    words = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        raise UnavailableError(f"{tool} failed: {words}")
    if check and cell.content is not None and subprocess.run(["cmp", cell.source, cell.content]).returncode:
        raise UnavailableError(f"{tool}: the copy is not what the source is")
    return Sample(seconds, used.ru_utime + used.ru_stime)


def wait_for_disk(file: Path) -> None:
    """Until nothing is under way: a file system discards what the last copy had a while after it is gone."""
    device = file.stat().st_dev
    counters = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    deadline = time.monotonic() + SETTLING_SECONDS
    before = None
    while counters.exists() and (now := counters.read_text()) != before and time.monotonic() < deadline:
        before = now
        time.sleep(QUIET_SECONDS)


def grid(samples: dict[str, dict[str, list[Sample]]], size: int, rounds: int) -> tables.Grid:
    """Ratios say how many times as long as aioblk a tool takes, within each round."""
    rows: list[list[str]] = []
    for title, by_tool in samples.items():
        for tool, found in by_tool.items():
            seconds = statistics.median(sample.seconds for sample in found)
            ratios = [its.seconds / ours.seconds for its, ours in zip(found, by_tool[AIOBLK], strict=True)]
            spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
            rows.append(
                [
                    title,
                    tool,
                    f"{seconds:.2f}",
                    f"{size / seconds / (1 << 20):,.0f}",
                    f"{statistics.median(sample.cpu for sample in found):.2f}",
                    "" if tool == AIOBLK else spread,
                ]
            )
    title = f"Copies of {size >> 20} MiB, durable at the end; median of {rounds} rounds"
    return tables.Grid(
        title, ["copy", "tool", "seconds", "MiB/s", "CPU seconds", "times as long as aioblk"], rows
    )
