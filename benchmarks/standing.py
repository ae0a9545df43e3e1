"""aioblk beside the other libraries for Python: who is ahead of whom, cell by cell."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.model import CASES, Cell, Run, Sample, describe_cell, kind_of
from benchmarks.summary import Spread, ratio, samples_by_round

AWAIT, BATCH = "aioblk-await", "aioblk-batch"
COUNTERPARTS = {"liburing": BATCH}
"""What is compared with a library that does a whole batch with one call. The others: one await each."""
NO_LOOP = {"pread", "liburing"}
"""Those that wait in a system call."""
READS_BY_ITSELF = {"turbofile", "turbofile-into", "asyncfiles"}
"""Those that try a plain system call which must not wait before they use io_uring."""
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
    processors: float | None
    """How many it kept busy, by its throughput and its processor time for an operation."""
    to_baseline: float | None
    """Its throughput to that of the tool in C."""


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
                in_c = samples.get((cell, run.baseline))
                to_baseline = ratio(theirs, in_c) if in_c else None
                leads.append(
                    Lead(
                        cell,
                        peer,
                        value,
                        batch=ratio(theirs, batch) if batch else None,
                        cpu=cpu.median if cpu else None,
                        in_flight=median(map(in_flight, theirs.values())),
                        processors=median(map(processors, theirs.values())),
                        to_baseline=to_baseline.median if to_baseline else None,
                    )
                )
    return Standing(compared, leads)


def median(values: Iterable[float | None]) -> float | None:
    spread = Spread.of(values)
    return spread.median if spread else None


def in_flight(sample: Sample) -> float | None:
    return sample.p50 and sample.rate * sample.p50 / 1e6


def processors(sample: Sample) -> float | None:
    return sample.cpu and sample.rate * sample.cpu / 1e6


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
    if cell.operation == "read" and not CASES[cell.case].direct and lead.peer in READS_BY_ITSELF:
        return "a plain system call inside the call: the loop stands still"
    if lead.processors and lead.processors > 1.2:
        return "works on more than one processor"
    if lead.to_baseline and lead.to_baseline > 1:
        return "ahead of libblkio's own benchmark in C as well"
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
