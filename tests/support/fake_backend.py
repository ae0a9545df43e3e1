"""A vhost-user-blk backend in a thread: a disk in memory, of which a test decides when it does what."""

import asyncio
import contextlib
import heapq
import itertools
import os
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from . import vhost_user
from .vhost_user import (
    DISCARD,
    F_WRITE_ZEROES,
    FAILED,
    FEATURES,
    FLUSH,
    HEADER,
    READ,
    REPLY,
    SECTOR,
    WRITE,
    WRITE_ZEROES,
    Session,
)

__all__ = ["DISCARD", "FLUSH", "READ", "WRITE", "WRITE_ZEROES", "FakeBackend", "Gate"]

PATIENCE = 30  # seconds


class Gate:
    """The next request of one kind and place waits, before anything of it is done."""

    def __init__(self, kind: int, offset: int, changed: Callable[[], None]) -> None:
        self.place = kind, offset
        self._changed = changed
        self._reached = threading.Event()
        self.is_open = False

    def catches(self, place: tuple[int, int]) -> bool:
        caught = place == self.place and not self._reached.is_set()
        if caught:
            self._reached.set()
        return caught

    async def reached(self) -> None:
        """The disk has the request."""
        assert await asyncio.to_thread(self._reached.wait, PATIENCE)

    def open(self) -> None:
        """Let it be carried out."""
        self.is_open = True
        self._changed()


@dataclass(order=True)
class _Waiting:
    due: float
    number: int
    request: vhost_user.Request = field(compare=False)
    gate: Gate | None = field(compare=False)

    @property
    def is_held(self) -> bool:
        return self.gate is not None and not self.gate.is_open


class FakeBackend:
    """Serves :attr:`data` at :attr:`socket`, to one client after the other.

    Several may serve the clients of one listening socket, those *beside* the first being given that.
    """

    def __init__(
        self,
        *,
        size: int = 1 << 20,
        num_queues: int = 2,
        write_zeroes: bool = True,
        beside: socket.socket | None = None,
    ) -> None:
        self.data = bytearray(size)
        self.carried_out: list[tuple[int, int, int]] = []
        """(kind, offset, length) of what was carried out."""
        self.delay: Callable[[], float] = lambda: 0.0
        """Gives the seconds that a request takes."""
        self.fails: Callable[[int, int, int], bool] = lambda _kind, _offset, _length: False
        """Tells whether a request comes to an error: with half of what it was to write on the disk."""
        self._num_queues = num_queues
        self._features = FEATURES if write_zeroes else FEATURES & ~F_WRITE_ZEROES
        self._owns_socket = beside is None
        if beside is None:
            self.socket = Path(tempfile.mkdtemp(prefix="aioblk-")) / "blk.sock"
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(str(self.socket))
            self.listener.listen()
        else:
            self.socket = Path(beside.getsockname())
            self.listener = beside.dup()
        self.listener.setblocking(False)
        self._client: socket.socket | None = None
        self._wake = os.eventfd(0)
        self._ending = False
        self._gates: list[Gate] = []
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def gate(self, kind: int, offset: int) -> Gate:
        """The next request of that kind at that offset is to wait."""
        self._gates.append(Gate(kind, offset, self._changed))
        return self._gates[-1]

    def hang_up(self) -> None:
        """Close the connection of the client that is being served."""
        assert self._client is not None
        self._client.shutdown(socket.SHUT_RDWR)

    def _changed(self) -> None:
        os.eventfd_write(self._wake, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        self._changed()
        self._thread.join()
        self.listener.close()
        os.close(self._wake)
        if self._owns_socket:
            self.socket.unlink()
            self.socket.parent.rmdir()

    # --- serving --------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while (ready := self._readable([self.listener.fileno()])) is not None:
            if ready:
                with contextlib.suppress(BlockingIOError):  # another has been faster
                    self._client, _ = self.listener.accept()
                    with self._client as client:
                        _Client(client, self).serve()

    def _readable(self, fds: list[int], due: float | None = None) -> set[int] | None:
        """Those of the descriptors that can be read; None: the end."""
        poll = select.poll()
        for fd in (*fds, self._wake):
            poll.register(fd, select.POLLIN)
        while not self._ending:
            timeout = None if due is None else max(due - time.monotonic(), 0) * 1000
            ready = {fd for fd, _ in poll.poll(timeout)}
            if self._wake in ready:
                os.eventfd_read(self._wake)
            if not self._ending:
                return ready - {self._wake}
        return None


class _Client:
    def __init__(self, client: socket.socket, disk: FakeBackend) -> None:
        self._socket = client
        self._disk = disk
        self._session = Session(num_queues=disk._num_queues, features=disk._features)
        self._waiting: list[_Waiting] = []  # a heap

    def serve(self) -> None:
        try:
            while (ready := self._disk._readable(self._descriptors(), self._due())) is not None:
                if self._socket.fileno() in ready and not self._answer():
                    return
                for ring in self._session.rings.values():
                    if ring.kick in ready:
                        os.eventfd_read(ring.kick)
                        for request in self._session.take(ring):
                            self._put(request)
                self._carry_out_what_is_due()
        finally:
            self._waiting.clear()
            self._session.close()

    def _descriptors(self) -> list[int]:
        kicks = (ring.kick for ring in self._session.rings.values())
        return [self._socket.fileno(), *(kick for kick in kicks if kick >= 0)]

    def _answer(self) -> bool:
        """Take a message; False: the client is gone."""
        message = vhost_user.receive(self._socket)
        if message is None:
            return False
        config = vhost_user.configuration(len(self._disk.data) // SECTOR, self._disk._num_queues)
        reply = self._session.act(message, config)
        if reply is not None:
            self._socket.sendall(HEADER.pack(message.kind, REPLY, len(reply)) + reply)
        return True

    # --- requests -------------------------------------------------------------------------------------------

    def _put(self, request: vhost_user.Request) -> None:
        place = request.kind, request.offset
        gate = next((gate for gate in self._disk._gates if gate.catches(place)), None)
        due, number = time.monotonic() + self._disk.delay(), next(self._disk._numbers)
        heapq.heappush(self._waiting, _Waiting(due, number, request, gate))

    def _due(self) -> float | None:
        return min((waiting.due for waiting in self._waiting if not waiting.is_held), default=None)

    def _carry_out_what_is_due(self) -> None:
        now = time.monotonic()
        done = [waiting for waiting in self._waiting if waiting.due <= now and not waiting.is_held]
        for waiting in sorted(done):
            self._waiting.remove(waiting)
            self._carry_out(waiting.request)
        heapq.heapify(self._waiting)

    def _carry_out(self, request: vhost_user.Request) -> None:
        data, at = self._disk.data, request.offset
        if self._disk.fails(request.kind, at, request.length):
            status = FAILED
            if request.kind == WRITE:
                half = b"".join(request.buffers)[: request.length // 2]
                data[at : at + len(half)] = half
        else:
            status = request.carry_out(data)
        self._disk.carried_out.append((request.kind, at, request.length))
        request.status[0] = status
        self._session.complete(request.ring, [request.head])
        os.eventfd_write(request.ring.call, 1)
