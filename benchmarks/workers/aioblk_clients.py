"""What a greedy client and two that stall do to another one, with shares and without them.

All clients are of one service, that is of one loop and one device: each request enters, takes memory of an
arena where that is measured, reads, and leaves. Prints one line of JSON; `benchmarks/fairness.py` says what
each figure may be.
"""

import asyncio
import contextlib
import itertools
import json
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field

import aioblk
from benchmarks.workers.aioblk_device import make_device
from benchmarks.workers.measuring import Job, run_loop

EACH = 16
"""Requests of a client's share. The polite one has as many tasks, each with one at a time."""
COMMON = 2
"""Of those that are promised to nobody."""
WANTED = 512
"""Requests that the greedy client wants at a time."""
SLICES = 10
"""Into so many pieces the time of each situation is divided, in which all situations have their turn."""
WARM_UP = 0.02
"""Seconds in which only the other one is there, before and after."""
SMALL = 4096
"""Bytes of a request, where what is measured is mostly what the loop needs for a task that waits."""
PATIENCE = 0.1
"""Seconds for which a client that is stopped is waited for."""

job = Job.from_arguments()
OFFSETS = itertools.cycle(job.offsets())

Request = Callable[[], Awaitable[None]]
"""One, from asking for its place to giving it back."""


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * share) - 1)]


@dataclass
class Service:
    """What clients share, and how a client's request is made."""

    device: aioblk.Device
    arena: aioblk.Arena
    places: aioblk.InFlight
    shared: ExitStack
    size: int
    """Of a request, in bytes."""
    by_places: bool
    """Whether it is places that clients are short of, or memory."""
    shares: bool

    def client(self) -> tuple[Request, Request]:
        """The request of one client, and what begins one and never ends it."""
        if self.by_places:
            places = (
                self.shared.enter_context(self.places.share(requests=EACH, bytes=EACH * self.size))
                if self.shares
                else self.places
            )
            return self._with_places(places)
        memory = (
            self.shared.enter_context(self.arena.share(size=EACH * self.size)) if self.shares else self.arena
        )
        return self._with_memory(memory)

    def _with_places(self, places: aioblk.InFlight | aioblk.InFlightShare) -> tuple[Request, Request]:
        length = self.size

        async def request() -> None:
            await places.enter(length)
            with self.arena.allocate(length) as buffer:
                await self.device.read_into(next(OFFSETS), buffer)
            places.leave(length)

        async def stall() -> None:
            await places.enter(length)
            try:
                await asyncio.Event().wait()
            finally:
                places.leave(length)

        return request, stall

    def _with_memory(self, memory: aioblk.Arena | aioblk.ArenaShare) -> tuple[Request, Request]:
        async def request() -> None:
            with await memory.acquire(self.size) as buffer:
                await self.device.read_into(next(OFFSETS), buffer)

        async def stall() -> None:
            with await memory.acquire(self.size):
                await asyncio.Event().wait()

        return request, stall


@asynccontextmanager
async def service(
    device: aioblk.Device, clients: int, size: int, *, by_places: bool, shares: bool
) -> AsyncGenerator[Service]:
    """A new one for so many clients, with nobody's share in it."""
    places = clients * EACH + COMMON
    whole = aioblk.InFlight(
        requests=places, bytes=places * size, kept=clients * EACH / places if shares else 0
    )
    async with aioblk.Arena(places * size) as arena:
        await arena.attach(device)
        with ExitStack() as shared:
            yield Service(device, arena, whole, shared, size, by_places, shares)


async def repeat(request: Request, end: float, latencies: list[float] | None) -> None:
    while (start := time.perf_counter()) < end:
        await request()
        if latencies is not None:
            latencies.append(time.perf_counter() - start)


@dataclass
class Situation:
    """How many requests the polite client and the other one want at a time, and what came of it."""

    polite: int
    other: int
    shares: bool
    size: int = job.block_size
    latencies: list[float] = field(default_factory=list)

    async def measure(self, device: aioblk.Device, seconds: float, *, by_places: bool) -> None:
        async with (
            service(device, 2, self.size, by_places=by_places, shares=self.shares) as busy,
            asyncio.TaskGroup() as group,
        ):
            other, _ = busy.client()
            polite, _ = busy.client()
            start = time.perf_counter() + WARM_UP
            end = start + seconds
            for _ in range(self.other):  # who is there already, and still after the polite one has gone
                group.create_task(repeat(other, end + WARM_UP, None))
            await asyncio.sleep(WARM_UP)
            for _ in range(self.polite):
                group.create_task(repeat(polite, end, self.latencies))

    @property
    def p99(self) -> float:
        return percentile(sorted(self.latencies), 0.99)


async def beside_a_greedy_one(device: aioblk.Device, *, by_places: bool) -> dict[str, float]:
    """By how much the polite client's p99 grows, from that beside a client that has an equal share of the
    device and no more: one like itself or, where it has one request at a time, one that uses its share."""
    equal, greedy = Situation(EACH, EACH, shares=True), Situation(EACH, WANTED, shares=True)
    without = Situation(EACH, WANTED, shares=False)
    one, one_greedy = (Situation(1, other, shares=True) for other in (EACH, WANTED))
    small, small_greedy = (Situation(EACH, other, shares=True, size=SMALL) for other in (EACH, WANTED))
    situations: Sequence[Situation] = (equal, greedy, without, small, small_greedy, one, one_greedy)
    for _ in range(SLICES):
        for situation in situations:
            await situation.measure(device, job.seconds / SLICES, by_places=by_places)
    return {
        "greedy": greedy.p99 / equal.p99,
        "greedy_without": without.p99 / equal.p99,
        "greedy_small": small_greedy.p99 / small.p99,
        "greedy_one": one_greedy.p99 / one.p99,
    }


async def rate_beside_stalled(device: aioblk.Device, *, stalled: int, shares: bool, by_places: bool) -> float:
    """Requests a second of a client, beside others that take all they can get and give nothing back."""
    latencies: list[float] = []
    seconds = job.seconds / SLICES
    async with service(device, stalled + 1, job.block_size, by_places=by_places, shares=shares) as busy:
        third, _ = busy.client()
        stalls = [busy.client()[1] for _ in range(stalled)]
        held = [asyncio.ensure_future(stall()) for stall in stalls for _ in range(WANTED)]
        await asyncio.sleep(WARM_UP)
        start = time.perf_counter()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds + PATIENCE), asyncio.TaskGroup() as group:
                for _ in range(EACH):
                    group.create_task(repeat(third, start + seconds, latencies))
        elapsed = time.perf_counter() - start
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
    return len(latencies) / elapsed


async def beside_stalled_ones(device: aioblk.Device, *, by_places: bool) -> dict[str, float]:
    """A client's rate alone, as a multiple of that beside two that stall."""
    rates = {"alone": 0.0, "beside": 0.0, "without": 0.0}
    for _ in range(SLICES):
        for name, stalled, shares in (("alone", 0, True), ("beside", 2, True), ("without", 2, False)):
            rates[name] += await rate_beside_stalled(
                device, stalled=stalled, shares=shares, by_places=by_places
            )
    return {
        "stalled": rates["alone"] / rates["beside"] if rates["beside"] else math.inf,
        "stalled_without": rates["without"] / rates["alone"] * 100,
    }


async def measure() -> None:
    figures: dict[str, float] = {}
    async with make_device(job) as device:
        for what, by_places in (("requests", True), ("memory", False)):
            for found in (beside_a_greedy_one, beside_stalled_ones):
                for name, value in (await found(device, by_places=by_places)).items():
                    figures[f"{job.kind} {what} {name}"] = value
    print(json.dumps(figures), flush=True)


run_loop(job, measure())
