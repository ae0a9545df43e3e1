"""Contenders that differ in how many queues of a device they use, from where, and how they wait."""

from functools import partial

from benchmarks.contenders import Contender, PythonWorker
from benchmarks.machine import python_build

BASELINE = "queue-one"
SPIN = "queue-spin"


def queue_contenders(python: str, loop: str) -> list[Contender]:
    """The first is what the others are compared with: a loop and its queue, without spinning.

    Two loops are measured on files only: a vhost-user export has one client, which the cases pin to one
    processor.
    """
    worker = partial(PythonWorker, python=python, loop=loop)
    poll = partial(worker, options=("poll",), vhost_only=True)
    build = python_build(python)
    return [
        worker(BASELINE, "a loop with a queue", "aioblk_queue", options=("queue",)),
        worker(SPIN, "a loop with a queue, spin = 100 us", "aioblk_queue", options=("spin",)),
        poll("queue-poll", "a loop with a poll queue", "aioblk_queue"),
        worker("queue-blocking", "no loop, batches on a queue", "aioblk_blocking", options=("queue",)),
        poll("queue-blocking-poll", "no loop, batches on a poll queue", "aioblk_blocking"),
        worker("queue-threads", f"two loops in two threads ({build})", "aioblk_threads", files_only=True),
        worker(
            "queue-processes", f"two loops in two processes ({build})", "aioblk_processes", files_only=True
        ),
    ]
