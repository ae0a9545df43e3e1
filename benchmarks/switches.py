"""What a queue does by itself must pay, or cost nothing: on and off, in turn, in one process."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks import limits
from benchmarks.model import CASES, Case
from benchmarks.progress import steps
from benchmarks.rounds import ContenderError
from benchmarks.summary import Interval
from benchmarks.targets import Target, UnavailableError, open_target
from benchmarks.workers.measuring import Job


class Switch(NamedTuple):
    """A member of QueueCore, and in which form requests are made meanwhile."""

    member: str
    form: str
    words: str
    is_tried: bool
    """The queue tries by itself whether it pays: where it does not, it is off, and costs nothing."""


SWITCHES = (
    Switch("rounds", "await", "rounds, one await each", is_tried=False),
    Switch("spins_by_itself", "await", "spinning by itself, one await each", is_tried=False),
    Switch("kicks", "no-spin", "kicks, one await each, spin = 0 (tried)", is_tried=True),
    Switch("kicks", "batch", "kicks, one await for the batch (tried)", is_tried=True),
    Switch("kicks", "blocking", "kicks, a thread without a loop (tried)", is_tried=True),
)
WHERE = ("vhost-split-cores", "vhost-same-core", "cached-file")
DEPTHS = (1, 2, 8, 32, 128)
LEAST = 0.98
"""Of the throughput without it: so much the upper end of the interval must reach, unless it is tried."""

Gains = dict[tuple[Switch, str, int], Interval]


def costs(switch: Switch, gain: Interval) -> bool:
    return not switch.is_tried and gain.high < LEAST


def measure(console: Console, *, rounds: int, seconds: float, directory: Path, file_size: int) -> bool:
    """Print the gains, from `rounds` times `seconds` for each; True when nothing costs."""
    gains: Gains = {}
    with steps(len(SWITCHES) * len(WHERE) * len(DEPTHS)) as begin:
        try:
            for place in WHERE:
                with open_target(CASES[place], directory, file_size) as target:
                    for depth, switch in itertools.product(DEPTHS, SWITCHES):
                        begin(f"{target.case.title}, {depth}: {switch.words}")
                        gains[switch, place, depth] = gain_of(switch, target, depth, rounds * seconds)
        except (ContenderError, UnavailableError) as error:
            console.print(f"{error}", highlight=False, markup=False)
            return False
    show(console, gains)
    return not any(costs(switch, gain) for (switch, _, _), gain in gains.items())


def gain_of(switch: Switch, target: Target, depth: int, seconds: float) -> Interval:
    case: Case = target.case
    options = (switch.member, switch.form)
    job = Job(str(target.path), case.kind, target.capacity, "read", 4096, depth, seconds, options=options)
    return Interval.of(limits.run_worker("aioblk_switches", job, case.client_cpu)["ratios"])


def show(console: Console, gains: Gains) -> None:
    for switch in SWITCHES:
        table = Table(switch.words, *(f"depth {depth}" for depth in DEPTHS), box=SIMPLE_HEAD, pad_edge=False)
        for place in WHERE:
            found = [gains[switch, place, depth] for depth in DEPTHS]
            table.add_row(CASES[place].title, *(f"{gain}{' COSTS' * costs(switch, gain)}" for gain in found))
        console.print(table)
    pairs = sorted(gain.count for gain in gains.values())
    console.print(
        f"Throughput with it to without, reads of 4 KiB: the median of {pairs[0]} to {pairs[-1]} pairs, and "
        f"where it lies at 95 %. It costs where that is below {LEAST}; of what is tried, a queue does what "
        "pays.",
        highlight=False,
        soft_wrap=True,
    )
