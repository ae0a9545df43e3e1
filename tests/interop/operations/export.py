"""Exports: a client's requests are finished before it is sent away, whoever waits for that."""

import asyncio
from collections.abc import AsyncIterator

import aioblk
from aioblk.export import VhostUser

from ...support.guest import Guest
from ...support.vhost_user_client import Client
from .scene import Ground, Scene, Wait, check_content, gate, leave, operation


@operation("VhostUser.__aenter__", Wait.NONE)
async def enter(ground: Ground) -> AsyncIterator[Scene]:
    place = ground.folder / "blk.sock"
    export = VhostUser(gate(), place)

    async def check() -> None:
        await leave(export)
        async with VhostUser(gate(), place):
            pass

    yield Scene(export.__aenter__, check=check)
    await leave(export)


@operation("VhostUser.__aexit__", Wait.FINISHED, closes=True)
async def leave_it(ground: Ground) -> AsyncIterator[Scene]:
    """The device has to let go of the client's memory."""
    place, guest = ground.folder / "blk.sock", Guest()
    async with aioblk.VirtioBlkVhostUser(ground.daemon.socket) as device:
        async with VhostUser(device, place) as export, Client(place, guest) as client:
            await client.set_up()
            threads = ground.threads()

            async def check() -> None:
                await leave(export)
                await client.until_hung_up()
                async with VhostUser(device, place):
                    pass

            yield Scene(lambda: leave(export), threads.hold, threads.release, check)
            threads.release()
        await check_content(device)
    guest.close()


@operation("VhostUser.served")
async def served(ground: Ground) -> AsyncIterator[Scene]:
    async with VhostUser(gate(), ground.folder / "blk.sock") as export:

        async def check() -> None:
            again = asyncio.create_task(export.served())
            await asyncio.sleep(0)
            assert not again.done()
            again.cancel()
            await asyncio.wait([again])

        yield Scene(export.served, check=check, ends=False)
