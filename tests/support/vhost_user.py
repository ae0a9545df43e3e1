"""The wire of vhost-user-blk as backends see it: messages, memory that is lent, virtqueues, requests.

What is done with a request, when and how well, is the business of the backends: fake_backend.py, whose tests
decide when it does what, and hostile/backend.py, which breaks every rule.
"""

import mmap
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, TypeAlias

__all__ = [
    "DESCRIPTOR",
    "DISCARD",
    "FAILED",
    "FEATURES",
    "FLUSH",
    "F_WRITE_ZEROES",
    "HAS_NEXT",
    "HEADER",
    "OK",
    "READ",
    "REPLY",
    "SECTOR",
    "UNSUPPORTED",
    "WRITE",
    "WRITE_ZEROES",
    "Disk",
    "Kind",
    "Lent",
    "Message",
    "Request",
    "Ring",
    "Session",
    "configuration",
    "receive",
]

READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES = 0, 1, 4, 11, 13  # virtio-blk's
OK, FAILED, UNSUPPORTED = 0, 1, 2
SECTOR = 512
SEGMENTS = 126

# Features of virtio-blk (size and number of segments, block size, flush, queues, discard, write-zeroes), and
# of virtio. Of vhost-user: several queues, answers when asked, configuration, memory region by region.
F_WRITE_ZEROES = 1 << 14
FEATURES = 1 << 2 | 1 << 6 | 1 << 9 | 1 << 12 | 1 << 13 | F_WRITE_ZEROES | 1 << 30 | 1 << 32
PROTOCOL_FEATURES = 1 << 0 | 1 << 3 | 1 << 9 | 1 << 15
MEMORY_SLOTS = 32

HEADER = struct.Struct("=III")
NEEDS_REPLY = 8
REPLY = 1 | 4
NUMBER = struct.Struct("=Q")
REGION = struct.Struct("=8xQQQQ")  # guest address, size, the client's address, offset in the file
DESCRIPTOR = struct.Struct("=QIHH")
HAS_NEXT = 1
REQUEST = struct.Struct("=I4xQ")
RANGE = struct.Struct("=QII")  # of a discard: sector, sectors, flags

Disk: TypeAlias = bytearray | memoryview


class Kind(IntEnum):
    """Of a message."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38


class Message(NamedTuple):
    kind: int
    needs_reply: bool
    body: bytes
    fds: list[int]


def receive(client: socket.socket) -> Message | None:
    """The next message, whose descriptors are the caller's; None: the client is gone."""
    head, fds, _flags, _address = socket.recv_fds(client, HEADER.size, 8)
    if len(head) < HEADER.size:
        return None
    kind, flags, size = HEADER.unpack(head)
    body = client.recv(size, socket.MSG_WAITALL) if size else b""
    return Message(kind, bool(flags & NEEDS_REPLY), body, fds)


def configuration(capacity: int, num_queues: int) -> bytearray:
    """What GET_CONFIG asks for, of a disk of so many sectors."""
    config = bytearray(60)
    struct.pack_into("=QII", config, 0, capacity, 0, SEGMENTS)
    struct.pack_into("=I", config, 20, SECTOR)
    struct.pack_into("=H", config, 34, num_queues)
    struct.pack_into("=IIIII", config, 36, 1 << 15, 1, 1, 1 << 15, 1)
    return config


@dataclass(eq=False)
class Lent:
    """Memory that the client has lent: all of the file, as far as it is mapped here."""

    guest: int
    size: int
    client: int
    memory: memoryview
    map: mmap.mmap
    fd: int

    def find(self, start: int, address: int, length: int) -> memoryview | None:
        """That many bytes at an address, where the region begins at *start*."""
        at = address - start
        return self.memory[at : at + length] if 0 <= at <= self.size - length else None


@dataclass(eq=False)
class Ring:
    """A virtqueue. Where its parts are is told by the client's addresses."""

    size: int = 0
    descriptors: int = 0
    used: int = 0
    available: int = 0
    seen: int = 0
    kick: int = -1
    call: int = -1


@dataclass(eq=False)
class Request:
    ring: Ring
    head: int
    kind: int
    offset: int
    length: int
    buffers: list[memoryview]
    status: memoryview

    def carry_out(self, disk: Disk) -> int:
        """Do what is asked for, and return the status that says so; it is not written."""
        at = self.offset
        if self.kind == READ:
            for buffer in self.buffers:
                buffer[:] = disk[at : at + len(buffer)]
                at += len(buffer)
        elif self.kind == WRITE:
            for buffer in self.buffers:
                disk[at : at + len(buffer)] = buffer
                at += len(buffer)
        elif self.kind in (DISCARD, WRITE_ZEROES):
            disk[at : at + self.length] = bytes(self.length)
        elif self.kind != FLUSH:
            return UNSUPPORTED
        return OK


class Session:
    """What a client has set up: memory it has lent, and rings in it."""

    def __init__(self, *, num_queues: int = 2, features: int = FEATURES) -> None:
        self.lent: list[Lent] = []
        self.rings: defaultdict[int, Ring] = defaultdict(Ring)
        self._num_queues = num_queues
        self._features = features

    def act(self, message: Message, config: bytes | bytearray) -> bytes | None:
        """Do as a message says, and return the answer to it, if there is to be one. Takes its descriptors."""
        kept = 0
        body = message.body
        (number,) = NUMBER.unpack_from(body.ljust(NUMBER.size, b"\0"))
        index = number & 0xFF
        reply: bytes | None = None
        match message.kind:
            case Kind.GET_FEATURES:
                reply = NUMBER.pack(self._features)
            case Kind.GET_PROTOCOL_FEATURES:
                reply = NUMBER.pack(PROTOCOL_FEATURES)
            case Kind.GET_QUEUE_NUM:
                reply = NUMBER.pack(self._num_queues)
            case Kind.GET_MAX_MEM_SLOTS:
                reply = NUMBER.pack(MEMORY_SLOTS)
            case Kind.GET_CONFIG:
                offset, size, flags = struct.unpack_from("=III", body)
                reply = struct.pack("=III", offset, size, flags) + config[offset : offset + size]
            case Kind.ADD_MEM_REG:
                guest, size, client, offset = REGION.unpack(body)
                whole = mmap.mmap(message.fds[0], size + offset)
                kept = 1
                self.lent.append(Lent(guest, size, client, memoryview(whole)[offset:], whole, message.fds[0]))
            case Kind.REM_MEM_REG:
                guest = REGION.unpack(body)[0]
                for lent in [lent for lent in self.lent if lent.guest == guest]:
                    self.forget(lent)
            case Kind.SET_VRING_NUM:
                self.rings[index].size = struct.unpack("=II", body)[1]
            case Kind.SET_VRING_ADDR:
                ring = self.rings[index]
                _, ring.descriptors, ring.used, ring.available, _ = struct.unpack("=QQQQQ", body)
            case Kind.GET_VRING_BASE:
                reply = struct.pack("=II", index, self.rings[index].seen)
            case Kind.SET_VRING_KICK:
                self.rings[index].kick = message.fds[0]
                kept = 1
            case Kind.SET_VRING_CALL:
                self.rings[index].call = message.fds[0]
                kept = 1
            case _:
                pass
        for fd in message.fds[kept:]:
            os.close(fd)
        return NUMBER.pack(0) if reply is None and message.needs_reply else reply

    def forget(self, lent: Lent) -> None:
        """It is lent no more. What still has views of it keeps it mapped."""
        self.lent.remove(lent)
        os.close(lent.fd)

    def close(self) -> None:
        for lent in [*self.lent]:
            self.forget(lent)
        for ring in self.rings.values():
            for fd in (ring.kick, ring.call):
                if fd >= 0:
                    os.close(fd)
        self.rings.clear()

    # --- rings ----------------------------------------------------------------------------------------------

    def _memory(self, address: int, length: int) -> memoryview:
        """What a descriptor names."""
        for lent in self.lent:
            if (found := lent.find(lent.guest, address, length)) is not None:
                return found
        raise ValueError(f"{length} bytes at {address:#x} are not lent")

    def _part(self, address: int, length: int) -> memoryview:
        """Of a ring."""
        for lent in self.lent:
            if (found := lent.find(lent.client, address, length)) is not None:
                return found
        raise ValueError(f"{length} bytes of a ring at {address:#x} are not lent")

    def lent_for(self, ring: Ring) -> Lent:
        """The memory that a ring is in."""
        return next(lent for lent in self.lent if 0 <= ring.used - lent.client < lent.size)

    def descriptors(self, ring: Ring) -> memoryview:
        return self._part(ring.descriptors, DESCRIPTOR.size * ring.size)

    def available(self, ring: Ring) -> memoryview:
        return self._part(ring.available, 4 + 2 * ring.size)

    def used(self, ring: Ring) -> memoryview:
        return self._part(ring.used, 4 + 8 * ring.size)

    def take(self, ring: Ring) -> Iterator[Request]:
        """What the client has made available, one after the other, and what is added meanwhile."""
        available = self.available(ring)
        (end,) = struct.unpack_from("=H", available, 2)
        while ring.seen != end:
            (head,) = struct.unpack_from("=H", available, 4 + 2 * (ring.seen % ring.size))
            ring.seen = (ring.seen + 1) % (1 << 16)
            yield self._parse(ring, head)
            if ring.seen == end:
                (end,) = struct.unpack_from("=H", available, 2)

    def _chain(self, ring: Ring, index: int) -> Iterator[memoryview]:
        table = self.descriptors(ring)
        for _ in range(ring.size):
            address, length, flags, following = DESCRIPTOR.unpack_from(table, DESCRIPTOR.size * index)
            yield self._memory(address, length)
            if not flags & HAS_NEXT:
                return
            index = following % ring.size

    def _parse(self, ring: Ring, head: int) -> Request:
        first, *buffers, status = self._chain(ring, head)
        kind, sector = REQUEST.unpack(first)
        length = sum(map(len, buffers))
        if kind in (DISCARD, WRITE_ZEROES):
            sector, sectors, _flags = RANGE.unpack(buffers.pop())
            length = sectors * SECTOR
        return Request(ring, head, kind, sector * SECTOR, length, buffers, status)

    def complete(self, ring: Ring, heads: Sequence[int], *, length: int = 1, ahead: int = 0) -> None:
        """Say that requests are over. Nobody is woken. What goes *ahead* as well is a lie."""
        used = self.used(ring)
        (index,) = struct.unpack_from("=H", used, 2)
        for head in heads:
            struct.pack_into("=II", used, 4 + 8 * (index % ring.size), head, length)
            index += 1
        used[2:4].cast("H")[0] = (index + ahead) % (1 << 16)  # at once: pack_into() writes zeroes first
