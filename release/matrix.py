"""`./run matrix`: the suite on each system and CPython that aioblk is for; with its oldest dependencies."""

import argparse
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .steps import Log, Steps, alone_in
from .systems import SYSTEMS, System, available, run_on

__all__ = ["ROWS", "Row", "oldest_dependencies"]

PROJECT = Path(__file__).parents[1]
WORK = PROJECT / "build/matrix"
SUMMARY = re.compile(r"^(?:\d+ (?:passed|failed|error).*) in [\d.]+s", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """One way of running the suite, on both loops: asyncio's and uvloop."""

    name: str
    what: str
    run: Callable[[Path, list[str], Log], None]
    """In a clone, with what pytest is given."""
    why_not: Callable[[], str | None] = lambda: None


def oldest_dependencies() -> list[str]:
    """The oldest version of each package that aioblk says it works with, as constraints of pip.

    typing_extensions is not among them: what the tests need besides wants a newer one."""
    with (PROJECT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    wanted: Iterable[str] = [
        *project["dependencies"],
        *(package for extra in project["optional-dependencies"].values() for package in extra),
    ]
    return [each.replace(">=", "==") for each in wanted if not each.startswith("typing_extensions")]


def _on_system(system: System, clone: Path, arguments: list[str], log: Log) -> None:
    run_on(system, clone, "./run", "test", *arguments, log=log, what="the suite")


def _with_oldest(clone: Path, arguments: list[str], log: Log) -> None:
    constraints = clone / "oldest.txt"
    constraints.write_text("\n".join(oldest_dependencies()))
    environment = {**os.environ, "PIP_CONSTRAINT": str(constraints), "PYTHON": sys.executable}
    log.run("./run", "test", *arguments, cwd=clone, environment=environment, what="the suite")


def _free_threaded(clone: Path, arguments: list[str], log: Log) -> None:
    build = PROJECT / "build/free-threaded"  # the interpreter, which takes a quarter of an hour
    build.mkdir(parents=True, exist_ok=True)
    (clone / "build").mkdir(exist_ok=True)
    (clone / "build/free-threaded").symlink_to(build)
    log.run("./run", "campaign", "free-threaded", *arguments, cwd=clone, what="the suite")


ROWS = (
    *(
        Row(
            system.suite,
            f"{system.name}, CPython {system.python}",
            partial(_on_system, system),
            partial(available, system),
        )
        for system in SYSTEMS
    ),
    Row("3.14t", "this system, free-threaded CPython 3.14", _free_threaded),
    Row("oldest", "this system, the oldest dependencies that are allowed", _with_oldest),
)


def main() -> int:
    by_name = {row.name: row for row in ROWS}
    parser = argparse.ArgumentParser(
        "./run matrix",
        description="Run the suite of the commit on each system and interpreter that aioblk is for.",
        epilog="; ".join(f"{row.name}: {row.what}" for row in ROWS) + ". Other arguments go to pytest.",
    )
    parser.add_argument("row", nargs="*", metavar="ROW", help=f"those only: {', '.join(by_name)}")
    options, arguments = parser.parse_known_args()
    if unknown := [name for name in options.row if name not in by_name]:
        parser.error(f"there is no row {unknown[0]!r}; there are {', '.join(by_name)}")
    with alone_in(WORK, "matrix"):
        return _run([row for row in ROWS if not options.row or row.name in options.row], arguments)


def _run(rows: list[Row], arguments: list[str]) -> int:
    steps = Steps(WORK / "logs", verb="matrix")
    for row in rows:
        if (why := row.why_not()) is not None:
            steps.leave_out(row.what, why)
            continue
        steps.take(row.what, partial(_take, row, ["-q", *arguments]))
    print(steps.table())
    return int(steps.failed)


def _take(row: Row, arguments: list[str], log: Log) -> str:
    clone = WORK / row.name
    shutil.rmtree(clone, ignore_errors=True)
    log.run("git", "clone", "-q", "--no-hardlinks", PROJECT, clone, what="could not clone the commit")
    try:
        row.run(clone, arguments, log)
    finally:
        shutil.rmtree(clone, ignore_errors=True)
    told = SUMMARY.findall(log.path.read_text(errors="replace"))
    return told[-1] if told else log.last_line()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
