"""What is written: blocks that can be told from anything else and, to be verified, from each other."""

import random
import struct
import zlib
from typing import final

from typing_extensions import Buffer

__all__ = ["MAGIC", "Pattern", "is_ours", "stamp"]

MAGIC = b"aioblkbn"
SECTOR, PAGE = 512, 4096

_HEAD = struct.Struct("<8sQQI")  # magic, offset, generation, length; then a checksum of these and the rest
_CHECKSUM = struct.Struct("<I")
_BODY = _HEAD.size + _CHECKSUM.size
_SHIFTS = 4093  # a prime: neighbours in place and time have other bytes


def stamp(buffer: memoryview, seed: int) -> None:
    """Fill a buffer with random bytes that say whose they are in each sector."""
    buffer[:] = random.Random(seed).randbytes(len(buffer))
    for at in range(0, len(buffer), SECTOR):
        part = min(len(MAGIC), len(buffer) - at)
        buffer[at : at + part] = MAGIC[:part]


def is_ours(data: bytes, offset: int) -> int | None:
    """Where in *data*, which is from *offset* on, the first byte is that is neither zero nor of a benchmark.
    None: there is none."""
    page_is_ours = False
    for at in range(0, len(data), SECTOR):
        sector = data[at : at + SECTOR]
        magic = sector.startswith(MAGIC)
        if (offset + at) % PAGE == 0 or at == 0:
            page_is_ours = magic
        if not (magic or page_is_ours) and sector.count(0) != len(sector):
            return offset + at + next(index for index, byte in enumerate(sector) if byte)
    return None


@final
class Pattern:
    """Blocks of one size that say where they belong and when they were written."""

    def __init__(self, block_size: int, seed: int) -> None:
        self.piece = PAGE if block_size % PAGE == 0 else SECTOR
        """Each of so many bytes is checked by itself: a block may be torn."""
        self._bodies = random.Random(seed).randbytes(self.piece + _SHIFTS)

    def fill(self, buffer: memoryview, offset: int, generation: int) -> None:
        """With what is to be at *offset*, written for the *generation*-th time."""
        for at in range(0, len(buffer), self.piece):
            head, body = self._piece(offset + at, generation)
            checksum = zlib.crc32(body, zlib.crc32(head))
            buffer[at : at + _HEAD.size] = head
            _CHECKSUM.pack_into(buffer, at + _HEAD.size, checksum)
            buffer[at + _BODY : at + self.piece] = body

    def _piece(self, offset: int, generation: int) -> tuple[bytes, bytes]:
        head = _HEAD.pack(MAGIC, offset, generation, self.piece)
        shift = (offset // self.piece + generation * 31) % _SHIFTS
        return head, self._bodies[shift : shift + self.piece - _BODY]

    def check(self, buffer: Buffer, offset: int, generation: int) -> str | None:
        """What is wrong with what was read; None: nothing."""
        data = memoryview(buffer).cast("B")
        for at in range(0, len(data), self.piece):
            piece = bytes(data[at : at + self.piece])
            if (wrong := self._check_piece(piece, offset + at, generation)) is not None:
                return f"at offset {offset + at}: {wrong}"
        return None

    def _check_piece(self, piece: bytes, offset: int, generation: int) -> str | None:
        magic, place, found, length = _HEAD.unpack_from(piece)
        wanted = f"written {generation} times"
        if magic != MAGIC:
            what = "zeroes" if not any(piece) else "something else"
            return f"{wanted}, and there is {what}: the write is lost, or was overwritten"
        (checksum,) = _CHECKSUM.unpack_from(piece, _HEAD.size)
        if checksum != zlib.crc32(piece[_BODY:], zlib.crc32(piece[: _HEAD.size])) or length != self.piece:
            return f"{wanted}, and the checksum is wrong: the data are damaged, or torn"
        if place != offset:
            return f"{wanted}, and there is what belongs to offset {place}: a write went to the wrong place"
        if found != generation:
            return f"{wanted}, and there is what was written as number {found}: a write is lost"
        return None
