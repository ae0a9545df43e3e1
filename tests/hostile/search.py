"""Seeds, one after the other, until time is up; then how they have ended, counted.

python -m tests.hostile.search [--minutes 15]    a search
python -m tests.hostile.search --seed 17         one seed again, and what the process says
"""

import argparse
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .client import LIMIT
from .deeds import plan_of
from .known import HANGS, find_known

__all__ = ["End", "Search", "main"]

ROOT = Path(__file__).parents[2]
TOGETHER = 25  # seeds for one process, unless it crashes
SPARE = 60.0  # seconds that it may take besides
WORST = 5  # findings, after which a search ends
TIMED_OUT = "Timeout (0:00:"  # so a process says that has found itself hanging
FINE = ("fine", "lost", "error", "known")


@dataclass(frozen=True)
class End:
    """How one has ended: fine, lost, error, or known to be beyond libblkio; all else is a finding."""

    key: str
    kind: str
    words: str

    @property
    def is_finding(self) -> bool:
        return self.kind not in FINE

    def __str__(self) -> str:
        return f"{self.kind}: {self.words}\n    the backend {plan_of(self.key)}"


def play(keys: Sequence[str]) -> Iterator[End]:
    """The end of each."""
    left = list(keys)
    while left:
        said = subprocess.run(
            [sys.executable, "-m", "tests.hostile.client", *left],
            cwd=ROOT,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT * len(left) + SPARE,
        )
        ends = said.stdout.splitlines()
        for key, end in zip(left, ends, strict=False):
            kind, _, words = end.partition(":")
            yield End(key, kind, words.strip())
        if len(ends) < len(left):
            yield _broken(left[len(ends)], said.returncode, said.stderr)
        left = left[len(ends) + 1 :]


def _broken(key: str, status: int, said: str) -> End:
    hangs = TIMED_OUT in said
    known = find_known(plan_of(key), HANGS if hangs else -status, said)
    if known is not None:
        return End(key, "known", known.name)
    return End(key, "hangs" if hangs else f"crashed with status {status}", said)


@dataclass
class Search:
    counts: Counter[str] = field(default_factory=Counter[str])
    findings: list[End] = field(default_factory=list[End])

    def try_keys(self, keys: Sequence[str]) -> None:
        """What is found is printed."""
        for end in play(keys):
            self.counts[f"known: {end.words}" if end.kind == "known" else end.kind] += 1
            if end.is_finding:
                self.findings.append(end)
                print(f"--- --seed {end.key} {end}", flush=True)

    def report(self) -> str:
        width = max(map(len, self.counts), default=0)
        lines = [f"{name:{width}} {count:8}" for name, count in sorted(self.counts.items())]
        seeds = ", ".join(end.key for end in self.findings)
        return "\n".join([*lines, f"{self.counts.total()} seeds, findings: {seeds or 'none'}"])


def main() -> int:
    parser = argparse.ArgumentParser(
        "./run campaign hostile-backend", description="Try one seed after the other."
    )
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument(
        "--seed", help="the first one, and without --minutes the only one; or the name of a deed"
    )
    chosen = parser.parse_args()
    search = Search()
    if chosen.seed is not None and "--minutes" not in sys.argv:
        for end in play([chosen.seed]):
            print(end)
            return int(end.is_finding)
    seed = random.randrange(1 << 30) if chosen.seed is None else int(chosen.seed)
    print(f"from seed {seed} on", flush=True)
    end_of_time = time.monotonic() + 60 * chosen.minutes
    while time.monotonic() < end_of_time and len(search.findings) < WORST:
        search.try_keys([str(number) for number in range(seed, seed + TOGETHER)])
        seed += TOGETHER
    print(search.report())
    return int(bool(search.findings))


if __name__ == "__main__":
    sys.exit(main())
