"""Layers that only pass on must cost little: a device with one over it, and without, in turn, in one
process."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks import limits
from benchmarks.model import CASES
from benchmarks.progress import steps
from benchmarks.rounds import ContenderError
from benchmarks.summary import Interval
from benchmarks.targets import Target, UnavailableError, open_target
from benchmarks.workers.measuring import Job

LAYERS = {
    "Layer": {"read", "write"},
    "Slice": {"read", "write"},
    "Tracked": {"read"},
    "Throttle, without limits": {"read", "write"},
    "Throttle": set[str](),
    "ByteView, whole blocks": set[str](),
}
"""Which operations each only passes on; the others are counted, marked, or looked at."""
DEPTH = 32
LEAST = 0.90
"""Of the throughput without it."""


class Column(NamedTuple):
    case: str
    operation: str
    form: str
    words: str


COLUMNS = (
    Column("cached-file", "read", "await", "cached file, reads"),
    Column("cached-file", "read", "batch", "batches"),
    Column("vhost-same-core", "write", "await", "vhost-user, one core, writes"),
    Column("vhost-same-core", "write", "batch", "batches"),
)

Gains = dict[tuple[str, Column], Interval]


def measure(console: Console, *, rounds: int, seconds: float, directory: Path, file_size: int) -> bool:
    """Print what each layer leaves, from `rounds` times `seconds` for each; True when all keep the limit."""
    gains: Gains = {}
    with steps(len(LAYERS) * len(COLUMNS)) as begin:
        try:
            for case, columns in itertools.groupby(COLUMNS, lambda column: column.case):
                with open_target(CASES[case], directory, file_size) as target:
                    for column, layer in itertools.product(tuple(columns), LAYERS):
                        begin(f"{target.case.title}, {column.operation}, {column.form}: {layer}")
                        gains[layer, column] = gain_of(layer, column, target, rounds * seconds)
        except (ContenderError, UnavailableError) as error:
            console.print(f"{error}", highlight=False, markup=False)
            return False
    show(console, gains)
    return not any(exceeds(layer, column, gain) for (layer, column), gain in gains.items())


def exceeds(layer: str, column: Column, gain: Interval) -> bool:
    return column.operation in LAYERS[layer] and gain.median < LEAST


def gain_of(layer: str, column: Column, target: Target, seconds: float) -> Interval:
    case = target.case
    job = Job(
        str(target.path),
        case.kind,
        target.capacity,
        column.operation,
        4096,
        DEPTH,
        seconds,
        options=(layer, column.form),
    )
    return Interval.of(limits.run_worker("aioblk_layers", job, case.client_cpu)["ratios"])


def show(console: Console, gains: Gains) -> None:
    table = Table("", *(column.words for column in COLUMNS), box=SIMPLE_HEAD, pad_edge=False)
    for layer in LAYERS:
        cells = [
            f"{gains[layer, column]}{' EXCEEDED' * exceeds(layer, column, gains[layer, column])}"
            for column in COLUMNS
        ]
        table.add_row(layer, *cells)
    console.print(table)
    pairs = sorted(gain.count for gain in gains.values())
    console.print(
        f"Throughput with the layer to without, 4 KiB, depth {DEPTH}: the median of {pairs[0]} to {pairs[-1]}"
        f" pairs, and where it lies at 95 %. What only passes on is to leave {LEAST:.2f}: all but writes"
        " of Tracked, and the last two rows.",
        highlight=False,
        soft_wrap=True,
    )
