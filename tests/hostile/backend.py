"""The backend in processes of its own: a nursery, which is told what to serve, and one for each of its lives.

A life that ends by itself is followed by another one, with the same bytes on its disk.
"""

import contextlib
import fcntl
import mmap
import os
import random
import select
import signal
import socket
import struct
import time
from pathlib import Path
from typing import NoReturn

from ..support.vhost_user import (
    DESCRIPTOR,
    FAILED,
    HAS_NEXT,
    HEADER,
    REPLY,
    SECTOR,
    Kind,
    Lent,
    Request,
    Ring,
    Session,
    configuration,
    receive,
)
from .deeds import CONFIGURATION, MESSAGES, Deed, Plan, plan_of

__all__ = ["DISK", "Nursery"]

DISK = 1 << 20  # bytes
MOMENT = 0.005  # seconds
WHILE = 0.1  # seconds
KINDS = {number: name for name, number in MESSAGES.items()}
QUEUES = 2


class GoneError(Exception):
    """The client's connection has come to its end."""


# --- the nursery --------------------------------------------------------------------------------------------


class Nursery:
    """Begins and ends backends for the process that makes it: before that has any thread."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self._socket.close()
            _nurse(other)
        other.close()
        self._lines = self._socket.makefile("rb")

    def begin(self, plan: Plan, path: Path) -> None:
        """A backend that does what is planned listens at *path*."""
        self._say(f"{path}\t{plan.key}")

    def end(self) -> None:
        """It is gone, in whichever life."""
        self._say("end")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()
        os.waitpid(self.pid, 0)

    def _say(self, what: str) -> None:
        self._socket.sendall(f"{what}\n".encode())
        assert self._lines.readline() == b"done\n"


def _nurse(parent: socket.socket) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lines = parent.makefile("rb")
    life: tuple[int, int] | None = None  # its process, and a descriptor for that
    number, plan, path, disk = 0, plan_of("0"), Path(), mmap.mmap(-1, DISK)
    while True:
        poll = select.poll()
        poll.register(parent, select.POLLIN)
        if life is not None:
            poll.register(life[1], select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        if life is not None and life[1] in ready:
            _reap(life)
            number += 1
            life = _begin(plan, number, path, disk)
        if parent.fileno() not in ready:
            continue
        words = lines.readline().decode().split("\t")
        if life is not None:
            os.kill(life[0], signal.SIGKILL)
            _reap(life)
            life = None
        if words == [""]:
            os._exit(0)
        if words != ["end\n"]:
            number, plan, path, disk = (
                0,
                plan_of(words[1].strip()),
                Path(words[0]),
                mmap.mmap(-1, DISK),
            )
            life = _begin(plan, number, path, disk)
        parent.sendall(b"done\n")


def _reap(life: tuple[int, int]) -> None:
    os.waitpid(life[0], 0)
    os.close(life[1])


def _begin(plan: Plan, number: int, path: Path, disk: mmap.mmap) -> tuple[int, int]:
    """The process of a life, which listens."""
    listens, tells = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            listener.listen()
            os.close(tells)
            deeds = plan.lives[min(number, len(plan.lives) - 1)] if number < len(plan.lives) else ()
            chance = random.Random(f"{plan.key} {number}")
            while True:
                client, _ = listener.accept()
                with client, contextlib.suppress(GoneError, ConnectionError):
                    Backend(client, disk, deeds, chance).serve()
        finally:
            os._exit(status)
    os.close(tells)
    os.read(listens, 1)
    os.close(listens)
    return pid, os.pidfd_open(pid)


class Backend:
    """Serves one client."""

    def __init__(
        self, client: socket.socket, disk: mmap.mmap, deeds: tuple[Deed, ...], chance: random.Random
    ) -> None:
        self._socket = client
        self._disk = memoryview(disk)
        self._deeds = deeds
        self._chance = chance
        self._session = Session(num_queues=QUEUES)
        self._messages = dict.fromkeys(MESSAGES.values(), 0)
        self._requests = 0
        self._stopped = False
        self._capacity: int | None = None

    def serve(self) -> None:
        while True:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            for ring in self._session.rings.values():
                if ring.kick >= 0 and not self._stopped:
                    poll.register(ring.kick, select.POLLIN)
            ready = {fd for fd, _ in poll.poll()}
            if self._socket.fileno() in ready:
                self._answer()
            for ring in list(self._session.rings.values()):
                if ring.kick in ready and ring.call >= 0 and not self._stopped:
                    os.eventfd_read(ring.kick)
                    with contextlib.suppress(ValueError, IndexError, struct.error):  # it has ruined its rings
                        for request in self._session.take(ring):
                            self._serve_request(request)
                            if self._stopped:
                                break

    # --- messages -------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        message = receive(self._socket)
        if message is None:
            raise GoneError
        kind = message.kind
        reply = self._session.act(message, self._config())
        count = self._messages.get(kind, 0)
        self._messages[kind] = count + 1
        deed = next((it for it in self._deeds if it.message == KINDS.get(kind) and it.nth == count), None)
        if deed is not None:
            self._misspeak(deed.what, kind, reply)
        elif reply is not None:
            self._say(kind, REPLY, len(reply), reply)

    def _say(self, kind: int, flags: int, size: int, body: bytes) -> None:
        self._socket.sendall(HEADER.pack(kind, flags, size) + body)

    def _misspeak(self, what: str, kind: int, reply: bytes | None) -> None:
        body = reply or b""
        message = HEADER.pack(kind, REPLY, len(body)) + body
        match what:
            case "hangs up":
                raise GoneError
            case "hangs up in the middle of an answer":
                self._socket.sendall(message[: HEADER.size + len(body) // 2])
                raise GoneError
            case "dies":
                os._exit(0)
            case "says nothing":
                return
        if reply is None:
            return
        match what:
            case "refuses":
                if kind == Kind.ADD_MEM_REG:
                    self._session.forget(self._session.lent[-1])
                self._say(kind, REPLY, len(body), struct.pack("=Q", 1) + body[8:])
            case "answers another message":
                self._say(kind + 1, REPLY, len(body), body)
            case "answers without the flag of an answer":
                self._say(kind, 1, len(body), body)
            case "answers too little":
                self._say(kind, REPLY, len(body) // 2, body[: len(body) // 2])
            case "answers too much":
                self._say(kind, REPLY, len(body) + 2048, body + bytes(2048))
            case "announces 4 GiB":
                self._say(kind, REPLY, (1 << 32) - 1, body)
            case "answers garbage":
                self._socket.sendall(self._chance.randbytes(len(message) + self._chance.randrange(64)))
            case "answers twice":
                self._socket.sendall(message + message)
            case "answers byte by byte":
                for byte in message:
                    self._socket.sendall(bytes([byte]))
                    time.sleep(0)
            case "answers a random value":
                value = self._chance.getrandbits(self._chance.choice((3, 16, 32, 64)))
                self._say(kind, REPLY, len(body), struct.pack("=Q", value) + body[8:])
            case "brings descriptors":
                socket.send_fds(self._socket, [message], [self._socket.fileno()] * 8)

    def _config(self) -> bytes:
        config = configuration(DISK // SECTOR if self._capacity is None else self._capacity, QUEUES)
        for deed in self._deeds:
            if deed.field:
                at, size, _ = CONFIGURATION[deed.field]
                config[at : at + size] = deed.value.to_bytes(size, "little")
        return bytes(config)

    # --- requests -------------------------------------------------------------------------------------------

    def _carry_out(self, request: Request) -> None:
        is_within = request.offset + request.length <= len(self._disk)
        request.status[0] = request.carry_out(self._disk) if is_within else FAILED

    def _serve_request(self, request: Request) -> None:
        number = self._requests
        self._requests += 1
        deeds = [
            deed.what
            for deed in self._deeds
            if not deed.message
            and not deed.field
            and number >= deed.nth
            and self._chance.random() < deed.rate
        ]
        for what in deeds:
            self._misbehave_before(what, request)
        if self._stopped or "forgets a request" in deeds:
            return
        if "is done before it begins" in deeds:
            self._complete(request, deeds)
            time.sleep(MOMENT)
            self._carry_out(request)
            return
        if "fails without doing it" in deeds:
            request.status[0] = 1
        elif "gives a status that does not exist" in deeds:
            request.status[0] = self._chance.randrange(3, 256)
        elif "writes no status" not in deeds:
            self._carry_out(request)
        self._complete(request, deeds)
        for what in deeds:
            self._misbehave_after(what, request.ring)

    def _complete(self, request: Request, deeds: list[str]) -> None:
        ring, chance = request.ring, self._chance
        ids = [request.head]
        if "names another request" in deeds:
            available = self._session.available(ring)
            end = struct.unpack_from("=H", available, 2)[0]
            behind = (end - 1) % ring.size
            ids = [struct.unpack_from("=H", available, 4 + 2 * behind)[0]]
        if "names a request that nobody has made" in deeds:
            ids = [chance.randrange(ring.size)]
        if "names an id beyond the queue" in deeds:
            ids = [chance.randrange(ring.size, 1 << 32)]
        if "names a request twice" in deeds:
            ids = ids * 2
        length = chance.getrandbits(32) if "gives a wrong length" in deeds else 1
        ahead = 0
        if "goes ahead in the used ring" in deeds:
            ahead += chance.choice((1, 2, ring.size, 1 << 15))
        if "goes back in the used ring" in deeds:
            ahead -= chance.choice((1, 2))
        self._session.complete(ring, ids, length=length, ahead=ahead)
        if "wants no kicks" in deeds:
            self._session.used(ring)[0:2].cast("H")[0] = chance.choice((1, 0xFFFF))
        if "sends no events" not in deeds:
            os.eventfd_write(ring.call, 1)

    def _misbehave_before(self, what: str, request: Request) -> None:
        ring, chance = request.ring, self._chance
        match what:
            case "hangs up":
                raise GoneError
            case "dies":
                os._exit(0)
            case "stops":
                self._stopped = True
            case "stops for a while":
                time.sleep(WHILE)
            case "is slow":
                time.sleep(MOMENT)
            case "ties descriptors into a ring":
                table = self._session.descriptors(ring)
                for index in range(ring.size):
                    struct.pack_into("=HH", table, DESCRIPTOR.size * index + 12, HAS_NEXT, index)
            case "points descriptors out of the table":
                table = self._session.descriptors(ring)
                for index in range(ring.size):
                    beyond = chance.choice((ring.size, 0xFFFE))
                    struct.pack_into("=HH", table, DESCRIPTOR.size * index + 12, HAS_NEXT, beyond)
            case "writes garbage over the descriptors":
                self._scribble(self._session.descriptors(ring))
            case "writes garbage over the available ring":
                self._scribble(self._session.available(ring))
            case "writes garbage over the headers":
                rings = self._session.lent_for(ring)
                for _ in range(3):
                    self._scribble(rings.memory[ring.used - rings.client + 6 + 8 * ring.size :])
            case "writes garbage over lent memory":
                for lent in self._session.lent:
                    if lent is not self._session.lent_for(ring):
                        self._scribble(lent.memory)
            case "has another capacity":
                self._capacity = chance.choice((0, 1, DISK // SECTOR // 2, DISK // SECTOR * 2, (1 << 64) - 1))
            case _:
                pass

    def _misbehave_after(self, what: str, ring: Ring) -> None:
        match what:
            case "writes garbage over the used ring":
                self._scribble(self._session.used(ring))
                os.eventfd_write(ring.call, 1)
            case "sends events for nothing":
                for _ in range(100):
                    os.eventfd_write(ring.call, 1)
            case "takes its events back":
                _take_back(ring.call)
            case "takes its events back and makes reading block":
                flags = fcntl.fcntl(ring.call, fcntl.F_GETFL)
                fcntl.fcntl(ring.call, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
                for _ in range(20):
                    _take_back(ring.call)
            case "fills the kick":
                flags = fcntl.fcntl(ring.kick, fcntl.F_GETFL)
                fcntl.fcntl(ring.kick, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)
                _take_back(ring.kick)
                os.eventfd_write(ring.kick, (1 << 64) - 2)
                self._stopped = True
            case "cuts off lent memory" | "cuts off the rings" | "punches holes into lent memory":
                for lent in self._session.lent:
                    if ("rings" in what) == (lent is self._session.lent_for(ring)):
                        self._ruin(lent, what)
            case _:
                pass

    def _ruin(self, lent: Lent, what: str) -> None:
        if what == "punches holes into lent memory":
            lent.map.madvise(mmap.MADV_REMOVE)
            return
        self._stopped = True
        with contextlib.suppress(PermissionError):
            os.ftruncate(lent.fd, 0)

    def _scribble(self, memory: memoryview) -> None:
        for _ in range(self._chance.choice((1, 4, 64))):
            at = self._chance.randrange(len(memory))
            memory[at] = self._chance.randrange(256)


def _take_back(call: int) -> None:
    """What was told there, unless the client was faster."""
    poll = select.poll()
    poll.register(call, select.POLLIN)
    if poll.poll(0):
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(call)
