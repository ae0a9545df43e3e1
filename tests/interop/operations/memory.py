"""Regions and arenas."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aioblk

from ...support.devices import BLOCK
from .scene import Ground, Scene, Scenery, Wait, at_once, leave, operation

BLOCK_SIZE = 1 << 16


def _device(ground: Ground) -> aioblk.Device:
    return aioblk.VirtioBlkVhostUser(ground.daemon.socket)


# --- regions ------------------------------------------------------------------------------------------------


@operation("MemoryRegion.__aenter__")
async def enter_region(ground: Ground) -> AsyncIterator[Scene]:
    async with _device(ground) as device:
        region = device.allocate(BLOCK)
        threads = ground.threads()

        async def check() -> None:
            await region.aclose()
            async with device.allocate(BLOCK) as other:
                await device.read_into(0, other)
            assert not device.statistics().in_flight

        yield Scene(region.__aenter__, threads.hold, threads.release, check)


def _closing_a_region(how: Callable[[Any], Awaitable[object]]) -> Scenery:
    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        async with _device(ground) as device:
            region = device.allocate(BLOCK)
            await region.__aenter__()

            def hold() -> None:
                ground.hold_daemon()
                _ = device.read_into(0, region)

            async def check() -> None:
                await region.aclose()
                assert region.memory.closed

            yield Scene(lambda: how(region), hold, ground.release_daemon, check)
            await region.aclose()

    return scene


operation("MemoryRegion.aclose", closes=True)(_closing_a_region(lambda region: region.aclose()))
operation("MemoryRegion.__aexit__", Wait.FINISHED, closes=True)(_closing_a_region(leave))

# --- arenas -------------------------------------------------------------------------------------------------


@operation("Arena.__aenter__", Wait.FINISHED)
async def enter_arena(ground: Ground) -> AsyncIterator[Scene]:
    async with _device(ground) as device:
        arena = aioblk.Arena(BLOCK_SIZE)
        await arena.attach(device)
        threads = ground.threads()

        async def check() -> None:
            await arena.aclose()
            assert not arena.blocks

        yield Scene(arena.__aenter__, threads.hold, threads.release, check)
        await arena.aclose()


def _of_an_arena(
    call: Callable[[aioblk.Arena, aioblk.Device], Awaitable[object]],
    check: Callable[[aioblk.Arena, aioblk.Device], Awaitable[None]],
    *,
    attached: bool = True,
) -> Scenery:
    """With a block; what has to be told to the device is held up."""

    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        async with _device(ground) as device:
            arena = aioblk.Arena(BLOCK_SIZE)
            if attached:
                await arena.attach(device)
            await arena.__aenter__()
            threads = ground.threads()
            yield Scene(
                lambda: call(arena, device), threads.hold, threads.release, lambda: check(arena, device)
            )
            threads.release()
            await arena.aclose()

    return scene


async def _usable(arena: aioblk.Arena, device: aioblk.Device) -> None:
    """Whatever was begun is finished first."""
    await arena.add_block()
    with arena.allocate(BLOCK) as buffer:
        await device.read_into(0, buffer)


async def _attached(arena: aioblk.Arena, device: aioblk.Device) -> None:
    await _usable(arena, device)
    assert arena.statistics().devices == 1


async def _detached(arena: aioblk.Arena, device: aioblk.Device) -> None:
    await _usable(arena, device)
    assert arena.statistics().devices == 0


async def _closed(arena: aioblk.Arena, device: aioblk.Device) -> None:
    await arena.aclose()
    assert arena.statistics() == aioblk.ArenaStatistics(0, 0, 0, 0, 0)


operation("Arena.add_block")(_of_an_arena(lambda arena, device: arena.add_block(), _usable))
operation("Arena.attach")(_of_an_arena(lambda arena, device: arena.attach(device), _attached, attached=False))
operation("Arena.remove_block", closes=True)(
    _of_an_arena(lambda arena, device: arena.remove_block(arena.blocks[0]), _usable)
)
operation("Arena.detach", closes=True)(_of_an_arena(lambda arena, device: arena.detach(device), _detached))
operation("ArenaAttachment.detach", closes=True)(
    _of_an_arena(lambda arena, device: arena.attachments[0].detach(), _detached)
)
operation("Arena.aclose", closes=True)(_of_an_arena(lambda arena, device: arena.aclose(), _closed))
operation("Arena.__aexit__", Wait.FINISHED, closes=True)(
    _of_an_arena(lambda arena, device: leave(arena), _closed)
)
operation("Arena.trim")(_of_an_arena(lambda arena, device: arena.trim(), _usable, attached=False))


@operation("Arena.acquire")
async def acquire(ground: Ground) -> AsyncIterator[Scene]:
    arena = aioblk.Arena(BLOCK_SIZE)
    await arena.__aenter__()
    taken: list[aioblk.ArenaBuffer] = []

    async def acquire() -> None:
        with await arena.acquire(BLOCK_SIZE):
            pass

    async def check() -> None:
        assert arena.statistics().in_use == 0
        at_once(acquire())  # who was given up holds nobody up

    yield Scene(
        acquire,
        lambda: taken.append(arena.allocate(BLOCK_SIZE)),
        lambda: taken.pop().release(),
        check,
    )
    await arena.aclose()


@operation("ArenaShare.acquire")
async def acquire_by_a_share(ground: Ground) -> AsyncIterator[Scene]:
    arena = aioblk.Arena(BLOCK_SIZE)
    await arena.__aenter__()
    taken: list[aioblk.ArenaBuffer] = []
    with arena.share(size=BLOCK) as share:

        async def acquire() -> None:
            with await share.acquire(2 * BLOCK):
                pass

        async def check() -> None:
            assert arena.statistics().in_use == BLOCK
            at_once(acquire())

        yield Scene(
            acquire,
            lambda: taken.append(arena.allocate(BLOCK_SIZE - BLOCK)),
            lambda: taken.pop().release(),
            check,
        )
    await arena.aclose()


def _followed(call: Callable[[aioblk.ArenaAttachment, aioblk.ArenaBlock], Awaitable[None]]) -> Scenery:
    """What an arena calls of its attachments, called from outside, of an arena that it is not."""

    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        async with _device(ground) as device, aioblk.Arena(BLOCK_SIZE) as arena, aioblk.Arena(1) as other:
            attachment = await other.attach(device)
            [block] = arena.blocks
            [own] = other.blocks
            threads = ground.threads()

            async def check() -> None:
                await other.detach(device)
                with other.allocate(BLOCK) as buffer:
                    await device.read_into(0, buffer)

            yield Scene(lambda: call(attachment, own), threads.hold, threads.release, check)
            assert block in arena.blocks

    return scene


operation("ArenaAttachment.block_removed", Wait.FINISHED, closes=True)(
    _followed(lambda attachment, block: attachment.block_removed(block))
)


@operation("ArenaAttachment.block_added")
async def block_added(ground: Ground) -> AsyncIterator[Scene]:
    async with _device(ground) as device, aioblk.Arena(BLOCK_SIZE) as arena, aioblk.Arena() as other:
        attachment = await other.attach(device)
        [block] = arena.blocks
        threads = ground.threads()

        async def check() -> None:
            await attachment.detach()
            assert not attachment.attached

        yield Scene(lambda: attachment.block_added(block), threads.hold, threads.release, check)
