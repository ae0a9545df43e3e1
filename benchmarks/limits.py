"""Figures that must not exceed a limit: measured in several rounds, and shown beside it."""

import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.progress import steps
from benchmarks.rounds import run_process
from benchmarks.targets import pin
from benchmarks.workers.measuring import Job

TIMEOUT = 120.0


class Limit(NamedTuple):
    """What a figure is, and what its median may be; `math.inf`: it is there to be looked at."""

    words: str
    highest: float


def run_worker(worker: str, job: Job, cpu: int | None = None) -> Any:
    """The figures that a program of `workers/` prints, by name."""
    command = [*pin(cpu), sys.executable, "-m", f"benchmarks.workers.{worker}", json.dumps(asdict(job))]
    return json.loads(run_process(command, TIMEOUT)[0])


def run_rounds(worker: str, job: Job, rounds: int, what: str) -> list[dict[str, float]]:
    """The figures of each round."""
    samples: list[dict[str, float]] = []
    with steps(rounds) as begin:
        for number in range(1, rounds + 1):
            begin(f"round {number} of {rounds}: {what}")
            samples.append(run_worker(worker, job))
    return samples


def show(console: Console, limits: dict[str, Limit], samples: Sequence[dict[str, float]]) -> bool:
    """Print median and spread of each figure beside its limit; True when all medians keep theirs."""
    table = Table("", "median", "lowest", "highest", "limit", "", box=SIMPLE_HEAD, pad_edge=False)
    all_kept = True
    for name, (words, limit) in limits.items():
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
