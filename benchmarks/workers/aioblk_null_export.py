"""Exports a device in memory in which nothing was written, until it is killed: SOCKET SIZE LOOP."""

import asyncio
import sys

from aioblk.cli.running import loop_factory
from aioblk.export import VhostUser
from aioblk.testing import MemoryDevice


async def main(socket: str, size: int) -> None:
    async with MemoryDevice(size) as device, VhostUser(device, socket, queues=2) as export:
        await export.served()


if __name__ == "__main__":
    with asyncio.Runner(
        loop_factory=loop_factory("asyncio" if sys.argv[3] == "asyncio" else "uvloop")
    ) as runner:
        runner.run(main(sys.argv[1], int(sys.argv[2])))
