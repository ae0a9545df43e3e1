"""A fault as a row: its name, what is promised, and the scenario that shows it."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

LIMITS = {True: 90.0, False: 900.0}
"""Seconds after which a scenario is taken to hang: a short one, and one that is not."""


@dataclass(frozen=True)
class Setting:
    """What a scenario is given."""

    directory: Path
    """Its own, empty, with a name that is short enough for a socket's."""
    short: bool

    def seconds(self, short: float, long: float) -> float:
        return short if self.short else long

    def times(self, short: int, long: int) -> int:
        return short if self.short else long


Scenario = Callable[[Setting], Awaitable[str]]


@dataclass(frozen=True)
class Fault:
    name: str
    words: str
    """What fails, and how."""
    promised: str
    """A sentence of the page, as it stands there but for its marks."""
    link: str
    """The page and the heading, as ``loss.md#states``."""
    scenario: Scenario
    """Returns what was seen; raises where the promise is broken."""


FAULTS: dict[str, Fault] = {}


def fault(name: str, words: str, promised: str, link: str) -> Callable[[Scenario], Scenario]:
    """Make a row of a scenario."""

    def add(scenario: Scenario) -> Scenario:
        assert name not in FAULTS
        FAULTS[name] = Fault(name, words, promised, link, scenario)
        return scenario

    return add


def plain(text: str) -> str:
    """Text without marks and ends of lines, so that sentences can be compared."""
    return " ".join(re.sub(r"\]\([^)]*\)|[`*\[]", "", text).replace("|", " ").split())


def section(link: str) -> str:
    """What stands below the heading that a link leads to, up to the next one."""
    page, _, anchor = link.partition("#")
    parts = re.split(r"^#+ (.*)$", (DOCS / page).read_text(), flags=re.MULTILINE)
    for heading, text in zip(parts[1::2], parts[2::2], strict=True):
        if re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") == anchor:
            return text
    raise LookupError(link)
