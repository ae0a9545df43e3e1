"""How far something has come, on stderr: a bar on a terminal, lines elsewhere."""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, final

import click

from .._sync.scopes import shielded
from .output import say
from .text import of_size, of_wait

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Meter", "meter", "progress_option"]

FIRST = 0.5  # seconds: what is done by then needs no bar
EVERY = 0.1  # seconds, on a terminal
LINES_EVERY = 5.0  # seconds


def progress_option(function: Any) -> Any:
    """``--progress/--no-progress``, which is None if neither is given."""
    return click.option(
        "--progress/--no-progress",
        default=None,
        help="Show on stderr how far it has come, how fast, and how long it takes yet: a bar, or lines every"
        " five seconds where stderr is no terminal. Otherwise only a terminal is shown it.",
    )(function)


@final
class Meter:
    """What is done, of how much."""

    def __init__(self) -> None:
        self.what: str = ""
        self.done: int = 0
        self.size: int = 0
        self._began = time.monotonic()
        self._from = 0

    def tell(self, what: str, done: int, size: int) -> None:
        if what != self.what:
            self.what, self._from, self._began = what, done, time.monotonic()
        self.done, self.size = done, size

    def line(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-6)
        rate = (self.done - self._from) / seconds
        left = f", {of_wait((self.size - self.done) / rate)} left" if rate > 0 else ""
        share = 100 * self.done // self.size if self.size else 100
        return (
            f"{self.what}: {of_size(self.done)} of {of_size(self.size)}, {share} %,"
            f" {of_size(int(rate))}/s{left}"
        )


@asynccontextmanager
async def meter(wanted: bool | None) -> AsyncGenerator[Meter]:
    """What is told to the meter is shown until it is left. None: on a terminal only."""
    told = Meter()
    is_terminal = sys.stderr.isatty()
    if wanted is False or (wanted is None and not is_terminal):
        yield told
        return
    showing = asyncio.create_task(_bar(told) if is_terminal else _lines(told))
    try:
        yield told
    finally:
        showing.cancel()
        with shielded():
            await asyncio.wait([showing])


async def _lines(told: Meter) -> None:
    while True:
        await asyncio.sleep(LINES_EVERY)
        say(told.line())


async def _bar(told: Meter) -> None:
    await asyncio.sleep(FIRST)
    bar = _new_bar()
    shown: tuple[str, TaskID] | None = None
    with bar:
        while True:
            if told.size and (shown is None or shown[0] != told.what):
                shown = told.what, bar.add_task(told.what, total=told.size, completed=told.done)
            elif shown is not None:
                bar.update(shown[1], completed=told.done, total=told.size)
            bar.refresh()
            await asyncio.sleep(EVERY)


def _new_bar() -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        """In the units of all the rest."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{of_size(int(speed))}/s", style="progress.data.speed")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(binary_units=True),
        Speed(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        auto_refresh=False,  # from no other thread
        transient=True,
    )
