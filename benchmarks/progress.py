"""How far a command has come: on a terminal a bar with the time left, in a log a line for each step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def steps(total: int, *, done: int = 0) -> Iterator[Callable[[str], None]]:
    """What is yielded says that a step begins, and which; the one before is over then."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("", total=total, completed=done)
        begun = 0

        def begin(text: str) -> None:
            nonlocal begun
            progress.update(task, completed=done + begun, description=text)
            begun += 1
            if not console.is_terminal:
                print(f"bench: {done + begun}/{total} {text}", file=sys.stderr, flush=True)

        yield begin
