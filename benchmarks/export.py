"""Our vhost-user export beside that of qemu-storage-daemon, of a file and of a null device."""

import contextlib
import importlib.util
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from benchmarks import tools
from benchmarks.model import CASES, Operation
from benchmarks.model import Cell as BenchCell
from benchmarks.nbd import Server, in_words, running
from benchmarks.progress import steps
from benchmarks.sheets import Sheet
from benchmarks.tables import Grid
from benchmarks.targets import NULL_DEVICE_SIZE, Target, UnavailableError, scratch_file

CASE = CASES["vhost-split-cores"]
YARDSTICK = "qemu-storage-daemon"
FASTEST = "aioblk-uvloop"  # of ours, which is held to the bars
ORDER = {name: place for place, name in enumerate((YARDSTICK, "aioblk-asyncio", FASTEST))}
NOTE = (
    "Ratios are of the operations in a second, within rounds. The null device of qemu-storage-daemon does"
    " nothing; ours is one in memory in which nothing was written, which a Python method answers."
)


@dataclass(frozen=True)
class Cell:
    """What is measured, and how much of what the other does ours has to do."""

    device: str
    block_size: int
    operation: Operation
    depth: int
    bar: float | None

    def __str__(self) -> str:
        size = f"{self.block_size >> 10} KiB"
        return f"{self.device}, {size} {self.operation} QD{self.depth}"


CELLS = (
    Cell("file", 4096, "read", 1, None),
    Cell("file", 4096, "read", 32, 0.7),
    Cell("file", 4096, "write", 32, 0.7),
    Cell("file", 256 << 10, "read", 4, 1.0),
    Cell("null", 4096, "read", 32, None),
)


@dataclass(frozen=True)
class Sample:
    operations: float
    """In a second."""
    mean: float
    """Latency in microseconds."""
    cost: float
    """Of the export, microseconds of processor time for each operation."""


def measure(
    console: Console, *, rounds: int, seconds: float, directory: Path, file_size: int
) -> tuple[Sheet, dict[str, dict[str, list[Sample]]]]:
    """Print a table of the medians and of the ratios within rounds; that, and what was measured, by cell and
    server."""
    tools.blkio_bench()
    sheet = Sheet.begin("The vhost-user export beside qemu-storage-daemon's")
    file = scratch_file(directory, file_size)
    samples: dict[str, dict[str, list[Sample]]] = {}
    with contextlib.ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aioblk-bench-")))
        servers = {
            device: [
                stack.enter_context(running(name, command, socket))
                for name, socket, command in commands(device, file, where)
            ]
            for device in dict.fromkeys(cell.device for cell in CELLS)
        }
        begin = stack.enter_context(steps(rounds * sum(len(servers[cell.device]) for cell in CELLS)))
        for number in range(1, rounds + 1):
            for cell in CELLS:
                # There and back again, so that a machine that gets slower favours nobody.
                for server in servers[cell.device][:: 1 if number % 2 else -1]:
                    begin(f"round {number} of {rounds}: {cell}, {server.name}")
                    sample = run_client(server, cell, seconds)
                    samples.setdefault(str(cell), {}).setdefault(server.name, []).append(sample)
    sheet = replace(sheet, grid=grid(samples, rounds), notes=[NOTE])
    sheet.show(console)
    return sheet, samples


def commands(device: str, file: Path, where: Path) -> Generator[tuple[str, Path, list[str]]]:
    """The exports' names, where they are to be, and how they are started."""
    socket = where / f"qemu-{device}.sock"
    node = (
        f"driver=file,node-name=disk,filename={file},aio=io_uring,locking=off"
        if device == "file"
        else f"driver=null-co,node-name=disk,size={NULL_DEVICE_SIZE},read-zeroes=on"
    )
    address = f"addr.type=unix,addr.path={socket}"
    export = f"type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=2,{address}"
    yield YARDSTICK, socket, ["qemu-storage-daemon", "--blockdev", node, "--export", export]
    for loop in "asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else []):
        socket = where / f"aioblk-{loop}-{device}.sock"
        if device == "file":
            address = f"io_uring:{file}?lock=off"
            ours = ["aioblk", "serve", "vhost-user", address, str(socket), "--queues=2", "--loop", loop]
        else:
            ours = ["benchmarks.workers.aioblk_null_export", str(socket), str(NULL_DEVICE_SIZE), loop]
        yield f"aioblk-{loop}", socket, [sys.executable, "-m", *ours]


def run_client(server: Server, cell: Cell, seconds: float) -> Sample:
    before = server.processor_seconds()
    target = Target(CASE, Path(server.uri.partition("socket=")[2]), NULL_DEVICE_SIZE)
    asked = BenchCell(CASE.name, cell.operation, cell.block_size, cell.depth)
    command = tools.blkio_bench_command(asked, target, seconds, poll=False)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UnavailableError(f"blkio-bench failed on {server.name}: {done.stderr or done.stdout}")
    used = server.processor_seconds() - before
    found = tools.parse_blkio_bench(done.stdout, 0)
    assert found.mean is not None
    return Sample(found.rate, found.mean, used / max(found.rate * seconds, 1) * 1e6)


def grid(samples: dict[str, dict[str, list[Sample]]], rounds: int) -> Grid:
    head = ["", "export", "operations/s", "mean us", "processor us/op", f"x {YARDSTICK}", "bar"]
    rows: list[list[str]] = []
    for cell in CELLS:
        by_server = samples[str(cell)]
        for server, found in sorted(by_server.items(), key=lambda pair: ORDER[pair[0]]):
            theirs = by_server[YARDSTICK]
            ratios = [mine.operations / its.operations for mine, its in zip(found, theirs, strict=True)]
            bar = ""
            if server == FASTEST and cell.bar is not None:
                met = statistics.median(ratios) >= cell.bar
                bar = f"{cell.bar:.1f}: {'met' if met else 'not met'}"
            rows.append(
                [
                    str(cell),
                    server,
                    f"{statistics.median(sample.operations for sample in found):,.0f}",
                    f"{statistics.median(sample.mean for sample in found):,.0f}",
                    f"{statistics.median(sample.cost for sample in found):,.1f}",
                    "" if server == YARDSTICK else in_words(ratios),
                    bar,
                ]
            )
    return Grid(
        f"vhost-user at a Unix socket, blkio-bench as the client; median of {rounds} rounds", head, rows
    )
