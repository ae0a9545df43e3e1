"""A guest's side of a split virtqueue: memory that it lends, rings in it, and whatever it says there."""

import contextlib
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13  # virtio-blk's
OK, FAILED, UNSUPPORTED = 0, 1, 2
SECTOR = 512

NEXT, WRITABLE, INDIRECT = 1, 2, 4
NO_INTERRUPT = 1
DESCRIPTOR = struct.Struct("<QIHH")
HEADER = struct.Struct("<IIQ")
RANGE = struct.Struct("<QII")
U16 = struct.Struct("<H")
UNANSWERED = 0xEE


@dataclass(frozen=True)
class Piece:
    """What one descriptor is about."""

    address: int
    length: int
    writable: bool = False


@dataclass(frozen=True)
class Asked:
    """A request that was made available."""

    head: int
    status: int
    """Where it will be."""
    data: int
    length: int


class Guest:
    """Memory in a file, as one range, with one queue at its beginning.

    Addresses are the guest's: *guest* is that of the first byte. The client's own differ from them.
    """

    def __init__(
        self,
        *,
        size: int = 1 << 20,
        queue: int = 16,
        guest: int = 1 << 32,
        event: bool = False,
        start: int = 0,
    ) -> None:
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        self.memory = mmap.mmap(self.fd, size)
        self.size = size
        self.guest = guest
        self.user = guest + (7 << 40)
        self.queue = queue
        self.event = event
        self.descriptors = 0
        self.available = DESCRIPTOR.size * queue
        self.used = self._up(self.available + 6 + 2 * queue, 4)
        self._heap = self._first = self._up(self.used + 6 + 8 * queue, 16)
        self._free = list(range(queue))
        self._chains: dict[int, list[int]] = {}
        self._seen = start
        self.set_offered(start)
        self._set(self.used + 2, start)

    @staticmethod
    def _up(value: int, unit: int) -> int:
        return -(-value // unit) * unit

    def close(self) -> None:
        with contextlib.suppress(BufferError):  # it is still looked at, and goes with the last who does
            self.memory.close()
        os.close(self.fd)

    # --- memory ---------------------------------------------------------------------------------------------

    def put(self, data: bytes, alignment: int = 1) -> int:
        """Have bytes in memory: where."""
        place = self._up(self._heap, alignment)
        self._heap = place + len(data)
        if self._heap > self.size:
            raise MemoryError
        self.memory[place : place + len(data)] = data
        return self.guest + place

    def get(self, address: int, length: int) -> bytes:
        place = address - self.guest
        return self.memory[place : place + length]

    def forget_data(self) -> None:
        """What was put is not needed any more."""
        self._heap = self._first

    # --- rings ----------------------------------------------------------------------------------------------

    def set_descriptor(
        self, index: int, address: int, length: int, flags: int = 0, following: int = 0
    ) -> None:
        DESCRIPTOR.pack_into(self.memory, DESCRIPTOR.size * index, address, length, flags, following)

    def offer(self, head: int) -> None:
        """Make a chain available, whatever it is."""
        self._set(self.available + 4 + 2 * (self._offered % self.queue), head)
        self.set_offered(self._offered + 1)

    def set_offered(self, index: int) -> None:
        self._offered = index % (1 << 16)
        self._set(self.available + 2, self._offered)

    def _set(self, place: int, value: int) -> None:
        memoryview(self.memory)[place : place + 2].cast("H")[0] = value  # at once

    def _get(self, place: int) -> int:
        return int(U16.unpack_from(self.memory, place)[0])

    @property
    def used_index(self) -> int:
        return self._get(self.used + 2)

    @property
    def wakes_at(self) -> int:
        """The index of the next request that the device wants to be told of."""
        return self._get(self.used + 4 + 8 * self.queue)

    def want_call_at(self, index: int) -> None:
        """Be told when so many are used."""
        self._set(self.available + 4 + 2 * self.queue, index % (1 << 16))

    def want_no_calls(self) -> None:
        self._set(self.available, NO_INTERRUPT)

    def finished(self) -> list[tuple[int, int]]:
        """(head, bytes written) of what was used since the last time."""
        done: list[tuple[int, int]] = []
        while self._seen != self.used_index:
            head, written = struct.unpack_from(
                "<II", self.memory, self.used + 4 + 8 * (self._seen % self.queue)
            )
            self._seen = (self._seen + 1) % (1 << 16)
            self._free += self._chains.pop(head, [])
            done.append((head, written))
            if self.event and self._seen == self.used_index:
                self.want_call_at(self._seen)  # what is used from here on is told, or seen by the loop
        return done

    # --- requests -------------------------------------------------------------------------------------------

    def chain(self, pieces: Sequence[Piece], *, indirect: bool = False) -> int:
        """Descriptors for the pieces: the head."""
        if indirect:
            table = b"".join(
                DESCRIPTOR.pack(
                    piece.address,
                    piece.length,
                    (WRITABLE if piece.writable else 0) | (NEXT if index < len(pieces) else 0),
                    index % len(pieces),
                )
                for index, piece in enumerate(pieces, 1)
            )
            head = self._free.pop(0)
            self.set_descriptor(head, self.put(table, 16), len(table), INDIRECT)
            self._chains[head] = [head]
            return head
        taken = [self._free.pop(0) for _ in pieces]
        for index, following, piece in zip(taken, [*taken[1:], None], pieces, strict=True):
            flags = (WRITABLE if piece.writable else 0) | (0 if following is None else NEXT)
            self.set_descriptor(index, piece.address, piece.length, flags, following or 0)
        self._chains[taken[0]] = taken
        return taken[0]

    def ask(
        self,
        kind: int,
        sector: int = 0,
        data: bytes = b"",
        *,
        length: int = 0,
        indirect: bool = False,
        cuts: int = 1,
    ) -> Asked:
        """Make a request available: *data* that goes with it, or a *length* that is to come back."""
        head = self.put(HEADER.pack(kind, 0, sector), 16)
        status = self.put(bytes([UNANSWERED]))
        place = self.put(data or bytes(length), 16)
        size, writable = len(data) or length, not data
        step = -(-size // cuts) or 1
        pieces = [Piece(place + at, min(step, size - at), writable) for at in range(0, size, step)]
        chain = self.chain(
            [Piece(head, HEADER.size), *pieces, Piece(status, 1, writable=True)], indirect=indirect
        )
        self.offer(chain)
        return Asked(chain, status, place, size)

    def status(self, asked: Asked) -> int:
        return self.get(asked.status, 1)[0]

    def data(self, asked: Asked) -> bytes:
        return self.get(asked.data, asked.length)
