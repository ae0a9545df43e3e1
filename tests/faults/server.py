"""A process that has the injector and forks another one for each scenario and fault: importing takes longer.

It reads what to attempt from its standard input, an array in JSON a line, and answers with a line for each.
"""

import gc
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import uvloop

from ..support.injector import preloaded
from .attempts import attempt_all

__all__ = ["FaultServer"]

ROOT = Path(__file__).parents[2]
LIMIT = 100.0  # seconds for all attempts together


class FaultServer:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            cwd=ROOT,
            env=preloaded(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def attempt(
        self, scenario: str, fault: str, loop: str, directory: Path, first: int = 1
    ) -> tuple[int, str]:
        """The exit status of the process that made the attempts from the *first* on, and what it said."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([scenario, fault, loop, str(directory), first]) + "\n")
        self._process.stdin.flush()
        status = json.loads(self._process.stdout.readline())
        return status, (directory / "said").read_text(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._process:
            self._process.kill()


def serve() -> None:
    uvloop.new_event_loop().close()  # the first one makes a pipe for signals that the process keeps
    gc.collect()
    gc.freeze()  # spares the collections between attempts what has been imported
    for line in sys.stdin:
        scenario, fault, loop, directory, first = json.loads(line)
        child = os.fork()
        if child == 0:
            with open(f"{directory}/said", "w") as said:
                for fd in (sys.stdout.fileno(), sys.stderr.fileno()):
                    os.dup2(said.fileno(), fd)
            status = attempt_all(scenario, fault, loop, directory, first)
            sys.stdout.flush()
            os._exit(status)
        print(json.dumps(wait_for(child)), flush=True)


def wait_for(child: int) -> int:
    """Its exit status, or the negative number of the signal that ended it."""
    fd = os.pidfd_open(child)
    if not select.select([fd], [], [], LIMIT)[0]:
        os.kill(child, signal.SIGKILL)
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    serve()
