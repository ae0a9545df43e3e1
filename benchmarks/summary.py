"""Medians, spread and ratios."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.model import Cell, Run, Sample


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum of one figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        known = [value for value in values if value is not None]
        return cls(statistics.median(known), min(known), max(known)) if known else None


RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """The median of many values, and where it lies at 95 %, by drawing them again and again."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        chance = random.Random(0)
        medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
        low, high = medians[RESAMPLES // 40], medians[-RESAMPLES // 40]
        return cls(statistics.median(values), low, high, len(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}-{self.high:.2f}]"


@dataclass(frozen=True)
class Summary:
    """A contender in one cell over all rounds. `ratio` is to the baseline, taken round by round."""

    rate: Spread
    ratio: Spread | None
    mean: Spread | None
    p50: Spread | None
    p99: Spread | None
    p999: Spread | None
    cpu: Spread | None


Samples = dict[int, Sample]
"""A contender's in one cell, by round."""


def samples_by_round(run: Run) -> dict[tuple[Cell, str], Samples]:
    samples: dict[tuple[Cell, str], Samples] = {}
    for record in run.records:
        if record.sample:
            samples.setdefault((record.cell, record.contender), {})[record.round] = record.sample
    return samples


def rate_of(sample: Sample) -> float | None:
    return sample.rate


def ratio(
    ours: Samples,
    theirs: Samples,
    figure: Callable[[Sample], float | None] = rate_of,
    their_figure: Callable[[Sample], float | None] = rate_of,
) -> Spread | None:
    """Of two figures, taken round by round."""
    pairs = [(figure(ours[number]), their_figure(theirs[number])) for number in ours if number in theirs]
    return Spread.of(mine / other for mine, other in pairs if mine is not None and other)


def summarise(run: Run) -> dict[tuple[Cell, str], Summary]:
    samples = samples_by_round(run)
    return {
        (cell, contender): summarise_cell(by_round, samples.get((cell, run.baseline), {}))
        for (cell, contender), by_round in samples.items()
    }


def summarise_cell(samples: Samples, baseline: Samples) -> Summary:
    def spread(figure: Callable[[Sample], float | None]) -> Spread | None:
        return Spread.of(figure(sample) for sample in samples.values())

    rate = spread(rate_of)
    assert rate is not None
    return Summary(
        rate=rate,
        ratio=ratio(samples, baseline),
        mean=spread(lambda sample: sample.mean),
        p50=spread(lambda sample: sample.p50),
        p99=spread(lambda sample: sample.p99),
        p999=spread(lambda sample: sample.p999),
        cpu=spread(lambda sample: sample.cpu),
    )


def foreign_load(run: Run) -> Spread | None:
    """Processors kept busy by something else, over all samples."""
    return Spread.of(record.sample.foreign_load for record in run.records if record.sample)
