"""Ways to write to a file, and what a block costs in each: through the page cache, past it, durably."""

import statistics
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks import limits
from benchmarks.rounds import ContenderError
from benchmarks.targets import scratch_file
from benchmarks.workers.measuring import Job

WAYS = {
    "one": "await write(), one after the other",
    "many": "32 write() at a time",
    "batch": "write_many() of 32 adjacent blocks",
    "vector": "writev() of 32 adjacent blocks",
    "each_durable": "32 adjacent write(fua=True) at a time",
    "group": "writev() of 32 adjacent blocks and one flush()",
}
KINDS = ("buffered", "direct")


def measure(console: Console, *, rounds: int, seconds: float, directory: Path, file_size: int) -> bool:
    """Print what a block takes in each way, and how that compares with `os.pwrite` in the same round."""
    job = Job(str(scratch_file(directory, file_size)), "file", file_size, "write", 4096, 32, seconds / 2)
    try:
        samples = limits.run_rounds("aioblk_writes", job, rounds, "ways to write")
    except ContenderError as error:
        console.print(f"aioblk {error}", highlight=False, markup=False)
        return False
    table = Table(
        "microseconds for each block of 4 KiB; x os.pwrite", *KINDS, box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_row("os.pwrite(), one after the other", figure(samples, "pwrite"), "")
    for way, words in WAYS.items():
        table.add_row(words, *(figure(samples, f"{kind}_{way}") for kind in KINDS))
    console.print(table)
    return True


def figure(samples: list[dict[str, float]], name: str) -> str:
    median = statistics.median(sample[name] for sample in samples)
    ratio = statistics.median(sample[name] / sample["pwrite"] for sample in samples)
    return f"{median:.1f}  {ratio:.2f}"
