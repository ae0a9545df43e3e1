"""Our NBD server beside qemu-nbd and nbdkit's file plugin, on one file, with fio as the client."""

import contextlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from benchmarks.paths import ROOT
from benchmarks.progress import steps
from benchmarks.sheets import Sheet
from benchmarks.tables import Grid
from benchmarks.targets import UnavailableError, scratch_file

STARTING_SECONDS = 10.0
NOTE = "Ratios are of the operations in a second, within rounds. nbdkit's file plugin has no direct I/O."
FASTEST = "aioblk-uvloop"  # of ours, which is held to the bars
ORDER = {name: place for place, name in enumerate(("qemu-nbd", "nbdkit", "aioblk-asyncio", FASTEST))}


@dataclass(frozen=True)
class Cell:
    """What is measured, and how much of what another server does ours has to do."""

    block_size: str
    operation: str
    depth: int
    yardstick: str
    bar: float
    direct: bool = False
    """Past the page cache. nbdkit's file plugin cannot: it is told to keep nothing there."""

    def __str__(self) -> str:
        return f"{self.block_size} {self.operation} QD{self.depth}{' direct' if self.direct else ''}"


CELLS = (
    Cell("4k", "randread", 1, "qemu-nbd", 0.9),
    Cell("4k", "randwrite", 1, "qemu-nbd", 0.9),
    Cell("4k", "randread", 32, "nbdkit", 1.0),
    Cell("4k", "randwrite", 32, "nbdkit", 0.9),
    Cell("256k", "randwrite", 1, "qemu-nbd", 0.9, direct=True),
)


@dataclass(frozen=True)
class Server:
    """One that is running."""

    name: str
    uri: str
    pid: int

    def processor_seconds(self) -> float:
        """What it has used of the processors so far, kernel threads that work for it included."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Sample:
    operations: float
    """In a second."""
    p50: float
    p99: float
    """Latency in microseconds."""
    cost: float
    """Of the server, microseconds of processor time for each operation."""


def measure(
    console: Console, *, rounds: int, seconds: float, directory: Path, file_size: int
) -> tuple[Sheet, dict[str, dict[str, list[Sample]]]]:
    """Print a table of the medians and of the ratios within rounds; that, and what was measured, by cell and
    server."""
    for program in ("fio", "qemu-nbd", "nbdkit"):
        if not shutil.which(program):
            raise UnavailableError(f"{program} is not installed")
    sheet = Sheet.begin("The NBD server beside qemu-nbd and nbdkit")
    file = scratch_file(directory, file_size)
    samples: dict[str, dict[str, list[Sample]]] = {}
    with contextlib.ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aioblk-bench-")))
        servers = {
            direct: [
                stack.enter_context(running(name, command, socket))
                for name, socket, command in commands(file, where, direct=direct)
            ]
            for direct in sorted({cell.direct for cell in CELLS})
        }
        begin = stack.enter_context(steps(rounds * sum(len(servers[cell.direct]) for cell in CELLS)))
        for number in range(1, rounds + 1):
            for cell in CELLS:
                # There and back again, so that a machine that gets slower favours nobody.
                for server in servers[cell.direct][:: 1 if number % 2 else -1]:
                    begin(f"round {number} of {rounds}: {cell}, {server.name}")
                    sample = run_fio(server, cell, seconds)
                    samples.setdefault(str(cell), {}).setdefault(server.name, []).append(sample)
    sheet = replace(sheet, grid=grid(samples, rounds), notes=[NOTE])
    sheet.show(console)
    return sheet, samples


def commands(file: Path, where: Path, *, direct: bool) -> Generator[tuple[str, Path, list[str]]]:
    """The servers' names, where they are to listen, and how they are started."""
    kind = "direct" if direct else "cached"
    socket = where / f"qemu-nbd-{kind}.sock"
    cache = ["--cache=none", "--aio=native"] if direct else ["--cache=writeback"]
    qemu = ["qemu-nbd", "--format=raw", *cache, "--persistent", "--shared=8", f"--socket={socket}"]
    yield "qemu-nbd", socket, [*qemu, str(file)]
    socket = where / f"nbdkit-{kind}.sock"
    cache = ["cache=none"] if direct else []
    yield "nbdkit", socket, ["nbdkit", "--foreground", "--unix", str(socket), "file", str(file), *cache]
    device = f"io_uring:{file}?lock=off{'&direct=on' if direct else ''}"  # the others have it open, too
    for loop in "asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else []):
        socket = where / f"aioblk-{loop}-{kind}.sock"
        ours = [sys.executable, "-m", "aioblk", "serve", "nbd", device]
        yield f"aioblk-{loop}", socket, [*ours, "--loop", loop, "--unix", str(socket)]


@contextlib.contextmanager
def running(name: str, command: list[str], socket: Path) -> Generator[Server]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT)
    try:
        deadline = time.monotonic() + STARTING_SECONDS
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise UnavailableError(f"{name} did not offer its socket")
            time.sleep(0.01)
        yield Server(name, f"nbd+unix:///?socket={socket}", process.pid)
    finally:
        process.terminate()
        process.wait()


def run_fio(server: Server, cell: Cell, seconds: float) -> Sample:
    before = server.processor_seconds()
    done = subprocess.run(
        [
            *("fio", "--name=nbd", "--ioengine=nbd", f"--uri={server.uri}", "--size=100%"),
            *(f"--rw={cell.operation}", f"--bs={cell.block_size}", f"--iodepth={cell.depth}"),
            *("--randrepeat=0", "--time_based", f"--runtime={seconds}", "--output-format=json"),
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UnavailableError(f"fio failed on {server.name}: {done.stderr or done.stdout}")
    used = server.processor_seconds() - before
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    side = job["read" if cell.operation == "randread" else "write"]
    percentiles = side["clat_ns"]["percentile"]
    return Sample(
        operations=side["iops"],
        p50=percentiles["50.000000"] / 1000,
        p99=percentiles["99.000000"] / 1000,
        cost=used / max(side["total_ios"], 1) * 1e6,
    )


def grid(samples: dict[str, dict[str, list[Sample]]], rounds: int) -> Grid:
    head = [
        *("", "server", "operations/s", "p50 us", "p99 us", "processor us/op"),
        *("x qemu-nbd", "x nbdkit", "bar"),
    ]
    rows: list[list[str]] = []
    for cell in CELLS:
        by_server = samples[str(cell)]
        for server, found in sorted(by_server.items(), key=lambda pair: ORDER[pair[0]]):
            ratios = {name: ratios_of(found, by_server[name]) for name in ("qemu-nbd", "nbdkit")}
            rows.append(
                [
                    str(cell),
                    server,
                    f"{statistics.median(sample.operations for sample in found):,.0f}",
                    f"{statistics.median(sample.p50 for sample in found):,.0f}",
                    f"{statistics.median(sample.p99 for sample in found):,.0f}",
                    f"{statistics.median(sample.cost for sample in found):,.1f}",
                    *("" if name == server else in_words(ratios[name]) for name in ratios),
                    verdict(cell, ratios[cell.yardstick]) if server == FASTEST else "",
                ]
            )
    return Grid(f"A file over NBD at a Unix socket, fio as the client; median of {rounds} rounds", head, rows)


def ratios_of(found: list[Sample], yardstick: list[Sample]) -> list[float]:
    """Of the operations per second, within each round."""
    return [mine.operations / its.operations for mine, its in zip(found, yardstick, strict=True)]


def in_words(ratios: list[float]) -> str:
    """Median and spread."""
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"


def verdict(cell: Cell, ratios: list[float]) -> str:
    is_met = statistics.median(ratios) >= cell.bar
    return f"{cell.bar:.1f} x {cell.yardstick}: {'met' if is_met else 'not met'}"
