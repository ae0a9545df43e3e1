"""What aioblk leaves to the rest of the program, and the limits it must keep."""

import json
import math
import statistics
import sys
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.rounds import ContenderError, run_process
from benchmarks.targets import scratch_file
from benchmarks.workers.measuring import Job

TIMEOUT = 120.0
LIMITS: dict[str, tuple[str, float]] = {
    "idle_p99_ms": ("a 1 ms ticker alone: p99 lateness, ms (the machine's own)", math.inf),
    "ticker_p99_ms": ("a 1 ms ticker beside 32 tasks of cached reads: p99 lateness, ms", 2.0),
    "inline_p99_ms": ("a 1 ms ticker beside one task that never has to wait: p99 lateness, ms", 2.0),
    "stall_p99_ms": ("64 reads of 1 MiB in flight: p99 stall of the loop, ms", 3.0),
    "stall_ms": ("64 reads of 1 MiB in flight: longest stall of the loop, ms", 3.0),
    "scale": ("processor time of a read in one of 100,000 tasks, to that in one of 32", 1.5),
    "bytes_in_flight": ("memory of one request in flight, bytes", 400.0),
}


def measure(console: Console, *, rounds: int, seconds: float, directory: Path, file_size: int) -> bool:
    """Print median and spread of each figure beside its limit; True when all medians keep theirs."""
    job = Job(
        path=str(scratch_file(directory, file_size)),
        kind="file",
        capacity=file_size,
        operation="read",
        block_size=4096,
        depth=1,
        seconds=seconds,
    )
    command = [sys.executable, "-m", "benchmarks.workers.aioblk_fairness", json.dumps(asdict(job))]
    samples: list[dict[str, float]] = []
    for number in range(1, rounds + 1):
        print(f"bench: round {number} of {rounds}", file=sys.stderr)
        try:
            samples.append(json.loads(run_process(command, TIMEOUT)[0]))
        except ContenderError as error:
            console.print(f"aioblk {error}", highlight=False, markup=False)
            return False
    table = Table("", "median", "lowest", "highest", "limit", "", box=SIMPLE_HEAD, pad_edge=False)
    all_kept = True
    for name, (words, limit) in LIMITS.items():
        values = [sample[name] for sample in samples]
        median = statistics.median(values)
        kept = median <= limit
        all_kept &= kept
        figures = [f"{value:.2f}" for value in (median, min(values), max(values))]
        if limit == math.inf:
            table.add_row(words, *figures)
        else:
            table.add_row(words, *figures, f"{limit:.2f}", "kept" if kept else "EXCEEDED")
    console.print(table)
    return all_kept
