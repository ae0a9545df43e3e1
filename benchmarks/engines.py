"""The same file, or an image of a cluster, by way of each engine that aioblk can stand on.

The client is `aioblk bench` for all but one: fio's own engine for RBD, which is what a program in C has
without a device below it.
"""

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from aioblk.testing.storage_daemon import StorageDaemon
from benchmarks.nbd import in_words, running
from benchmarks.paths import ROOT
from benchmarks.progress import steps
from benchmarks.sheets import Sheet
from benchmarks.tables import Grid
from benchmarks.targets import UnavailableError, scratch_file
from tests.ceph.cluster import Cluster, blockdev
from tests.ceph.network import PORT, Network

FILE, RBD, FIO = "io_uring, a file", "vhost-user, RBD", "fio's rbd engine"
IMAGE = "bench"
NOTES = [
    "Writes are durable when they are done (FUA); reads of the file come from the page cache, those of RBD"
    " from the OSD's. x is of the operations in a second, within rounds.",
    "The cluster has one monitor and one OSD (BlueStore, no replicas) on loopback, on the same disk and"
    " processors as its client: a real one has a network and replicas to wait for.",
]


@dataclass(frozen=True)
class Cell:
    block_size: str
    operation: str
    depth: int

    def __str__(self) -> str:
        return f"{self.block_size} {self.operation} QD{self.depth}"


CELLS = (
    Cell("4k", "randread", 1),
    Cell("4k", "randread", 16),
    Cell("4k", "randwrite", 1),
    Cell("4k", "randwrite", 16),
    Cell("128k", "randread", 4),
)


@dataclass(frozen=True)
class Sample:
    operations: float
    """In a second."""
    p50: float
    p99: float
    """Latency in microseconds."""


def measure(
    console: Console, *, rounds: int, seconds: float, directory: Path, file_size: int
) -> tuple[Sheet, dict[str, dict[str, list[Sample]]]]:
    """Print a table of the medians and of the ratios within rounds; that, and what was measured, by cell and
    engine."""
    for program in ("ceph-mon", "ceph-osd", "rbd", "fio", "qemu-storage-daemon"):
        if not shutil.which(program):
            raise UnavailableError(f"{program} is not installed")
    if os.geteuid() != 0:
        raise UnavailableError("only root can have another network to measure")
    sheet = Sheet.begin("The engines beside each other")
    samples: dict[str, dict[str, list[Sample]]] = {}
    with contextlib.ExitStack() as stack:
        file = scratch_file(directory, file_size)
        engines = stack.enter_context(all_engines(file, file_size))
        begin = stack.enter_context(steps(rounds * len(CELLS) * len(engines)))
        for number in range(1, rounds + 1):
            for cell in CELLS:
                # There and back again, so that a machine that gets slower favours nobody.
                for name, where in [*engines.items()][:: 1 if number % 2 else -1]:
                    begin(f"round {number} of {rounds}: {cell}, {name}")
                    run = run_fio if name == FIO else run_aioblk
                    samples.setdefault(str(cell), {}).setdefault(name, []).append(run(where, cell, seconds))
    sheet = replace(sheet, grid=grid(samples, [*engines], rounds), notes=NOTES)
    sheet.show(console)
    return sheet, samples


@contextlib.contextmanager
def all_engines(file: Path, size: int) -> Generator[dict[str, str]]:
    """Their names, and where each of them is: an address or, of fio's, a configuration of Ceph."""
    with contextlib.ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aioblk-bench-")))
        local: dict[str, object] = {"driver": "file", "filename": str(file), "locking": "off"}
        on_file = stack.enter_context(StorageDaemon(local, num_queues=1))
        serve = [sys.executable, "-m", "aioblk", "serve", "nbd", f"io_uring:{file}?lock=off"]
        unix = stack.enter_context(
            running("aioblk", [*serve, "--unix", f"{where}/nbd.sock"], where / "nbd.sock")
        )
        (net := where / "net").mkdir()
        network = Network(net)
        stack.callback(network.close)
        network.serve("server", [*serve, "--address", network.there, "--port", str(PORT)])
        cluster = Cluster.create(where / "ceph")
        stack.callback(cluster.close)
        cluster.new_image(IMAGE, size)
        # Written once, as the file is; otherwise reads would be of nothing.
        cluster.rbd(
            *("bench", "--io-type", "write", "--io-size", "1M", "--io-total", str(size)),
            *("--io-pattern", "seq", f"rbd/{IMAGE}"),
        )
        on_rbd = stack.enter_context(StorageDaemon(blockdev(cluster.configuration, IMAGE), num_queues=1))
        yield {
            FILE: f"io_uring:{file}?lock=off",
            "vhost-user, the file": f"virtio-blk-vhost-user:{on_file.socket}",
            "NBD, Unix socket": unix.uri,
            "NBD, another network": f"nbd://{network.there}:{PORT}/",
            RBD: f"virtio-blk-vhost-user:{on_rbd.socket}",
            FIO: str(cluster.configured("fio", rbd_cache="false")),  # else its writes are in its own memory
        }


def run_aioblk(address: str, cell: Cell, seconds: float) -> Sample:
    return sample_of(
        [
            *(sys.executable, "-m", "aioblk", "bench", "--json", "--no-progress", "--warmup", "0.1s"),
            *("--rw", cell.operation, "--bs", cell.block_size, "--iodepth", str(cell.depth)),
            *(
                "--runtime",
                f"{seconds}s",
                *(("--fua", "--overwrite", "--even-if-in-use") if cell.operation == "randwrite" else ()),
            ),
            address,
        ],
        cell,
    )


def run_fio(configuration: str, cell: Cell, seconds: float) -> Sample:
    """What is written to RBD is durable when it is done."""
    return sample_of(
        [
            *(
                "fio",
                "--name=rbd",
                "--ioengine=rbd",
                "--pool=rbd",
                f"--rbdname={IMAGE}",
                "--clientname=admin",
            ),
            *(f"--rw={cell.operation}", f"--bs={cell.block_size}", f"--iodepth={cell.depth}"),
            *("--randrepeat=0", "--time_based", "--ramp_time=0.1", f"--runtime={seconds}"),
            "--output-format=json",
        ],
        cell,
        environment={"CEPH_CONF": configuration},
    )


def sample_of(command: list[str], cell: Cell, environment: dict[str, str] | None = None) -> Sample:
    """Both print what fio does."""
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        raise UnavailableError(f"{' '.join(command)} failed: {done.stderr or done.stdout}")
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    side = job["read" if cell.operation == "randread" else "write"]
    percentiles = side["clat_ns" if "clat_ns" in side else "lat_ns"]["percentile"]  # fio has both
    return Sample(
        operations=side["iops"],
        p50=percentiles["50.000000"] / 1000,
        p99=percentiles["99.000000"] / 1000,
    )


def grid(samples: dict[str, dict[str, list[Sample]]], engines: list[str], rounds: int) -> Grid:
    head = ["", "engine", "operations/s", "p50 us", "p99 us", f"x {FILE}", f"x {FIO}"]
    rows: list[list[str]] = []
    for cell in CELLS:
        by_engine = samples[str(cell)]
        for engine in engines:
            found = by_engine[engine]
            rows.append(
                [
                    str(cell),
                    engine,
                    f"{statistics.median(sample.operations for sample in found):,.0f}",
                    f"{statistics.median(sample.p50 for sample in found):,.0f}",
                    f"{statistics.median(sample.p99 for sample in found):,.0f}",
                    "" if engine == FILE else in_words(ratios(found, by_engine[FILE])),
                    in_words(ratios(found, by_engine[FIO])) if engine == RBD else "",
                ]
            )
    return Grid(f"Where the device is; median of {rounds} rounds", head, rows)


def ratios(found: list[Sample], yardstick: list[Sample]) -> list[float]:
    """Of the operations per second, within each round."""
    return [mine.operations / its.operations for mine, its in zip(found, yardstick, strict=True)]
