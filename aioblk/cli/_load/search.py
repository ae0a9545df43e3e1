"""The highest depth at which requests are as fast as they have to be."""

from collections.abc import Callable
from dataclasses import replace
from typing import final

from .fleet import Result, measure
from .plan import Plan

__all__ = ["Search", "find_depth"]


@final
class Search:
    """Which depth is tried next: twice the last one while that is fast enough, then between the two."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.best = 0
        """The highest depth that was fast enough; 0: none was."""
        self._slow = most + 1
        self.next: int | None = 1

    def note(self, *, fast_enough: bool) -> None:
        """What came of the depth that was next."""
        assert self.next is not None
        if fast_enough:
            self.best = self.next
        else:
            self._slow = self.next
        doubled = min(self.best * 2, self._most)
        if self._slow - self.best <= 1:
            self.next = None
        elif self._slow > self._most:
            self.next = doubled
        else:
            self.next = (self.best + self._slow) // 2


async def find_depth(
    plan: Plan, seconds: float, percent: float, told: Callable[[Result], object], tried: list[Result]
) -> Result | None:
    """Measure at several depths, up to the plan's; the result at the highest one at which *percent* of the
    requests took no longer than *seconds*. None: not even one at a time does.

    Each result is added to *tried* before it is begun.
    """
    search = Search(plan.depth)
    best = None
    while search.next is not None:
        tried.append(Result(replace(plan, depth=search.next)))
        tried[-1] = result = await measure(tried[-1].plan, told)
        fast_enough = result.latency.percentile(percent) <= seconds
        best = result if fast_enough else best
        search.note(fast_enough=fast_enough)
    return best
