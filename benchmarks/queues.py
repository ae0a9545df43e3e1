"""Contenders that differ in how many queues of a device they use, from where, and how they wait."""

from collections.abc import Iterator, Sequence
from functools import partial

from benchmarks.contenders import Contender, PythonWorker
from benchmarks.machine import python_build
from benchmarks.model import Run, describe_cell
from benchmarks.summary import ratio, samples_by_round

BASELINE = "queue-one"
SPIN = "queue-spin"


THREADS = "queue-threads"


def queue_contenders(pythons: Sequence[str], loop: str) -> list[Contender]:
    """The first is what the others are compared with: a loop and its queue, without spinning.

    Two loops are measured on files only: a vhost-user export has one client, which the cases pin to one
    processor. Of each further interpreter one loop and two threads take part, to be compared with each other.
    """
    return [
        *_all_ways(pythons[0], loop),
        *(each for python in pythons[1:] for each in _one_and_two(python, loop)),
    ]


def two_beside_one(run: Run) -> Iterator[str]:
    """What two loops in two threads do together, as a multiple of one loop of the same interpreter."""
    samples = samples_by_round(run)
    for cell in dict.fromkeys(record.cell for record in run.records):
        found = {
            label.rpartition("(")[2].rstrip(")"): ratio(samples[cell, name], samples[cell, one])
            for name, label in run.labels.items()
            if name.startswith(THREADS)
            and (cell, name) in samples
            and (cell, one := name.replace(THREADS, BASELINE)) in samples
        }
        texts = [f"{build} {spread.median:.2f}" for build, spread in found.items() if spread]
        if texts:
            yield f"Two loops in two threads beside one, {describe_cell(cell)}: {'; '.join(texts)}."


def _one_and_two(python: str, loop: str) -> list[Contender]:
    build = python_build(python)
    worker = partial(PythonWorker, python=python, loop=loop, files_only=True)
    name = build.replace(", ", "-").replace(" ", "-").lower()
    return [
        worker(f"{BASELINE}-{name}", f"a loop with a queue ({build})", "aioblk_queue", options=("queue",)),
        worker(f"{THREADS}-{name}", f"two loops in two threads ({build})", "aioblk_threads"),
    ]


def _all_ways(python: str, loop: str) -> list[Contender]:
    worker = partial(PythonWorker, python=python, loop=loop)
    poll = partial(worker, options=("poll",), vhost_only=True)
    build = python_build(python)
    return [
        worker(BASELINE, "a loop with a queue, spin = 0", "aioblk_queue", options=("no-spin",)),
        worker(
            "queue-auto",
            "a loop with a queue that spins as it thinks best",
            "aioblk_queue",
            options=("queue",),
        ),
        worker(SPIN, "a loop with a queue, spin = 100 us", "aioblk_queue", options=("spin",)),
        poll("queue-poll", "a loop with a poll queue", "aioblk_queue"),
        worker("queue-blocking", "no loop, batches on a queue", "aioblk_blocking", options=("queue",)),
        poll("queue-blocking-poll", "no loop, batches on a poll queue", "aioblk_blocking"),
        worker(THREADS, f"two loops in two threads ({build})", "aioblk_threads", files_only=True),
        worker(
            "queue-processes", f"two loops in two processes ({build})", "aioblk_processes", files_only=True
        ),
    ]
