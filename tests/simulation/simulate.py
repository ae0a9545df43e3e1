"""./run simulate: plays histories from seeds, side by side, until one fails or all are through.

    ./run simulate                      ten thousand histories
    ./run simulate --minutes 2          as many as there is time for
    ./run simulate --seed 4711          one again, with all that happened; it is made smaller if it fails
    ./run simulate --replay FILE        one that was written down
    ./run simulate --mutants            faults planted in aioblk: each must be found

A history is a device on a simulated disk, the weather of that disk, and some two hundred actions of a user,
all drawn from one seed. docs/simulation.md says how to read one that fails.
"""

import argparse
import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, final

from .history import History, draw
from .shrink import shrink
from .worker import command, environment

FAILURES = Path("build/simulate")
CRASHED = "crash"
SHRINK_SECONDS = 90
TELL_EVERY = 5  # seconds
MOST_PLAYED = 100  # histories, by one process


@final
class Worker:
    """A process that plays histories."""

    def __init__(self, length: int) -> None:
        self._length = length
        self.asked: dict[str, Any] = {}
        self._start()

    def _start(self) -> None:
        self.played = 0
        self._scratch = tempfile.TemporaryDirectory(prefix="simulate-")
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment() | {"SIMULATE_LENGTH": str(self._length), "TMPDIR": self._scratch.name},
            text=True,
        )

    def restart(self) -> None:
        """What lost devices may still write to is kept for good, and makes a process slower and slower."""
        self.close()
        self._start()

    def fileno(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def ask(self, what: dict[str, Any]) -> None:
        self.asked = what
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What came of what was asked; a process that has died says so by its death."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.played += 1
        if line:
            return cast(dict[str, Any], json.loads(line))
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read()
        return {
            "kind": CRASHED,
            "what": f"the process ended with {status}\n{said[-8000:]}",
            "events": [],
            "trace": [],
            "trace_hash": 0,
            "counts": {},
        }

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        self._scratch.cleanup()


@final
@dataclass
class Tally:
    """What a search has seen."""

    histories: int = 0
    counts: Counter[str] = field(default_factory=Counter[str])
    histories_with: Counter[str] = field(default_factory=Counter[str])
    seed: int | None = None
    """Of the first that failed."""
    outcome: dict[str, Any] = field(default_factory=dict[str, Any])

    def add(self, counts: dict[str, int]) -> None:
        self.histories += 1
        for name, count in counts.items():
            if count:
                self.counts[name] += count
                self.histories_with[name] += 1

    def table(self) -> str:
        """How often each kind of event has occurred."""
        width = max(map(len, self.counts), default=0)
        lines = [f"{'event':{width}}  {'times':>12}  in histories"]
        for name in sorted(self.counts):
            share = 100 * self.histories_with[name] / max(self.histories, 1)
            lines.append(f"{name:{width}}  {self.counts[name]:12,}  {share:5.1f} %")
        return "\n".join(lines)


def search(first: int, histories: int, jobs: int, length: int, minutes: float | None) -> Tally:
    """Play them all, or until one fails or time is up."""
    tally = Tally()
    seeds = iter(range(first, first + histories))
    end = None if minutes is None else time.monotonic() + 60 * minutes
    with _workers(jobs, length) as (workers, ready):
        for worker in workers:
            _ask_next(worker, seeds, ready)
        told = time.monotonic()
        while ready.get_map():
            for key, _ in ready.select():
                worker = cast(Worker, key.fileobj)
                answer = worker.answer()
                tally.add(answer["counts"])
                if answer["kind"]:
                    tally.seed, tally.outcome = worker.asked["seed"], answer
                    return tally
                if end is not None and time.monotonic() > end:
                    seeds = iter(())
                _ask_next(worker, seeds, ready)
            if time.monotonic() - told > TELL_EVERY:
                told = time.monotonic()
                print(f"simulate: {tally.histories:,} of {histories:,} histories", file=sys.stderr)
    return tally


@contextlib.contextmanager
def _workers(jobs: int, length: int) -> Iterator[tuple[list[Worker], selectors.DefaultSelector]]:
    workers = [Worker(length) for _ in range(jobs)]
    ready = selectors.DefaultSelector()
    try:
        for worker in workers:
            ready.register(worker, selectors.EVENT_READ)
        yield workers, ready
    finally:
        ready.close()
        for worker in workers:
            worker.close()


def _ask_next(worker: Worker, seeds: Iterator[int], ready: selectors.DefaultSelector) -> None:
    seed = next(seeds, None)
    if seed is None:
        ready.unregister(worker)
        return
    if worker.played == MOST_PLAYED:
        ready.unregister(worker)
        worker.restart()
        ready.register(worker, selectors.EVENT_READ)
    worker.ask({"seed": seed})


def play_alone(history: History) -> dict[str, Any]:
    """In a process of its own."""
    worker = Worker(len(history.actions))
    try:
        worker.ask({"history": history.to_json()})
        return worker.answer()
    finally:
        worker.close()


def shrunk(history: History, kind: str) -> History:
    """As small as there is time for."""
    end = time.monotonic() + SHRINK_SECONDS
    tries = 0

    def fails(candidate: History) -> bool:
        nonlocal tries
        if time.monotonic() > end:
            return False
        tries += 1
        if tries % 20 == 0:
            print(f"simulate: made smaller: {len(candidate.actions)} actions", file=sys.stderr)
        return bool(play_alone(candidate)["kind"] == kind)

    return shrink(history, fails)


def report(history: History, outcome: dict[str, Any]) -> None:
    """A failure, for who is to understand it."""
    print(f"\n--- the user's side of it ({len(history.actions)} actions)")
    print("\n".join(outcome["events"]))
    print("--- the last of the disk's side of it")
    print("\n".join(outcome["trace"]))
    print(f"--- {outcome['kind']}\n{outcome['what']}")
    print(history)


def explain(history: History, outcome: dict[str, Any]) -> None:
    """Play a history that failed again, make it smaller, write it down and show it."""
    again = play_alone(history)
    if again["kind"] != outcome["kind"]:
        print(f"simulate: alone, it does not fail so: {again['kind']}; here is how it went", file=sys.stderr)
        report(history, outcome)
        return
    same = again["trace_hash"] == outcome["trace_hash"]
    print(
        f"simulate: played again alone, it fails {'exactly so' if same else 'in the same way'}",
        file=sys.stderr,
    )
    small = shrunk(history, outcome["kind"])
    final_outcome = play_alone(small)
    if final_outcome["kind"] != outcome["kind"]:
        small, final_outcome = history, again
    FAILURES.mkdir(parents=True, exist_ok=True)
    file = FAILURES / f"{history.seed}.json"
    file.write_text(small.to_json())
    report(small, final_outcome)
    print(f"\nseed {history.seed} fails: {outcome['kind']}. Again: ./run simulate --seed {history.seed}")
    shares = f"{len(small.actions)} of {len(history.actions)} actions"
    print(f"made smaller, {shares}: ./run simulate --replay {file}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./run simulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, metavar="N", help="play the history of this seed, and show it")
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="play a history that was written down, and show it"
    )
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the first seed (0)")
    parser.add_argument(
        "--histories", type=int, metavar="N", help="how many (10,000; unlimited with --minutes)"
    )
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after so long")
    parser.add_argument("--length", type=int, default=220, metavar="N", help="actions of each (220)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="side by side (processors)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write what came of it there, and do not explain it"
    )
    parser.add_argument("--mutants", nargs="*", metavar="NAME", help="find planted faults, all or these")
    options = parser.parse_args()
    if options.mutants is not None:
        mutants = [sys.executable, "-m", "tests.simulation.mutants", *options.mutants]
        return subprocess.run(mutants).returncode
    if options.seed is not None or options.replay is not None:
        return show(options)
    histories = options.histories or (10_000 if options.minutes is None else 1 << 40)
    began = time.monotonic()
    tally = search(options.first, histories, options.jobs, options.length, options.minutes)
    seconds = time.monotonic() - began
    if options.json is not None:
        failed = {key: tally.outcome.get(key) for key in ("kind", "what")}
        options.json.write_text(json.dumps({"histories": tally.histories, "seed": tally.seed, **failed}))
    elif tally.seed is not None:
        print(f"simulate: seed {tally.seed} fails: {tally.outcome['kind']}", file=sys.stderr)
        explain(draw(tally.seed, options.length), tally.outcome)
    if tally.seed is None:
        print(tally.table())
        print(f"\n{tally.histories:,} histories of {options.length} actions, clean, in {seconds:,.0f} s")
    return 0 if tally.seed is None else 1


def show(options: argparse.Namespace) -> int:
    history = (
        draw(options.seed, options.length)
        if options.replay is None
        else History.from_json(options.replay.read_text())
    )
    outcome = play_alone(history)
    if outcome["kind"] is None:
        print(history)
        print("clean")
        return 0
    if options.replay is None:
        explain(history, outcome)
    else:
        report(history, outcome)
    return 1


if __name__ == "__main__":
    sys.exit(main())
