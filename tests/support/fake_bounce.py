"""What BouncePool works with, in Python: a core, a handle and a worker thread whose every step a test
decides."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aioblk._libblkio.mem_region import MemRegion
from aioblk._libblkio.subject import Subject
from aioblk._native._core import Allocator
from aioblk.errors import BlkioError, RegistrationError


@dataclass(eq=False)
class FakeRequest:
    """Parts that need so many bytes of bounce memory each; 0 in ``parts`` is a part that needs none."""

    number: int
    parts: list[int]
    admitted: int = 0
    in_flight: list[int] = field(default_factory=list)  # offsets of the buffers that the device uses
    cancelled: bool = False
    error: BaseException | None = None

    def done(self) -> bool:
        return self.cancelled or self.error is not None or (self.all_admitted and not self.in_flight)

    @property
    def all_admitted(self) -> bool:
        return self.admitted == len(self.parts)


class FakeQueueCore:
    """Admits as the compiled core does. The device completes a part when the test says so."""

    def __init__(self) -> None:
        self.waiting = 0
        self.admitting = False
        self.on_bounce: Callable[[Any, int], object] | None = None
        self.on_room: Callable[[], object] | None = None
        self.allocator: Allocator | None = None
        self.peak = 0
        self.takes = 0
        self.room_made = False

    # --- what the pool uses ---------------------------------------------------------------------------------

    def attach_bounce(self, address: int, length: int, granule: int) -> None:
        assert self.bounce_in_use == 0
        self.allocator = Allocator(length, granule)
        self.peak = self.takes = 0

    def detach_bounce(self) -> None:
        assert self.bounce_in_use == 0
        self.allocator = None

    @property
    def bounce_size(self) -> int:
        return self.allocator.size if self.allocator else 0

    @property
    def bounce_in_use(self) -> int:
        return self.allocator.in_use if self.allocator else 0

    @property
    def bounce_peak(self) -> int:
        return self.peak if self.allocator else 0

    @property
    def bounce_takes(self) -> int:
        return self.takes if self.allocator else 0

    def admit(self, request: FakeRequest) -> bool:
        if request.done():
            request.admitted = len(request.parts)
            return True
        self.admitting = True
        try:
            return self._admit_parts(request)
        finally:
            self.admitting = False

    def refuse(self, request: FakeRequest, error: BaseException) -> None:
        if not request.done():
            request.error = error
        request.admitted = len(request.parts)

    def fail(self, request: FakeRequest, number: int, message: str | None) -> None:
        self.refuse(request, BlkioError(message, errno=number))

    # --- what the test does ---------------------------------------------------------------------------------

    def submit(self, request: FakeRequest) -> None:
        if self.waiting or not self._admit_parts(request):
            assert self.on_bounce is not None
            self.on_bounce(request, max(request.parts[request.admitted :]))

    def complete(self, request: FakeRequest) -> None:
        """The device has finished one part; the pool hears of it at the end of the reaping."""
        assert self.allocator is not None
        self.allocator.give(request.in_flight.pop(0))
        self.room_made = True

    def finish_turn(self) -> None:
        if self.room_made:
            self.room_made = False
            if self.waiting and self.on_room:
                self.on_room()

    def _admit_parts(self, request: FakeRequest) -> bool:
        while not request.all_admitted:
            need = request.parts[request.admitted]
            if self.allocator is None:
                return False
            offset = self.allocator.take(need)
            if offset is None:
                return False
            self.peak = max(self.peak, self.allocator.in_use)
            self.takes += 1
            request.in_flight.append(offset)
            request.admitted += 1
        return True


class FakeHandle:
    """Hands out address ranges and remembers them. Fails at the next step whose name is in ``failing``."""

    def __init__(self) -> None:
        self.subject = Subject("fake", None)
        self.next_address = 1 << 20
        self.allocated: set[MemRegion] = set()
        self.mapped: set[MemRegion] = set()
        self.failing: str | None = None

    def _fail_if_asked_to(self, step: str) -> None:
        if self.failing == step:
            self.failing = None
            raise RegistrationError(f"{step} failed", operation="map_mem_region")

    def alloc_mem_region(self, length: int) -> MemRegion:
        self._fail_if_asked_to("alloc")
        region = MemRegion(self.next_address, length)
        self.next_address += length
        self.allocated.add(region)
        return region

    def free_mem_region(self, region: MemRegion) -> None:
        assert region not in self.mapped
        self.allocated.remove(region)

    def map_mem_region(self, region: MemRegion) -> None:
        self._fail_if_asked_to("map")
        assert region in self.allocated
        self.mapped.add(region)

    @property
    def mapped_regions(self) -> set[MemRegion]:
        return self.mapped

    def unmap_mem_region(self, region: MemRegion) -> None:
        self.mapped.remove(region)

    def give_back_mem_region(self, region: MemRegion) -> None:
        if region not in self.allocated:
            return
        if region in self.mapped_regions:
            self.unmap_mem_region(region)
        self.free_mem_region(region)

    def give_back_later(self, region: MemRegion) -> None:
        self.give_back_mem_region(region)


@dataclass
class FakeLimits:
    needs_mem_regions: bool = True
    buf_alignment: int = 1


class FakeDeviceMemory:
    """Its worker thread does nothing before :meth:`work` is called."""

    PAGE = 4096

    def __init__(self, loop: asyncio.AbstractEventLoop, *, needs_mem_regions: bool = True) -> None:
        self.limits = FakeLimits(needs_mem_regions)
        self.pending: list[asyncio.Future[None]] = []
        self.loop = loop
        self.calls = self

    def round_up(self, length: int) -> int:
        return -(-length // self.PAGE) * self.PAGE

    async def make(self, operation: str, function: Callable[[], Any]) -> Any:
        turn = self.loop.create_future()
        self.pending.append(turn)
        await turn
        return function()

    def work(self) -> None:
        if self.pending:
            self.pending.pop(0).set_result(None)
