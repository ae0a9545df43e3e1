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
RECOUNTS = 3
"""How often what exceeds its bound is counted again, and the least taken: other work on the machine makes
paths longer (fewer completions are seen at a time), and none shorter."""
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


@dataclass(frozen=True)
class Count:
    """Instructions for one operation."""

    by_object: dict[str, float]
    measured: float
    """Those of our code while it is noted how long requests take."""

    @classmethod
    def of(cls, route: Route) -> Count:
        return cls(count(route), count(replace(route, measured=True))[OURS])

    @property
    def ours(self) -> float:
        return self.by_object[OURS]

    @property
    def all(self) -> float:
        return sum(self.by_object.values())

    @property
    def measuring(self) -> float:
        return 1 + (self.measured - self.ours) / self.all

    def least(self, other: Count) -> Count:
        shorter = self if self.ours <= other.ours else other
        return replace(shorter, measured=min(self.measured, other.measured))

    def complaints(self, limit: float | None) -> list[str]:
        long = limit is not None and self.ours > limit
        dear = self.measuring > MEASURING
        return [*(["TOO LONG"] if long else []), *(["MEASURING COSTS TOO MUCH"] if dear else [])]


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
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counted = dict(zip(ROUTES, pool.map(Count.of, ROUTES), strict=True))
    build = describe_build()
    recorded: dict[str, dict[str, int]] = json.loads(BOUNDS.read_text()) if BOUNDS.exists() else {}
    if update:
        recorded[build] = {route.name: round(found.ours) for route, found in counted.items()}
        BOUNDS.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    bounds = recorded.get(build, {})
    limits = {route: bounds[route.name] * (1 + TOLERANCE) for route in ROUTES if route.name in bounds}
    for _ in range(RECOUNTS):
        for route in [route for route in ROUTES if counted[route].complaints(limits.get(route))]:
            counted[route] = counted[route].least(Count.of(route))
    objects = [OURS, *sorted({name for found in counted.values() for name in found.by_object} - {OURS})]
    columns = ("instructions per operation", *objects, "all", "bound", "measuring", "")
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    for route, found in counted.items():
        figures = [f"{found.by_object.get(part, 0):.0f}" for part in objects]
        limit = f"{limits[route]:.0f}" if route in limits else "-"
        verdict = " ".join(found.complaints(limits.get(route)))
        table.add_row(route.name, *figures, f"{found.all:.0f}", limit, f"{found.measuring:.3f}", verdict)
    console.print(table)
    if bounds:
        words = f"its bound is {TOLERANCE:.0%} above what {BOUNDS.name} records for {build}."
    else:
        words = f"it is not judged, as {BOUNDS.name} has nothing on {build}; --update adds it."
    console.print(f"{OURS} is aioblk's compiled code; {words}", highlight=False, soft_wrap=True)
    words = f"measuring: all instructions with what {OURS} has more while it is on, over those without"
    console.print(f"{words}; its bound {MEASURING:.2f}.", highlight=False, soft_wrap=True)
    return not any(found.complaints(limits.get(route)) for route, found in counted.items())


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
