"""What a process that tries one seed has: choices, counts, a file and a backend; and what it watches for."""

import asyncio
import faulthandler
import gc
import io
import json
import logging
import os
import random
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import uvloop

import aioblk
from aioblk.testing.storage_daemon import StorageDaemon

from ...support.leaks import Holdings, join_threads
from ...support.turns import LOOP_FACTORIES
from . import hostile

__all__ = ["REFUSALS", "MischiefError", "Table", "World"]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

SIZE = 32 << 20
PATIENCE = 20.0  # seconds for what must come to an end
LIMIT = 90.0  # seconds for one seed

# What random calls meet, and rightly so.
REFUSALS = (
    aioblk.BlkioError,
    asyncio.CancelledError,
    asyncio.InvalidStateError,
    AttributeError,
    BufferError,
    LookupError,
    MemoryError,
    OverflowError,
    RuntimeError,
    StopIteration,
    TimeoutError,
    TypeError,
    ValueError,
)


class MischiefError(Exception):
    """Raised by hostile code, on purpose."""


class Table(dict[str, tuple[float, Callable[..., Any]]]):
    """Functions by what they do, each with how often it is drawn, in proportion to the others."""

    def entry(self, weight: float) -> Callable[[F], F]:
        """Enters a function by its name."""

        def enter(function: F) -> F:
            self[function.__name__.replace("_", " ")] = weight, function
            return function

        return enter


class World:
    def __init__(self, seed: int, directory: Path) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.findings: list[str] = []
        self.file = directory / "disk"
        with self.file.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, SIZE)
        self._daemon: StorageDaemon | None = None
        self.loop_name = self.random.choice([*LOOP_FACTORIES, "debug", "hostile"])
        self.has_python_tasks = self.chance(0.2)
        self.losses = 0
        # What aioblk's own lines do not raise unless somebody has erred.
        self.suspects: tuple[type[BaseException], ...] = (
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
        )

    @property
    def daemon(self) -> StorageDaemon:
        if self._daemon is None:
            blockdev = {"driver": "file", "filename": str(self.file), "discard": "unmap"}
            self._daemon = StorageDaemon(blockdev, num_queues=2)
        return self._daemon

    # --- choices --------------------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def draw(self, table: Table) -> tuple[str, Callable[..., Any]]:
        """A name in the table, and its function."""
        names = list(table)
        name = self.random.choices(names, [table[name][0] for name in names])[0]
        return name, table[name][1]

    # --- what is found --------------------------------------------------------------------------------------

    def count(self, event: str) -> None:
        self.counts[event] += 1

    def find(self, what: str) -> None:
        self.findings.append(what)
        print(f"FOUND {what}", flush=True)

    async def within(self, what: str, coroutine: Coroutine[Any, Any, T]) -> T | None:
        """Its result; a finding if it neither comes to an end nor does anything any more."""
        task = asyncio.ensure_future(coroutine)
        made = -1
        while not task.done():
            before, made = made, sum(self.counts.values())
            if made == before:
                self.find(f"{what} hangs\n{stacks()}")
                self.end()
            await asyncio.wait([task], timeout=PATIENCE)
        try:
            return task.result()
        except REFUSALS as error:
            self.refused(error)
            return None

    def refused(self, error: BaseException) -> None:
        self.count(f"raised {type(error).__name__}")
        self.look_at(error)

    def look_at(self, error: BaseException | None) -> None:
        """Whether an exception is one that aioblk may raise: those that it did not mean to are findings."""
        if error is None or isinstance(error, (aioblk.BlkioError, MischiefError)):
            return
        own = Path(aioblk.__file__).parent
        frames = traceback.extract_tb(error.__traceback__)
        inside = bool(frames) and Path(frames[-1].filename).is_relative_to(own)
        if isinstance(error, (SystemError, AssertionError)) or (inside and isinstance(error, self.suspects)):
            text = "".join(traceback.format_exception(error))
            if text not in self.findings:
                self.find(text)

    def on_loop_error(self, _loop: object, context: dict[str, Any]) -> None:
        self.count("reported to the loop")
        self.look_at(context.get("exception"))

    def on_unraisable(self, unraisable: Any) -> None:
        self.count("unraisable")
        self.look_at(unraisable.exc_value)

    def on_warning(self, message: Warning | str, *_where: Any, **_more: Any) -> None:
        self.find(f"warning: {message}")

    # --- from the beginning to the end ----------------------------------------------------------------------

    def run(self, program: Callable[["World"], Coroutine[Any, Any, None]]) -> None:
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        sys.unraisablehook = self.on_unraisable
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ResourceWarning)
        warnings.showwarning = self.on_warning
        factories = {**LOOP_FACTORIES, "debug": asyncio.SelectorEventLoop, "hostile": hostile.Loop}
        factory = factories[self.loop_name]
        with asyncio.Runner(debug=self.loop_name == "debug", loop_factory=factory) as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(self.on_loop_error)
            if self.has_python_tasks:
                loop.set_task_factory(hostile.make_task)
            runner.run(program(self))

    def check_holdings(self, before: Holdings) -> None:
        """Nothing may be left but memory that a lost device may still write to."""
        for _ in range(3):
            gc.collect()
        join_threads(before)
        left = [
            what
            for what in Holdings.now().added_since(before)
            if not (self.losses and "/memfd:aioblk" in what) and not self.daemon.holds(what)
        ]
        if left:
            self.find(f"left {', '.join(left)}")

    def close(self) -> None:
        if self._daemon is not None:
            self._daemon.close()

    def end(self) -> None:
        """End the process, saying what has happened."""
        self.counts[f"with the {self.loop_name} loop{' and tasks in Python' * self.has_python_tasks}"] = 1
        print(json.dumps(self.counts), flush=True)
        os._exit(1 if self.findings else 0)


def stacks() -> str:
    """Where every task is, and every thread."""
    text = io.StringIO()
    for task in asyncio.all_tasks():
        task.print_stack(file=text)
    faulthandler.dump_traceback(sys.stdout)
    return text.getvalue()


def try_seed(seed: int, program: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    """The life of the process of one seed."""
    os.environ.pop("LD_PRELOAD", None)  # a backend needs no sanitizer
    faulthandler.enable()
    logging.disable()
    with TemporaryDirectory(prefix="aioblk-fuzz-") as directory:
        world = World(seed, Path(directory))
        world.daemon  # noqa: B018 (before anything is counted)
        uvloop.new_event_loop().close()  # the first one makes a pipe for signals that the process keeps
        before = Holdings.now()
        world.run(program)
        world.check_holdings(before)
        world.close()
    world.end()
