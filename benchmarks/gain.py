"""What is gained: paired ratios, their median, and where that lies."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from typing import NamedTuple

LEAST = 0.98
"""Of the throughput without it: so much the upper end of the interval must reach."""
RESAMPLES = 2000


class Gain(NamedTuple):
    """The median of paired ratios, with to without, and the interval that holds it at 95 %."""

    median: float
    low: float
    high: float
    pairs: int

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Gain:
        chance = random.Random(0)
        medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
        low, high = medians[RESAMPLES // 40], medians[-RESAMPLES // 40]
        return cls(statistics.median(ratios), low, high, len(ratios))

    @property
    def kept(self) -> bool:
        return self.high >= LEAST

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}-{self.high:.3f}]" + ("" if self.kept else " COSTS")
