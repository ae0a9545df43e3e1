"""Where others' tests run, and what becomes of them."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from . import stand_in

TIME_LIMIT = 120.0


PASSED, FAILED, DECLINED = WORDS = ("passed", "failed", "declined")
"""Declined is what does not apply: as the test says itself, or because it never comes to the server."""


class Outcome(NamedTuple):
    """What became of a test; and why, or what it said."""

    word: str
    why: str = ""


class Place(NamedTuple):
    """Where a suite's tests run."""

    directory: Path
    environment: dict[str, str]
    met: Path

    def run(self, *command: str | Path, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["timeout", "--kill-after=5", str(TIME_LIMIT), *command],
            cwd=cwd or self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )

    def without_stand_ins(self, **more: str) -> "Place":
        return self._replace(environment={**self.environment, "PATH": os.environ["PATH"], **more})

    def servers_met(self) -> int:
        """How often this server was started."""
        return sum(line != stand_in.ORIGINAL for line in self._met())

    def has_met_server(self) -> bool:
        """Whether the last server that was started was this one: others may have been tried out only."""
        return self._met()[-1:] != [stand_in.ORIGINAL] and self.servers_met() > 0

    def _met(self) -> list[str]:
        return self.met.read_text().splitlines() if self.met.exists() else []


@contextmanager
def place() -> Iterator[Place]:
    """A new directory, and the stand-ins before everything else that there is."""
    with tempfile.TemporaryDirectory(prefix="aioblk-") as name:
        directory = Path(name)
        programs = directory / "stand-ins"
        programs.mkdir()
        for program in ("qemu-nbd", "nbdkit"):
            script = programs / program
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in.__file__}" {program} "$@"\n')
            script.chmod(0o755)
        met = directory / "met"
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        yield Place(directory, {**os.environ, "PATH": path, stand_in.MET: str(met)}, met)


def program_path(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"run: {name} is missing")
    return found
