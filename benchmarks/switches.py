"""What a queue does by itself must pay, or cost nothing: on and off, in turn, in one process."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks import limits
from benchmarks.gain import LEAST, Gain
from benchmarks.model import CASES
from benchmarks.rounds import ContenderError
from benchmarks.targets import UnavailableError, open_target
from benchmarks.workers.measuring import Job

SWITCHES = {
    "rounds": "rounds: a turn goes on with what it has brought about",
    "spins_by_itself": "spinning by itself: looking again instead of sleeping",
}
WHERE = ("vhost-split-cores", "vhost-same-core", "cached-file")
DEPTHS = (1, 2, 8, 32, 128)


def measure(console: Console, *, rounds: int, seconds: float, directory: Path, file_size: int) -> bool:
    """Print the gains, `rounds` times `seconds` for each; True when nothing costs."""
    gains: dict[tuple[str, str, int], Gain] = {}
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task("", total=len(SWITCHES) * len(WHERE) * len(DEPTHS))
        try:
            for place in WHERE:
                case = CASES[place]
                with open_target(case, directory, file_size) as target:
                    for depth in DEPTHS:
                        for switch in SWITCHES:
                            progress.update(task, description=f"{case.title}, depth {depth}: {switch}")
                            job = Job(
                                path=str(target.path),
                                kind=case.kind,
                                capacity=target.capacity,
                                operation="read",
                                block_size=4096,
                                depth=depth,
                                seconds=rounds * seconds,
                                options=(switch,),
                            )
                            measured = limits.run_worker("aioblk_switches", job, case.client_cpu)
                            gains[switch, place, depth] = Gain.of(measured["ratios"])
                            progress.advance(task)
        except (ContenderError, UnavailableError) as error:
            console.print(f"{error}", highlight=False, markup=False)
            return False
    show(console, gains)
    return all(gain.kept for gain in gains.values())


def show(console: Console, gains: dict[tuple[str, str, int], Gain]) -> None:
    for switch, words in SWITCHES.items():
        table = Table(
            words, *(f"depth {depth}" for depth in DEPTHS), title="", box=SIMPLE_HEAD, pad_edge=False
        )
        for place in WHERE:
            table.add_row(CASES[place].title, *(str(gains[switch, place, depth]) for depth in DEPTHS))
        console.print(table)
    pairs = sorted(gain.pairs for gain in gains.values())
    console.print(
        f"Throughput with it to without, reads of 4 KiB: the median of {pairs[0]} to {pairs[-1]} pairs, "
        f"and where it lies at 95 %. It costs where that is below {LEAST}.",
        highlight=False,
        soft_wrap=True,
    )
