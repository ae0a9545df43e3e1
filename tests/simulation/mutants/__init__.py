"""Mutants: faults planted in aioblk, one at a time, which the search of simulated histories has to find.

Each is of a kind that the project has had, or was chosen by reading the code, without a look at what the
search does; it lets most histories pass. Where one is not found, the workload does not bring it about, or the
oracle does not see it. ``python -m tests.simulation.mutants --help`` says how they are tried.
"""

from .in_python import IN_PYTHON
from .in_the_core import IN_THE_CORE
from .independent import INDEPENDENT
from .mutant import Mutant

__all__ = ["MUTANTS"]

MUTANTS: tuple[Mutant, ...] = (*IN_THE_CORE, *IN_PYTHON, *INDEPENDENT)
