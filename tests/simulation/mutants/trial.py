"""Whether the search finds a mutant, and how it shows."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NotRequired, TypedDict, cast, final

from .copies import Copies
from .mutant import ROOT, Mutant

__all__ = ["SEARCH", "SearchError", "Trial", "Verdict"]

SEARCH = (sys.executable, "-m", "tests.simulation.simulate")


class SearchError(Exception):
    """The search itself failed, so that nothing is known."""


class _Found(TypedDict):
    """What the search tells."""

    histories: int
    seed: NotRequired[int | None]
    kind: NotRequired[str | None]
    what: NotRequired[str | None]


@final
@dataclass(frozen=True)
class Verdict:
    """What became of one mutant."""

    name: str
    caught: bool
    histories: int
    """That were run, the one that failed included."""
    seed: int | None
    kind: str
    """How it showed; of one that was not caught, why the search ended."""
    what: str
    seconds: float


@final
class Trial:
    """How mutants are tried: in copies of the package, which the search is given in its place."""

    def __init__(
        self,
        copies: Copies,
        *,
        first: int = 1,
        histories: int,
        seconds: float,
        search: Sequence[str] = SEARCH,
    ) -> None:
        """From the seed *first* on, at most so many histories, for at most so long."""
        self._copies = copies
        self._first = first
        self._histories = histories
        self._seconds = seconds
        self._search = search
        self._processes: set[subprocess.Popen[str]] = set()
        self._ended = False

    def end(self) -> None:
        """Whatever is being searched, from any thread: there are no verdicts any more."""
        self._ended = True
        for process in tuple(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def verdict_on(self, mutant: Mutant) -> Verdict:
        """SearchError: there is none."""
        begun = time.monotonic()
        with TemporaryDirectory(prefix="mutant-") as scratch:
            directory = Path(scratch)
            self._copies.make(directory, mutant)
            histories, found = self._look_for(directory, begun + self._seconds)
        return Verdict(
            mutant.name,
            found is not None and found.get("seed") is not None,
            histories,
            None if found is None else found.get("seed"),
            "out of time" if found is None else found.get("kind") or "out of histories",
            "" if found is None else found.get("what") or "",
            time.monotonic() - begun,
        )

    def _look_for(self, directory: Path, end: float) -> tuple[int, _Found | None]:
        """A history that fails in the copy, and passes without the mutant; how many were run until then."""
        histories = 0
        while histories < self._histories:
            first = self._first + histories
            found = self._run(directory, first, self._histories - histories, end - time.monotonic())
            if found is None:
                return histories, None
            histories += found["histories"]
            seed = found.get("seed")
            if seed is None or self._passes_without(seed):
                return histories, found
            histories = seed + 1 - self._first
        return histories, {"histories": 0}

    def _passes_without(self, seed: int) -> bool:
        with TemporaryDirectory(prefix="mutant-") as scratch:
            self._copies.make(Path(scratch))
            found = self._run(Path(scratch), seed, 1, self._seconds)
        return found is not None and found.get("seed") is None

    def _run(self, directory: Path, first: int, histories: int, seconds: float) -> _Found | None:
        """What the search says of the copy in the directory; None: it took too long."""
        told = directory / "found.json"
        told.unlink(missing_ok=True)
        arguments = ["--first", str(first), "--histories", str(histories), "--jobs", "1", "--json", str(told)]
        process = subprocess.Popen(
            [*self._search, *arguments],
            cwd=ROOT,
            env=os.environ
            | {"PYTHONPATH": f"{directory}:{ROOT}", "PYTHONSAFEPATH": "1", "TMPDIR": str(directory)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._processes.add(process)
        try:
            if self._ended:
                raise SearchError("it was ended")
            said, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it has started
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                return None
            raise
        finally:
            self._processes.discard(process)
        if process.returncode not in (0, 1) or not told.exists():
            raise SearchError(f"the search ended with status {process.returncode}:\n{said[-2000:]}")
        found = cast(_Found, json.loads(told.read_text()))
        if (process.returncode == 1) != (found.get("seed") is not None):
            raise SearchError(f"the search ended with status {process.returncode}, and says {found}")
        return found
