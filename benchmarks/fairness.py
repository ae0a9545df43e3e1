"""What aioblk leaves to the rest of the program, and clients to each other; the limits it must keep."""

import math
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks import limits
from benchmarks.limits import Limit
from benchmarks.model import CASES
from benchmarks.rounds import ContenderError
from benchmarks.targets import UnavailableError, check_target, open_target, scratch_file
from benchmarks.workers.measuring import Job

LIMITS = {
    "idle_p99_ms": Limit("a 1 ms ticker alone: p99 lateness, ms (the machine's own)", math.inf),
    "ticker_p99_ms": Limit("a 1 ms ticker beside 32 tasks of cached reads: p99 lateness, ms", 2.0),
    "inline_p99_ms": Limit("a 1 ms ticker beside one task that never has to wait: p99 lateness, ms", 2.0),
    "stall_p99_ms": Limit("64 reads of 1 MiB in flight: p99 stall of the loop, ms", 3.0),
    "stall_ms": Limit("64 reads of 1 MiB in flight: longest stall of the loop, ms", 3.0),
    "scale": Limit("processor time of a read in one of 100,000 tasks, to that in one of 32", 1.5),
    "bytes_in_flight": Limit("memory of one request in flight, bytes", 400.0),
}

OF_CLIENTS = 64 << 10
"""Bytes of a request of theirs."""

KINDS = {"file": "cached file", "vhost-user": "vhost-user"}


def limits_of_clients(kind: str) -> dict[str, Limit]:
    """A client of 16 requests of 64 KiB at a time, or one, beside another of the same service on one device:
    a greedy one, and one that has an equal share and no more. What it is without shares is there to be looked
    at: it says what the figure with them is worth."""
    found: dict[str, Limit] = {}
    for what in ("requests", "memory"):
        begin = f"{KINDS[kind]}, shares of {what}"
        times = "p99 beside a greedy client, to that at an equal share"
        found |= {
            f"{kind} {what} greedy": Limit(f"{begin}: {times}", 2.0),
            f"{kind} {what} greedy_without": Limit("  without shares", math.inf),
            f"{kind} {what} greedy_small": Limit("  with shares, requests of 4 KiB", math.inf),
            f"{kind} {what} greedy_one": Limit("  with shares, one request at a time", math.inf),
            f"{kind} {what} stalled": Limit(
                f"{begin}: operations a second alone, to those beside two that stall", 1.25
            ),
            f"{kind} {what} stalled_without": Limit("  what is left of them without shares, %", math.inf),
        }
    return found


def measure(console: Console, *, rounds: int, seconds: float, directory: Path, file_size: int) -> bool:
    """Print the figures; True when all medians keep their limits."""
    job = Job(
        path=str(scratch_file(directory, file_size)),
        kind="file",
        capacity=file_size,
        operation="read",
        block_size=4096,
        depth=1,
        seconds=seconds,
    )
    try:
        samples = limits.run_rounds("aioblk_fairness", job, rounds, "fairness")
        shown = dict(LIMITS)
        for kind, case in (("file", CASES["cached-file"]), ("vhost-user", CASES["vhost-split-cores"])):
            try:
                check_target(case, directory)
                with open_target(case, directory, file_size) as target:
                    job = replace(
                        job,
                        path=str(target.path),
                        kind=kind,
                        capacity=target.capacity,
                        block_size=OF_CLIENTS,
                        seconds=seconds / 2,
                    )
                    found = limits.run_rounds("aioblk_clients", job, rounds, f"clients on {KINDS[kind]}")
            except UnavailableError as reason:
                console.print(f"without {KINDS[kind]}: {reason}", highlight=False, markup=False)
                continue
            samples = [before | more for before, more in zip(samples, found, strict=True)]
            shown |= limits_of_clients(kind)
    except ContenderError as error:
        console.print(f"aioblk {error}", highlight=False, markup=False)
        return False
    return limits.show(console, shown, samples)
