"""Where a microsecond goes: the share of each function, native and Python, in the time of one operation.

py-spy looks at the stack several hundred times a second, native frames included; the processor time of one
operation is measured without it. On a busy machine the shares are some points off: compare them with a longer
run's. Where py-spy cannot be used, callgrind counts instructions.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks import instructions
from benchmarks.instructions import Route
from benchmarks.paths import ROOT
from benchmarks.progress import steps
from benchmarks.rounds import run_process

ROUTES = (Route("await", "read", 32), Route("batch", "read", 32), Route("await", "read", 1))
SHORT, LONG = 50_000, 250_000
LOOKS = 500
"""A second."""
TIMEOUT = 120.0
SHOWN = 0.01
"""The least share, on any route, with which a function has a row of its own."""

SYSTEM_CALLS = {
    "syscall": "io_uring_enter",
    "read": "read, of the event descriptor",
    "epoll_wait": "epoll_wait",
    "write": "write",
    "ioctl": "ioctl",
}
SOURCES = ROOT / "aioblk" / "_native" / "src"


class Part(NamedTuple):
    """A function, and whose it is."""

    owner: str
    function: str


@dataclass(frozen=True)
class Profile:
    route: Route
    cost: float
    """Of one operation: nanoseconds of processor time, or instructions."""
    parts: Counter[Part]
    """How much of it is spent in each function itself, in any unit."""

    def share(self, part: Part) -> float:
        return self.parts[part] / self.parts.total()


class NoSamplesError(Exception):
    """py-spy cannot be used; the message says why."""


def show(console: Console, *, seconds: float) -> None:
    """Print the table: for each route, what every function takes of an operation."""
    try:
        profiles = of_each_route(lambda route: sampled(route, seconds))
        unit = "nanoseconds"
    except NoSamplesError as reason:
        console.print(f"Instructions instead of time: {reason}", highlight=False, markup=False)
        profiles = of_each_route(counted)
        unit = "instructions"
    console.print(table(profiles, unit))
    if unit == "nanoseconds":
        samples = ", ".join(str(profile.parts.total()) for profile in profiles)
        console.print(f"Shares are of {samples} samples; --seconds 5 takes more.", highlight=False)


def of_each_route(measure: Callable[[Route], Profile]) -> list[Profile]:
    found: list[Profile] = []
    with steps(len(ROUTES)) as begin:
        for route in ROUTES:
            begin(route.name)
            found.append(measure(route))
    return found


# --- time, by py-spy ----------------------------------------------------------------------------------------


def sampled(route: Route, seconds: float) -> Profile:
    program = py_spy()
    cost = processor_seconds_each(route)
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "stacks"
        looking = [
            *(program, "record", "--native", "--rate", str(LOOKS)),
            *("--format", "raw", "--output", str(out)),
        ]
        command = [*looking, "--", *instructions.worker(route, round(seconds / cost))]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT + 10 * seconds
        )
        if done.returncode or not out.exists():
            raise NoSamplesError(f"py-spy says: {(done.stderr.strip() or 'nothing').splitlines()[-1]}")
        return Profile(route, cost * 1e9, read_stacks(out))


def py_spy() -> str:
    """The program, which is installed beside the interpreter if it is not there."""
    program = Path(sys.executable).parent / "py-spy"
    if not program.exists():
        print("profile: installing py-spy", file=sys.stderr)
        install = [sys.executable, "-m", "pip", "install", "--quiet", "py-spy"]
        if subprocess.run(install, capture_output=True).returncode:
            raise NoSamplesError("py-spy could not be installed")
    return str(program)


def processor_seconds_each(route: Route) -> float:
    """Of one operation: the difference of two runs leaves out what starting takes."""
    short, long = (run_process(instructions.worker(route, number), TIMEOUT)[1] for number in (SHORT, LONG))
    return max(long - short, 1e-3) / (LONG - SHORT)


def read_stacks(out: Path) -> Counter[Part]:
    """Samples by the innermost function, without those of the program's start."""
    parts: Counter[Part] = Counter()
    for line in out.read_text().splitlines():
        stack, samples = line.rsplit(" ", 1)
        frames = stack.split(";")
        if any(frame.startswith("run_loop (") for frame in frames) and not any(map(is_preparing, frames)):
            parts[part_of_frame(frames[-1])] += int(samples)
    if not parts:
        raise NoSamplesError("py-spy saw no stack of the program")
    return parts


def is_preparing(frame: str) -> bool:
    return "measuring.py" in frame and not frame.startswith("run_loop (")


def part_of_frame(frame: str) -> Part:
    """From `function (file:line)` where line numbers are known, as in Python, or `function (object file)`."""
    match = re.fullmatch(r"(.*) \((.*?)(?::\d+)?\)", frame)
    function, file = match.groups() if match else (frame, "")
    if file.endswith(".py"):
        return Part("Python code", f"{function.replace('.<locals>', '')} ({Path(file).name})")
    if function in SYSTEM_CALLS and "libc" in file:
        return Part("the kernel", SYSTEM_CALLS[function])
    return Part(owner_of(file), name_of(function))


def name_of(function: str) -> str:
    """Without callgrind's mark of a recursion; where a library has no symbols, it is an address."""
    return "unnamed functions" if function.startswith("0x") else function.partition("'")[0]


def owner_of(file: str) -> str:
    """Whose a native function is, by the name of its source or object file."""
    name = Path(file).name
    if name.startswith("_core.") or (SOURCES / name).exists():
        return "aioblk, compiled"
    if name.startswith("_asyncio"):
        return "asyncio, compiled"
    for known in ("libblkio", "libc"):
        if name.startswith(f"{known}."):
            return known
    return "CPython"


# --- instructions, by callgrind -----------------------------------------------------------------------------


def counted(route: Route) -> Profile:
    operations = instructions.LONG - instructions.SHORT
    parts: Counter[Part] = Counter()
    long, short = (
        instructions.callgrind(route, number) for number in (instructions.LONG, instructions.SHORT)
    )
    for place, number in (long - short).items():
        parts[Part(owner_of(place.object), name_of(place.function))] += number
    return Profile(route, parts.total() / operations, parts)


# --- the table ----------------------------------------------------------------------------------------------


def table(profiles: list[Profile], unit: str) -> Table:
    """Owners by their share on the first route, each with its functions; the small ones together."""
    shown = Table(f"{unit} of one operation", box=SIMPLE_HEAD, pad_edge=False)
    for profile in profiles:
        shown.add_column(profile.route.name, justify="right")
    shown.add_row(
        "all", *(f"{profile.cost:.0f}  100 %" for profile in profiles), style="bold", end_section=True
    )
    everything = {part for profile in profiles for part in profile.parts}

    def weight(parts: set[Part]) -> list[float]:
        return [sum(profile.share(part) for part in parts) for profile in profiles]

    def add(name: str, parts: set[Part], *, style: str = "") -> None:
        shares = [
            f"{share * profile.cost:.0f}  {share:4.0%}"
            for share, profile in zip(weight(parts), profiles, strict=True)
        ]
        shown.add_row(name, *shares, style=style)

    by_owner = {
        part.owner: {other for other in everything if other.owner == part.owner} for part in everything
    }
    for owner, parts in sorted(by_owner.items(), key=lambda item: weight(item[1]), reverse=True):
        add(owner, parts, style="bold")
        large = {part for part in parts if max(weight({part})) >= SHOWN}
        for part in sorted(large, key=lambda part: weight({part}), reverse=True):
            add(f"  {part.function}", {part})
        if parts != large:
            add(f"  {len(parts - large)} more", parts - large)
        shown.add_section()
    return shown
