"""What aioblk must reach, as ratios within a round for reads of 4 KiB: to blkio-bench, or to not spinning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks import queues
from benchmarks.contenders import BASELINE
from benchmarks.model import CASES, Cell, Run
from benchmarks.summary import Summary, summarise

BLOCK_SIZE = 4096


@dataclass(frozen=True)
class Bar:
    """`needed` must be reached, `goal` is aimed at. A `p50` bar: blkio-bench's mean to our median."""

    contender: str
    case: str
    depth: int
    needed: float
    goal: float
    figure: Literal["throughput", "p50"] = "throughput"
    baseline: str = BASELINE


BARS = (
    Bar("aioblk-await", "cached-file", 1, 1.0, 1.0, "p50"),
    Bar("aioblk-await", "cached-file", 1, 1.0, 1.0),
    Bar("aioblk-await", "cached-file", 32, 0.55, 0.70),
    Bar("aioblk-await", "cached-file", 128, 0.55, 0.70),
    Bar("aioblk-batch", "cached-file", 32, 0.9, 1.0),
    Bar("aioblk-batch", "cached-file", 128, 0.9, 1.0),
    Bar("aioblk-await", "vhost-same-core", 1, 0.62, 0.70),
    Bar("aioblk-await", "vhost-same-core", 8, 0.81, 0.85),
    Bar("aioblk-await", "vhost-same-core", 32, 0.63, 0.75),
    Bar("aioblk-await", "vhost-same-core", 128, 0.79, 0.85),
    Bar(queues.SPIN, "vhost-split-cores", 1, 2.0, 2.0, baseline=queues.BASELINE),
    Bar(queues.SPIN, "vhost-split-cores", 8, 2.0, 2.0, baseline=queues.BASELINE),
    *(
        Bar(queues.SPIN, case, depth, 0.95, 0.95, baseline=queues.BASELINE)
        for case, depths in (
            ("cached-file", (1, 8, 32, 128)),
            ("vhost-same-core", (1, 8, 32, 128)),
            ("vhost-split-cores", (32, 128)),
        )
        for depth in depths
    ),
)


@dataclass(frozen=True)
class Verdict:
    subject: str
    value: float
    bar: Bar

    @property
    def word(self) -> str:
        if self.value >= self.bar.goal:
            return "reached"
        return "first bar reached" if self.value >= self.bar.needed else "MISSED"


def judge(run: Run) -> list[Verdict]:
    """A verdict on each bar whose cell the run has measured."""
    summaries = summarise(run)
    verdicts: list[Verdict] = []
    for bar in BARS:
        if bar.baseline != run.baseline:
            continue
        cell = Cell(bar.case, "read", BLOCK_SIZE, bar.depth)
        ours, theirs = summaries.get((cell, bar.contender)), summaries.get((cell, bar.baseline))
        value = value_of(bar, ours, theirs) if ours and theirs else None
        if value is not None:
            what = "p50 against blkio-bench's mean" if bar.figure == "p50" else "throughput"
            subject = f"{run.labels[bar.contender]}, {CASES[bar.case].title}, depth {bar.depth}: {what}"
            verdicts.append(Verdict(subject, value, bar))
    return verdicts


def value_of(bar: Bar, ours: Summary, theirs: Summary) -> float | None:
    if bar.figure == "throughput":
        return ours.ratio.median if ours.ratio else None
    return theirs.mean.median / ours.p50.median if theirs.mean and ours.p50 else None
