"""A vhost-user client that says what a test wants, on the loop of the test."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from .guest import Asked, Guest

HEADER = struct.Struct("=III")
U64 = struct.Struct("=Q")
TWO = struct.Struct("=II")
ADDRESSES = struct.Struct("=IIQQQQ")
REGION = struct.Struct("=8xQQQQ")
CONFIG = struct.Struct("=III")
INFLIGHT = struct.Struct("=QQHH4x")

VERSION, REPLY, WANTS_REPLY = 1, 4, 8
GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
SET_BACKEND_REQ_FD, GET_CONFIG, SET_CONFIG, GET_INFLIGHT_FD, SET_INFLIGHT_FD = 21, 24, 25, 31, 32
GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG = 36, 37, 38

FLUSH, EVENT_IDX, PROTOCOL, VERSION_1 = 1 << 9, 1 << 29, 1 << 30, 1 << 32
NO_DESCRIPTOR = 1 << 8


class HungUpError(Exception):
    """The other side has."""


class Client:
    """Connected, from entering to leaving, with the memory and the queues of *guests*: one for each queue."""

    def __init__(self, path: str | Path, *guests: Guest) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.setblocking(False)
        self._path = str(path)
        self.guests = guests
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in guests]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in guests]
        self.errors = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in guests]
        self.features = FLUSH | PROTOCOL | VERSION_1

    async def __aenter__(self) -> Self:
        await asyncio.get_running_loop().sock_connect(self.socket, self._path)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()
        for descriptor in (*self.kicks, *self.calls, *self.errors):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self.kicks, self.calls, self.errors = [], [], []

    # --- messages -------------------------------------------------------------------------------------------

    def send(self, kind: int, body: bytes = b"", fds: Sequence[int] = (), flags: int = VERSION) -> None:
        socket.send_fds(self.socket, [HEADER.pack(kind, flags, len(body)) + body], list(fds))

    async def receive(self) -> tuple[int, bytes, list[int]]:
        """HungUpError: nothing comes any more."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.socket, 4096, 8)
            except BlockingIOError:
                await readable(self.socket.fileno())
                continue
            except ConnectionResetError:
                data, fds = b"", []
            if not data:
                raise HungUpError
            kind, flags, length = HEADER.unpack_from(data)
            assert flags & REPLY
            assert len(data) == HEADER.size + length
            return kind, data[HEADER.size :], fds

    async def ask(self, kind: int, body: bytes = b"") -> bytes:
        """Something that has an answer of its own."""
        self.send(kind, body)
        answered, reply, fds = await self.receive()
        assert (answered, fds) == (kind, [])
        return reply

    async def number(self, kind: int) -> int:
        return int(U64.unpack(await self.ask(kind))[0])

    async def tell(self, kind: int, body: bytes = b"", fds: Sequence[int] = ()) -> bool:
        """Something that has none, and whether it was done."""
        self.send(kind, body, fds, VERSION | WANTS_REPLY)
        answered, reply, _ = await self.receive()
        assert answered == kind
        return reply == bytes(U64.size)

    async def until_hung_up(self) -> None:
        with contextlib.suppress(ConnectionResetError):  # where something of ours was not even read
            while await asyncio.get_running_loop().sock_recv(self.socket, 4096):
                pass

    # --- a whole device -------------------------------------------------------------------------------------

    async def negotiate(self) -> None:
        offered = await self.number(GET_FEATURES)
        self.send(SET_PROTOCOL_FEATURES, U64.pack(await self.number(GET_PROTOCOL_FEATURES)))
        event = EVENT_IDX if any(guest.event for guest in self.guests) else 0
        assert await self.tell(SET_FEATURES, U64.pack((self.features | event) & offered))

    async def lend(self) -> None:
        for guest in self.guests:
            assert await self.tell(
                ADD_MEM_REG, REGION.pack(guest.guest, guest.size, guest.user, 0), [guest.fd]
            )

    def region(self, guest: Guest) -> bytes:
        return REGION.pack(guest.guest, guest.size, guest.user, 0)

    async def start(self, *, base: int = 0) -> None:
        """All queues."""
        for number, guest in enumerate(self.guests):
            user = guest.user
            places = user + guest.descriptors, user + guest.used, user + guest.available
            assert await self.tell(SET_VRING_NUM, TWO.pack(number, guest.queue))
            assert await self.tell(SET_VRING_BASE, TWO.pack(number, base))
            assert await self.tell(SET_VRING_ADDR, ADDRESSES.pack(number, 0, *places, 0))
            assert await self.tell(SET_VRING_CALL, U64.pack(number), [self.calls[number]])
            assert await self.tell(SET_VRING_ERR, U64.pack(number), [self.errors[number]])
            assert await self.tell(SET_VRING_KICK, U64.pack(number), [self.kicks[number]])
            assert await self.tell(SET_VRING_ENABLE, TWO.pack(number, 1))

    async def set_up(self) -> None:
        await self.negotiate()
        await self.lend()
        await self.start()

    # --- queues ---------------------------------------------------------------------------------------------

    def kick(self, number: int = 0) -> None:
        os.eventfd_write(self.kicks[number], 1)

    async def called(self, number: int = 0) -> None:
        await readable(self.calls[number])
        os.eventfd_read(self.calls[number])

    async def request(
        self, kind: int, sector: int = 0, data: bytes = b"", *, queue: int = 0, **how: Any
    ) -> Asked:
        """One, until it is used."""
        guest = self.guests[queue]
        asked = guest.ask(kind, sector, data, **how)
        self.kick(queue)
        done: list[int] = []
        while asked.head not in done:
            await self.called(queue)
            done += [head for head, _ in guest.finished()]
        return asked


async def readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    comes = loop.create_future()

    def tell() -> None:
        if not comes.done():
            comes.set_result(None)

    loop.add_reader(descriptor, tell)
    try:
        await comes
    finally:
        loop.remove_reader(descriptor)
