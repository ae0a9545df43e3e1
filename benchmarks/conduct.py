"""A whole run: who takes part, in which cells, with progress shown and everything kept at once."""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine, queues
from benchmarks.contenders import (
    AWAIT,
    BASELINE,
    BATCH,
    BYTES,
    HALVES,
    NO_SPIN,
    SPIN,
    BlkioBench,
    Contender,
    Fio,
    QemuImg,
    aioblk_contenders,
    standard_library,
)
from benchmarks.journal import Journal
from benchmarks.memory import memory_contenders
from benchmarks.model import Case, Cell, Run
from benchmarks.paths import ROOT, WORK
from benchmarks.peers import peer_contenders
from benchmarks.plan import choose_cells
from benchmarks.progress import steps
from benchmarks.rounds import measure
from benchmarks.targets import UnavailableError, check_target

TITLES = {
    "run": "aioblk, C and the standard library",
    "bars": "What aioblk must reach",
    "full": "Everything: tools in C, aioblk, other libraries",
    "pythons": "aioblk on several interpreters",
    "memory": "Registered memory, bounce pool, mapping for each request",
    "queues": "Several queues, several loops, and ways to wait",
}
BASELINES = {"memory": "memory-registered", "queues": queues.BASELINE}
"""What ratios are ratios to, where it is not blkio-bench."""


def conduct(arguments: argparse.Namespace) -> Run:
    """Measure what the arguments say, from its beginning or, with `resume`, from where it was broken off."""
    contenders = choose_contenders(arguments)
    cells = choose_cells(
        arguments.command,
        cases=arguments.cases,
        operations=arguments.operations,
        block_sizes=arguments.block_sizes,
        depths=arguments.depths,
    )
    journal = Journal(WORK / f"{arguments.command}.journal")
    settings = settings_of(arguments)
    run = journal.resume(settings) if arguments.resume else begin(arguments, contenders)
    able = [contender for contender in contenders if is_able(contender, run)]
    cells = {case: found for case, found in cells.items() if is_there(case, arguments.directory, run)}
    note_left_out(cells, able, run)
    journal.begin(run, settings)
    try:
        measure_all(arguments, cells, able, run, journal)
    except KeyboardInterrupt:
        again = " ".join(["./run bench", *(word for word in sys.argv[1:] if word != "--resume"), "--resume"])
        raise SystemExit(f"bench: broken off; '{again}' goes on from here") from None
    journal.end()
    return run


def begin(arguments: argparse.Namespace, contenders: list[Contender]) -> Run:
    facts = machine.describe(arguments.python[0])
    return Run(
        title=TITLES[arguments.command],
        command=" ".join(["./run bench", *sys.argv[1:]]),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        baseline=BASELINES.get(arguments.command, BASELINE),
        machine=facts,
        labels={contender.name: contender.label for contender in contenders},
    )


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What decides which samples a run consists of, as JSON gives it back."""
    names = (
        *("cases", "operations", "block_sizes", "depths", "loops", "only", "python", "peers_python"),
        *("rounds", "seconds", "file_size"),
    )
    return {
        name.replace("_", "-"): list(value) if isinstance(value, tuple) else value
        for name in names
        for value in (getattr(arguments, name),)
    } | {"directory": str(arguments.directory)}


def measure_all(
    arguments: argparse.Namespace,
    cells: dict[Case, list[Cell]],
    contenders: list[Contender],
    run: Run,
    journal: Journal,
) -> None:
    done = {(record.round, record.cell, record.contender) for record in run.records}
    total = arguments.rounds * sum(
        contender.why_not(case, cell) is None
        for case, found in cells.items()
        for cell in found
        for contender in contenders
    )
    with steps(total, done=len(done)) as begin_sample:
        for record in measure(
            cells,
            contenders,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            directory=arguments.directory,
            file_size=arguments.file_size,
            known=run.records,
            progress=begin_sample,
        ):
            run.records.append(record)
            journal.add(record)


def choose_contenders(arguments: argparse.Namespace) -> list[Contender]:
    pythons, loops = arguments.python, arguments.loops
    match arguments.command:
        case "memory":
            found = memory_contenders(pythons[0], loops[0])
        case "queues":
            found = queues.queue_contenders(pythons, loops[0])
        case "bars":
            found = [BlkioBench(), *aioblk_contenders(pythons, loops, [AWAIT, BATCH, HALVES, NO_SPIN, SPIN])]
        case "pythons":
            found = [BlkioBench(), *aioblk_contenders(pythons, loops, [AWAIT, BATCH])]
        case "full":
            found = [
                *(BlkioBench(), BlkioBench(poll=True), Fio(), QemuImg()),
                *aioblk_contenders(pythons, loops, [AWAIT, BATCH, BYTES, SPIN]),
                *standard_library(),
                *peer_contenders(arguments.peers_python),
            ]
        case _:
            found = [
                BlkioBench(),
                *aioblk_contenders(pythons, loops, [AWAIT, BATCH]),
                *standard_library(),
            ]
    if arguments.only:
        unknown = set(arguments.only) - {contender.name for contender in found}
        if unknown:
            raise SystemExit(f"bench: no contender is called {', '.join(sorted(unknown))}; --list names them")
        found = [contender for contender in found if contender.name in arguments.only]
    return found


def environments() -> list[str]:
    """The interpreters of all of the project's environments that can run aioblk, that of `./run` first."""
    found = [sys.executable]
    for python in sorted(ROOT.glob(".venv*/bin/python")):
        built = (python.parent.parent / "built").exists()
        if built and python.absolute() != Path(sys.executable).absolute():
            found.append(str(python.absolute()))
    return found


# --- what cannot be measured, with the reason ---------------------------------------------------------------


def is_able(contender: Contender, run: Run) -> bool:
    try:
        contender.check()
    except UnavailableError as reason:
        run.absent[contender.label] = str(reason)
        return False
    return True


def is_there(case: Case, directory: Path, run: Run) -> bool:
    try:
        check_target(case, directory)
    except UnavailableError as reason:
        run.absent[case.title] = str(reason)
        return False
    return True


def note_left_out(cells: dict[Case, list[Cell]], contenders: list[Contender], run: Run) -> None:
    """Say who is not measured where: contenders with the same reason together."""
    where: dict[tuple[str, str], dict[str, None]] = {}
    for case, found in cells.items():
        for cell in found:
            for contender in contenders:
                reason = contender.why_not(case, cell)
                if reason:
                    place = (
                        f"{case.title}, {cell.operation}s" if case.kind == "file" else "vhost-user devices"
                    )
                    where.setdefault((place, reason), {})[contender.label] = None
    for (place, reason), labels in where.items():
        run.absent[f"{place}: {'; '.join(labels)}"] = reason
