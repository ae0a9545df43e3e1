"""What is done with whole devices: nothing of it may be under way when it is left."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aioblk

from ...support.devices import BLOCK, pattern
from ...support.gate import Gate
from .scene import LIMITS, SIZE, Ground, Scene, Scenery, Wait, content, first, gate, operation

OTHER = pattern(SIZE, 3)


# --- copying ------------------------------------------------------------------------------------------------


def _copying(held: str, source: bytes, destination: bytes, *, longer: int = 0, **options: Any) -> Scenery:
    """From a device with that content to another one, *longer* by some bytes."""

    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        ours = Gate(SIZE, limits=LIMITS, content=source)
        theirs = Gate(SIZE + longer, limits=LIMITS, content=destination)
        gate = {"source": ours, "destination": theirs}[held]

        async def check() -> None:
            assert not ours.statistics().in_flight
            assert not theirs.statistics().in_flight
            await aioblk.copy(ours, theirs, **options)
            assert theirs.content()[:SIZE] == ours.content()

        yield Scene(
            lambda: aioblk.copy(ours, theirs, **options),
            *(gate.hold, gate.release, check),
            is_held_up=lambda: gate.statistics().in_flight > 0,
        )

    return scene


ZERO = bytes(SIZE)
AS_IT_IS = {"destination_is_zero": True}  # of zeroes there is nothing to be copied then

operation("copy", Wait.FINISHED)(_copying("source", content(), OTHER))
operation("copy, writing", Wait.FINISHED)(_copying("destination", OTHER, content()))
operation("copy, zeroing", Wait.FINISHED)(_copying("destination", ZERO, OTHER))
operation("copy, discarding", Wait.FINISHED)(
    _copying("destination", ZERO, ZERO, longer=SIZE, discard_rest=True, **AS_IT_IS)
)
operation("copy, flushing", Wait.FINISHED)(_copying("destination", ZERO, ZERO, **AS_IT_IS))


@operation("copy, changing the size", Wait.FINISHED)
async def copy_and_truncate(ground: Ground) -> AsyncIterator[Scene]:
    path = ground.file()
    async with aioblk.IoUring(path) as file:
        await file.truncate(2 * SIZE)
        source, threads = gate(), ground.threads()

        async def check() -> None:
            size = path.stat().st_size
            assert size == file.capacity
            await file.truncate(3 * SIZE)
            await aioblk.copy(source, file)
            assert path.read_bytes() == source.content()

        yield Scene(lambda: aioblk.copy(source, file), threads.hold, threads.release, check)


@operation("copy, cloning", Wait.FINISHED)
async def copy_and_clone(ground: Ground) -> AsyncIterator[Scene]:
    path, new = ground.file(), ground.folder / "copy.img"
    new.write_bytes(OTHER)
    async with aioblk.IoUring(path) as source, aioblk.IoUring(new) as destination:
        threads = ground.threads()

        async def check() -> None:
            await aioblk.copy(source, destination)
            assert new.read_bytes() == path.read_bytes()

        yield Scene(lambda: aioblk.copy(source, destination), threads.hold, threads.release, check)


# --- reading ------------------------------------------------------------------------------------------------


@operation("compare", Wait.FINISHED)
async def compare(ground: Ground) -> AsyncIterator[Scene]:
    one, other = gate(), gate()

    async def check() -> None:
        assert (await aioblk.compare(one, other)).same
        assert not one.statistics().in_flight

    yield Scene(
        lambda: aioblk.compare(one, other),
        *(one.hold, one.release, check),
        is_held_up=lambda: one.statistics().in_flight > 0,
    )


async def _checksum(device: aioblk.BlockDevice) -> str:
    return await aioblk.checksum(device, "md5", request_size=BLOCK)


@operation("checksum", Wait.FINISHED)
async def checksum(ground: Ground) -> AsyncIterator[Scene]:
    device = gate()

    async def check() -> None:
        assert not device.statistics().in_flight
        assert await _checksum(device) == await _checksum(gate())

    yield Scene(
        lambda: _checksum(device),
        *(device.hold, device.release, check),
        is_held_up=lambda: device.statistics().in_flight > 0,
    )


@operation("checksum, computing", Wait.FINISHED)
async def checksum_computing(ground: Ground) -> AsyncIterator[Scene]:
    """In a thread, which has the memory. Threads are held from the first read on: one before makes that."""
    threads = ground.threads()
    holds = False

    class HoldsThreads(Gate):
        def _request(self, *arguments: Any, **options: Any) -> Any:
            if holds:
                threads.hold()
            return super()._request(*arguments, **options)

    def hold() -> None:
        nonlocal holds
        holds = True

    def release() -> None:
        nonlocal holds
        holds = False
        threads.release()

    device = HoldsThreads(SIZE, limits=LIMITS, content=content())
    yield Scene(lambda: _checksum(device), hold, release, is_held_up=lambda: threads.held > 0)


def _mapping(call: Callable[[aioblk.BlockDevice], Awaitable[object]]) -> Scenery:
    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        device = gate()
        yield Scene(
            lambda: call(device),
            *(device.hold, device.release),
            is_held_up=lambda: device.statistics().in_flight > 0,
        )
        assert not device.statistics().in_flight

    return scene


operation("map_extents, detecting zeroes", Wait.FINISHED)(
    _mapping(lambda device: first(aioblk.map_extents(device, detect_zeroes=BLOCK)))
)


@operation("map_extents")
async def map_extents(ground: Ground) -> AsyncIterator[Scene]:
    async with aioblk.IoUring(ground.file()) as device:
        threads = ground.threads()
        yield Scene(lambda: first(aioblk.map_extents(device)), threads.hold, threads.release)
