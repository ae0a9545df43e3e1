"""The commands and their options."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import fairness, instructions, machine, nbd, pictures, profiling, queues, report, tables
from benchmarks.contenders import (
    BASELINE,
    BlkioBench,
    Contender,
    Fio,
    QemuImg,
    aioblk_contenders,
    standard_library,
)
from benchmarks.memory import memory_contenders
from benchmarks.model import CASES, Case, Cell, Operation, Run, parse_size
from benchmarks.paths import WORK
from benchmarks.peers import peer_contenders
from benchmarks.rounds import measure
from benchmarks.targets import UnavailableError

DESCRIPTION = """\
Measure aioblk beside blkio-bench (libblkio's own benchmark, in C), other tools and other libraries.

  ./run bench           a cached file: aioblk, C, plain os.pread and a thread pool (3 minutes)
  ./run bench full      all devices, and fio, QEMU, other libraries, uvloop (--rounds 1: half an hour)
  ./run bench memory    registered memory, the bounce pool, mapping for each request (2 minutes)
  ./run bench queues    two loops beside one; spinning, poll queues, threads without a loop (3 minutes)
  ./run bench nbd       the example's NBD server beside qemu-nbd and nbdkit (3 minutes)
  ./run bench fairness  how late other tasks get beside it, and how it scales; fails when a limit is exceeded
  ./run bench instructions   instructions per operation by callgrind; fails when aioblk's path got 10 % longer
  ./run bench profile   where a microsecond goes, by function, native and Python; also: ./run profile
  ./run bench report    write RESULTS.md anew from the published runs
"""
EPILOG = """\
Every sample comes from a process of its own. Contenders take turns, round by round, and ratios compare
samples of the same round, so that a machine that is busy for a while slows all of them alike; [a-b] is the
spread over the rounds.

examples:
  ./run bench --depths 1 --operations read --rounds 9          one cell, many rounds
  ./run bench --cases vhost-same-core,vhost-split-cores        another kind of device
  ./run bench --block-sizes 512,4K,64K,1M --depths 1,32        block sizes
  ./run bench --loops asyncio,uvloop --python .venv-3.13/bin/python --python .venv/bin/python
  ./run bench full --only blkio-bench,aioblk-await,turbofile   a few of the contenders
  ./run bench --picture bench.png --json bench.json            keep what came out
"""
DEFAULTS = {
    "run": {
        "cases": "cached-file",
        "depths": "1,8,32,128",
        "block_sizes": "4K",
        "operations": "read,write",
        "loops": "asyncio",
    },
    "full": {
        "cases": ",".join(CASES),
        "depths": "1,8,32,128",
        "block_sizes": "4K",
        "operations": "read,write",
        "loops": "asyncio,uvloop",
    },
    "memory": {
        "cases": "vhost-same-core,vhost-split-cores",
        "depths": "1,8,32",
        "block_sizes": "512,4K",
        "operations": "read",
        "loops": "asyncio",
    },
    "queues": {
        "cases": "cached-file,vhost-same-core,vhost-split-cores",
        "depths": "1,8,32",
        "block_sizes": "4K",
        "operations": "read",
        "loops": "asyncio",
    },
}
TITLES = {
    "run": "aioblk, C and the standard library",
    "full": "Everything: tools in C, aioblk, other libraries",
    "memory": "Registered memory, bounce pool, mapping for each request",
    "queues": "Several queues, several loops, and ways to wait",
}
BASELINES = {"memory": "memory-registered", "queues": queues.BASELINE}
"""What ratios are ratios to, where it is not blkio-bench."""


def main() -> int:
    arguments = parse_arguments()
    console = Console(width=None if sys.stdout.isatty() else 160)
    if arguments.command == "report":
        report.write_page()
        return 0
    try:
        if arguments.command == "fairness":
            kept = fairness.measure(
                console,
                rounds=arguments.rounds,
                seconds=arguments.seconds,
                directory=arguments.directory,
                file_size=parse_size(arguments.file_size),
            )
            return 0 if kept else 1
        if arguments.command == "nbd":
            measured = nbd.measure(
                console,
                rounds=arguments.rounds,
                seconds=arguments.seconds,
                directory=arguments.directory,
                file_size=parse_size(arguments.file_size),
            )
            if arguments.json:
                arguments.json.write_text(json.dumps(measured, default=asdict, indent=1) + "\n")
            return 0
        if arguments.command == "profile":
            profiling.show(console, seconds=arguments.seconds)
            return 0
        if arguments.command == "instructions":
            return 0 if instructions.check(update=arguments.update, console=console) else 1
        run = measure_run(arguments, console)
    except UnavailableError as reason:
        print(f"bench: {reason}", file=sys.stderr)
        return 1
    tables.show(run, console)
    (WORK / f"{arguments.command}.json").write_text(json.dumps(run.to_json()))
    if arguments.json:
        arguments.json.write_text(json.dumps(run.to_json(), indent=1) + "\n")
    if arguments.picture:
        pictures.draw(run, arguments.picture)
    if arguments.publish:
        report.publish(run, arguments.publish)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "./run bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=[*DEFAULTS, "fairness", "instructions", "nbd", "profile", "report"],
        default="run",
        help="default: run",
    )
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="how often everything is measured (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, metavar="S", help="length of one sample (%(default)s)"
    )
    parser.add_argument("--depths", metavar="N,...", help="operations in flight, 1 to 1024")
    parser.add_argument("--block-sizes", metavar="SIZE,...", help="512 to 1M")
    parser.add_argument("--operations", metavar="O,...", help="read, write")
    parser.add_argument("--cases", metavar="C,...", help=", ".join(CASES))
    parser.add_argument("--loops", metavar="L,...", help="asyncio, uvloop")
    parser.add_argument(
        "--only", metavar="NAME,...", help="measure these contenders only (--list names them)"
    )
    parser.add_argument("--list", action="store_true", help="name the contenders of the command and end")
    parser.add_argument(
        "--python", action="append", metavar="PATH", help="an interpreter that has aioblk; may be given again"
    )
    parser.add_argument(
        "--peers-python", metavar="PATH", help="the interpreter for other libraries (the newest there is)"
    )
    parser.add_argument(
        "--file-size", default="256M", metavar="SIZE", help="of the scratch file (%(default)s)"
    )
    parser.add_argument(
        "--directory", type=Path, default=WORK, help="where the scratch file is: on a disk, not in memory"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw it (.png, .svg, .pdf)")
    parser.add_argument(
        "--publish", metavar="NAME", help="keep the run in benchmarks/results and write RESULTS.md anew"
    )
    parser.add_argument(
        "--update", action="store_true", help="make the instructions counted now the new bounds"
    )
    arguments = parser.parse_args()
    for option, value in DEFAULTS.get(arguments.command, {}).items():
        if getattr(arguments, option) is None:
            setattr(arguments, option, value)
    return arguments


def measure_run(arguments: argparse.Namespace, console: Console) -> Run:
    contenders = choose_contenders(arguments)
    if arguments.list:
        for contender in contenders:
            console.print(f"{contender.name:24} {contender.label}")
        raise SystemExit(0)
    cases = [CASES[name] for name in arguments.cases.split(",")]
    run = Run(
        title=TITLES[arguments.command],
        command=" ".join(["./run bench", *sys.argv[1:]]),
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        baseline=BASELINES.get(arguments.command, BASELINE),
        machine=machine.describe(arguments.python[0] if arguments.python else sys.executable),
        labels={contender.name: contender.label for contender in contenders},
    )
    able = [contender for contender in contenders if is_able(contender, run)]

    def cells(case: Case) -> list[Cell]:
        return [
            Cell(case.name, operation, parse_size(block_size), int(depth))
            for operation in operations(arguments.operations)
            for block_size in arguments.block_sizes.split(",")
            for depth in arguments.depths.split(",")
        ]

    total = arguments.rounds * sum(
        contender.takes_part(case, cell) for case in cases for cell in cells(case) for contender in able
    )
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task("", total=total)
        for record in measure(
            cases,
            cells,
            able,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            directory=arguments.directory,
            file_size=parse_size(arguments.file_size),
            progress=lambda text: progress.update(task, description=text),
        ):
            run.records.append(record)
            progress.advance(task)
    return run


def operations(text: str) -> list[Operation]:
    known: tuple[Operation, ...] = ("read", "write")
    return [operation for operation in known if operation in text.split(",")]


def choose_contenders(arguments: argparse.Namespace) -> list[Contender]:
    pythons = arguments.python or [sys.executable]
    loops = arguments.loops.split(",")
    if arguments.command == "memory":
        found = memory_contenders(pythons[0], loops[0])
    elif arguments.command == "queues":
        found = queues.queue_contenders(pythons[0], loops[0])
    else:
        full = arguments.command == "full"
        c_tools: list[Contender] = [BlkioBench(poll=True), Fio(), QemuImg()]
        found = [
            BlkioBench(),
            *(c_tools if full else []),
            *aioblk_contenders(pythons, loops, every_form=full),
            *standard_library(),
            *(peer_contenders(arguments.peers_python) if full else []),
        ]
    if arguments.only:
        wanted = arguments.only.split(",")
        unknown = set(wanted) - {contender.name for contender in found}
        if unknown:
            raise SystemExit(f"bench: no contender is called {', '.join(sorted(unknown))}; --list names them")
        found = [contender for contender in found if contender.name in wanted]
    return found


def is_able(contender: Contender, run: Run) -> bool:
    try:
        contender.check()
    except UnavailableError as reason:
        run.absent[contender.name] = str(reason)
        return False
    return True
