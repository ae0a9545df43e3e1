"""Random calls of everything public, with right and wrong arguments, on several devices in any state.

    python -m tests.campaigns.fuzz.house_api SEED

The first 16 KiB are never written to. Whatever else happens, they must be there in the end, and everything
must close.
"""

import array
import asyncio
import contextlib
import copy
import ctypes
import mmap
import pickle
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import aioblk

from . import hostile
from .world import REFUSALS, SIZE, MischiefError, Table, World, try_seed

STEPS = 400
KEPT = 200  # requests
SAFE = bytes(range(256)) * 64
FIRST = 64 << 10  # what is written lies beyond
SHORT = 1.0  # seconds that a step waits for something

ACTIONS = Table()
action = ACTIONS.entry


class Fuzz:
    """What there is to call."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random: random.Random = world.random
        self.devices: list[aioblk.Device] = []
        self.queues: list[aioblk.Queue] = []
        self.requests: list[Any] = []
        self.regions: list[aioblk.MemoryRegion] = []
        self.arenas: list[aioblk.Arena] = []
        self.buffers: list[aioblk.ArenaBuffer] = []
        self.odd_ends: list[Any] = []
        self.tasks: set[asyncio.Future[Any]] = set()
        self.depth = 0

    # --- choices --------------------------------------------------------------------------------------------

    def device(self) -> aioblk.Device:
        return self.random.choice(self.devices)

    def submitter(self, *, of_bytes: bool = True) -> Any:
        """What has request methods; *of_bytes*: it may be a ByteView."""
        views = [aioblk.ByteView(self.device())] if of_bytes else []
        return self.random.choice([*self.devices, *self.devices, *self.queues, *views])

    def one_of(self, things: list[Any]) -> Any:
        """IndexError, which is a refusal, if there is none."""
        return self.random.choice(things)

    def number(self, right: int) -> Any:
        """Mostly the right one."""
        kind = self.random.random()
        if kind < 0.7:
            return right
        if kind < 0.85:
            return self.random.choice(
                [-1, -512, 0, 1, 511, SIZE, SIZE * 2, 2**63 - 1, 2**63, 2**64, -(2**64), True]
            )
        return self.random.choice(
            [None, 1.5, "512", b"512", hostile.Number(right), hostile.Number(-1), float("nan"), [], object()]
        )

    def place(self) -> int:
        return FIRST + self.random.randrange((SIZE - FIRST - (1 << 20)) // 512) * 512

    def place_to_write(self) -> Any:
        """Any number but those of the safe place."""
        while True:
            place = self.number(self.place())
            value = place.value if isinstance(place, hostile.Number) else place
            if not (isinstance(value, int) and 0 <= value < FIRST):
                return place

    def length(self) -> Any:
        return self.number(self.random.choice([0, 512, 4096, 65536, 200000, 1 << 20]))

    def memory(self) -> Any:
        """A buffer of some kind, or something that is none."""
        length = self.random.choice([0, 1, 511, 512, 1024, 4096, 65536, 200000])
        kinds: list[Callable[[], Any]] = [
            lambda: bytes(length),
            lambda: bytearray(length),
            lambda: bytearray(length),
            lambda: memoryview(bytearray(length)),
            lambda: memoryview(bytes(4096))[::2],
            lambda: array.array("d", [0.0] * 128),
            lambda: hostile.Buffer(length),
            lambda: memoryview(bytearray(1024)).cast("B", (2, 512)),
            lambda: (ctypes.c_char * 1024)(),
            lambda: mmap.mmap(-1, 8192),
            lambda: self.random.choice(["text", None, 5, self.device()]),
            lambda: self.one_of(self.regions),
            lambda: self.one_of(self.regions)[self.random.randrange(9000) : self.random.randrange(9000)],
            lambda: memoryview(self.one_of(self.regions)),
            lambda: self.one_of(self.buffers),
            lambda: self.one_of(self.buffers)[512:1024],
        ]
        return self.random.choice(kinds)()

    def several(self) -> Any:
        """Buffers, for readv and writev."""
        buffers = [self.memory() for _ in range(self.random.randrange(6))]
        return self.random.choice([buffers, buffers, tuple(buffers), iter(buffers), None, [None]])

    def pairs(self, second: Callable[[], Any], *, writing: bool = False) -> Any:
        """For batches."""

        def generate() -> Iterator[Any]:
            for _ in range(self.random.randrange(12)):
                pair = self.place_to_write() if writing else self.number(self.place()), second()
                yield pair if self.world.chance(0.95) else self.random.choice([None, (1,), "ab", 5])

        kind = self.random.random()
        if kind < 0.5:
            return list(generate())
        return hostile.batch(generate()) if kind < 0.9 else self.random.choice([None, 5, [], "abcd", {1: 2}])

    def flags(self, *names: str) -> dict[str, Any]:
        values = [True, False, 1, 0, None, "x", hostile.Flag(True)]
        return {name: self.random.choice(values) for name in names if self.world.chance(0.3)}

    # --- what hostile objects do ----------------------------------------------------------------------------

    def come_in(self, way: str) -> None:
        if self.depth > 2 or not self.devices or not self.world.chance(0.3):
            return
        self.depth += 1
        self.world.count(f"in by {way}")
        try:
            name = self.random.choice(["read", "cancel a request", "look", "write many", "forget requests"])
            self.world.count(f"did {name}, from within")
            ACTIONS[name][1](self)
        except (*REFUSALS, MischiefError) as error:
            self.world.refused(error)
        finally:
            self.depth -= 1
        if self.world.chance(0.1):
            raise MischiefError(way)

    # --- steps ----------------------------------------------------------------------------------------------

    def keep(self, request: Any) -> None:
        self.requests.append(request)
        if len(self.requests) > KEPT:
            del self.requests[: KEPT // 2]

    def soon(self, awaitable: Any) -> None:
        """Let a task do it."""
        task = asyncio.ensure_future(awaitable)
        self.tasks.add(task)
        task.add_done_callback(self._end_task)

    def _end_task(self, task: "asyncio.Future[Any]") -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            self.world.look_at(task.exception())

    async def step(self) -> None:
        name, act = self.world.draw(ACTIONS)
        self.world.count(f"did {name}")
        try:
            result = act(self)
            if asyncio.iscoroutine(result):
                async with asyncio.timeout(SHORT):
                    await result
        except (*REFUSALS, MischiefError) as error:
            self.world.refused(error)
        if all(device.closed for device in self.devices):
            self.devices.clear()
            await open_a_file(self)


# --- requests -----------------------------------------------------------------------------------------------


@action(8)
def read(fuzz: Fuzz) -> None:
    fuzz.keep(fuzz.submitter().read(fuzz.number(fuzz.place()), fuzz.length()))


@action(5)
def read_into(fuzz: Fuzz) -> None:
    fuzz.keep(fuzz.submitter().read_into(fuzz.number(fuzz.place()), fuzz.memory()))


@action(4)
def readv(fuzz: Fuzz) -> None:
    fuzz.keep(fuzz.submitter().readv(fuzz.number(fuzz.place()), fuzz.several()))


@action(6)
def write(fuzz: Fuzz) -> None:
    fuzz.keep(fuzz.submitter().write(fuzz.place_to_write(), fuzz.memory(), **fuzz.flags("fua")))


@action(4)
def writev(fuzz: Fuzz) -> None:
    fuzz.keep(fuzz.submitter().writev(fuzz.place_to_write(), fuzz.several(), **fuzz.flags("fua")))


@action(3)
def write_zeroes(fuzz: Fuzz) -> None:
    flags = fuzz.flags("fua", "no_unmap", "no_fallback")
    fuzz.keep(fuzz.submitter().write_zeroes(fuzz.place_to_write(), fuzz.number(4096), **flags))


@action(2)
def discard(fuzz: Fuzz) -> None:
    fuzz.keep(fuzz.submitter().discard(fuzz.place_to_write(), fuzz.number(4096)))


@action(2)
def flush(fuzz: Fuzz) -> None:
    fuzz.keep(fuzz.submitter().flush())


@action(3)
def read_many(fuzz: Fuzz) -> None:
    pairs = fuzz.pairs(fuzz.length)
    fuzz.keep(fuzz.submitter().read_many(pairs, **fuzz.flags("return_exceptions")))


@action(3)
def read_into_many(fuzz: Fuzz) -> None:
    pairs = fuzz.pairs(fuzz.memory)
    fuzz.keep(fuzz.submitter().read_into_many(pairs, **fuzz.flags("return_exceptions")))


@action(3)
def write_many(fuzz: Fuzz) -> None:
    pairs = fuzz.pairs(fuzz.memory, writing=True)
    fuzz.keep(fuzz.submitter().write_many(pairs, **fuzz.flags("return_exceptions", "fua")))


@action(1)
def call_with_any_arguments(fuzz: Fuzz) -> None:
    arguments = [fuzz.number(FIRST) for _ in range(fuzz.random.randrange(5))]
    fuzz.keep(fuzz.device().read(*arguments, **fuzz.flags("offset", "length", "x")))


# --- what becomes of requests -------------------------------------------------------------------------------


@action(8)
async def wait_for_a_request(fuzz: Fuzz) -> None:
    await asyncio.wait_for(fuzz.one_of(fuzz.requests), fuzz.random.choice([0, 0.001, 0.5]))


@action(5)
def cancel_a_request(fuzz: Fuzz) -> None:
    fuzz.one_of(fuzz.requests).cancel(*fuzz.random.choice([(), (), (5,), (hostile.Message(),)]))


@action(4)
def await_in_a_task(fuzz: Fuzz) -> None:
    ways: list[Any] = [asyncio.ensure_future, asyncio.gather, asyncio.shield, asyncio.create_task]
    make = fuzz.random.choice(ways)
    fuzz.soon(make(fuzz.one_of(fuzz.requests)))


@action(3)
def add_a_callback(fuzz: Fuzz) -> None:
    fuzz.one_of(fuzz.requests).add_done_callback(hostile.Callback())


@action(2)
def remove_a_callback(fuzz: Fuzz) -> None:
    fuzz.one_of(fuzz.requests).remove_done_callback(hostile.Callback(equal=True))


@action(6)
def look(fuzz: Fuzz) -> None:
    request = fuzz.one_of(fuzz.requests)
    ways: list[Callable[[Any], Any]] = [
        repr,
        hash,
        lambda request: request.done(),
        lambda request: request.cancelled(),
        lambda request: request.result(),
        lambda request: request.exception(),
        lambda request: request.get_loop(),
        hostile.watch_weakly,
    ]
    fuzz.random.choice(ways)(request)


@action(1)
def misuse_a_request(fuzz: Fuzz) -> None:
    request = fuzz.submitter(of_bytes=False).read(fuzz.place(), 4096)
    misuse = fuzz.random.choice(
        [
            lambda request: request.send(fuzz.random.choice([None, 1])),
            lambda request: request.throw(
                fuzz.random.choice([ValueError, KeyError("x"), 5, MischiefError("thrown")])
            ),
            lambda request: request.close(),
            copy.copy,
            pickle.dumps,
            iter,
            lambda request: type(request)(),
            lambda request: setattr(request, "_lends_memory", fuzz.random.choice([1, None, True])),
        ]
    )
    misuse(request)


@action(2)
def forget_requests(fuzz: Fuzz) -> None:
    del fuzz.requests[fuzz.random.randrange(max(len(fuzz.requests), 1)) :]


# --- memory -------------------------------------------------------------------------------------------------


@action(2)
async def allocate_a_region(fuzz: Fuzz) -> None:
    region = fuzz.device().allocate(fuzz.number(8192))
    await region.__aenter__()
    fuzz.regions.append(region)


@action(2)
async def register_a_region(fuzz: Fuzz) -> None:
    ways: list[Callable[[], Any]] = [lambda: mmap.mmap(-1, 8192), lambda: bytearray(8192), fuzz.memory]
    memory = fuzz.random.choice(ways)()
    region = fuzz.device().register(memory, required=fuzz.world.chance(0.5))
    fuzz.regions.append(region)
    await region.__aenter__()


@action(2)
async def leave_a_region(fuzz: Fuzz) -> None:
    await fuzz.one_of(fuzz.regions).aclose()


@action(1)
def forget_a_region(fuzz: Fuzz) -> None:
    """One that was left, or it is reported as forgotten, and rightly so."""
    fuzz.regions[:] = [region for region in fuzz.regions if not region.memory.closed]


@action(2)
def use_a_region(fuzz: Fuzz) -> None:
    region = fuzz.one_of(fuzz.regions)
    start, end = fuzz.random.randrange(-9000, 9000), fuzz.random.randrange(-9000, 9000)
    part = region[start:end]
    part[:] = bytes(len(part))
    region[fuzz.random.choice([0, -1, 5, 99999, 2**70])] = fuzz.random.choice([0, 255, 256, -1, "a"])


@action(1)
def look_at_a_region(fuzz: Fuzz) -> None:
    region = fuzz.one_of(fuzz.regions)
    ways: list[Callable[[Any], Any]] = [
        hash,
        repr,
        len,
        bytes,
        memoryview,
        copy.copy,
        list,
        hostile.watch_weakly,
    ]
    fuzz.random.choice(ways)(region)


@action(1)
async def enter_an_arena(fuzz: Fuzz) -> None:
    arena = aioblk.Arena(fuzz.random.choice([0, 8192, 65536]))
    await arena.__aenter__()
    fuzz.arenas.append(arena)


@action(2)
async def attach_an_arena(fuzz: Fuzz) -> None:
    fuzz.odd_ends.append(await fuzz.one_of(fuzz.arenas).attach(fuzz.device()))


@action(1)
async def detach_an_arena(fuzz: Fuzz) -> None:
    attachments = [thing for thing in fuzz.odd_ends if isinstance(thing, aioblk.ArenaAttachment)]
    await fuzz.one_of(attachments).detach()


@action(1)
async def add_a_block(fuzz: Fuzz) -> None:
    fuzz.odd_ends.append(await fuzz.one_of(fuzz.arenas).add_block(fuzz.number(65536)))


@action(1)
async def remove_a_block(fuzz: Fuzz) -> None:
    blocks = [thing for thing in fuzz.odd_ends if isinstance(thing, aioblk.ArenaBlock)]
    await fuzz.one_of(fuzz.arenas).remove_block(fuzz.one_of(blocks))


@action(2)
def take_a_buffer(fuzz: Fuzz) -> None:
    fuzz.buffers.append(fuzz.one_of(fuzz.arenas).allocate(fuzz.number(4096)))


@action(1)
async def wait_for_a_buffer(fuzz: Fuzz) -> None:
    fuzz.buffers.append(await asyncio.wait_for(fuzz.one_of(fuzz.arenas).acquire(fuzz.number(4096)), 0.01))


@action(2)
def give_a_buffer_back(fuzz: Fuzz) -> None:
    fuzz.one_of(fuzz.buffers).release()


@action(1)
def forget_a_buffer(fuzz: Fuzz) -> None:
    fuzz.buffers.remove(fuzz.one_of(fuzz.buffers))


@action(1)
async def trim_an_arena(fuzz: Fuzz) -> None:
    await fuzz.one_of(fuzz.arenas).trim()


@action(0.5)
async def leave_an_arena(fuzz: Fuzz) -> None:
    await fuzz.one_of(fuzz.arenas).aclose()


# --- queues -------------------------------------------------------------------------------------------------


@action(2)
def bind_a_queue(fuzz: Fuzz) -> None:
    index: Any = fuzz.random.choice([1, 1, 1, 2, None, -1, 5, 2**40, "x", True])
    queue = fuzz.device().queue(index)
    if queue.index != 0:
        fuzz.queues.append(queue)


@action(2)
async def close_a_queue(fuzz: Fuzz) -> None:
    queue = fuzz.one_of(fuzz.queues)
    fuzz.queues.remove(queue)
    await queue.aclose()


@action(1)
async def add_and_remove_a_queue(fuzz: Fuzz) -> None:
    device = fuzz.device()
    await device.remove_queue(await device.add_queue())


@action(1)
async def remove_any_queue(fuzz: Fuzz) -> None:
    await fuzz.device().remove_queue(fuzz.random.choice([1, 2, -1, 2**33, 0]))


@action(1)
def use_a_blocking_queue(fuzz: Fuzz) -> None:
    with fuzz.device().blocking_queue(fuzz.random.choice([1, 1, 0, -1, 7])) as queue:
        queue.wait(queue.read(fuzz.place(), 512), 0.2)


@action(1)
async def use_a_device_in_another_thread(fuzz: Fuzz) -> None:
    """Where its own queue may be used, and nothing else."""
    device, place = fuzz.device(), fuzz.place()
    ways: list[Callable[[], Any]] = [device.flush, device.statistics, lambda: device.read(place, 512)]
    wrong = fuzz.random.choice(ways)

    async def use() -> None:
        try:
            wrong()
        except aioblk.BlkioError as error:
            fuzz.world.refused(error)
        async with device.queue(1) as queue:
            await queue.read(place, 512)

    def run() -> None:
        try:
            asyncio.run(use())
        except (*REFUSALS, MischiefError) as error:
            fuzz.world.refused(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():  # noqa: ASYNC110 (it tells nobody)
        await asyncio.sleep(0.001)


# --- a device's life ----------------------------------------------------------------------------------------


async def keep_open(fuzz: Fuzz, device: aioblk.Device) -> None:
    if len([device for device in fuzz.devices if not device.closed]) < 5:
        fuzz.devices.append(await device.open())
        fuzz.world.count(f"opened {device.driver}")


@action(1)
async def open_a_file(fuzz: Fuzz) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"direct": True, "num_queues": 2},
        {"read_only": True},
        {"num_queues": 2, "num_entries": 4},
    ]
    await keep_open(fuzz, aioblk.IoUring(fuzz.world.file, **fuzz.random.choice(options)))


@action(0.5)
async def open_a_descriptor(fuzz: Fuzz) -> None:
    with fuzz.world.file.open("r+b") as file:
        await keep_open(fuzz, aioblk.IoUring(fd=file.fileno()))


@action(1.5)
async def open_a_backend(fuzz: Fuzz) -> None:
    """There is one, and it serves one client at a time."""
    served = [device for device in fuzz.devices if isinstance(device, aioblk.VirtioBlkVhostUser)]
    if not served or fuzz.world.chance(0.1):
        options: dict[str, Any] = fuzz.random.choice([{}, {"reconnect_for": 5.0}, {"lost_after": 5.0}])
        device = aioblk.VirtioBlkVhostUser(fuzz.world.daemon.socket, num_queues=2, **options)
        await asyncio.wait_for(
            keep_open(fuzz, device), fuzz.random.choice([0, 0.005, 0.5]) if served else 0.5
        )


@action(1)
def close_a_device(fuzz: Fuzz) -> None:
    if len(fuzz.devices) > 1:
        device = fuzz.device()
        fuzz.devices.remove(device)
        fuzz.soon(device.aclose())


@action(0.5)
def close_and_go_on(fuzz: Fuzz) -> None:
    fuzz.soon(fuzz.device().aclose())


@action(0.5)
def abandon_a_device(fuzz: Fuzz) -> None:
    fuzz.world.losses += 1
    fuzz.device().abandon(fuzz.random.choice(["a reason", "another"]))


@action(1)
async def reconnect_a_device(fuzz: Fuzz) -> None:
    lost = [device for device in fuzz.devices if device.lost]
    await (fuzz.one_of(lost) if lost else fuzz.device()).reconnect()


@action(0.5)
async def detach_and_attach(fuzz: Fuzz) -> None:
    device = fuzz.device()
    await device.detach()
    await device.attach()


@action(0.2)
def kill_the_backend(fuzz: Fuzz) -> None:
    fuzz.world.losses += 1
    fuzz.world.daemon.restart()


@action(2)
async def ask_a_device(fuzz: Fuzz) -> None:
    device = fuzz.device()
    name: Any = fuzz.random.choice(["queue-size", "nothing", 5])
    questions: list[Callable[[], Any]] = [
        lambda: device.capacity,
        lambda: device.limits,
        lambda: dict(device.properties),
        lambda: device.properties[name],
        device.statistics,
        lambda: device.bounce_pool.statistics(),
        lambda: repr(device),
        lambda: device.lost,
        device.refresh_capacity,
    ]
    answer = fuzz.random.choice(questions)()
    if asyncio.iscoroutine(answer):
        await answer


@action(1)
async def look_for_extents(fuzz: Fuzz) -> None:
    async for extent in fuzz.device().extents(fuzz.number(0), fuzz.number(SIZE)):
        assert extent.length > 0
        if fuzz.world.chance(0.3):
            break


@action(0.3)
async def change_the_size(fuzz: Fuzz) -> None:
    size: Any = fuzz.random.choice([SIZE, SIZE + 4096, SIZE - 4096, -1, 2**63, None])
    await fuzz.device().truncate(size)


@action(0.5)
def make_without_initialising(fuzz: Fuzz) -> None:
    """What is written in Python lacks its attributes then; what is compiled must not mind."""
    kinds: list[Any] = [
        aioblk.Request,
        aioblk.View,
        aioblk.Queue,
        aioblk.MemoryRegion,
        aioblk.ArenaBuffer,
        aioblk.BouncePool,
        aioblk.BlockingQueue,
        type(fuzz.device()),
    ]
    kind = fuzz.random.choice(kinds)
    ways: list[Callable[[Any], Any]] = [
        repr,
        bytes,
        hash,
        lambda bare: bare.read(0, 512),
        lambda bare: bare.flush(),
    ]
    with contextlib.suppress(AttributeError):
        fuzz.random.choice(ways)(kind.__new__(kind))


@action(6)
async def pause(fuzz: Fuzz) -> None:
    await asyncio.sleep(fuzz.random.choice([0, 0, 0, 0.001, 0.01]))


# --- one seed -----------------------------------------------------------------------------------------------


async def program(world: World) -> None:
    with world.file.open("r+b") as file:
        file.write(SAFE)
    world.suspects = (AttributeError, KeyError, RuntimeError)  # arguments of wrong types meet the others
    fuzz = Fuzz(world)
    hostile.let_in(fuzz.come_in)
    await open_a_file(fuzz)
    await open_a_backend(fuzz)
    for _ in range(STEPS):
        await fuzz.step()
    hostile.let_in(lambda _way: None)
    await finish(fuzz)
    if world.file.read_bytes()[: len(SAFE)] != SAFE:
        world.find("what was never written to has changed")


async def finish(fuzz: Fuzz) -> None:
    """Everything is left and closed, and comes to an end."""
    within = fuzz.world.within
    await asyncio.sleep(0)  # who is cancelled before the first step closes nothing
    for task in list(fuzz.tasks):
        if fuzz.world.chance(0.5):
            task.cancel()
    closing: list[Any] = [*fuzz.queues, *fuzz.regions, *fuzz.arenas, *fuzz.devices]
    for what in closing:
        await within(f"closing {what!r}", what.aclose())
    if fuzz.tasks:
        await within("what was begun", asyncio.wait(fuzz.tasks))
    for request in fuzz.requests:
        if isinstance(request, aioblk.Request) and not request.done():
            fuzz.world.find(f"never done: {request!r}")
    fuzz.__dict__.clear()


if __name__ == "__main__":
    try_seed(int(sys.argv[1]), program)
