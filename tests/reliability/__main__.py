"""`./run faults`: each fault in a process of its own; then what was promised, and what was seen."""

import argparse
import datetime
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .book import FAULTS
from .row import LIMITS, ROOT, Fault
from .table import Outcome, publish, show


def main() -> int:
    parser = argparse.ArgumentParser(
        "./run faults",
        description="Let real parts fail around aioblk, and see whether it keeps what it promises.",
        epilog="The status is 1 if a promise is broken.",
    )
    parser.add_argument("name", nargs="*", help="faults to be tried; all, if none is named")
    parser.add_argument("--short", action="store_true", help="all of them in less than two minutes")
    parser.add_argument("--list", action="store_true", help="say which there are")
    parser.add_argument("--publish", action="store_true", help="write the table to docs/reliability.md")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (%(default)s)")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.name if name not in FAULTS]:
        parser.error(f"there is no fault {unknown[0]!r}; ./run faults --list says which there are")
    if chosen.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {chosen.jobs}")
    if chosen.publish and chosen.name:
        parser.error("--publish writes the whole table: name no faults")
    if chosen.list:
        for fault in FAULTS.values():
            print(f"{fault.name:27} {fault.words}")
        return 0
    faults = [FAULTS[name] for name in dict.fromkeys(chosen.name)] or list(FAULTS.values())
    outcomes = run(faults, short=chosen.short, jobs=chosen.jobs)
    console = Console()
    show(outcomes, console)
    broken = [outcome for outcome in outcomes if not outcome.kept]
    if broken:
        console.print(f"{len(broken)} of {len(outcomes)} promises are broken", style="red")
        return 1
    console.print(f"{len(outcomes)} of {len(outcomes)} promises are kept")
    if chosen.publish:
        command = "./run faults --short" if chosen.short else "./run faults"
        today = datetime.datetime.now(datetime.UTC).date()
        linux, _, _ = platform.release().partition("-")
        system = f"CPython {platform.python_version()}, Linux {linux}, {os.cpu_count()} processors"
        publish(outcomes, f"`{command}`, {today}, {system}:")
    return 0


def run(faults: list[Fault], *, short: bool, jobs: int) -> list[Outcome]:
    console = Console(stderr=True)
    with (
        Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        ) as progress,
        ThreadPoolExecutor(jobs) as pool,
    ):

        def one(fault: Fault) -> Outcome:
            task = progress.add_task(f"{fault.name}: {fault.words}")
            outcome = attempt(fault, short=short)
            progress.remove_task(task)
            word = "kept" if outcome.kept else "BROKEN"
            print(f"faults: {fault.name} {word} after {outcome.seconds:.1f} s", file=sys.stderr, flush=True)
            return outcome

        return list(pool.map(one, faults))


def attempt(fault: Fault, *, short: bool) -> Outcome:
    """In a session of its own, of which nothing is left; mounts are its own too, where that is allowed."""
    command = [sys.executable, "-W", "error", "-m", "tests.reliability.alone", fault.name]
    if short:
        command.append("--short")
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*apart(), *command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(LIMITS[short])
        except subprocess.TimeoutExpired:
            status = None
            os.kill(process.pid, signal.SIGUSR1)  # it shows where it stands
            time.sleep(1)
        finally:
            with_all_it_started(process)
        seconds = time.monotonic() - start
        words = text_of(said)
    if status == 0 and words.count("\n") == 1:
        return Outcome(fault, True, words.strip(), seconds)
    if status is None:
        words += f"still going on after {LIMITS[short]:.0f} s"
    print(f"faults: {fault.name}, status {status}:\n{words}", file=sys.stderr)
    return Outcome(
        fault, False, words.strip().splitlines()[-1] if words.strip() else f"status {status}", seconds
    )


def apart() -> list[str]:
    """What gives a process mounts of its own: as root by itself, or as root of a user namespace."""
    command = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    if not any(
        line.split()[4] == "/" for line in mounts
    ):  # in a chroot, whose root it could not make private
        command += ["--propagation", "unchanged"]
    return command


def with_all_it_started(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def text_of(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


if __name__ == "__main__":
    sys.exit(main())
