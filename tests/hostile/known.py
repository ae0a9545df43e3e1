"""What libblkio itself does not survive, and cannot be kept from it: docs/hazards.md says why, for each."""

import re
import signal
from dataclasses import dataclass

from .deeds import Plan

__all__ = ["HANGS", "KNOWN", "RING_LIES", "Known", "find_known", "may_hang"]

HANGS = 0  # instead of a signal

RING_LIES = frozenset(
    {
        "names a request twice",
        "names another request",
        "names a request that nobody has made",
        "names an id beyond the queue",
        "goes ahead in the used ring",
        "goes back in the used ring",
        "ties descriptors into a ring",
        "points descriptors out of the table",
        "writes garbage over the descriptors",
        "writes garbage over the available ring",
        "writes garbage over the used ring",
        "writes garbage over the headers",
    }
)
"""What libblkio keeps is in the descriptors: each of them can end as any other does."""


@dataclass(frozen=True)
class Known:
    """How a process ends, and for which deeds."""

    name: str
    deed: str
    """The one that alone shows it."""
    signal: int
    says: str
    """What is said then, as a regular expression."""

    @property
    def deeds(self) -> frozenset[str]:
        return RING_LIES if self.deed in RING_LIES else frozenset({self.deed})


# The last thread that a process shows is its main one; its loop does not wait for events there.
_STANDS_STILL = r"call first\):\n  File .* in (?!select\n).+\n((?!.*call first).*\n)*\Z"

KNOWN = (
    Known(
        "a request is completed that is not there any more",
        "names a request twice",
        signal.SIGABRT,
        r"assertion failed: old\.is_none\(\)",
    ),
    Known(
        "a descriptor points out of its table",
        "points descriptors out of the table",
        signal.SIGABRT,
        r"index out of bounds: the len is \d+ but the index is \d+",
    ),
    Known("descriptors are tied into a ring", "ties descriptors into a ring", HANGS, _STANDS_STILL),
    Known("the counter of a kick is full", "fills the kick", HANGS, _STANDS_STILL),
    Known("the memory of the rings is cut off", "cuts off the rings", signal.SIGBUS, "Bus error"),
)


def find_known(plan: Plan, number: int, said: str) -> Known | None:
    """Which of them a process has met that was ended by the signal *number*, or did not end."""
    deeds = _deeds(plan)
    return next(
        (
            known
            for known in KNOWN
            if known.signal == number and deeds & known.deeds and re.search(known.says, said)
        ),
        None,
    )


def may_hang(plan: Plan) -> bool:
    """Whether a process is likely to do so for what is known."""
    return not _deeds(plan).isdisjoint(known.deed for known in KNOWN if known.signal == HANGS)


def _deeds(plan: Plan) -> set[str]:
    return {deed.what for life in plan.lives for deed in life}
