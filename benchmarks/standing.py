"""aioblk beside the other libraries for Python: who is ahead of whom, cell by cell."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.model import CASES, Cell, Run, describe_cell, kind_of
from benchmarks.summary import Spread, ratio, samples_by_round

AWAIT, BATCH = "aioblk-await", "aioblk-batch"
COUNTERPARTS = {"liburing": BATCH}
"""What is compared with a library that does a whole batch with one call. The others: one await each."""
LARGE = 64 << 10
"""Block size from which on the copying of the data counts most."""


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
                leads.append(
                    Lead(
                        cell,
                        peer,
                        value,
                        batch=ratio(theirs, batch) if batch else None,
                        cpu=cpu.median if cpu else None,
                    )
                )
    return Standing(compared, leads)


NOT_EXPLAINED = "not explained"
WRITES_BY_ITSELF = {"executor", "caio-linux", "caio-thread", "caio-python", "aiofiles"}
"""Those whose buffered writes are plain system calls, in threads of theirs or in the loop's."""


def explain(lead: Lead) -> str:
    """Why the other one is ahead, as far as the suite can tell; docs/performance.md says it at length."""
    case, cell = CASES[lead.cell.case], lead.cell
    if lead.value.low < 1:
        return "not in every round"
    if case.direct:
        return NOT_EXPLAINED
    if lead.peer == "pread":
        return "system calls one by one: no event loop, no concurrency"
    if cell.operation == "write" and lead.peer in WRITES_BY_ITSELF:
        return "buffered writes as plain system calls, not by io_uring"
    if lead.cell.block_size >= LARGE and lead.cpu and lead.cpu > 1:
        return "copies in several threads, and takes more processor time"
    return NOT_EXPLAINED


LEAD_HEAD = [
    "who",
    "where",
    "throughput, to aioblk's",
    "to aioblk's batch",
    "processor time, to aioblk's",
    "why",
]


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
