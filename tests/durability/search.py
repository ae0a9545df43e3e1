"""Random workloads, one after the other: whether a power failure at any moment leaves what was promised.

python -m tests.durability.search [--workloads 1000]    a search
python -m tests.durability.search --seed 17             one again; of the odd ones, the daemon is killed
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import aioblk

from .daemon import LoggedDaemon
from .records import lost_records
from .workload import SIZE, Workload, lost

__all__ = ["Search", "main", "play", "play_records"]

WORST = 5  # seeds with findings, after which a search ends
EACH_RECORDS = 10  # every so many-eth seed has the log store as well
RECONNECT_FOR = 60.0
LIMIT = 120.0  # seconds for one, on a busy machine


@dataclass
class Search:
    counts: Counter[str] = field(default_factory=Counter[str])
    findings: dict[int, list[str]] = field(default_factory=dict[int, list[str]])

    def note(self, seed: int, found: list[str], **counts: int) -> None:
        self.counts.update({"workloads": 1, **counts})
        if found:
            self.findings[seed] = found
            print(f"--- --seed {seed}: {len(found)} lost\n    " + "\n    ".join(found[:WORST]), flush=True)

    def report(self) -> str:
        words = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.counts.items())
        return f"{words}; findings: {', '.join(map(str, self.findings)) or 'none'}"


def open_device(daemon: LoggedDaemon) -> AbstractAsyncContextManager[aioblk.VirtioBlkVhostUser]:
    return aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=RECONNECT_FOR)


def as_it_is(device: aioblk.BlockDevice) -> aioblk.BlockDevice:
    return device


Over = Callable[[aioblk.BlockDevice], aioblk.BlockDevice]


async def play(seed: int, search: Search, *, over: Over = as_it_is) -> None:
    """A workload, whose daemon is killed now and then if the seed is odd."""
    with (
        tempfile.TemporaryDirectory(prefix="aioblk-") as directory,
        LoggedDaemon(Path(directory), SIZE) as daemon,
    ):
        found: list[str] = []
        async with open_device(daemon) as device:
            workload = Workload(seed, over(device), daemon, kill=daemon.restart if seed % 2 else None)
            try:
                async with asyncio.timeout(LIMIT):
                    await workload.run()
            except TimeoutError:
                found = [f"hangs: {device!r}, reconnecting: {device.reconnecting}, {device.statistics()}"]
                device.abandon("it hangs")
            back = device.reconnections
        found += [str(each) for each in lost(workload, daemon)]
        entries = len(daemon.logged())
    search.note(seed, found, prefixes=entries, promises=len(workload.promises), reconnections=back)


async def play_records(seed: int, search: Search) -> None:
    """The log store of the examples."""
    with (
        tempfile.TemporaryDirectory(prefix="aioblk-") as directory,
        LoggedDaemon(Path(directory), SIZE) as daemon,
    ):
        async with open_device(daemon) as device, asyncio.timeout(LIMIT):
            found, states, records = await lost_records(seed, device, daemon)
    search.note(seed, found, records=records, opened_again=states)


def main() -> int:
    parser = argparse.ArgumentParser("./run campaign durability", description="Try one seed after the other.")
    parser.add_argument("--workloads", type=int, default=1000)
    parser.add_argument("--seed", type=int, help="the first one, and without --workloads the only one")
    chosen = parser.parse_args()
    seed = random.randrange(1 << 30) if chosen.seed is None else chosen.seed
    count = 1 if chosen.seed is not None and "--workloads" not in sys.argv else chosen.workloads
    print(f"from seed {seed} on", flush=True)
    search, start = Search(), time.monotonic()
    for number in range(seed, seed + count):
        asyncio.run(play(number, search))
        if number % EACH_RECORDS == 0:
            asyncio.run(play_records(number, search))
        if len(search.findings) >= WORST:
            break
    print(f"{search.report()}; {time.monotonic() - start:.0f} s")
    return int(bool(search.findings))


if __name__ == "__main__":
    sys.exit(main())
