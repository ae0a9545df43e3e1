"""What a job's process and the fleet tell each other: pickles, each after its length."""

import struct
from dataclasses import dataclass, field
from typing import TypeAlias, final

from ..._queues.statistics import OperationStatistics
from .job import Verified
from .plan import Plan

__all__ = ["FRAME", "Done", "Failed", "Frame", "Operations", "Ready", "Sample", "Task"]

FRAME = struct.Struct("<I")  # its length, before a pickle

Operations: TypeAlias = dict[str, OperationStatistics]


@final
@dataclass(frozen=True, slots=True)
class Task:
    """What a process is told to do."""

    plan: Plan
    jobs: range
    every: float
    """Seconds from one sample to the next."""


@final
@dataclass(frozen=True, slots=True)
class Ready:
    """It waits for a byte."""

    loop: str


@final
@dataclass(frozen=True, slots=True)
class Sample:
    """What was done since the warm-up."""

    seconds: float
    operations: Operations


@final
@dataclass(frozen=True, slots=True)
class Done:
    """What was done in all, and the seconds of a processor that took: in the process, and in the kernel."""

    seconds: float
    operations: Operations
    user: float
    system: float
    verified: Verified = field(default_factory=Verified)


@final
@dataclass(frozen=True, slots=True)
class Failed:
    """It could not go on."""

    error: OSError


Frame: TypeAlias = Ready | Sample | Done | Failed
