"""An NBD server in ten lines: `python examples/nbd_server.py disk.img`, and then `nbdinfo nbd://localhost`.

With options for all it can do, that is the program `aioblk serve nbd`; docs/nbd.md tells of both.
"""

import asyncio
import contextlib
import sys

import aioblk
from aioblk.nbd import Export, Server


async def serve(path: str, port: int = 10809) -> None:
    """Serve a file to clients on this machine, until cancelled."""
    async with aioblk.IoUring(path) as disk, Server([Export(disk)]) as server:
        await server.listen(port=port)
        print("at", *server.uris(), flush=True)
        await server.serve()


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(sys.argv[1]))
