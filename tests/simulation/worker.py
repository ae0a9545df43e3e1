"""A process that plays histories for the search, one after the other; after one that failed it ends.

It reads a line of JSON for each, {"seed": N} or {"history": ...}, and writes one: what came of it. That is
all that happened where it failed, or where "whole" asks for it. Then each event of the user's is a line of
its own before, written as it happens: of a process that dies, nothing else is left. A history hangs that
takes more than "patience" seconds, where that is given.
"""

import ctypes
import faulthandler
import json
import os
import signal
import sys
from dataclasses import asdict
from typing import Any

from .history import History, draw
from .library import preloaded
from .play import Player

__all__ = ["AS_IT_HAPPENS", "command", "environment"]

NO_RANDOM_ADDRESSES = 0x0040000  # ADDR_NO_RANDOMIZE, personality(2)
HUNG = 60  # seconds, of the real clock, that no history takes
AS_IT_HAPPENS = "as it happens"


def command() -> list[str]:
    return [sys.executable, "-m", "tests.simulation.worker"]


def environment() -> dict[str, str]:
    """Nothing that differs from run to run."""
    return preloaded() | {"PYTHONHASHSEED": "0"}


def _fix_addresses() -> None:
    """Memory lies where it lay the last time: the order of addresses decides about some things."""
    libc = ctypes.CDLL(None)
    if not libc.personality(0xFFFFFFFF) & NO_RANDOM_ADDRESSES:
        libc.personality(NO_RANDOM_ADDRESSES)
        os.execv(sys.executable, command())


def main() -> None:
    _fix_addresses()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who searches hears of it, too, and ends this process
    player = Player()
    player.simulator.tell_of_crashes()
    length = int(os.environ.get("SIMULATE_LENGTH", "220"))
    try:
        for line in sys.stdin:
            asked: dict[str, Any] = json.loads(line)
            history = draw(asked["seed"], length) if "seed" in asked else History.from_json(asked["history"])
            player.simulator.patience(asked.get("patience", HUNG))
            outcome = player.play(history, _tell if asked.get("whole") else None)
            player.simulator.patience(0)
            print(
                json.dumps(
                    asdict(outcome)
                    if outcome.kind or asked.get("whole")
                    else _brief(outcome.trace_hash, outcome.counts)
                ),
                flush=True,
            )
            if outcome.kind:
                break
    finally:
        player.close()


def _tell(event: str) -> None:
    print(json.dumps({AS_IT_HAPPENS: event}), flush=True)


def _brief(trace_hash: int, counts: Any) -> dict[str, Any]:
    return {"kind": None, "trace_hash": trace_hash, "counts": counts}


if __name__ == "__main__":
    faulthandler.enable()
    main()
