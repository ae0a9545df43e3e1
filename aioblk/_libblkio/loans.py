"""Memory that a thread is telling a new instance of libblkio of: it lasts until that is over.

Whoever owns a region may let it go at any moment, and its descriptor's number then belongs to another file:
the backend would be given that one. Hence the region is lent, and what its owner does to be rid of it waits.
"""

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import final

__all__ = ["Loans"]


@final
class Loans:
    """Which regions are lent, how often, and what is to be done once they are given back. For any thread."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._lent: Counter[Hashable] = Counter()
        self._then: dict[Hashable, list[Callable[[], object]]] = {}

    def lend(self, regions: Iterable[Hashable]) -> Callable[[], None]:
        """Lend them; what is returned gives them back, and does nothing when it is called again."""
        lent = list(regions)
        with self._turn:
            self._lent.update(lent)

        def give_back() -> None:
            with self._turn:
                mine = lent[:]
                lent.clear()
                self._lent.subtract(mine)
                free = [region for region in mine if self._lent[region] <= 0]
                acts = [act for region in free for act in self._then.pop(region, ())]
                for region in free:
                    del self._lent[region]
            for act in acts:
                act()

        return give_back

    def once_given_back(self, region: Hashable, act: Callable[[], object]) -> None:
        """Call *act* now or, if the region is lent, when it is given back, by whoever does that."""
        with self._turn:
            if self._lent[region] > 0:
                self._then.setdefault(region, []).append(act)
                return
            del self._lent[region]
        act()
