"""What a server tells of its blocks: where there are holes, or what has changed since a backup."""

import errno
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from ...errors import BlkioError
from .. import protocol
from .export import Export, Headers

__all__ = ["BlockStatus", "first_stretches"]


class BlockStatus(NamedTuple):
    """A stretch of a device, in bytes, and what a metadata context says of it."""

    offset: int
    """Of its first byte."""
    length: int
    """How many bytes it has."""
    flags: int
    """What they mean is up to the context. ``qemu:dirty-bitmap:NAME``: 1 is what has changed."""

    @property
    def end(self) -> int:
        """The offset behind its last byte."""
        return self.offset + self.length


def read_status(data: bytes, extended: bool) -> Iterator[tuple[int, int]]:
    """Lengths and flags, as they came."""
    layout, start = (protocol.EXTENDED_EXTENT, 8) if extended else (protocol.EXTENT, 4)
    return layout.iter_unpack(memoryview(data)[start:])


def first_stretches(
    export: Export, where: str, data: bytes, offset: int, end: int, most: int
) -> list[BlockStatus]:
    """Those up to *end* at most, neighbours that are alike as one. BlkioError, which names *where*: they make
    no sense."""
    found: list[BlockStatus] = []
    block = export.alignment
    for length, flags in islice(read_status(data, export.headers is Headers.EXTENDED), most):
        if not length or (length % block and offset + length < end):
            raise BlkioError(
                f"the server breaks the protocol: {length} bytes at {offset} have a status of their own,"
                f" where a block has {block}",
                errno=errno.EPROTO,
                driver="nbd",
                operation="block_status",
                filename=where,
                offset=offset,
            )
        length = min(length, end - offset)
        if found and found[-1].flags == flags:
            found[-1] = found[-1]._replace(length=found[-1].length + length)
        else:
            found.append(BlockStatus(offset, length, flags))
        offset += length
        if offset >= end:
            break
    return found
