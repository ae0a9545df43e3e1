"""How many instructions an operation takes: repeatable where times are not, so a guard against a longer path.

Callgrind counts two runs that differ only in the number of operations; the difference is what the operations
cost. The guard is on aioblk's own compiled code. The interpreter's and libblkio's shares are shown but not
judged: they change with versions that are not ours. Ours depends on the compiler, and on the functions that
CPython has in its headers; so there are bounds for each build that has been counted, and none for others.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from aioblk._native import _core
from benchmarks.paths import ROOT, WORK
from benchmarks.targets import UnavailableError, scratch_file
from benchmarks.workers.measuring import Job

BOUNDS = ROOT / "benchmarks" / "instructions.json"
TOLERANCE = 0.10
MEASURING = 1.02
"""What measuring may cost: all instructions of an operation with those that our code has more, over all
without. What others have differs by more from run to run."""
SHORT, LONG = 4_096, 20_480
SCRATCH = WORK / "small"
FILE_SIZE = 1 << 20
OURS = "_core"


@dataclass(frozen=True)
class Route:
    """One way through the code: the contender's form, the operation and the depth."""

    form: str
    operation: str
    depth: int
    measured: bool = False
    """Whether it is noted how long each request takes."""

    @property
    def name(self) -> str:
        return f"{self.form} {self.operation}, depth {self.depth}"


class Place(NamedTuple):
    object: str
    """The path of an object file."""
    function: str


ROUTES = (
    Route("await", "read", 1),
    Route("await", "read", 32),
    Route("await", "write", 32),
    Route("batch", "read", 32),
)


def check(*, update: bool, console: Console) -> bool:
    """Count, print, and compare with the bounds; or make what was counted the new bounds."""
    if not shutil.which("valgrind"):
        raise UnavailableError("valgrind is not installed")
    scratch_file(SCRATCH, FILE_SIZE)  # before several ask for it at the same time
    measured_routes = [replace(route, measured=True) for route in ROUTES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        every = list(pool.map(count, [*ROUTES, *measured_routes]))
    counted = {route.name: found for route, found in zip(ROUTES, every, strict=False)}
    with_measuring = {route.name: found for route, found in zip(ROUTES, every[len(ROUTES) :], strict=True)}
    build = describe_build()
    recorded: dict[str, dict[str, int]] = json.loads(BOUNDS.read_text()) if BOUNDS.exists() else {}
    if update:
        recorded[build] = {name: round(by_object[OURS]) for name, by_object in counted.items()}
        BOUNDS.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    bounds = recorded.get(build, {})
    objects = [OURS, *sorted({name for by_object in counted.values() for name in by_object} - {OURS})]
    columns = ("instructions per operation", *objects, "all", "bound", "measuring", "")
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    within = True
    for name, by_object in counted.items():
        bound = bounds[name] * (1 + TOLERANCE) if name in bounds else None
        passed = bound is None or by_object[OURS] <= bound
        added = with_measuring[name][OURS] - by_object[OURS]
        measuring = 1 + added / sum(by_object.values())
        cheap = measuring <= MEASURING
        within &= passed and cheap
        figures = [f"{by_object.get(part, 0):.0f}" for part in objects]
        limit = f"{bound:.0f}" if bound else "-"
        verdict = " ".join(
            [*([] if passed else ["TOO LONG"]), *([] if cheap else ["MEASURING COSTS TOO MUCH"])]
        )
        table.add_row(name, *figures, f"{sum(by_object.values()):.0f}", limit, f"{measuring:.3f}", verdict)
    console.print(table)
    if bounds:
        words = f"its bound is {TOLERANCE:.0%} above what {BOUNDS.name} records for {build}."
    else:
        words = f"it is not judged, as {BOUNDS.name} has nothing on {build}; --update adds it."
    console.print(f"{OURS} is aioblk's compiled code; {words}", highlight=False, soft_wrap=True)
    words = f"measuring: all instructions with what {OURS} has more while it is on, over those without"
    console.print(f"{words}; its bound {MEASURING:.2f}.", highlight=False, soft_wrap=True)
    return within


def describe_build() -> str:
    """What the number of our instructions depends on beside our code, as `CPython 3.11, GCC 12, x86_64`."""
    compiled = Path(_core.__file__).read_bytes()
    compilers = {version.decode() for version in re.findall(rb"GCC: \(.*?\) (\d+)", compiled)}
    compiler = f"GCC {' and '.join(sorted(compilers))}" if compilers else "another compiler"
    python = f"{platform.python_implementation()} {'.'.join(platform.python_version_tuple()[:2])}"
    return f"{python}, {compiler}, {platform.machine()}"


def count(route: Route) -> dict[str, float]:
    """Instructions for one operation, by the object file that they belong to."""
    short, long = callgrind(route, SHORT), callgrind(route, LONG)
    by_object: dict[str, float] = {}
    for place, instructions in long.items():
        name = short_name(place.object)
        by_object[name] = by_object.get(name, 0) + (instructions - short[place]) / (LONG - SHORT)
    return by_object


def job_of(route: Route, operations: int) -> Job:
    return Job(
        path=str(scratch_file(SCRATCH, FILE_SIZE)),
        kind="file",
        capacity=FILE_SIZE,
        operation=route.operation,
        block_size=4096,
        depth=route.depth,
        seconds=0,
        options=(route.form, str(operations), *(["measured"] if route.measured else [])),
    )


def worker(route: Route, operations: int) -> list[str]:
    """The command that does so many operations."""
    job = json.dumps(asdict(job_of(route, operations)))
    return [sys.executable, "-m", "benchmarks.workers.instructions", job]


def callgrind(route: Route, operations: int) -> Counter[Place]:
    """Instructions of a whole run, by the places where they are."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "callgrind.out"
        result = subprocess.run(
            ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *worker(route, operations)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise UnavailableError(f"valgrind failed: {result.stderr.strip().splitlines()[-1]}")
        return self_cost(out)


def self_cost(out: Path) -> Counter[Place]:
    """Add up the cost lines of a callgrind file by place, leaving out what its `calls=` lines carry."""
    names: dict[str, str] = {}
    totals: Counter[Place] = Counter()
    here = {"ob": "", "fn": ""}
    inclusive = False
    for line in out.read_text().splitlines():
        if match := re.match(r"(c?)(ob|fn)=\((\d+)\)(?: (.*))?", line):
            called, kind, number, name = match.groups()
            if name:
                names[kind + number] = name
            if not called:
                here[kind] = names.get(kind + number, "")  # some functions have no name
        elif line.startswith("calls="):
            inclusive = True
        elif line[:1] in "0123456789+-*" and line:
            if not inclusive:
                totals[Place(here["ob"], here["fn"])] += int(line.split()[1])
            inclusive = False
    return totals


def short_name(path: str) -> str:
    """`_core` for ours, `libblkio`, `python` and `libc` for the usual company, `others` for the rest."""
    name = Path(path).name
    for known in (OURS, "libblkio", "python", "libc", "uvloop"):
        if name.startswith((known, f"lib{known}")):
            return known
    return "others"
