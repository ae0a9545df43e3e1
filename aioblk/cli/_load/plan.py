"""What is to be done to a device, and for how long."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, final

from ..running import LoopName

__all__ = ["KINDS", "Kind", "Plan"]

Kind: TypeAlias = Literal["read", "write", "trim", "rw"]
KINDS: Mapping[str, tuple[Kind, bool]] = {
    "read": ("read", False),
    "write": ("write", False),
    "rw": ("rw", False),
    "trim": ("trim", False),
    "randread": ("read", True),
    "randwrite": ("write", True),
    "randrw": ("rw", True),
    "randtrim": ("trim", True),
}
"""What is done, and whether in random order, by fio's names."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Sizes are bytes, times seconds."""

    address: str
    properties: Mapping[str, object] = field(default_factory=dict[str, object])
    """Beside the address."""
    kind: Kind = "read"
    random: bool = True
    reads: float = 50
    """Percent of the requests of ``rw``."""
    block_size: int = 4096
    depth: int = 1
    jobs: int = 1
    threads: bool = False
    """Whether jobs are threads of one process, each with a queue of one device."""
    offset: int = 0
    size: int
    """Of the range that is used, a multiple of the block size."""
    seconds: float = 10
    warmup: float = 1
    rate: float | None = None
    """Bytes a second that all jobs together do at most."""
    iops: float | None = None
    fua: bool = False
    fsync: int = 0
    """After how many writes of a job it flushes; 0: never."""
    registered: bool = True
    """Whether the memory is known to the device, where it wants that."""
    loop: LoopName = "auto"
    seed: int = 0
    verify: bool = False

    @property
    def writes(self) -> bool:
        """Whether it changes what the device holds."""
        return self.kind != "read"

    @property
    def blocks(self) -> int:
        return self.size // self.block_size

    def share(self, job: int) -> range:
        """The offsets of the blocks that one job has for itself, where jobs are kept apart."""
        first, end = (self.blocks * number // self.jobs for number in (job, job + 1))
        size = self.block_size
        return range(self.offset + first * size, self.offset + end * size, size)

    @property
    def all(self) -> range:
        """The offsets of all blocks."""
        return range(self.offset, self.offset + self.blocks * self.block_size, self.block_size)
