"""One scenario, attempted again and again in a process of its own, each time with another step failing."""

import asyncio
import faulthandler
import gc
import os
import sys
import traceback
import warnings
from pathlib import Path

from aioblk import DeviceLostError

from ..support.injector import Injector
from ..support.leaks import Holdings, join_threads
from ..support.turns import LOOP_FACTORIES
from .fault import Fault, World, make_fault
from .scenarios import SCENARIOS, Scenario

__all__ = ["attempt_all"]

ENOUGH = 8.0  # seconds for one attempt
MOST = 2000  # attempts; far more than any scenario has steps


class Attempts:
    def __init__(self, scenario: Scenario, fault: Fault, loop: str, world: World) -> None:
        self._scenario = scenario
        self._fault = fault
        self._loop = loop
        self._world = world
        self._complaints: list[str] = []
        sys.unraisablehook = lambda unraisable: self._complain(
            f"unraisable: {unraisable.exc_value!r} in {unraisable.object!r}"
        )
        warnings.simplefilter("always", ResourceWarning)
        warnings.showwarning = lambda message, *_args, **_named: self._complain(f"warning: {message}")

    def run_undisturbed(self) -> None:
        """Nothing fails, and what is made only once is made."""
        self._run(MOST)
        if self._fault.error is not None:
            raise self._fault.error

    def run(self, number: int) -> bool:
        """Whether a step failed. Raises if the scenario did not bear it."""
        gc.collect()
        before = Holdings.now()
        self._complaints.clear()
        self._run(number)
        gc.collect()
        join_threads(before)
        gc.collect()
        left = [what for what in Holdings.now().added_since(before) if not self._world.made(what)]
        if isinstance(self._fault.error, DeviceLostError):  # who may still write there
            left = [what for what in left if "/memfd:aioblk" not in what]
        self._complaints += [f"left {what}" for what in left]
        if self._complaints:
            raise AssertionError("; ".join(self._complaints))
        return self._fault.happened

    def _run(self, number: int) -> None:
        self._fault.error = None
        self._fault.arm(number)
        faulthandler.dump_traceback_later(ENOUGH + 5, exit=True)  # should the loop stand still
        with asyncio.Runner(loop_factory=LOOP_FACTORIES[self._loop]) as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _loop, context: self._complain(str(context)))
            loop.call_later(ENOUGH, self._give_up, number)
            runner.run(self._scenario(self._world, self._fault))
        faulthandler.cancel_dump_traceback_later()

    def _complain(self, what: str) -> None:
        self._complaints.append(what)

    def _give_up(self, number: int) -> None:
        self._fault.injector.__exit__()
        print(f"{self.describe(number)}: it hangs")
        for task in asyncio.all_tasks():
            task.print_stack(file=sys.stdout)
        sys.stdout.flush()
        faulthandler.dump_traceback(sys.stdout)
        os._exit(1)

    def describe(self, number: int) -> str:
        refused = self._fault.injector.refused
        return f"at {self._fault.kind} {number} ({refused}), which gave {self._fault.error!r}"


def attempt_all(scenario: str, fault: str, loop: str, directory: str, first: int = 1) -> int:
    """The exit status of this process, which says what happened if an attempt did not end as it should."""
    world = World(Path(directory))
    attempts = Attempts(SCENARIOS[scenario], make_fault(Injector(), fault), loop, world)
    number = first
    try:
        attempts.run_undisturbed()
        while attempts.run(number):
            number += 1
            assert number < MOST
    except BaseException:
        print(f"{attempts.describe(number)}:")
        traceback.print_exc(file=sys.stdout)
        return 1
    finally:
        world.close()
    print(f"bore {number - 1} faults")
    return 0
