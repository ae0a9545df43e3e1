"""What libblkio itself does not survive, and cannot be kept from it: docs/hazards.md says why, for each."""

import re
import signal
from dataclasses import dataclass

from .deeds import Plan

__all__ = ["HANGS", "KNOWN", "Known", "find_known", "may_hang"]

HANGS = 0  # instead of a signal


@dataclass(frozen=True)
class Known:
    """How a process ends, and for which deeds; the first of them alone shows it."""

    name: str
    deeds: tuple[str, ...]
    signal: int
    says: str = ""
    """What libblkio says then, as a regular expression."""


_GARBAGE = (
    "writes garbage over the descriptors",
    "writes garbage over the available ring",
    "writes garbage over the used ring",
    "writes garbage over the headers",
)

KNOWN = (
    Known(
        "a request is completed twice, or one that was not made",
        (
            "names a request twice",
            "names another request",
            "names a request that nobody has made",
            "names an id beyond the queue",
            "goes ahead in the used ring",
            "goes back in the used ring",
            "is done before it begins",
            *_GARBAGE,
        ),
        signal.SIGABRT,
        r"assertion failed: old\.is_none\(\)",
    ),
    Known(
        "a descriptor points out of its table",
        ("points descriptors out of the table", *_GARBAGE),
        signal.SIGABRT,
        r"index out of bounds: the len is \d+ but the index is \d+",
    ),
    Known(
        "descriptors are tied into a ring",
        (
            "ties descriptors into a ring",
            "names a request twice",
            "names another request",
            "names a request that nobody has made",
            "names an id beyond the queue",
            "goes ahead in the used ring",
            "goes back in the used ring",
            *_GARBAGE,
        ),
        HANGS,
    ),
    Known("the counter of a kick is full", ("fills the kick",), HANGS),
    Known("the memory of the rings is cut off", ("cuts off the rings",), signal.SIGBUS),
)


def find_known(plan: Plan, number: int, said: str) -> Known | None:
    """Which of them a process has met that was ended by the signal *number*, or did not end."""
    deeds = _deeds(plan)
    return next(
        (
            known
            for known in KNOWN
            if known.signal == number and deeds & {*known.deeds} and re.search(known.says, said)
        ),
        None,
    )


def may_hang(plan: Plan) -> bool:
    """Whether a process may do so for what is known."""
    return any(known.signal == HANGS and _deeds(plan) & {*known.deeds} for known in KNOWN)


def _deeds(plan: Plan) -> set[str]:
    return {deed.what for life in plan.lives for deed in life}
