"""Reach: which memory a device without a backend would reach, by the rules of one that has."""

import mmap
from collections.abc import Callable
from typing import final

from typing_extensions import Buffer

from .._libblkio.limits import Limits
from .._memory.mapped import Mapped, MappedRanges
from .._memory.regions import MemoryRegion
from .._native._core import Memory
from .._sync.loops import running_loop
from ..errors import DeviceClosedError, RegistrationError, UsageError

__all__ = ["Reach"]


@final
class Reach:
    """The regions of one device. They are counted and checked; nobody is told of them."""

    def __init__(self, name: str, limits: Limits, is_closed: Callable[[], bool]) -> None:
        self.limits = limits
        self._name = name
        self._is_closed = is_closed
        self._ranges = MappedRanges()

    def register(self, buffer: Buffer, required: bool) -> MemoryRegion:
        memory = Memory.from_buffer(buffer)
        if len(memory) == 0:
            memory.close()
            raise ValueError("an empty buffer cannot be registered")
        return MemoryRegion(self, memory, len(memory), required=required)

    def allocate(self, length: int) -> MemoryRegion:
        if length <= 0:
            raise ValueError(f"length must be positive, not {length}")
        unit = max(self.limits.mem_region_alignment, mmap.PAGESIZE)
        pages = mmap.mmap(-1, -(-length // unit) * unit)
        return MemoryRegion(self, Memory.from_buffer(pages), length, required=True)

    def has(self, address: int, length: int) -> bool:
        """Whether a device that needs regions would reach the memory."""
        return any(
            one.start <= address and address + length <= one.end
            for one in self._ranges.overlapping(address, address + length)
        )

    # --- for the regions ------------------------------------------------------------------------------------

    def refuse_other_loops(self) -> None:
        running_loop("register", self._name)
        if self._is_closed():
            raise DeviceClosedError("the device is closed", driver=self._name, operation="register")

    def misuse(self, message: str) -> UsageError:
        return UsageError(message, driver=self._name, operation="register")

    async def attach(self, memory: Memory, fd: int | None, fd_offset: int) -> Mapped | None:
        if not self.limits.needs_mem_regions:
            return None
        start, end = memory.address, memory.address + len(memory)
        for other in self._ranges.overlapping(start, end):
            if other.start <= start and end <= other.end:
                other.holders += 1
                return other
            raise self._refusal("it overlaps another region")
        unit = self.limits.mem_region_alignment
        if start % unit or len(memory) % unit:
            raise self._refusal(f"address and length must be multiples of {unit}, the mem-region-alignment")
        if len(self._ranges) >= self.limits.max_mem_regions > 0:
            raise self._refusal(
                f"the device has {self.limits.max_mem_regions} regions already, the most it can"
            )
        mapped = Mapped(memory, None)
        self._ranges.add(mapped)
        return mapped

    async def detach(self, memory: Memory, mapped: Mapped | None) -> None:
        if mapped is not None and mapped in self._ranges:
            mapped.holders -= 1
            if mapped.holders == 0:
                self._ranges.remove(mapped)
                mapped.let_go()
        memory.close()

    def _refusal(self, message: str) -> RegistrationError:
        return RegistrationError(message, driver=self._name, operation="register")
