"""A step of a release: commands with a log of their own. If it fails, the others are still taken."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Log", "StepError", "Steps", "alone_in"]

LAST_LINES = 15
"""Of a log, that are shown when its step fails."""


class StepError(Exception):
    """What is wrong, in a line, and what would help."""


@dataclass(frozen=True)
class Log:
    """Where the commands of a step write."""

    path: Path

    def run(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        what: str,
    ) -> None:
        """Run it, with nothing to read and all output here; *what* it does is said if it fails."""
        with self.path.open("a") as log:
            print("$", *command, file=log, flush=True)
            child = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        try:
            status = child.wait()
        except BaseException:  # with all that it has started, it would go on where the next run works
            os.killpg(child.pid, signal.SIGTERM)
            child.wait()
            raise
        if status:
            raise StepError(f"{what}: status {status}")

    def last_line(self) -> str:
        lines = self.path.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


@contextmanager
def alone_in(work: Path, verb: str) -> Iterator[None]:
    """Keep other runs of the *verb* out of the directory, where they would remove what is made. From here on,
    who ends this ends what is run."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    work.parent.mkdir(parents=True, exist_ok=True)
    with work.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"{verb}: another run is at work in this checkout") from None
        yield


@dataclass
class Steps:
    """What was done so far, and what came of it."""

    logs: Path
    """The directory of their logs."""
    verb: str = "release"
    """What the user has called."""
    failed: bool = False
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    """The step, "ok" or "FAILED", what came of it, and the seconds that it took."""

    def take(self, name: str, act: Callable[[Log], str]) -> bool:
        """Whether it succeeded. *act* returns what is to be told of it, or raises StepError."""
        log = Log(self.logs / f"{name.replace(' ', '-')}.log")
        log.path.parent.mkdir(parents=True, exist_ok=True)
        log.path.write_text("")
        print(f"{self.verb}: {name}", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            state, told = "ok", act(log)
        except StepError as failure:
            self.failed = True
            state, told = "FAILED", f"{failure}; {log.path}"
            for line in log.path.read_text(errors="replace").splitlines()[-LAST_LINES:]:
                print(f"    {line}", file=sys.stderr)
        self.rows.append((name, state, told, f"{time.monotonic() - began:.0f}"))
        return state == "ok"

    def leave_out(self, name: str, why: str) -> None:
        """Have the table say that it was not done."""
        self.rows.append((name, "not done", why, ""))

    def table(self) -> str:
        """A line for each."""
        rows = [("step", "", "", "seconds"), *self.rows]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            f"{name:{widths[0]}}  {state:{widths[1]}}  {seconds:>7}  {told}".rstrip()
            for name, state, told, seconds in rows
        )
