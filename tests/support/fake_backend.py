"""A vhost-user-blk backend in a thread: a disk in memory, of which a test decides when it does what."""

import asyncio
import contextlib
import heapq
import itertools
import mmap
import os
import select
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES = 0, 1, 4, 11, 13  # virtio-blk's
OK, FAILED, UNSUPPORTED = 0, 1, 2
SECTOR = 512
SEGMENTS = 126
PATIENCE = 30  # seconds

# Features of virtio-blk (size and number of segments, block size, flush, queues, discard, write-zeroes), and
# of virtio. Of vhost-user: several queues, answers when asked, configuration, memory region by region.
F_WRITE_ZEROES = 1 << 14
FEATURES = 1 << 2 | 1 << 6 | 1 << 9 | 1 << 12 | 1 << 13 | F_WRITE_ZEROES | 1 << 30 | 1 << 32
PROTOCOL_FEATURES = 1 << 0 | 1 << 3 | 1 << 9 | 1 << 15

HEADER = struct.Struct("=III")
NEEDS_REPLY = 8
REPLY = 1 | 4
REGION = struct.Struct("=8xQQQQ")  # guest address, size, the client's address, offset in the file
DESCRIPTOR = struct.Struct("=QIHH")
HAS_NEXT = 1
REQUEST = struct.Struct("=I4xQ")
RANGE = struct.Struct("=QII")  # of a discard: sector, sectors, flags


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


@dataclass
class _Region:
    guest: int
    size: int
    client: int
    memory: memoryview


@dataclass
class _Ring:
    size: int = 0
    descriptors: int = 0
    used: int = 0
    available: int = 0
    seen: int = 0
    kick: int = -1
    call: int = -1


@dataclass(order=True)
class _Request:
    due: float
    number: int
    ring: _Ring = field(compare=False)
    head: int = field(compare=False)
    kind: int = field(compare=False)
    offset: int = field(compare=False)
    length: int = field(compare=False)
    buffers: list[memoryview] = field(compare=False)
    status: memoryview = field(compare=False)
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
        self._regions: list[_Region] = []
        self._rings = [_Ring() for _ in range(disk._num_queues)]
        self._waiting: list[_Request] = []  # a heap

    def serve(self) -> None:
        try:
            while (ready := self._disk._readable(self._descriptors(), self._due())) is not None:
                if self._socket.fileno() in ready and not self._answer():
                    return
                for ring in self._rings:
                    if ring.kick in ready:
                        os.eventfd_read(ring.kick)
                        self._take(ring)
                self._carry_out_what_is_due()
        finally:
            self._waiting.clear()
            self._regions.clear()
            for ring in self._rings:
                for fd in (ring.kick, ring.call):
                    if fd >= 0:
                        os.close(fd)

    def _descriptors(self) -> list[int]:
        return [self._socket.fileno(), *(ring.kick for ring in self._rings if ring.kick >= 0)]

    # --- messages -------------------------------------------------------------------------------------------

    def _answer(self) -> bool:
        """Take a message; False: the client is gone."""
        head, fds, _flags, _address = socket.recv_fds(self._socket, HEADER.size, 8)
        if len(head) < HEADER.size:
            return False
        kind, flags, size = HEADER.unpack(head)
        body = self._socket.recv(size, socket.MSG_WAITALL) if size else b""
        reply = self._act(kind, body, fds)
        for fd in fds:  # that nobody keeps
            os.close(fd)
        if reply is None and flags & NEEDS_REPLY:
            reply = struct.pack("=Q", 0)
        if reply is not None:
            self._socket.sendall(HEADER.pack(kind, REPLY, len(reply)) + reply)
        return True

    def _act(self, kind: int, body: bytes, fds: list[int]) -> bytes | None:
        number = struct.unpack_from("=Q", body.ljust(8, b"\0"))[0]
        index = number & 0xFF
        match kind:
            case 1:  # GET_FEATURES
                return struct.pack("=Q", self._disk._features)
            case 15:  # GET_PROTOCOL_FEATURES
                return struct.pack("=Q", PROTOCOL_FEATURES)
            case 17:  # GET_QUEUE_NUM
                return struct.pack("=Q", self._disk._num_queues)
            case 24:  # GET_CONFIG
                offset, size, flags = struct.unpack_from("=III", body)
                return struct.pack("=III", offset, size, flags) + self._config()[offset : offset + size]
            case 36:  # GET_MAX_MEM_SLOTS
                return struct.pack("=Q", 32)
            case 37:  # ADD_MEM_REG
                guest, size, client, offset = REGION.unpack(body)
                memory = memoryview(mmap.mmap(fds[0], size + offset))[offset:]
                self._regions.append(_Region(guest, size, client, memory))
            case 38:  # REM_MEM_REG
                guest = REGION.unpack(body)[0]
                self._regions = [region for region in self._regions if region.guest != guest]
            case 8:  # SET_VRING_NUM
                index, self._rings[index].size = struct.unpack("=II", body)
            case 9:  # SET_VRING_ADDR
                ring = self._rings[index]
                _, ring.descriptors, ring.used, ring.available, _ = struct.unpack("=QQQQQ", body)
            case 11:  # GET_VRING_BASE
                return struct.pack("=II", index, self._rings[index].seen)
            case 12:  # SET_VRING_KICK
                self._rings[index].kick = fds.pop()
            case 13:  # SET_VRING_CALL
                self._rings[index].call = fds.pop()
        return None

    def _config(self) -> bytes:
        config = bytearray(60)
        struct.pack_into("=QII", config, 0, len(self._disk.data) // SECTOR, 0, SEGMENTS)
        struct.pack_into("=I", config, 20, SECTOR)
        struct.pack_into("=H", config, 34, self._disk._num_queues)
        struct.pack_into("=IIIII", config, 36, 1 << 15, 1, 1, 1 << 15, 1)
        return bytes(config)

    # --- rings ----------------------------------------------------------------------------------------------

    def _memory(self, address: int, length: int, *, client: bool = False) -> memoryview:
        for region in self._regions:
            start = address - (region.client if client else region.guest)
            if 0 <= start <= region.size - length:
                return region.memory[start : start + length]
        raise ValueError(f"{length} bytes at {address:#x} are in no region")

    def _take(self, ring: _Ring) -> None:
        available = self._memory(ring.available, 4 + 2 * ring.size, client=True)
        end = struct.unpack_from("=H", available, 2)[0]
        while ring.seen != end:
            head = struct.unpack_from("=H", available, 4 + 2 * (ring.seen % ring.size))[0]
            ring.seen = (ring.seen + 1) % (1 << 16)
            heapq.heappush(self._waiting, self._parse(ring, head))

    def _chain(self, ring: _Ring, index: int) -> Iterator[memoryview]:
        table = self._memory(ring.descriptors, DESCRIPTOR.size * ring.size, client=True)
        while True:
            address, length, flags, following = DESCRIPTOR.unpack_from(table, DESCRIPTOR.size * index)
            yield self._memory(address, length)
            if not flags & HAS_NEXT:
                return
            index = following

    def _parse(self, ring: _Ring, head: int) -> _Request:
        first, *buffers, status = self._chain(ring, head)
        kind, sector = REQUEST.unpack(first)
        length = sum(map(len, buffers))
        if kind in (DISCARD, WRITE_ZEROES):
            sector, sectors, _flags = RANGE.unpack(buffers.pop())
            length = sectors * SECTOR
        due = time.monotonic() + self._disk.delay()
        number, offset = next(self._disk._numbers), sector * SECTOR
        gate = next((gate for gate in self._disk._gates if gate.catches((kind, offset))), None)
        return _Request(due, number, ring, head, kind, offset, length, buffers, status, gate)

    # --- requests -------------------------------------------------------------------------------------------

    def _due(self) -> float | None:
        return min((request.due for request in self._waiting if not request.is_held), default=None)

    def _carry_out_what_is_due(self) -> None:
        now = time.monotonic()
        done = [request for request in self._waiting if request.due <= now and not request.is_held]
        for request in sorted(done):
            self._waiting.remove(request)
            self._carry_out(request)
        heapq.heapify(self._waiting)

    def _carry_out(self, request: _Request) -> None:
        data, at, status = self._disk.data, request.offset, OK
        if self._disk.fails(request.kind, at, request.length):
            status = FAILED
            if request.kind == WRITE:
                half = b"".join(request.buffers)[: request.length // 2]
                data[at : at + len(half)] = half
        elif request.kind == READ:
            for buffer in request.buffers:
                buffer[:] = data[at : at + len(buffer)]
                at += len(buffer)
        elif request.kind == WRITE:
            for buffer in request.buffers:
                data[at : at + len(buffer)] = buffer
                at += len(buffer)
        elif request.kind in (DISCARD, WRITE_ZEROES):
            data[at : at + request.length] = bytes(request.length)
        elif request.kind != FLUSH:
            status = UNSUPPORTED
        self._disk.carried_out.append((request.kind, request.offset, request.length))
        request.status[0] = status
        ring = request.ring
        used = self._memory(ring.used, 4 + 8 * ring.size, client=True)
        index = struct.unpack_from("=H", used, 2)[0]
        struct.pack_into("=II", used, 4 + 8 * (index % ring.size), request.head, 1)
        used[2:4].cast("H")[0] = (index + 1) % (1 << 16)  # at once: pack_into() writes zeroes first
        os.eventfd_write(ring.call, 1)
