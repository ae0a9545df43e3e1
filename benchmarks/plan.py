"""Which cells a command measures, unless it is told others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.model import CASES, Case, Cell, Operation

KIB = 1024
VHOST = ("vhost-same-core", "vhost-split-cores")
FILES = ("cached-file", "direct-file")


@dataclass(frozen=True)
class Sweep:
    """All combinations of what it names. Block sizes in bytes."""

    cases: tuple[str, ...]
    operations: tuple[Operation, ...]
    block_sizes: tuple[int, ...]
    depths: tuple[int, ...]

    def cells(self, case: Case) -> list[Cell]:
        if case.name not in self.cases:
            return []
        return [
            Cell(case.name, operation, block_size, depth)
            for operation in self.operations
            for block_size in self.block_sizes
            for depth in self.depths
        ]


PLANS: dict[str, tuple[Sweep, ...]] = {
    "run": (Sweep(("cached-file",), ("read", "write"), (4 * KIB,), (1, 8, 32, 128)),),
    "bars": (Sweep(("cached-file", *VHOST), ("read",), (4 * KIB,), (1, 8, 32, 128)),),
    "full": (
        # Reads of 4 KiB at every depth; other sizes and writes at few.
        Sweep(tuple(CASES), ("read",), (4 * KIB,), (1, 8, 32, 128)),
        Sweep(("cached-file", *VHOST), ("read",), (4 * KIB,), (1024,)),
        Sweep(("cached-file",), ("read",), (512, 64 * KIB, KIB * KIB), (32,)),
        Sweep(("direct-file", *VHOST), ("read",), (64 * KIB,), (32,)),
        Sweep(FILES, ("write",), (4 * KIB,), (1, 32)),
        Sweep(VHOST, ("write",), (4 * KIB,), (32,)),
        Sweep(("cached-file",), ("write",), (64 * KIB,), (32,)),
    ),
    "pythons": (Sweep(("cached-file",), ("read",), (4 * KIB,), (1, 32)),),
    "memory": (Sweep(VHOST, ("read",), (512, 4 * KIB), (1, 8, 32)),),
    "queues": (Sweep(("cached-file", *VHOST), ("read",), (4 * KIB,), (1, 8, 32)),),
}


def choose_cells(
    command: str,
    *,
    cases: Sequence[str] | None,
    operations: tuple[Operation, ...] | None,
    block_sizes: tuple[int, ...] | None,
    depths: tuple[int, ...] | None,
) -> dict[Case, list[Cell]]:
    """The cells of each case, in the order of measuring.

    `cases` alone chooses among those that are planned, or plans the first sweep for others. Where another
    argument is given, all combinations are measured of what is given and, for the rest, of the first sweep.
    """
    plan = PLANS[command]
    first = plan[0]
    names = cases or list(dict.fromkeys(name for sweep in plan for name in sweep.cases))
    unplanned = tuple(name for name in names if not any(name in sweep.cases for sweep in plan))
    if operations or block_sizes or depths:
        sweeps: tuple[Sweep, ...] = (
            Sweep(
                tuple(names),
                operations or first.operations,
                block_sizes or first.block_sizes,
                depths or first.depths,
            ),
        )
    else:
        sweeps = (*plan, Sweep(unplanned, first.operations, first.block_sizes, first.depths))
    return {
        CASES[name]: sorted(
            (cell for sweep in sweeps for cell in sweep.cells(CASES[name])),
            key=lambda cell: (cell.operation, cell.block_size != 4 * KIB, cell.block_size, cell.depth),
        )
        for name in names
    }
