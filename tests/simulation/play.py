"""Plays one history in this process, which has the simulator preloaded, and says what came of it."""

import asyncio
import gc
import logging
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from aioblk._queues import queue

from .fate import CALM
from .history import History
from .library import Simulator
from .loop import SimulatedLoop, Stuck, simulated_threads
from .oracle import Wrong
from .world import World

__all__ = ["Outcome", "Player", "last_of"]

LAST = int(os.environ.get("LAST", "60"))
VIOLATION = " violation"
FIRST_SIZE = 16 << 10  # of bounce pools, in bytes: disks are small, and pools would never grow


@final
@dataclass(frozen=True)
class Outcome:
    """What a history has come to."""

    kind: str | None
    """Of what was wrong: "wrong", "stuck", "violation", ..., or an exception's name; None: nothing was."""
    what: str
    events: tuple[str, ...]
    """What the user did and met."""
    trace: tuple[str, ...]
    """What the disk did, the last of it, where anything was wrong."""
    trace_hash: int
    """Of all that has happened: the same whenever the history is played."""
    counts: Mapping[str, int]
    """How often each kind of event has occurred."""


@final
class Player:
    """Plays histories, one after the other. After one that failed, the process is of no use any more."""

    def __init__(self) -> None:
        self.simulator = Simulator()
        self._directory = Path(tempfile.mkdtemp(prefix="simulate-"))
        self._unhandled: list[str] = []
        sys.unraisablehook = lambda unraisable: self._note(f"{unraisable.err_msg}: {unraisable.exc_value!r}")
        logging.getLogger("aioblk").addHandler(logging.NullHandler())
        gc.disable()  # what it finds when would depend on what was played before
        queue.FIRST_BOUNCE_SIZE = FIRST_SIZE
        SimulatedLoop(0).close()  # what is made once in a process is made here
        gc.freeze()

    def close(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)

    def _note(self, what: str) -> None:
        self._unhandled.append(what)

    def play(self, history: History, tell: Callable[[str], None] | None = None) -> Outcome:
        """*tell* is called with each event of the user's, as it happens."""
        simulator = self.simulator
        simulator.reset()
        simulator.configure(
            **{**CALM, "seed": history.seed & 0xFFFFFFFF, "record": 1, "impatient": 1, "abandons": 0}
        )
        before = simulator.counts
        self._unhandled.clear()
        descriptors = _descriptors()
        loop = SimulatedLoop(history.seed, **history.loop)
        loop.on_time = simulator.clock  # queues that look again ask for the time
        world: World | None = None

        def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            if world is None or not world.may_be_told(context):
                self._note(_describe(context))

        loop.set_exception_handler(handle)
        kind, what = None, ""
        with simulated_threads(loop), warnings.catch_warnings(record=True, action="always") as caught:
            try:
                world = World(history, simulator, loop, self._directory, tell)
                loop.run_until_complete(world.live())
                loop.end_threads()
                loop.run_until_complete(asyncio.sleep(1))
            except Stuck as error:
                kind, what = "stuck", f"{error}\n{_tasks(loop)}"
            except Wrong as error:
                kind, what = "wrong", _explain(error)
            except BaseException as error:
                kind, what = type(error).__name__, "".join(traceback.format_exception(error))
            simulator.clock(None)  # the watchdog's, of the next history
            events = () if world is None else tuple(world.events)
            counts = _count(before, simulator.counts, world)
            trace_hash = hash((simulator.trace_hash, events))
            if kind is None:
                may_keep = any("DeviceLostError" in name or "in flight" in name for name in +Counter(counts))
                world = None
                loop.close()
                _ = gc.collect()
                kind, what = self._look_again(caught, descriptors, may_keep=may_keep)
            trace = last_of(simulator.trace) if kind else ()
            return Outcome(kind, what, events, trace, trace_hash, counts)

    def _look_again(
        self, caught: list[warnings.WarningMessage], descriptors: Counter[str], *, may_keep: bool
    ) -> tuple[str | None, str]:
        if self.simulator.violations:
            return "violation", "\n".join(self.simulator.violations)
        if self._unhandled:
            return "unhandled", "\n".join(self._unhandled)
        if caught:
            return "warning", "\n".join(str(warning.message) for warning in caught)
        self.simulator.reset()
        left = sorted((_descriptors() - descriptors).elements())
        if may_keep:  # memory of what a lost device had in flight, for good
            left = [name for name in left if not name.startswith(("/memfd:aioblk", "/dev/shm/"))]
        if left:
            return "leak", f"descriptors are left: {', '.join(left)}"
        return None, ""


def last_of(trace: list[str]) -> tuple[str, ...]:
    """Up to a violation, if there was one: the history went on after it, and read the whole disk."""
    end = next((number for number, event in enumerate(trace, 1) if VIOLATION in event), len(trace))
    return tuple(trace[max(end - LAST, 0) : end])


def _descriptors() -> Counter[str]:
    """The files that this process has open, without the numbers of those that have no name."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            found[os.readlink(f"/proc/self/fd/{name}").split("[")[0]] += 1
        except OSError:
            continue  # the listing's own
    return found


def _describe(context: Mapping[str, Any]) -> str:
    error = context.get("exception")
    text = "" if error is None else "".join(traceback.format_exception(error))
    whose = [repr(context[name]) for name in ("task", "future", "handle") if name in context]
    return "\n".join([context["message"], *whose, text])


def _explain(wrong: Wrong) -> str:
    """What was wrong; where it is an error of aioblk's, also where that was raised. How this program came to
    say so helps nobody."""
    cause = wrong.__cause__
    return str(wrong) if cause is None else f"{''.join(traceback.format_exception(cause))}\n{wrong}"


def _tasks(loop: asyncio.AbstractEventLoop) -> str:
    """Who waits, and where."""
    lines: list[str] = []
    for task in sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name()):
        lines.append(f"{task.get_name()}: {task.get_coro()}")
        for code, line in ((frame.f_code, frame.f_lineno) for frame in task.get_stack()):
            lines += [f"    {code.co_filename}:{line} {code.co_qualname}"]
    return "\n".join(lines)


def _count(before: Mapping[str, int], after: Mapping[str, int], world: World | None) -> dict[str, int]:
    counts = {f"disk: {name}": after[name] - before.get(name, 0) for name in after}
    if world is not None:
        counts["sectors read and judged"] = world.oracle.reads
        counts["requests"] = world.operations.made
        for outcome, times in world.operations.outcomes.items():
            counts[f"outcome: {outcome}"] = times
    return counts
