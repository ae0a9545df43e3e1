"""aioblk beside the other libraries for Python: who is ahead of whom, cell by cell."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.model import CASES, Cell, Run, Sample, describe_cell, kind_of
from benchmarks.summary import Spread, ratio, samples_by_round

AWAIT, BATCH = "aioblk-await", "aioblk-batch"
COUNTERPARTS = {"liburing": BATCH}
"""What is compared with a library that does a whole batch with one call. The others: one await each."""
NO_LOOP = {"pread", "liburing"}
"""Those that wait in a system call."""
WRITES_BY_ITSELF = {"executor", "caio-linux", "caio-thread", "caio-python", "aiofiles"}
"""Those whose buffered writes are plain system calls, in threads of theirs or in the loop's."""
NOT_EXPLAINED = "not explained"


@dataclass(frozen=True)
class Lead:
    """Another library that is ahead in a cell."""

    cell: Cell
    peer: str
    value: Spread
    """Its throughput to aioblk's."""
    batch: Spread | None
    """The same to aioblk's batch form."""
    cpu: float | None
    """Its processor time for an operation to aioblk's."""
    in_flight: float | None
    """How many of its operations were under way at a time, by its throughput and its latency."""


@dataclass(frozen=True)
class Standing:
    compared: int
    """Cells times other libraries."""
    leads: list[Lead]


def standing(run: Run) -> Standing:
    samples = samples_by_round(run)
    peers = [name for name, label in run.labels.items() if kind_of(name, label) == "peer"]
    compared, leads = 0, list[Lead]()
    for cell in dict.fromkeys(cell for cell, _ in samples):
        for peer in peers:
            theirs, ours = samples.get((cell, peer)), samples.get((cell, COUNTERPARTS.get(peer, AWAIT)))
            value = ratio(theirs, ours) if theirs and ours else None
            if not theirs or not ours or not value:
                continue
            compared += 1
            if value.median > 1:
                batch = samples.get((cell, BATCH))
                cpu = ratio(theirs, ours, lambda sample: sample.cpu, lambda sample: sample.cpu)
                under_way = Spread.of(in_flight(sample) for sample in theirs.values())
                leads.append(
                    Lead(
                        cell,
                        peer,
                        value,
                        batch=ratio(theirs, batch) if batch else None,
                        cpu=cpu.median if cpu else None,
                        in_flight=under_way.median if under_way else None,
                    )
                )
    return Standing(compared, leads)


def in_flight(sample: Sample) -> float | None:
    return sample.p50 and sample.rate * sample.p50 / 1e6


def explain(lead: Lead) -> str:
    """Why the other one is ahead, as far as the figures tell; docs/performance.md says it at length."""
    cell = lead.cell
    if lead.value.low < 1:
        return "not in every round"
    if lead.peer in NO_LOOP:
        return "waits in a system call, without an event loop"
    if cell.depth >= 8 and lead.in_flight and lead.in_flight < 2:
        return "one at a time, inside the call: the loop stands still"
    if cell.operation == "write" and not CASES[cell.case].direct and lead.peer in WRITES_BY_ITSELF:
        return "buffered writes as plain system calls, not by io_uring"
    if lead.cpu and lead.cpu > 1.3:
        return "works in several threads, at more processor time"
    return NOT_EXPLAINED


LEAD_HEAD = ["who", "where", "throughput: its to aioblk's", "to the batch's", "processor time", "why"]


def describe(lead: Lead, run: Run) -> list[str]:
    """The row of a table, as LEAD_HEAD names it."""
    return [
        run.labels[lead.peer],
        describe_cell(lead.cell),
        f"{lead.value.median:.2f} [{lead.value.low:.2f}-{lead.value.high:.2f}]",
        f"{lead.batch.median:.2f}" if lead.batch else "-",
        f"{lead.cpu:.2f}" if lead.cpu else "-",
        explain(lead),
    ]
