"""Server: exports, the sockets at which they are had, and the end of it all."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from typing import Literal, Self, final

from ..._memory.arena import Arena
from ..._memory.mapping import MapsMemory
from ..._sync.loops import running_loop
from ..._sync.scopes import shielded, shielded_if_cancelled
from ..._sync.tasks import SteadfastTasks
from ...errors import BlkioError, UsageError
from ...layers._loss import give_up, loss_of
from ...layers.block_device import require_block_device
from ...services.unix_socket import listen_at
from .backend import Backend
from .clients import Clients
from .export import CACHED_AT_ONCE, Export, ServedExport
from .exports import Exports, refuse_text
from .listening import BACKLOG, Listener, listen_at_tcp, refuse_unless_listening, uri_of
from .policy import GRANULE, Policy
from .statistics import ServerStatistics
from .tls import Tls

log = logging.getLogger("aioblk.nbd")

DEVICE_GRACE = 2.0  # seconds, beyond those of clients, for devices to finish what they have
PORT = 10809


@final
class Server:
    """An NBD server for block devices of any kind::

        async with aioblk.IoUring("disk.img") as disk, aioblk.nbd.Server() as server:
            await server.add(aioblk.nbd.Export(disk))
            await server.listen()
            await server.serve()

    Exports and sockets can be added at any time, and exports removed. What clients can do to each other and
    to the server is bounded by its :class:`Policy`; a client that does anything else than NBD is sent away.

    Belongs to one event loop. The devices stay the caller's, who opens and closes them.
    """

    def __init__(
        self, exports: Iterable[Export] = (), *, policy: Policy | None = None, tls: Tls | None = None
    ) -> None:
        """Describe a server; entering it takes its memory, and adds the *exports*."""
        self._policy = Policy() if policy is None else policy
        self._tls = tls
        self._first = list(exports)
        self._exports = Exports()
        self._backends: dict[int, Backend] = {}  # by the identity of their devices, which they keep
        self._listeners: list[Listener] = []
        memory = self._policy.memory
        kept = (self._policy.own_memory * self._policy.clients + GRANULE / 2) / (memory + CACHED_AT_ONCE)
        self._arena = Arena(memory + CACHED_AT_ONCE, kept=kept)
        self._clients = Clients(self._exports, self._arena, self._policy)
        self._clients.tls = tls
        self._open = contextlib.AsyncExitStack()
        self._state: Literal["new", "open", "left"] = "new"
        self._failed: asyncio.Future[None] | None = None  # while it serves; what ends that
        self._ending: asyncio.Task[None] | None = None  # while it ends that
        self._work = SteadfastTasks("nbd server")
        self._turn = asyncio.Lock()  # of whoever adds or removes

    # --- life -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        running_loop("enter", "nbd server")
        if self._state != "new":
            raise UsageError("a server is entered once; make another one", operation="enter")
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._leave)
            await stack.enter_async_context(self._arena)
            self._nowhere = self._arena.allocate(CACHED_AT_ONCE)
            stack.callback(self._stop_listening)
            stack.push_async_callback(self._finish_work)
            self._open = stack
            self._state = "open"
            for export in self._first:
                await self.add(export)
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        """Whoever leaves while it serves ends that, as :meth:`serve` tells, which returns then."""
        running_loop("close", "nbd server")
        with shielded():
            cancelled = await self._until_ended() if self._failed is not None else None
            self._leave()
            await self._open.aclose()
        if cancelled is not None:
            raise cancelled

    async def _finish_work(self) -> None:
        """Before the memory goes, which devices are being told of."""
        with shielded():
            await self._work.until_done()

    def _leave(self) -> None:
        self._state = "left"

    def _refuse_unless_open(self, operation: str) -> None:
        if self._state != "open":
            how = "enter it first: async with Server()" if self._state == "new" else "make another one"
            which = "not open yet" if self._state == "new" else "closed"
            raise UsageError(f"the server is {which}; {how}", operation=operation)

    # --- exports --------------------------------------------------------------------------------------------

    async def add(self, export: Export) -> None:
        """Offer an open device from now on.

        Raises:
            UsageError: the name is in use, there is a default one already, or the server is not open.
            OptionError: the name or the description is too long, or no text.
            RegistrationError: the device cannot take the memory of the server.
            TypeError: it is no BlockDevice.
        """
        running_loop("add", "nbd server")
        self._refuse_unless_open("add")
        require_block_device(export.device)
        refuse_text("the name of an export", export.name)
        refuse_text("the description of an export", export.description)
        await self._work.finish(self._add(export))

    async def _add(self, export: Export) -> None:
        async with self._turn:
            self._exports.refuse_if_taken(export.name, default=export.default)
            backend = self._backends.get(id(export.device))
            if backend is None:
                backend = Backend(export.device)
                if isinstance(export.device, MapsMemory):
                    await self._arena.attach(export.device)
                self._backends[id(export.device)] = backend
                if self._serves:
                    self._watch(backend)
            backend.exports += 1
            self._exports.add(ServedExport(export, backend, self._nowhere), default=export.default)

    async def remove(self, name: str) -> None:
        """Offer an export no more, and send its clients away: what they have in flight is answered first,
        within the time that the policy has for that. Afterwards the device may be closed.

        Raises:
            UsageError: there is no such export.
        """
        running_loop("remove", "nbd server")
        with shielded_if_cancelled():
            await self._work.finish(self._remove(name))

    async def _remove(self, name: str) -> None:
        async with self._turn:  # what was begun before is there then
            export = self._exports.remove(name)
        # Outside of the turn: a device that does not answer holds up nobody who adds or removes another one.
        await self._clients.send_away(f"the export {name!r} is removed", "removed", {export})
        async with self._turn:
            backend = export.backend
            backend.exports -= 1
            if not backend.exports:
                if backend.watching is not None:
                    backend.watching.cancel()
                del self._backends[id(backend.device)]
                if isinstance(backend.device, MapsMemory):
                    await self._arena.detach(backend.device)

    def size_of(self, name: str) -> int:
        """Bytes of an export. UsageError: there is none of that name."""
        return self._exports.named(name).size

    @property
    def exports(self) -> tuple[str, ...]:
        """The names of those that are offered, in the order in which they were added."""
        return tuple(export.name for export in self._exports)

    # --- listening ------------------------------------------------------------------------------------------

    async def listen(self, host: str = "127.0.0.1", port: int = PORT) -> None:
        """Take clients at a TCP port: at each address of *host*, which is every address of this machine if it
        is empty. Port 0 is one that is free.

        Raises:
            OSError: there is no such host, or one of its addresses cannot be had.
            UsageError: the server is not open, or ends.
        """
        running_loop("listen", "nbd server")
        self._refuse_to_listen()
        listeners = await listen_at_tcp(host, port)
        with contextlib.ExitStack() as undo:
            for listener in listeners:
                undo.callback(listener.close)
            self._refuse_to_listen()  # it may have come to its end meanwhile
            undo.pop_all()
        for listener in listeners:
            self._take(listener, contextlib.ExitStack())

    def listen_at_path(self, path: str | PathLike[str]) -> None:
        """Take clients at a Unix socket. One that is left behind there is replaced; the file is removed in
        the end, if it is still the server's.

        Raises:
            OSError: the path is in use by something else, too long, or cannot be had.
            UsageError: the server is not open, or ends.
        """
        self._refuse_to_listen()
        undo = contextlib.ExitStack()
        self._take(undo.enter_context(listen_at(fspath(path), BACKLOG)), undo)

    def listen_on(self, listener: socket.socket) -> None:
        """Take clients at a socket that listens, TCP or Unix, which is the server's from now on.

        Raises:
            UsageError: it is another kind of socket or does not listen, or the server is not open, or ends.
                The socket stays the caller's.
        """
        self._refuse_to_listen()
        refuse_unless_listening(listener)
        self._take(listener, contextlib.ExitStack())

    def _refuse_to_listen(self) -> None:
        self._refuse_unless_open("listen")
        if self._ending is not None:
            raise UsageError("the server takes nobody any more: it ends", operation="listen")

    def _take(self, listener: socket.socket, undo: contextlib.ExitStack) -> None:
        self._listeners.append(Listener(listener, undo))
        if self._serves:
            self._accept(self._listeners[-1])

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """Those that are listened at."""
        return tuple(listener.socket for listener in self._listeners)

    def uris(self, name: str = "") -> list[str]:
        """Of an export, at each socket; without a name, of the one that clients get who name none.

        Raises:
            UsageError: there is none of that name.
        """
        if self._exports.find(name) is None:
            self._exports.named(name)  # which refuses it
        tls = self._tls is not None and self._tls.required
        return [uri_of(listener, name, tls=tls) for listener in self.sockets]

    @property
    def tls(self) -> Tls | None:
        """What those have to do who connect from now on. May be set at any time."""
        return self._tls

    @tls.setter
    def tls(self, tls: Tls | None) -> None:
        self._tls = self._clients.tls = tls

    # --- serving --------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Serve until cancelled, until a device is lost for good, or until the server is left.

        Then nobody new is taken, what is in flight is finished and answered within the time that the policy
        has for that, and all are sent away. Devices that do not finish what they have been given are given
        up soon after (:meth:`Device.abandon`), and lost. Whoever cancels it again waits for no client.

        Raises:
            DeviceLostError: a device is lost, and the policy says that this is the end, or it cannot be
                opened again.
            UsageError: it serves already, or is not open.
        """
        loop = running_loop("serve", "nbd server")
        self._refuse_unless_open("serve")
        if self._failed is not None:
            raise UsageError("the server serves already", operation="serve")
        failed = self._failed = loop.create_future()
        watching = asyncio.create_task(self._clients.watch())
        try:
            for listener in self._listeners:
                self._accept(listener)
            for backend in self._backends.values():
                self._watch(backend)
            await failed
        finally:
            await self._until_ended()
            watching.cancel()
            self._failed = self._ending = None

    @property
    def _serves(self) -> bool:
        """Whether it does, and does not end."""
        return self._failed is not None and self._ending is None

    async def _until_ended(self) -> asyncio.CancelledError | None:
        """End serving, once. Whoever is cancelled meanwhile waits for no client; that is returned."""
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(None)
        if self._ending is None:
            self._ending = self._work.start(asyncio.get_running_loop(), self._end())
        ending, cancelled = self._ending, None
        while not ending.done():
            with shielded_if_cancelled():  # by anyio, which counts once
                try:
                    await asyncio.shield(ending)
                except asyncio.CancelledError as error:
                    cancelled = error
                    self._clients.cut_off("the server ends")
        return cancelled

    def _accept(self, listener: Listener) -> None:
        listener.accepting = asyncio.create_task(self._clients.serve(listener))
        listener.accepting.add_done_callback(self._fail)

    def _watch(self, backend: Backend) -> None:
        backend.watching = asyncio.create_task(self._look_after(backend))
        backend.watching.add_done_callback(self._fail)

    def _fail(self, task: asyncio.Task[None]) -> None:
        """What the server cannot go on without has ended."""
        failed = self._failed
        if task.cancelled() or (error := task.exception()) is None or failed is None or failed.done():
            return
        failed.set_exception(error)

    async def _look_after(self, backend: Backend) -> None:
        """Whatever clients have not made durable is in doubt when a device is lost, so they are sent away,
        also if it is to come back: none of them could tell from a flush that comes later."""
        while True:
            lost = await backend.until_lost()
            comes_back = self._policy.when_lost == "reconnect"
            why = "the device is lost"
            backend.refusal = why
            if not comes_back:
                raise lost
            log.error("%s; waiting for it to come back", lost)
            await self._clients.send_away(why, "lost", self._of(backend))
            await backend.until_back()
            backend.refusal = None
            log.warning("the device is back")

    def _of(self, backend: Backend) -> list[ServedExport]:
        return [export for export in self._exports if export.backend is backend]

    async def _end(self) -> None:
        self._stop_listening()
        for backend in self._backends.values():
            if backend.watching is not None:
                backend.watching.cancel()
        late = await self._clients.send_away("the server ends", "end", patience=DEVICE_GRACE)
        for export in self._exports:
            if export.refusal is None and (lost := loss_of(export.device)) is not None:
                log.error("%s while the server ended", lost)  # which nobody has said yet
        if late:
            log.error("a device does not finish what it has been given: the server ends without it")
            for client in late:
                if client.export is not None:
                    give_up(client.export.device, "the server ends")
            await self._clients.send_away("the server ends", "end", patience=DEVICE_GRACE)

    def _stop_listening(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    # --- what there is to see -------------------------------------------------------------------------------

    @property
    def lost(self) -> Mapping[str, BlkioError]:
        """The exports whose devices are lost, and why, as far as devices tell."""
        return {export.name: lost for export in self._exports if (lost := loss_of(export.device)) is not None}

    def statistics(self) -> ServerStatistics:
        """What has been counted so far."""
        clients = self._clients
        return ServerStatistics(
            connections=clients.connected,
            connections_total=clients.total,
            clients=clients.admitted,
            refused=dict(clients.refused),
            handshakes_failed=dict(clients.handshakes_failed),
            sent_away=dict(clients.sent_away),
            exports={export.name: export.counts.seen() for export in self._exports},
        )

    def __repr__(self) -> str:
        return f"<aioblk.nbd.Server of {len(self._exports)} exports, {self._clients.admitted} clients>"
