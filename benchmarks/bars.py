"""What aioblk must reach, as ratios within a round for reads of 4 KiB: to blkio-bench, or to not spinning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks import queues
from benchmarks.contenders import BASELINE
from benchmarks.model import CASES, Cell, Run
from benchmarks.summary import Spread, ratio, samples_by_round

BLOCK_SIZE = 4096
NEWER = (3, 13)
"""The version of CPython from which on some bars are higher."""


@dataclass(frozen=True)
class Bar:
    """A `p50` bar: blkio-bench's mean to our median."""

    contender: str
    case: str
    depth: int
    needed: float | None
    """None where there is no bar, but the figure belongs beside its neighbours'."""
    figure: Literal["throughput", "p50"] = "throughput"
    baseline: str = BASELINE
    needed_on_newer: float | None = None
    """On CPython 3.13 and newer, where that is something else."""

    def needed_on(self, python: tuple[int, int]) -> float | None:
        return self.needed if python < NEWER or self.needed_on_newer is None else self.needed_on_newer


def spinning(contender: str, baseline: str) -> list[Bar]:
    """Spinning must pay where the device has a processor of its own, and cost little where it has not."""
    return [
        *(Bar(contender, "vhost-split-cores", depth, 2.0, baseline=baseline) for depth in (1, 8)),
        *(Bar(contender, "vhost-split-cores", depth, 0.95, baseline=baseline) for depth in (32, 128)),
        *(
            Bar(contender, case, depth, 0.95, baseline=baseline)
            for case in ("vhost-same-core", "cached-file")
            for depth in (1, 8, 32, 128)
        ),
    ]


BARS = (
    Bar("aioblk-await", "cached-file", 1, 1.0, "p50"),
    Bar("aioblk-await", "cached-file", 1, 1.0),
    *(Bar("aioblk-await", "cached-file", depth, 0.75, needed_on_newer=0.80) for depth in (8, 32, 128)),
    *(Bar("aioblk-batch", "cached-file", depth, 1.0) for depth in (8, 32, 128)),
    Bar("aioblk-await", "vhost-same-core", 1, 0.70),
    Bar("aioblk-await", "vhost-same-core", 8, 0.85),
    Bar("aioblk-await", "vhost-same-core", 32, 0.75),
    Bar("aioblk-await", "vhost-same-core", 128, 0.90),
    Bar("aioblk-no-spin", "vhost-split-cores", 1, 1.0),
    *(
        Bar(contender, "vhost-split-cores", depth, needed)
        for contender in ("aioblk-no-spin", "aioblk-await", "aioblk-batch")
        for depth, needed in ((8, 1.0), (32, 0.80), (128, None))
    ),
    *(
        Bar("aioblk-halves", case, depth, None)
        for case in ("cached-file", "vhost-split-cores")
        for depth in (8, 32, 128)
    ),
    *spinning("aioblk-await", "aioblk-no-spin"),
    *spinning("aioblk-spin", "aioblk-no-spin"),
    *spinning(queues.SPIN, queues.BASELINE),
)


@dataclass(frozen=True)
class Verdict:
    bar: Bar
    value: Spread
    needed: float | None

    @property
    def word(self) -> str:
        if self.needed is None:
            return ""
        return "met" if self.value.median >= self.needed else "NOT MET"

    def describe(self, run: Run) -> list[str]:
        """Who, where, which figure to whose."""
        bar, baseline = self.bar, run.labels[self.bar.baseline]
        figure = f"p50, to {baseline}'s mean" if bar.figure == "p50" else f"throughput, to {baseline}"
        return [run.labels[bar.contender], f"{CASES[bar.case].title}, depth {bar.depth}", figure]


def judge(run: Run) -> list[Verdict]:
    """A verdict on each bar whose cell the run has measured."""
    samples, python = samples_by_round(run), python_of(run)
    verdicts: list[Verdict] = []
    for bar in BARS:
        cell = Cell(bar.case, "read", BLOCK_SIZE, bar.depth)
        ours, theirs = samples.get((cell, bar.contender)), samples.get((cell, bar.baseline))
        if ours and theirs:
            value = (
                ratio(ours, theirs)
                if bar.figure == "throughput"
                else ratio(theirs, ours, lambda sample: sample.mean, lambda sample: sample.p50)
            )
            if value:
                verdicts.append(Verdict(bar, value, bar.needed_on(python)))
    return verdicts


def python_of(run: Run) -> tuple[int, int]:
    """Of `CPython 3.13.5, GIL`, 3 and 13."""
    major, minor = run.machine["Python"].split()[1].split(".")[:2]
    return int(major), int(minor)
