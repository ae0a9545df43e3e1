"""VhostUser: a program is a vhost-user-blk device."""

import asyncio
import contextlib
import logging
import socket
from operator import index
from os import PathLike, fspath
from typing import Literal, Self, final

from .._sync.loops import running_loop
from .._sync.scopes import shielded
from ..errors import OptionError, UsageError
from ..layers._loss import loss_of
from ..layers.block_device import BlockDevice
from ..services.in_flight import InFlightShare
from ..services.socket_stream import DisconnectedError
from ..services.unix_socket import listen_at, name_of_peer
from ._vhost_user import protocol
from ._vhost_user.config import capacity_of
from ._vhost_user.session import Offer, Session
from .disk import Disk, serve
from .statistics import Counts, VhostUserStatistics

__all__ = ["VhostUser"]

log: logging.Logger = logging.getLogger("aioblk.export")
log.addHandler(logging.NullHandler())

BACKLOG = 16
MOST_QUEUES = 256
AGAIN = 0.1  # seconds, after which somebody is let in who could not be


@final
class VhostUser:
    """A device at a Unix socket, for QEMU, for ``VirtioBlkVhostUser``, and for whoever else drives
    vhost-user-blk devices::

        async with aioblk.IoUring("disk.img") as disk:
            async with aioblk.export.VhostUser(disk, "blk.sock", queues=4) as export:
                await export.served()

    It is served from entering to leaving, to one client after the other. What a guest reads goes from the
    device into the guest's memory, which is registered with devices that take memory: nothing is copied.

    The device stays the caller's, who opens and closes it. Belongs to one event loop.
    """

    def __init__(
        self,
        device: BlockDevice | Disk,
        path: str | PathLike[str],
        *,
        queues: int = 1,
        read_only: bool = False,
        serial: str = "",
        in_flight: InFlightShare | None = None,
        only_sealed: bool = False,
        drain: float = 10.0,
    ) -> None:
        """Describe an export; entering it makes the socket.

        Args:
            device: A block device, or whatever else is a :class:`Disk`.
            path: Where the socket will be. One that is left behind there is replaced.
            queues: How many the client may use.
            read_only: Refuse all changes. What the device does not take is refused anyway.
            serial: What the guest is told to be the disk's serial number; at most 20 bytes of UTF-8.
            in_flight: What requests enter before they begin: a share of what several exports may have in
                flight together, for example. Without it, queues are as long as clients make them.
            only_sealed: Refuse clients whose memory could be taken away while it is used, which would end
                this process. Sealed memory files cannot; QEMU has them by ``memory-backend-memfd``.
            drain: Seconds in which, when a client is gone, the device is to finish what it has; then it is
                given up, and lost.

        Raises:
            OptionError: a value is out of range.
            TypeError: it is no device.
        """
        self._owner = device
        self._device = serve(device)
        self._path = fspath(path)
        queues = index(queues)
        if not 1 <= queues <= MOST_QUEUES:
            raise OptionError(f"queues must be from 1 to {MOST_QUEUES}, not {queues}")
        if len(encoded := serial.encode()) > protocol.SERIAL:
            raise OptionError(f"serial must be at most {protocol.SERIAL} bytes long, not {len(encoded)}")
        if not drain >= 0:
            raise OptionError(f"drain must be a number of seconds, not {drain}")
        self._counts = Counts()
        self._offer = Offer(
            device=self._device,
            owner=device,
            queues=queues,
            read_only=bool(read_only or self._device.read_only),
            serial=encoded,
            only_sealed=only_sealed,
            drain=drain,
            share=in_flight,
            counts=self._counts,
        )
        self._state: Literal["new", "open", "left"] = "new"
        self._open = contextlib.ExitStack()
        self._session: Session | None = None
        self._serving: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[None] | None = None
        self._capacity = 0

    # --- life -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Make the socket, and take clients.

        Raises:
            OSError: the path is in use by something else, too long, or cannot be had.
            DeviceLostError: the device is lost already.
        """
        loop = running_loop("enter", "vhost-user")
        if self._state != "new":
            raise UsageError("an export is entered once; make another one", operation="enter")
        if (lost := loss_of(self._owner)) is not None:
            raise lost
        self._capacity = capacity_of(self._device)
        listener = self._open.enter_context(listen_at(self._path, BACKLOG))
        self._state = "open"
        self._ended = loop.create_future()
        self._serving = loop.create_task(self._serve(listener))
        self._serving.add_done_callback(self._end)
        return self

    async def __aexit__(self, *error: object) -> None:
        """The client is sent away when what it has in flight is finished, within the time for that. Who is
        cancelled does not wait for it, and it comes all the same."""
        running_loop("close", "vhost-user")
        self._state = "left"
        serving, self._serving = self._serving, None
        try:
            if serving is not None:
                serving.cancel()
                with shielded():
                    await asyncio.wait([serving])
        finally:
            self._open.close()

    def _end(self, serving: asyncio.Task[None]) -> None:
        ended = self._ended
        if ended is None or ended.done():
            return
        error = None if serving.cancelled() else serving.exception()
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)
            ended.exception()  # those who wait are told, and nobody has to

    async def served(self) -> None:
        """Wait until the export is left, or cannot go on. Whoever waits may be cancelled, which ends nothing.

        Raises:
            DeviceLostError: the device is lost. What clients had in flight is not answered: one that keeps
                account of it has it done by who serves it next.
            UsageError: the export was not entered.
        """
        running_loop("serve", "vhost-user")
        if self._ended is None:
            raise UsageError("the export is not open yet; enter it first: async with", operation="serve")
        await asyncio.shield(self._ended)

    # --- clients --------------------------------------------------------------------------------------------

    async def _serve(self, listener: socket.socket) -> None:
        while True:
            connection = await _accept(listener)
            name = name_of_peer(connection)
            log.info("%s: connected", name)
            self._counts.clients += 1
            session = self._session = Session(connection, self._offer)
            try:
                await session.run()
                log.info("%s: gone; %s", name, str(self._counts))
            except DisconnectedError as reason:
                log.warning("%s: %s", name, str(reason))  # whoever keeps the record keeps no memory
            except asyncio.CancelledError:
                log.info("%s: sent away; %s", name, str(self._counts))
                raise
            except Exception:
                log.exception("%s: the export failed", name)
            finally:
                try:
                    await session.end()
                finally:
                    self._session = None
            if session.lost is not None:
                raise session.lost

    def resized(self) -> int:
        """The device may have another capacity: look, and tell the client. The capacity, in bytes."""
        capacity = capacity_of(self._device)
        if capacity != self._capacity:
            self._capacity = capacity
            if self._session is not None:
                self._session.resize()
        return capacity

    # --- what there is to see -------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        """Where the socket is."""
        return self._path

    def statistics(self) -> VhostUserStatistics:
        """What has been counted so far."""
        session = self._session
        return self._counts.seen(
            clients=int(session is not None), in_flight=0 if session is None else session.in_flight
        )

    def __repr__(self) -> str:
        return f"<aioblk.export.VhostUser at {self._path!r}, {self._state}>"


async def _accept(listener: socket.socket) -> socket.socket:
    """The next who comes. The loop's sock_accept() may be cancelled in the turn in which it accepts one, who
    is nobody's then."""
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    while True:
        comes: asyncio.Future[None] = loop.create_future()
        loop.add_reader(listener, _tell, comes)
        try:
            await comes
        finally:
            loop.remove_reader(listener)
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            continue
        except OSError as error:  # there are too many descriptors, as a rule
            log.warning("cannot accept a client: %s", error)
            await asyncio.sleep(AGAIN)
            continue
        connection.setblocking(False)
        return connection


def _tell(comes: asyncio.Future[None]) -> None:
    if not comes.done():
        comes.set_result(None)
