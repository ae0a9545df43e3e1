"""How late an NBD client's answers come beside two that are hostile: its p99 beside its p99 alone."""

import contextlib
import multiprocessing
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.paths import ROOT
from benchmarks.progress import steps
from benchmarks.targets import UnavailableError, scratch_file

READ, WRITE = 0, 1
MOST = 10.0
"""Times as late as alone."""
STARTING_SECONDS = 10.0
PAUSE = 0.01  # seconds, of who drips


def measure(console: Console, *, rounds: int, seconds: float, directory: Path, file_size: int) -> bool:
    """Print a table; whether no ratio is above the limit."""
    alone: list[float] = []
    beside: dict[str, list[float]] = {name: [] for name in HOSTILE}
    ratios: dict[str, list[float]] = {name: [] for name in HOSTILE}
    with (
        scratch_file(directory, file_size) as file,
        tempfile.TemporaryDirectory(prefix="aioblk-") as place,
        steps(rounds * (len(HOSTILE) + 1)) as begin,
    ):
        path = Path(place) / "nbd.sock"
        with server(file, path):
            for number in range(1, rounds + 1):
                begin(f"round {number} of {rounds}: alone")
                alone.append(p99(path, seconds))
                for name, behave in HOSTILE.items():
                    begin(f"round {number} of {rounds}: beside two that {name}")
                    with hostile(behave, path), hostile(behave, path):
                        beside[name].append(p99(path, seconds))
                    ratios[name].append(beside[name][-1] / alone[-1])
    table = Table("beside", "p99, µs", "times as alone", box=SIMPLE_HEAD)
    table.add_row("nobody", f"{statistics.median(alone) * 1e6:.0f}", "")
    for name in HOSTILE:
        ratio = statistics.median(ratios[name])
        judged = f"{ratio:.2f}" if ratio <= MOST else f"[red]{ratio:.2f}, and at most {MOST:g}"
        table.add_row(f"two that {name}", f"{statistics.median(beside[name]) * 1e6:.0f}", judged)
    console.print(table)
    return all(statistics.median(found) <= MOST for found in ratios.values())


@contextlib.contextmanager
def server(file: Path, path: Path) -> Iterator[None]:
    arguments = [
        sys.executable,
        "-m",
        "aioblk",
        "serve",
        "nbd",
        str(file),
        "--unix",
        str(path),
        "--drain",
        "0",
    ]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    try:
        limit = time.monotonic() + STARTING_SECONDS
        while not path.exists():
            if process.poll() is not None or time.monotonic() > limit:
                raise UnavailableError("the server does not start")
            time.sleep(0.01)
        yield
    finally:
        process.kill()
        process.wait()


# --- clients ------------------------------------------------------------------------------------------------


def connect(path: Path) -> socket.socket:
    """Up to transmission, the old way."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(STARTING_SECONDS)
    client.connect(str(path))
    receive(client, 18)
    client.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, 0))
    receive(client, 10)
    return client


def receive(client: socket.socket, size: int) -> bytes:
    data = client.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise UnavailableError("the server has closed the connection")
    return data


def command(kind: int, offset: int, length: int) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, 0, kind, 1, offset, length)


def p99(path: Path, seconds: float) -> float:
    """Of reads of 4 KiB, one after the other, in seconds."""
    with connect(path) as client:
        taken: list[float] = []
        end = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < end or len(taken) < 2:
            client.sendall(command(READ, len(taken) % 256 * 4096, 4096))
            receive(client, 16 + 4096)
            taken.append(time.perf_counter() - begun)
    return statistics.quantiles(taken, n=100)[98]


def _take_nothing(client: socket.socket) -> None:
    client.sendall(command(READ, 0, 4 << 20) * 1000)


def _drip(client: socket.socket) -> None:
    client.sendall(command(READ, 0, 4 << 20) * 100)
    while True:
        time.sleep(PAUSE)
        client.recv(100)


def _fall_silent(client: socket.socket) -> None:
    client.sendall(command(WRITE, 0, 32 << 20) + bytes(1000))


HOSTILE: dict[str, Callable[[socket.socket], None]] = {
    "take nothing": _take_nothing,
    "drip": _drip,
    "announce 32 MiB and fall silent": _fall_silent,
}


@contextlib.contextmanager
def hostile(behave: Callable[[socket.socket], None], path: Path) -> Iterator[None]:
    """A client in a process of its own, so that it takes nothing of the measuring one's time."""
    process = multiprocessing.get_context("fork").Process(
        target=_be_hostile, args=(behave, path), daemon=True
    )
    process.start()
    try:
        time.sleep(0.3)  # by then it has all it can have
        yield
    finally:
        process.kill()
        process.join()


def _be_hostile(behave: Callable[[socket.socket], None], path: Path) -> None:
    with connect(path) as client:
        client.settimeout(None)
        behave(client)
        while True:
            time.sleep(STARTING_SECONDS)
