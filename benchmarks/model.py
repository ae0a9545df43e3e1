"""What is measured, and what comes out. Everything here goes to JSON and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Operation = Literal["read", "write"]


@dataclass(frozen=True)
class Case:
    """A kind of device, and where the processes run.

    `client_cpu` and `daemon_cpu` pin the two sides of a vhost-user case; None leaves it to the scheduler.
    """

    name: str
    title: str
    kind: Literal["file", "vhost-user"]
    direct: bool = False
    client_cpu: int | None = None
    daemon_cpu: int | None = None


CASES = {
    case.name: case
    for case in (
        Case("cached-file", "cached file", "file"),
        Case("direct-file", "file with O_DIRECT", "file", direct=True),
        Case("vhost-same-core", "vhost-user null device, one core", "vhost-user", client_cpu=0, daemon_cpu=0),
        Case(
            "vhost-split-cores", "vhost-user null device, two cores", "vhost-user", client_cpu=0, daemon_cpu=1
        ),
    )
}


@dataclass(frozen=True)
class Cell:
    """One place in the tables: every contender is measured in it once a round. Block size in bytes."""

    case: str
    operation: Operation
    block_size: int
    depth: int


@dataclass(frozen=True)
class Sample:
    """What one process measured. Latencies and CPU time in microseconds, None where a tool does not tell."""

    rate: float
    """Operations a second."""
    mean: float | None = None
    p50: float | None = None
    p99: float | None = None
    p999: float | None = None
    cpu: float | None = None
    """User and system time of the process for one operation."""
    foreign_load: float | None = None
    """Processors kept busy meanwhile by all but the process: a vhost-user daemon, kernel threads, others."""


@dataclass(frozen=True)
class Record:
    """A contender's sample in one cell and round, or why there is none."""

    contender: str
    cell: Cell
    round: int
    sample: Sample | None = None
    failure: str | None = None


@dataclass
class Run:
    """All that one command measured, with what is needed to judge and to repeat it."""

    title: str
    command: str
    date: str
    baseline: str
    """The contender that every ratio is a ratio to."""
    machine: dict[str, str]
    labels: dict[str, str]
    """Contenders in the order of the tables, with the words for them."""
    absent: dict[str, str] = field(default_factory=dict[str, str])
    """Contenders that could not take part, with the reason."""
    records: list[Record] = field(default_factory=list[Record])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Run:
        return cls(**{**data, "records": [record_from_json(record) for record in data["records"]]})


def record_from_json(data: dict[str, Any]) -> Record:
    sample = Sample(**data["sample"]) if data["sample"] else None
    return Record(**{**data, "cell": Cell(**data["cell"]), "sample": sample})


def kind_of(name: str, label: str) -> Literal["C", "aioblk", "peer"]:
    """Whose a contender is: a tool's in C, aioblk's, or that of another library for Python."""
    if label.endswith("(C)"):
        return "C"
    return "aioblk" if name.startswith(("aioblk", "memory", "queue")) else "peer"


def describe_cell(cell: Cell) -> str:
    return f"{CASES[cell.case].title}, {cell.operation} of {size_text(cell.block_size)}, depth {cell.depth}"


def size_text(size: int) -> str:
    """A block size as people write it: 512 B, 4 KiB, 1 MiB."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def parse_size(text: str) -> int:
    """The number of bytes that `4096`, `4K`, `4KiB` or `1M` means."""
    number = text.rstrip("bBiIkKmM ")
    suffix = text[len(number) :].strip().lower()[:1]
    return int(number) << {"": 0, "b": 0, "k": 10, "m": 20}[suffix]
