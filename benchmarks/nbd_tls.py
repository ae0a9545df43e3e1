"""NBD within TLS: our server beside qemu-nbd and nbdkit, and our client beside nbdcopy and qemu-img."""

import contextlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

import trustme
from rich.console import Console

from benchmarks.nbd import running
from benchmarks.progress import steps
from benchmarks.sheets import Sheet
from benchmarks.tables import Grid
from benchmarks.targets import UnavailableError, scratch_file

AIOBLK = "aioblk"
SERVED, FETCHED = "served to nbdcopy", "fetched from nbdkit"
NOTE = (
    "A file in the page cache, read as a whole by a Unix socket, to a file in memory; certificates, TLS 1.3."
    " The processor's time is that of the program named. Ratios are of the seconds taken, within rounds."
)


@dataclass(frozen=True)
class Sample:
    seconds: float
    """From the client's command to its exit."""
    cpu: float
    """Seconds of the processors, of the one that is measured."""


def measure(
    console: Console, *, rounds: int, seconds: float, directory: Path, file_size: int
) -> tuple[Sheet, dict[str, dict[str, list[Sample]]]]:
    """Print a table of the medians and of the ratios within rounds; that, and what was measured, by side and
    program. *seconds* means nothing here: the file is read once."""
    for program in ("nbdcopy", "nbdkit", "qemu-nbd", "qemu-img"):
        if not shutil.which(program):
            raise UnavailableError(f"{program} is not installed")
    sheet = Sheet.begin("NBD within TLS: the server and the client beside others")
    file = scratch_file(directory, file_size)
    samples: dict[str, dict[str, list[Sample]]] = {SERVED: {}, FETCHED: {}}
    with contextlib.ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aioblk-bench-")))
        in_memory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aioblk-", dir="/dev/shm")))
        make_certificates(where)
        servers = [
            stack.enter_context(running(name, command, where / f"{name}.sock"))
            for name, command in commands(file, where)
        ]
        clients = clients_of(where, in_memory / "copy")
        begin = stack.enter_context(steps(rounds * (len(servers) + len(clients))))
        for number in range(1, rounds + 1):
            way = 1 if number % 2 else -1  # there and back again
            for server in servers[::way]:
                begin(f"round {number} of {rounds}: {server.name} to nbdcopy")
                uri = f"nbds+unix://localhost/?socket={where / server.name}.sock&tls-certificates={where}"
                before = server.processor_seconds()
                taken = run(["nbdcopy", uri, str(in_memory / "copy")], in_memory / "copy")
                used = server.processor_seconds() - before
                samples[SERVED].setdefault(server.name, []).append(Sample(taken, used))
            for name in list(clients)[::way]:
                begin(f"round {number} of {rounds}: nbdkit to {name}")
                used = children_seconds()
                taken = run(clients[name], in_memory / "copy")
                samples[FETCHED].setdefault(name, []).append(Sample(taken, children_seconds() - used))
    sheet = replace(sheet, grid=grid(samples, file_size, rounds), notes=[NOTE])
    sheet.show(console)
    return sheet, samples


def make_certificates(where: Path) -> None:
    """A server's, and what a client needs to know it, by the names that all of these programs have."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(where / "ca-cert.pem")
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(where / "server-key.pem")
    chain = b"".join(each.bytes() for each in certificate.cert_chain_pems)
    (where / "server-cert.pem").write_bytes(chain)


def commands(file: Path, where: Path) -> Generator[tuple[str, list[str]]]:
    tls = f"tls-creds-x509,id=tls,endpoint=server,dir={where},verify-peer=off"
    yield (
        "qemu-nbd",
        [
            *("qemu-nbd", "--object", tls, "--tls-creds=tls", "--format=raw", "--read-only"),
            *("--persistent", "--shared=8", f"--socket={where / 'qemu-nbd.sock'}", str(file)),
        ],
    )
    yield (
        "nbdkit",
        [
            *("nbdkit", "--foreground", "--readonly", "--tls=require", f"--tls-certificates={where}"),
            *("--unix", str(where / "nbdkit.sock"), "file", str(file)),
        ],
    )
    device = f"io_uring:{file}?lock=off&read-only=true"  # the others have it open, too
    yield (
        AIOBLK,
        [
            *(sys.executable, "-m", "aioblk", "serve", "nbd", device),
            *("--tls", "require", "--tls-certificates", str(where), "--unix", str(where / f"{AIOBLK}.sock")),
        ],
    )


def clients_of(where: Path, destination: Path) -> dict[str, list[str]]:
    socket = where / "nbdkit.sock"
    uri = f"nbds+unix://localhost/?socket={socket}&tls-certificates={where}"
    ours = f"nbds+unix:///?socket={socket}&tls-certificates={where}&tls-hostname=localhost"
    image = f"driver=nbd,server.type=unix,server.path={socket},tls-creds=tls,tls-hostname=localhost"
    return {
        "nbdcopy": ["nbdcopy", uri, str(destination)],
        "qemu-img": [
            *("qemu-img", "convert", "-W", "-t", "writeback", "-O", "raw"),
            *("--object", f"tls-creds-x509,id=tls,endpoint=client,dir={where}"),
            *("--image-opts", image, str(destination)),
        ],
        AIOBLK: [sys.executable, "-m", "aioblk", "copy", "--quiet", ours, str(destination)],
    }


def run(command: list[str], destination: Path) -> float:
    """How long it takes, in seconds; what it has made is removed."""
    began = time.perf_counter()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise UnavailableError(f"{command[0]} failed: {done.stderr or done.stdout}")
    destination.unlink()
    return seconds


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def grid(samples: dict[str, dict[str, list[Sample]]], size: int, rounds: int) -> Grid:
    rows: list[list[str]] = []
    for side, by_program in samples.items():
        ours = by_program[AIOBLK]
        for program, found in by_program.items():
            seconds = statistics.median(sample.seconds for sample in found)
            ratios = [its.seconds / mine.seconds for its, mine in zip(found, ours, strict=True)]
            spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
            rows.append(
                [
                    side,
                    program,
                    f"{size / seconds / (1 << 20):,.0f}",
                    f"{statistics.median(sample.cpu for sample in found) * (1 << 30) / size:.2f}",
                    "" if program == AIOBLK else spread,
                ]
            )
    head = ["", "program", "MiB/s", "CPU seconds a GiB", "times as long as aioblk"]
    return Grid(f"{size >> 20} MiB within TLS; median of {rounds} rounds", head, rows)
