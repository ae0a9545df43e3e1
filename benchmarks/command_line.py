"""The commands and their options."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from benchmarks import (
    conduct,
    copies,
    engines,
    export,
    fairness,
    instructions,
    layers,
    nbd,
    nbd_hostile,
    nbd_tls,
    occasional,
    pictures,
    profiling,
    report,
    switches,
    tables,
    writes,
)
from benchmarks.model import CASES, Operation, Run, parse_size
from benchmarks.paths import RESULTS, WORK
from benchmarks.plan import PLANS
from benchmarks.sheets import Sheet
from benchmarks.targets import UnavailableError

DESCRIPTION = """\
Measure aioblk beside blkio-bench (libblkio's own benchmark, in C), other tools and other libraries.

  ./run bench           a cached file: aioblk, C, plain os.pread and a thread pool (3 minutes)
  ./run bench bars      what aioblk must reach, each line met or not (3 minutes)
  ./run bench full      all devices; fio, QEMU, other libraries, uvloop; block sizes, depths (20 minutes)
  ./run bench pythons   aioblk on the interpreters of all environments beside the project (2 minutes)
  ./run bench memory    registered memory, the bounce pool, mapping for each request; what registering memory
                        and opening a file take, which fails when a limit is exceeded (2 minutes)
  ./run bench queues    two loops beside one; spinning, poll queues, threads without a loop (3 minutes)
  ./run bench nbd       our NBD server beside qemu-nbd and nbdkit (3 minutes)
  ./run bench export    our vhost-user export beside qemu-storage-daemon's (2 minutes)
  ./run bench nbd-hostile    a client's p99 beside hostile ones; fails when it is 10 times as long as alone
  ./run bench nbd-tls   within TLS: the server beside those; the client beside nbdcopy, qemu-img (1 minute)
  ./run bench copy      aioblk copy beside nbdcopy, qemu-img and cp (2 minutes; --file-size 1024M)
  ./run bench engines   a file, and an image of a Ceph cluster, by way of each engine (2 minutes)
  ./run bench switches  what a queue does by itself, on and off in turn: it must not cost (5 minutes)
  ./run bench layers    what layers cost that only pass on; fails when that is more than 10 % (2 minutes)
  ./run bench writes    ways to write to a file, through the page cache, past it, and durably (1 minute)
  ./run bench fairness  how late other tasks get beside it, and how it scales; fails when a limit is exceeded
  ./run bench instructions   instructions per operation by callgrind; fails when aioblk's path got 10 %
                        longer, or measuring costs more than 2 %; on a machine that does nothing else
  ./run bench profile   where a microsecond goes, by function, native and Python; also: ./run profile
  ./run bench report    write RESULTS.md, and what other pages quote, from the published runs
"""
EPILOG = """\
Every sample comes from a process of its own. Contenders take turns, round by round, and ratios compare
samples of the same round, so that a machine that is busy for a while slows all of them alike; [a-b] is the
spread over the rounds. What is measured is kept at once: a run that was broken off goes on with --resume.

Without --operations, --block-sizes and --depths, a chosen few of their combinations are measured; with one of
them, all combinations with what is usual for the others.

examples:
  ./run bench --depths 1 --operations read --rounds 9          one cell, many rounds
  ./run bench --cases vhost-same-core,vhost-split-cores        another kind of device
  ./run bench --block-sizes 512,4K,64K,1M --depths 1,32        block sizes
  ./run bench --loops asyncio,uvloop --python .venv-3.13/bin/python --python .venv/bin/python
  ./run bench full --only blkio-bench,aioblk-await,turbofile   a few of the contenders
  ./run bench --picture bench.png --json bench.json            keep what came out
"""
SECONDS = {"full": 0.25, "bars": 0.5}
"""Length of a sample where it is not a second."""
LOOPS = {"full": ("asyncio", "uvloop"), "pythons": ("asyncio", "uvloop")}
T = TypeVar("T")
N = TypeVar("N", int, float)


def main() -> int:
    arguments = parse_arguments()
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        match arguments.command:
            case command if arguments.list and command not in PLANS:
                raise UnavailableError(f"{command} compares no contenders, so it has none to name")
            case "report":
                report.write_pages()
            case "fairness":
                return 0 if fairness.measure(console, **common(arguments)) else 1
            case "layers":
                return 0 if layers.measure(console, **common(arguments)) else 1
            case "switches":
                return 0 if switches.measure(console, **common(arguments)) else 1
            case "writes":
                return 0 if writes.measure(console, **common(arguments)) else 1
            case "nbd":
                hand_out_sheet(*nbd.measure(console, **common(arguments)), arguments)
            case "export":
                hand_out_sheet(*export.measure(console, **common(arguments)), arguments)
            case "nbd-hostile":
                return 0 if nbd_hostile.measure(console, **common(arguments)) else 1
            case "nbd-tls":
                hand_out_sheet(*nbd_tls.measure(console, **common(arguments)), arguments)
            case "copy":
                hand_out_sheet(*copies.measure(console, **common(arguments)), arguments)
            case "engines":
                hand_out_sheet(*engines.measure(console, **common(arguments)), arguments)
            case "profile":
                profiling.show(console, seconds=arguments.seconds)
            case "instructions":
                return 0 if instructions.check(update=arguments.update, console=console) else 1
            case _ if arguments.list:
                for contender in conduct.choose_contenders(arguments):
                    console.print(f"{contender.name:24} {contender.label}", highlight=False)
            case _:
                hand_out(conduct.conduct(arguments), arguments, console)
                if arguments.command == "memory":
                    return 0 if occasional.measure(console, **common(arguments)) else 1
    except UnavailableError as reason:
        print(f"bench: {reason}", file=sys.stderr)
        return 1
    return 0


def common(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in ("rounds", "seconds", "directory", "file_size")}


def hand_out(run: Run, arguments: argparse.Namespace, console: Console) -> None:
    """Show a run, and keep it where the arguments say."""
    tables.show(run, console)
    (WORK / f"{arguments.command}.json").write_text(json.dumps(run.to_json()))
    if arguments.json:
        arguments.json.write_text(json.dumps(run.to_json(), indent=1) + "\n")
    if arguments.picture:
        pictures.draw(run, arguments.picture)
    if arguments.publish:
        report.publish(run, arguments.publish)


def hand_out_sheet(sheet: Sheet, samples: object, arguments: argparse.Namespace) -> None:
    if arguments.json:
        arguments.json.write_text(json.dumps(samples, default=asdict, indent=1) + "\n")
    if arguments.publish:
        sheet.publish(arguments.publish)
        report.write_pages()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "./run bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    commands = [
        *PLANS,
        "copy",
        "engines",
        "export",
        "fairness",
        "instructions",
        "layers",
        "nbd",
        "nbd-hostile",
        "nbd-tls",
        "profile",
        "report",
        "switches",
        "writes",
    ]
    option("command", nargs="?", choices=commands, default="run", help="default: run")
    option(
        "--rounds",
        type=ROUNDS,
        default=3,
        metavar="N",
        help="how often everything is measured (%(default)s)",
    )
    option(
        "--seconds",
        type=SAMPLE_SECONDS,
        metavar="S",
        help="length of one sample (1; full: 0.25, bars: 0.5)",
    )
    option("--cases", type=words, metavar="C,...", help=", ".join(CASES))
    option("--operations", type=operations, metavar="O,...", help="read, write")
    option("--block-sizes", type=BLOCK_SIZES, metavar="SIZE,...", help="512 to 1M")
    option("--depths", type=DEPTHS, metavar="N,...", help="operations in flight, 1 to 1024")
    option("--loops", type=words, metavar="L,...", help="asyncio, uvloop")
    option("--only", type=words, metavar="NAME,...", help="measure these contenders only (--list names them)")
    option("--list", action="store_true", help="name the contenders of the command and end")
    option(
        "--python", action="append", metavar="PATH", help="an interpreter that has aioblk; may be repeated"
    )
    option("--peers-python", metavar="PATH", help="the interpreter for other libraries (the newest there is)")
    option(
        "--file-size",
        type=parse_size,
        default="256M",
        metavar="SIZE",
        help="of the scratch file (%(default)s)",
    )
    option("--directory", type=Path, default=WORK, help="where the scratch file is: on a disk, not in memory")
    option("--resume", action="store_true", help="go on with the run of this command that was broken off")
    option("--json", type=Path, metavar="FILE", help="write everything that was measured")
    option("--picture", type=Path, metavar="FILE", help="draw it (.png, .svg, .pdf)")
    option("--publish", metavar="NAME", help=f"keep it in benchmarks/{RESULTS.name}, write RESULTS.md anew")
    option("--update", action="store_true", help="make the instructions counted now the new bounds")
    arguments = parser.parse_args()
    unknown = set(arguments.cases or ()) - set(CASES)
    if unknown:
        parser.error(f"no case is called {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    arguments.seconds = arguments.seconds or SECONDS.get(arguments.command, 1.0)
    arguments.loops = arguments.loops or LOOPS.get(arguments.command, ("asyncio",))
    if not arguments.python:
        arguments.python = conduct.environments() if arguments.command == "pythons" else [sys.executable]
    return arguments


# --- lists, as an option takes them: a,b,c ------------------------------------------------------------------


def within(read: Callable[[str], N], low: N, high: N) -> Callable[[str], N]:
    def read_number(text: str) -> N:
        try:
            number = read(text)
        except (ValueError, KeyError):
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return number

    return read_number


def listed(read: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    def read_list(text: str) -> tuple[T, ...]:
        return tuple(read(word) for word in text.split(","))

    return read_list


words = listed(str)
ROUNDS = within(int, 1, 1000)
SAMPLE_SECONDS = within(float, 0.01, 3600)
BLOCK_SIZES = listed(within(parse_size, 512, 1 << 20))
DEPTHS = listed(within(int, 1, 1024))


def operations(text: str) -> tuple[Operation, ...]:
    known: tuple[Operation, ...] = ("read", "write")
    unknown = set(text.split(",")) - set(known)
    if unknown:
        raise argparse.ArgumentTypeError(f"no operation is called {', '.join(sorted(unknown))}")
    return tuple(operation for operation in known if operation in text.split(","))
