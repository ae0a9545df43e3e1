"""Hostile code comes in wherever aioblk can be made to call any, and does whatever code can do to a device.

    python -m tests.campaigns.fuzz.native_reentrancy SEED

Six tasks make requests of one device after another, of hostile arguments, and are cancelled now and then.
"""

import asyncio
import gc
import random
import signal
import sys
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import aioblk

from . import hostile
from .world import REFUSALS, SIZE, MischiefError, Table, World, try_seed

AnyRequest = aioblk.Request[Any]

DEVICES = 3  # of one seed
TURNS = 120  # of each task, with each device
TASKS = 6
KEPT = 100  # requests
DEEPEST = 4  # hostile code within hostile code
QUIET = {"a signal", "call_soon", "call_exception_handler"}  # raising there would break the event loop

REQUESTS = Table()  # what is requested
TREATMENTS = Table()  # what befalls a request at once, with how probable it is
HARMLESS = Table()  # what hostile code does
DEADLY = Table()  # what hostile code does now and then


class Fuzz:
    def __init__(self, world: World) -> None:
        self.world = world
        self.random: random.Random = world.random
        self.device: aioblk.Device | None = None
        self.queue: aioblk.Queue | None = None
        self.region: aioblk.MemoryRegion | None = None
        self.requests: list[AnyRequest] = []
        self.made: list[weakref.ref[AnyRequest]] = []
        self.tasks: set[asyncio.Future[Any]] = set()
        self.depth = 0
        self.ferocity = self.random.choice([0.05, 0.2, 0.5])
        self.deadliness = self.random.choice([0.0, 0.0, 0.01, 0.05])

    # --- what hostile code does -----------------------------------------------------------------------------

    def come_in(self, way: str) -> None:
        """Called from within whatever runs hostile code."""
        world = self.world
        if self.device is None or self.depth >= DEEPEST or not world.chance(self.ferocity):
            return
        self.depth += 1
        world.count(f"in by {way}")
        try:
            name, act = world.draw(DEADLY if world.chance(self.deadliness) else HARMLESS)
            world.count(f"did {name}")
            act(self, self.device)
        except (*REFUSALS, MischiefError) as error:
            world.refused(error)
        finally:
            self.depth -= 1
        if way not in QUIET and world.chance(0.05):
            raise MischiefError(way)

    def any_request(self) -> AnyRequest:
        """IndexError, which is a refusal, if there is none."""
        return self.random.choice(self.requests)

    def new_request(self, device: aioblk.Device) -> AnyRequest:
        """One that nobody awaits, and nobody else knows."""
        return device.read(0, 512)

    def soon(self, awaitable: Any) -> None:
        """Let a task do it."""
        task = asyncio.ensure_future(awaitable)
        self.tasks.add(task)
        task.add_done_callback(self._end_task)

    def _end_task(self, task: "asyncio.Future[Any]") -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            self.world.look_at(task.exception())

    # --- arguments ------------------------------------------------------------------------------------------

    def offset(self, length: int) -> Any:
        if self.world.chance(0.03):
            return self.random.choice([-1, 1, 1 << 63, (1 << 64) - 1, 1 << 64, SIZE, None, "512"])
        offset = self.random.randrange(0, max(SIZE - length, 0) // 512 + 1) * 512
        return hostile.Number(offset) if self.world.chance(0.1) else offset

    def length(self) -> int:
        return self.random.choice(
            [
                0,
                1,
                512,
                512,
                4096,
                4096,
                65536,
                512 * self.random.randrange(1, 3000),
                (1 << 20) + 512,
                3 << 20,
            ]
        )

    def buffer(self, length: int) -> Any:
        kind = self.random.randrange(6)
        if kind == 0:
            return bytearray(length)
        if kind == 1:
            return memoryview(hostile.Buffer(length + 512))[512 : 512 + length]
        if kind == 2 and self.region is not None and length <= len(self.region):
            start = self.random.randrange(0, (len(self.region) - length) // 512 + 1) * 512
            return self.region[start : start + length]
        return hostile.Buffer(length)

    def buffers(self) -> Any:
        count = self.random.randrange(1200) if self.world.chance(0.02) else self.random.randrange(20)
        buffers = [self.buffer(512 * self.random.randrange(9)) for _ in range(count)]
        return hostile.Segments(buffers, self.random.randrange(22)) if self.world.chance(0.2) else buffers

    def pairs(self, *, reading: bool) -> Any:
        pairs: list[Any] = []
        for _ in range(self.random.randrange(12)):
            length = self.length()
            pairs.append((self.offset(length), length if reading else self.buffer(length)))
        if self.world.chance(0.05):
            pairs.append(self.random.choice([5, None, (1, 2, 3), ()]))
        return hostile.batch(pairs) if self.world.chance(0.4) else pairs

    def flags(self, *names: str) -> dict[str, Any]:
        values = [True, False, hostile.Flag(True), hostile.Flag(False)]
        chosen = [name for name in names if self.world.chance(0.3)]
        return {
            hostile.Name(name) if self.world.chance(0.2) else name: self.random.choice(values)
            for name in chosen
        }

    # --- tasks ----------------------------------------------------------------------------------------------

    def submit(self, device: aioblk.Device) -> AnyRequest:
        """A request of any kind."""
        name, make = self.world.draw(REQUESTS)
        on_queue = self.queue is not None and self.world.chance(0.2)
        request: AnyRequest = make(self, self.queue if on_queue else device, self.length())
        self.world.count(f"requested {name}")
        self.requests.append(request)
        if len(self.requests) > KEPT:
            del self.requests[: KEPT // 2]
        self.made.append(weakref.ref(request))
        for name, (probability, treat) in TREATMENTS.items():
            if self.world.chance(probability):
                self.world.count(f"did {name}")
                treat(request)
        return request

    async def work(self) -> None:
        """However often it is cancelled."""
        for _ in range(TURNS):
            device = self.device
            if device is None or device.closed:
                return
            try:
                await self.wait_somehow(self.submit(device))
                if self.world.chance(0.1):
                    await asyncio.sleep(0)
            except (*REFUSALS, MischiefError) as error:
                self.world.refused(error)

    async def wait_somehow(self, request: AnyRequest) -> None:
        match self.random.randrange(7):
            case 0:
                await asyncio.wait_for(request, self.random.choice([0, 0.001, 1]))
            case 1:
                await asyncio.shield(request)
            case 2:
                await asyncio.gather(request, *self.requests[-3:], return_exceptions=True)
            case 3:
                await asyncio.sleep(0)
            case 4:
                await asyncio.create_task(request)
            case _:
                await request

    async def again(self, act: Callable[[aioblk.Device], Coroutine[Any, Any, None]]) -> None:
        """For as long as the device is in use."""
        while self.device is not None and not self.device.closed:
            try:
                await act(self.device)
            except (*REFUSALS, MischiefError) as error:
                self.world.refused(error)
            await asyncio.sleep(0.001)

    async def use_a_region(self, device: aioblk.Device) -> None:
        try:
            async with device.allocate(self.random.choice([4096, 1 << 20, 5 << 20])) as self.region:
                await asyncio.sleep(self.random.random() * 0.02)
                if self.world.chance(0.5):
                    self.region = None
        finally:
            self.region = None

    async def use_a_queue(self, device: aioblk.Device) -> None:
        try:
            async with device.queue(1) as self.queue:
                await asyncio.sleep(self.random.random() * 0.05)
        finally:
            self.queue = None

    async def bring_back(self, device: aioblk.Device) -> None:
        await asyncio.sleep(0.01)
        if device.lost:
            self.world.count("did reconnect in the end")
            await device.reconnect()

    async def interrupt(self, tasks: "list[asyncio.Task[None]]") -> None:
        while True:
            await asyncio.sleep(self.random.random() * 0.01)
            self.world.count("did cancel a task")
            self.random.choice(tasks).cancel()

    # --- devices --------------------------------------------------------------------------------------------

    def new_device(self) -> aioblk.Device:
        choose = self.random.choice
        if self.world.chance(0.5):
            return aioblk.IoUring(
                self.world.file, num_queues=2, num_entries=choose([1, 4, 128]), direct=choose([True, False])
            )
        options: dict[str, Any] = choose([{}, {"reconnect_for": 5.0}, {"lost_after": 10.0}])
        return aioblk.VirtioBlkVhostUser(
            self.world.daemon.socket,
            num_queues=2,
            queue_size=choose([4, 16, 256]),
            bounce_pool_size=choose([65536, 1 << 18, 4 << 20]),
            **options,
        )

    async def use_one_device(self) -> None:
        within = self.world.within
        self.device = device = await self.new_device().open()
        self.world.count(f"opened {device.driver}")
        workers = [asyncio.create_task(self.work()) for _ in range(TASKS)]
        keepers = [asyncio.create_task(self.again(act)) for act in (self.use_a_region, self.use_a_queue)]
        returning = asyncio.create_task(self.again(self.bring_back))
        interruption = asyncio.create_task(self.interrupt(workers))
        await within("work", all_done(workers))
        interruption.cancel()
        self.device = None
        await within("what has gone on beside it", all_done([*keepers, returning, interruption]))
        await within("closing", device.aclose())
        await within("what hostile code has begun", all_done(list(self.tasks)))
        if not device.closed:
            self.world.find(f"{device!r} is not closed")
        del self.requests[:]
        pending = [request for made in self.made if (request := made()) is not None and not request.done()]
        if pending:
            self.world.find(f"never done: {pending[:5]}")
        del self.made[:]


async def all_done(tasks: list[Any]) -> None:
    if tasks:
        await asyncio.wait(tasks)


# --- requests -----------------------------------------------------------------------------------------------


@REQUESTS.entry(4)
def read(fuzz: Fuzz, device: aioblk.Device, length: int) -> AnyRequest:
    return device.read(fuzz.offset(length), length)


@REQUESTS.entry(4)
def read_into(fuzz: Fuzz, device: aioblk.Device, length: int) -> AnyRequest:
    return device.read_into(fuzz.offset(length), fuzz.buffer(length))


@REQUESTS.entry(3)
def readv(fuzz: Fuzz, device: aioblk.Device, length: int) -> AnyRequest:
    return device.readv(fuzz.offset(length), fuzz.buffers())


@REQUESTS.entry(4)
def write(fuzz: Fuzz, device: aioblk.Device, length: int) -> AnyRequest:
    data = bytes(length) if fuzz.world.chance(0.2) else fuzz.buffer(length)
    return device.write(fuzz.offset(length), data, **fuzz.flags("fua"))


@REQUESTS.entry(3)
def writev(fuzz: Fuzz, device: aioblk.Device, length: int) -> AnyRequest:
    return device.writev(fuzz.offset(length), fuzz.buffers(), **fuzz.flags("fua"))


@REQUESTS.entry(2)
def read_many(fuzz: Fuzz, device: aioblk.Device, _length: int) -> AnyRequest:
    return device.read_many(fuzz.pairs(reading=True), **fuzz.flags("return_exceptions"))


@REQUESTS.entry(2)
def read_into_many(fuzz: Fuzz, device: aioblk.Device, _length: int) -> AnyRequest:
    return device.read_into_many(fuzz.pairs(reading=False), **fuzz.flags("return_exceptions"))


@REQUESTS.entry(2)
def write_many(fuzz: Fuzz, device: aioblk.Device, _length: int) -> AnyRequest:
    return device.write_many(fuzz.pairs(reading=False), **fuzz.flags("return_exceptions", "fua"))


@REQUESTS.entry(1)
def write_zeroes(fuzz: Fuzz, device: aioblk.Device, length: int) -> AnyRequest:
    return device.write_zeroes(fuzz.offset(length), length, **fuzz.flags("fua", "no_unmap", "no_fallback"))


@REQUESTS.entry(1)
def discard(fuzz: Fuzz, device: aioblk.Device, length: int) -> AnyRequest:
    return device.discard(fuzz.offset(length), length)


@REQUESTS.entry(1)
def flush(_fuzz: Fuzz, device: aioblk.Device, _length: int) -> AnyRequest:
    return device.flush()


# --- what befalls a request at once -------------------------------------------------------------------------


@TREATMENTS.entry(0.3)
def have_a_callback(request: AnyRequest) -> None:
    request.add_done_callback(hostile.Callback())


@TREATMENTS.entry(0.1)
def have_several_callbacks(request: AnyRequest) -> None:
    for _ in range(3):
        request.add_done_callback(hostile.Callback())


@TREATMENTS.entry(0.05)
def lose_callbacks(request: AnyRequest) -> None:
    request.remove_done_callback(hostile.Callback(equal=True))


@TREATMENTS.entry(0.1)
def be_hashed(request: AnyRequest) -> None:
    hash(request)


@TREATMENTS.entry(0.1)
def be_watched_weakly(request: AnyRequest) -> None:
    hostile.watch_weakly(request)


@TREATMENTS.entry(0.2)
def be_cancelled_at_once(request: AnyRequest) -> None:
    request.cancel()


@TREATMENTS.entry(0.05)
def be_cancelled_with_a_message(request: AnyRequest) -> None:
    request.cancel(hostile.Message())


@TREATMENTS.entry(0.05)
def be_made_beside_a_cycle(_request: AnyRequest) -> None:
    hostile.make_cycle()


# --- what hostile code does ---------------------------------------------------------------------------------


@HARMLESS.entry(4)
def submit(fuzz: Fuzz, device: aioblk.Device) -> None:
    fuzz.submit(device)


@HARMLESS.entry(4)
def cancel(fuzz: Fuzz, _device: aioblk.Device) -> None:
    fuzz.any_request().cancel()


@HARMLESS.entry(2)
def collect(fuzz: Fuzz, _device: aioblk.Device) -> None:
    gc.collect(fuzz.random.randrange(3))


@HARMLESS.entry(3)
def drop_a_request(fuzz: Fuzz, _device: aioblk.Device) -> None:
    fuzz.requests.pop(fuzz.random.randrange(max(len(fuzz.requests), 1)))


@HARMLESS.entry(1)
def drop_all_requests(fuzz: Fuzz, _device: aioblk.Device) -> None:
    fuzz.requests.clear()


@HARMLESS.entry(3)
def look_at_an_outcome(fuzz: Fuzz, _device: aioblk.Device) -> None:
    request = fuzz.any_request()
    repr(request)
    request.exception()


@HARMLESS.entry(2)
def add_a_callback(fuzz: Fuzz, _device: aioblk.Device) -> None:
    fuzz.any_request().add_done_callback(hostile.Callback())


@HARMLESS.entry(2)
def remove_callbacks(fuzz: Fuzz, _device: aioblk.Device) -> None:
    fuzz.any_request().remove_done_callback(hostile.Callback(equal=True))


@HARMLESS.entry(1)
def await_in_a_task(fuzz: Fuzz, _device: aioblk.Device) -> None:
    fuzz.soon(fuzz.any_request())


@HARMLESS.entry(1)
def step(fuzz: Fuzz, device: aioblk.Device) -> None:
    fuzz.new_request(device).send(None)


@HARMLESS.entry(1)
def throw(fuzz: Fuzz, device: aioblk.Device) -> None:
    thrown = [MischiefError("thrown"), asyncio.CancelledError()]
    fuzz.new_request(device).throw(fuzz.random.choice(thrown))


@HARMLESS.entry(0.5)
def ask_for_statistics(_fuzz: Fuzz, device: aioblk.Device) -> None:
    device.statistics()
    device.bounce_pool.statistics()


@HARMLESS.entry(1)
def leave_the_region(fuzz: Fuzz, _device: aioblk.Device) -> None:
    if fuzz.region is not None:
        fuzz.soon(fuzz.region.aclose())


@HARMLESS.entry(0.3)
def close_the_memory_of_the_region(fuzz: Fuzz, _device: aioblk.Device) -> None:
    if fuzz.region is not None:
        fuzz.region.memory.close()


@DEADLY.entry(4)
def abandon(fuzz: Fuzz, device: aioblk.Device) -> None:
    fuzz.world.losses += 1
    device.abandon("hostile code gave it up")


@DEADLY.entry(1)
def close(fuzz: Fuzz, device: aioblk.Device) -> None:
    fuzz.soon(device.aclose())


@DEADLY.entry(2)
def close_a_queue(fuzz: Fuzz, _device: aioblk.Device) -> None:
    if fuzz.queue is not None:
        fuzz.soon(fuzz.queue.aclose())


@DEADLY.entry(2)
def reconnect(fuzz: Fuzz, device: aioblk.Device) -> None:
    fuzz.soon(device.reconnect())


@DEADLY.entry(2)
def detach_and_attach(fuzz: Fuzz, device: aioblk.Device) -> None:
    async def turn_over() -> None:
        await device.detach()
        await device.attach()

    fuzz.soon(turn_over())


@DEADLY.entry(0.5)
def kill_the_backend(fuzz: Fuzz, _device: aioblk.Device) -> None:
    fuzz.world.losses += 1
    # Nothing comes in meanwhile: what waits for a process is not made for it.
    depth, fuzz.depth = fuzz.depth, DEEPEST
    try:
        fuzz.world.daemon.restart()
    finally:
        fuzz.depth = depth


# --- one seed -----------------------------------------------------------------------------------------------


async def program(world: World) -> None:
    fuzz = Fuzz(world)
    hostile.let_in(fuzz.come_in)
    if world.chance(0.3):
        hostile.listen_to_the_collector()
    if world.chance(0.2):
        signal.signal(signal.SIGALRM, lambda *_: fuzz.come_in("a signal"))
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    gc.set_threshold(world.random.choice([20, 200, 700]))
    try:
        for _ in range(DEVICES):
            await fuzz.use_one_device()
    finally:
        fuzz.device = None  # which ends its tasks, whatever has happened
        signal.setitimer(signal.ITIMER_REAL, 0)
        hostile.let_in(lambda _way: None)
        gc.callbacks.clear()


if __name__ == "__main__":
    try_seed(int(sys.argv[1]), program)
