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
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.paths import ROOT
from benchmarks.progress import steps
from benchmarks.targets import UnavailableError, scratch_file

BLOCK_SIZES = ("4k", "256k")
DEPTHS = (1, 32)
OPERATIONS = ("randread", "randwrite")
STARTING_SECONDS = 10.0


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
) -> dict[str, dict[str, list[Sample]]]:
    """Print a table of the medians and of the ratios within rounds; what was measured, by cell and server."""
    for program in ("fio", "qemu-nbd", "nbdkit"):
        if not shutil.which(program):
            raise UnavailableError(f"{program} is not installed")
    file = scratch_file(directory, file_size)
    samples: dict[str, dict[str, list[Sample]]] = {}
    with contextlib.ExitStack() as stack:
        where = stack.enter_context(tempfile.TemporaryDirectory(prefix="aioblk-bench-"))
        servers = [
            stack.enter_context(running(name, command, Path(where, f"{name}.sock")))
            for name, command in commands(file, Path(where)).items()
        ]
        cells = list(product(range(1, rounds + 1), BLOCK_SIZES, DEPTHS, OPERATIONS))
        begin = stack.enter_context(steps(len(cells) * len(servers)))
        for number, size, depth, operation in cells:
            cell = f"{size} {operation} QD{depth}"
            for server in servers:
                begin(f"round {number} of {rounds}: {cell}, {server.name}")
                sample = run_fio(server, size, depth, operation, seconds)
                samples.setdefault(cell, {}).setdefault(server.name, []).append(sample)
    show(console, samples)
    return samples


def commands(file: Path, where: Path) -> dict[str, list[str]]:
    """How each server is started, to listen at NAME.sock."""
    ours = [sys.executable, "-m", "aioblk", "serve", "nbd", str(file)]
    loops = ["asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]
    return {
        "qemu-nbd": [
            *("qemu-nbd", "--format=raw", "--cache=writeback", "--persistent", "--shared=8"),
            *(f"--socket={where / 'qemu-nbd.sock'}", str(file)),
        ],
        "nbdkit": ["nbdkit", "--foreground", "--unix", str(where / "nbdkit.sock"), "file", str(file)],
        **{
            f"aioblk-{loop}": [*ours, "--loop", loop, "--unix", str(where / f"aioblk-{loop}.sock")]
            for loop in loops
        },
    }


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


def run_fio(server: Server, size: str, depth: int, operation: str, seconds: float) -> Sample:
    before = server.processor_seconds()
    done = subprocess.run(
        [
            *("fio", "--name=nbd", "--ioengine=nbd", f"--uri={server.uri}", "--size=100%"),
            *(f"--rw={operation}", f"--bs={size}", f"--iodepth={depth}", "--randrepeat=0"),
            *("--time_based", f"--runtime={seconds}", "--output-format=json"),
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise UnavailableError(f"fio failed on {server.name}: {done.stderr or done.stdout}")
    used = server.processor_seconds() - before
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    side = job["read" if operation == "randread" else "write"]
    percentiles = side["clat_ns"]["percentile"]
    return Sample(
        operations=side["iops"],
        p50=percentiles["50.000000"] / 1000,
        p99=percentiles["99.000000"] / 1000,
        cost=used / max(side["total_ios"], 1) * 1e6,
    )


def show(console: Console, samples: dict[str, dict[str, list[Sample]]]) -> None:
    table = Table(
        *("", "server", "operations/s", "p50 us", "p99 us", "processor us/op", "x qemu-nbd", "x nbdkit"),
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for cell, by_server in samples.items():
        for position, (server, found) in enumerate(by_server.items()):
            table.add_row(
                cell if position == 0 else "",
                server,
                f"{statistics.median(sample.operations for sample in found):,.0f}",
                f"{statistics.median(sample.p50 for sample in found):,.0f}",
                f"{statistics.median(sample.p99 for sample in found):,.0f}",
                f"{statistics.median(sample.cost for sample in found):,.1f}",
                ratio(found, by_server["qemu-nbd"]),
                ratio(found, by_server["nbdkit"]),
                end_section=position == len(by_server) - 1,
            )
    console.print(table)


def ratio(found: list[Sample], yardstick: list[Sample]) -> str:
    """Of the operations per second, within each round: median and spread."""
    if found is yardstick:
        return ""
    ratios = [mine.operations / its.operations for mine, its in zip(found, yardstick, strict=True)]
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
