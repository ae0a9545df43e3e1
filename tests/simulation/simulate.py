"""./run simulate: plays histories from seeds, side by side, until one fails or all are through.

    ./run simulate                      ten thousand histories
    ./run simulate --minutes 2          as many as there is time for
    ./run simulate --seed 4711          one again, with all that happened; it is made smaller if it fails
    ./run simulate --replay FILE        one that was written down
    ./run simulate --mutants            faults planted in aioblk: each must be found
    ./run simulate --list               which faults there are

A history is a device on a simulated disk, the weather of that disk, and some two hundred actions of a user,
all drawn from one seed. docs/simulation.md says how to read one that fails. The status is 0 where all is
clean and every fault was found, 1 where not, 2 where it could not be told, 130 after Ctrl-C.
"""

import contextlib
import itertools
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, final

from .arguments import HISTORIES, LENGTH, understood
from .commands import INTERRUPTED, ImpossibleError, run
from .history import History, draw
from .shrink import shrink
from .worker import AS_IT_HAPPENS, command, environment

FAILURES = Path("build/simulate")
CRASHED, HUNG = "crash", "hang"
DIED = {CRASHED, HUNG}  # with the process that played it
SHRINK_SECONDS = 90
SHRINK_PATIENCE = 5  # seconds, after which one that is tried hangs
TELL_EVERY = 5  # seconds
MOST_PLAYED = 100  # histories, by one process
FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP}  # statuses that no history ends with


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
        events: list[str] = []
        while line := self._process.stdout.readline():
            said: dict[str, Any] = json.loads(line)
            if AS_IT_HAPPENS not in said:
                self.played += 1
                return said
            events.append(said[AS_IT_HAPPENS])
        return self._death(events)

    def _death(self, events: list[str]) -> dict[str, Any]:
        """What came of a history with which the process has died."""
        status = self._process.wait()
        if status in FROM_OUTSIDE:
            raise ImpossibleError(f"a process that played was ended by {signal.Signals(-status).name}")
        self._errors.seek(0)
        said = self._errors.read()
        return {
            "kind": HUNG if "simblkio: hang: " in said else CRASHED,
            "what": f"the process was ended by {_name(status)}\n{said[-8000:]}",
            "events": events,
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


def _name(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"itself, with status {status}"


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
    interrupted: bool = False

    def add(self, counts: dict[str, int]) -> None:
        self.histories += 1
        for name, count in counts.items():
            self.counts[name] += count
            self.histories_with[name] += bool(count)

    def table(self) -> str:
        """How often each kind of event has occurred, in how many of the histories, and which never has."""
        seen = sorted(+self.counts, key=str.casefold)
        width = max(map(len, seen), default=0)
        lines = [f"{'event':{width}}  {'times':>12}  in histories"]
        for name in seen:
            share = 100 * self.histories_with[name] / max(self.histories, 1)
            lines.append(f"{name:{width}}  {self.counts[name]:12,}  {share:10.1f} %")
        never = sorted(self.counts.keys() - seen)
        if never:
            lines.append(f"never: {', '.join(never)}")
        return "\n".join(lines)


def search(first: int, histories: int | None, jobs: int, length: int, minutes: float | None) -> Tally:
    """Play them all, or until one fails, time is up or somebody presses Ctrl-C."""
    tally = Tally()
    try:
        _search(tally, first, histories, jobs, length, minutes)
    except KeyboardInterrupt:
        tally.interrupted = True
    return tally


def _search(
    tally: Tally, first: int, histories: int | None, jobs: int, length: int, minutes: float | None
) -> None:
    seeds = itertools.count(first) if histories is None else iter(range(first, first + histories))
    began = time.monotonic()
    end = math.inf if minutes is None else began + 60 * minutes
    with _workers(jobs, length) as (workers, ready):
        for worker in workers:
            _ask_next(worker, seeds, ready)
        told = began
        while ready.get_map():
            for key, _ in ready.select():
                worker = cast(Worker, key.fileobj)
                answer = worker.answer()
                tally.add(answer["counts"])
                if answer["kind"]:
                    tally.seed, tally.outcome = worker.asked["seed"], answer
                    return
                if time.monotonic() > end:
                    seeds = iter(())
                _ask_next(worker, seeds, ready)
            if time.monotonic() - told > TELL_EVERY:
                told = time.monotonic()
                of = "" if histories is None else f" of {histories:,}"
                until = "" if minutes is None else f", {(told - began) / 60:.1f} of {minutes:g} minutes"
                print(f"simulate: {tally.histories:,}{of} histories{until}", file=sys.stderr)


@contextlib.contextmanager
def _workers(jobs: int, length: int) -> Iterator[tuple[list[Worker], selectors.DefaultSelector]]:
    workers: list[Worker] = []
    ready = selectors.DefaultSelector()
    try:
        for _ in range(jobs):
            workers.append(Worker(length))
            ready.register(workers[-1], selectors.EVENT_READ)
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


def play_alone(history: History, **more: Any) -> dict[str, Any]:
    """In a process of its own, and with all that happened."""
    worker = Worker(len(history.actions))
    try:
        worker.ask({"history": history.to_json(), "whole": True, **more})
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
        return bool(play_alone(candidate, patience=SHRINK_PATIENCE)["kind"] == kind)

    return shrink(history, fails)


def report(history: History, outcome: dict[str, Any]) -> None:
    """A history, for who is to understand it."""
    print(f"\n--- the user's side of it ({len(history.actions)} actions)")
    print("\n".join(outcome["events"]))
    if outcome["kind"] is None:
        print(f"--- what was drawn\n{history}\n--- clean")
        return
    if outcome["kind"] not in DIED:  # or else that is in what the process has said
        print("--- the last of the disk's side of it")
        print("\n".join(outcome["trace"]))
    print(f"--- {outcome['kind']}\n{outcome['what']}")
    print(f"--- what was drawn\n{history}")


def explain(history: History, outcome: dict[str, Any]) -> None:
    """Play a history that failed again, make it smaller, write it down and show it."""
    again = play_alone(history)
    if again["kind"] != outcome["kind"]:
        otherwise = "it is clean" if again["kind"] is None else f"it fails otherwise ({again['kind']})"
        print(f"simulate: played again alone, {otherwise}; here is how it went before", file=sys.stderr)
        report(history, outcome)
        return
    same = again["kind"] not in DIED and again["trace_hash"] == outcome["trace_hash"]
    print(
        f"simulate: played again alone, it fails {'exactly so' if same else 'in the same way'}",
        file=sys.stderr,
    )
    small = shrunk(history, outcome["kind"])
    final_outcome = play_alone(small)
    if final_outcome["kind"] != outcome["kind"]:
        small, final_outcome = history, again
    report(small, final_outcome)
    file = FAILURES / f"{history.seed}.json"
    try:
        FAILURES.mkdir(parents=True, exist_ok=True)
        file.write_text(small.to_json())
    except OSError as error:
        print(f"simulate: it is not written down: {error}", file=sys.stderr)
    print(f"\nseed {history.seed} fails: {outcome['kind']}. Again: {command_of(history)}")
    shares = f"{len(small.actions)} of {len(history.actions)} actions"
    print(f"made smaller, {shares}: ./run simulate --replay {file}")


def command_of(drawn: History) -> str:
    """What plays it again. Another length gives another history."""
    length = len(drawn.actions)
    return f"./run simulate --seed {drawn.seed}{'' if length == LENGTH else f' --length {length}'}"


def main(arguments: Sequence[str] | None = None) -> int:
    options = understood(arguments, __doc__ or "")
    if options.mutants is not None or options.list:
        mutants = [*(options.mutants or ()), *(["--list"] if options.list else ())]
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation.mutants", *mutants])
    length = LENGTH if options.length is None else options.length
    if options.replay is not None:
        return show(options.replay, report)
    if options.seed is not None:
        return show(draw(options.seed, length), explain)
    histories = options.histories
    if histories is None and options.minutes is None:
        histories = HISTORIES
    began = time.monotonic()
    tally = search(
        options.first or 0, histories, options.jobs or os.cpu_count() or 1, length, options.minutes
    )
    seconds = time.monotonic() - began
    if tally.seed is not None:
        print(f"simulate: seed {tally.seed} fails: {tally.outcome['kind']}", file=sys.stderr)
    if options.json is not None:
        failed = {key: tally.outcome.get(key) for key in ("kind", "what")}
        options.json.write_text(json.dumps({"histories": tally.histories, "seed": tally.seed, **failed}))
    elif tally.seed is not None:
        explain(draw(tally.seed, length), tally.outcome)
    if tally.seed is not None:
        return 1
    print(tally.table())
    played = f"{tally.histories:,} {'history' if tally.histories == 1 else 'histories'} of {length} actions"
    print(f"\n{played}, clean, in {seconds:,.0f} s{'; interrupted' if tally.interrupted else ''}")
    return INTERRUPTED if tally.interrupted else 0


def show(history: History, tell: Callable[[History, dict[str, Any]], None]) -> int:
    """Play one alone; what it came to is told by *tell* where it failed."""
    outcome = play_alone(history)
    if outcome["kind"] is None:
        report(history, outcome)
        return 0
    tell(history, outcome)
    return 1


if __name__ == "__main__":
    sys.exit(run("simulate", main))
