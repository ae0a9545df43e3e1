"""``aioblk serve vhost-user``: a device for a virtual machine."""

import asyncio
import logging
import os
import signal
import sys
from typing import Any, cast, final

import click

from ..errors import DeviceClosedError, DeviceLostError, OptionError
from ..export import VhostUser
from .output import lose_output
from .parameters import Opener, device_argument, duration
from .running import LOOPS, LoopName, loop_factory

__all__ = ["vhost_user"]

log: logging.Logger = logging.getLogger("aioblk.export")

GRACE = 5.0  # seconds, beyond those of the device, for all else to end


@click.command("vhost-user")
@device_argument()
@click.argument("socket", metavar="SOCKET")
@click.option("--queues", type=int, default=1, metavar="N", help="How many the client may use.  [1]")
@click.option("--read-only", is_flag=True, help="Refuse all changes.")
@click.option("--serial", default="", metavar="TEXT", help="The disk's serial number; at most 20 bytes.")
@click.option("--only-sealed", is_flag=True, help="Refuse memory that the client could take away.")
@click.option(
    "--drain",
    type=duration,
    default="10s",
    metavar="TIME",
    help="For what is in flight when the client is gone.  [10s]",
)
@click.option("--no-lock", is_flag=True, help="Do not lock files and disks.")
@click.option("--loop", type=click.Choice(LOOPS), default="auto", help="The event loop.  [auto]")
@click.option("--verbose", is_flag=True, help="Say who comes and goes.")
def vhost_user(device: Opener, socket: str, **given: Any) -> int:
    """Serve a block device to a virtual machine, as a vhost-user-blk device at a Unix socket.

    \b
    aioblk serve vhost-user disk.img blk.sock --queues 4
        and to use it:
        qemu-system-x86_64 ... -object memory-backend-memfd,id=m,size=4G,share=on -machine memory-backend=m
            -chardev socket,id=c,path=blk.sock,reconnect=1 -device vhost-user-blk-pci,chardev=c,num-queues=4
        aioblk bench virtio-blk-vhost-user:blk.sock

    A DEVICE is an address, as elsewhere. One client at a time is served, and others wait until it is gone.
    Whoever can reach the SOCKET reads and writes: its directory's permissions say who.

    SIGINT or SIGTERM end it: what is in flight is finished first. A second one does not wait. SIGHUP has it
    look whether the device has another size, which the client is told. A device that is lost ends it with
    status 1, and leaves what is in flight to whoever serves it next, for clients that keep account of that,
    as QEMU does: started again, it goes on, and the guest notices nothing.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO if given["verbose"] else logging.WARNING, handlers=[handler])
    logging.getLogger("aioblk.device").propagate = False  # what becomes of the device is said here
    with asyncio.Runner(loop_factory=loop_factory(cast(LoopName, given["loop"]))) as runner:
        return runner.run(_Service(device, socket, given).run())


@final
class _Service:
    def __init__(self, device: Opener, socket: str, given: dict[str, Any]) -> None:
        self._opener = device
        self._socket = socket
        self._given = given
        self._signalled = asyncio.Event()

    async def run(self) -> int:
        """The exit status."""
        given, loop = self._given, asyncio.get_running_loop()
        read_only = {"read_only": True} if given["read_only"] else {}
        opener = self._opener if given["no_lock"] else self._opener.locked
        async with opener(**read_only) as device:
            try:
                export = VhostUser(
                    device,
                    self._socket,
                    queues=given["queues"],
                    read_only=given["read_only"],
                    serial=given["serial"],
                    only_sealed=given["only_sealed"],
                    drain=given["drain"],
                )
            except OptionError as error:
                raise click.UsageError(str(error.message)) from None
            async with export:
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.add_signal_handler(number, self._on_signal)
                loop.add_signal_handler(signal.SIGHUP, export.resized)
                try:
                    print(f"{export.resized()} bytes of {self._opener} at {self._socket}", flush=True)
                except OSError:  # nobody listens
                    lose_output()
                return await self._until_the_end(export)

    async def _until_the_end(self, export: VhostUser) -> int:
        signalled = asyncio.create_task(self._signalled.wait())
        served = asyncio.create_task(export.served())
        await asyncio.wait([signalled, served], return_when=asyncio.FIRST_COMPLETED)
        self._begin_to_end()
        signalled.cancel()
        if not served.done():
            served.cancel()
            return 0
        try:
            await served
        except (DeviceLostError, DeviceClosedError) as lost:
            log.error("%s: the export ends", lost)
        return 1

    def _on_signal(self) -> None:
        if self._signalled.is_set():
            os._exit(1)
        self._signalled.set()

    def _begin_to_end(self) -> None:
        """It comes in any case, whatever the device does."""
        asyncio.get_running_loop().call_later(self._given["drain"] + GRACE, self._give_up)

    def _give_up(self) -> None:
        log.error("a device does not close: the export ends without it")
        sys.stderr.flush()
        os._exit(1)
