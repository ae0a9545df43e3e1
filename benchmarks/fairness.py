"""What aioblk leaves to the rest of the program, and the limits it must keep."""

import math
from pathlib import Path

from rich.console import Console

from benchmarks import limits
from benchmarks.limits import Limit
from benchmarks.rounds import ContenderError
from benchmarks.targets import scratch_file
from benchmarks.workers.measuring import Job

LIMITS = {
    "idle_p99_ms": Limit("a 1 ms ticker alone: p99 lateness, ms (the machine's own)", math.inf),
    "ticker_p99_ms": Limit("a 1 ms ticker beside 32 tasks of cached reads: p99 lateness, ms", 2.0),
    "inline_p99_ms": Limit("a 1 ms ticker beside one task that never has to wait: p99 lateness, ms", 2.0),
    "stall_p99_ms": Limit("64 reads of 1 MiB in flight: p99 stall of the loop, ms", 3.0),
    "stall_ms": Limit("64 reads of 1 MiB in flight: longest stall of the loop, ms", 3.0),
    "scale": Limit("processor time of a read in one of 100,000 tasks, to that in one of 32", 1.5),
    "bytes_in_flight": Limit("memory of one request in flight, bytes", 400.0),
}


def measure(console: Console, *, rounds: int, seconds: float, directory: Path, file_size: int) -> bool:
    """Print the figures; True when all medians keep their limits."""
    job = Job(
        path=str(scratch_file(directory, file_size)),
        kind="file",
        capacity=file_size,
        operation="read",
        block_size=4096,
        depth=1,
        seconds=seconds,
    )
    try:
        samples = limits.run_rounds("aioblk_fairness", job, rounds, "fairness")
    except ContenderError as error:
        console.print(f"aioblk {error}", highlight=False, markup=False)
        return False
    return limits.show(console, LIMITS, samples)
