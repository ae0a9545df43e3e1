"""Checksums of what devices read as."""

from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from typing_extensions import Buffer, Protocol

from .._native._core import View
from .._sync.blocking import run_blocking
from .._sync.loops import running_loop
from .._sync.tasks import SteadfastTasks
from ..errors import OptionError
from ..layers._asked import end_of_stretch
from ..layers.block_device import BlockDevice, require_block_device
from ._in_order import in_order
from ._memory import shared_buffers
from ._pieces import HOLE_AT_ONCE, LEAST_HOLE, Piece, Sizes, any_bytes, pieces_of, sizes_for, stretches

__all__ = ["checksum"]

Progress: TypeAlias = Callable[[int, int], object]

ZEROES = bytes(1 << 20)


class _Digest(Protocol):
    """One of hashlib's."""

    def update(self, data: Buffer, /) -> None: ...
    def hexdigest(self) -> str: ...


class _Read(NamedTuple):
    piece: Piece
    buffer: View | None
    """None: it is a hole."""


async def checksum(
    device: BlockDevice,
    algorithm: str = "sha256",
    *,
    offset: int = 0,
    length: int | None = None,
    request_size: int | None = None,
    depth: int | None = None,
    on_progress: Progress | None = None,
) -> str:
    """The hexadecimal digest of what an open device reads as, from *offset* on, for *length* bytes or up to
    the end; that of a file is what ``sha256sum`` says.

    *algorithm* is one of hashlib's with a digest of fixed length: "sha256", "blake2b", "md5". It is computed
    in a thread, while more is being read. Holes are not read. *on_progress* is called with what is done, and
    how much there is.

    Raises:
        OptionError: there is no such algorithm, or the range is not one of the device.
        BlkioError: the device cannot be read.
    """
    running_loop("checksum")
    require_block_device(device)
    end = end_of_stretch("checksum", device.capacity, offset, length, operation="checksum")
    sizes = sizes_for(device.limits, request_size=request_size, depth=depth, operation="checksum")
    digest = _new(algorithm)
    hashing = SteadfastTasks("checksum")
    try:
        async with aclosing(_read_all(device, offset, end, sizes, digest, hashing)) as done:
            async for position in done:
                if on_progress is not None:
                    on_progress(position - offset, end - offset)
    finally:
        await hashing.until_ended()
    return digest.hexdigest()


def _new(algorithm: str) -> _Digest:
    import hashlib  # OpenSSL; who copies does without

    try:
        digest = hashlib.new(algorithm)
        digest.copy().hexdigest()  # of some it wants to be told how long it is to be
    except (ValueError, TypeError):
        known = ", ".join(sorted(name for name in hashlib.algorithms_guaranteed if "shake" not in name))
        raise OptionError(
            f"there is no algorithm {algorithm!r} with a digest of fixed length; there are {known}",
        ) from None
    return digest


async def _read_all(
    device: BlockDevice,
    start: int,
    end: int,
    sizes: Sizes,
    digest: _Digest,
    hashing: SteadfastTasks,
) -> AsyncGenerator[int]:
    """How far it has come."""
    view = any_bytes(device, start, end)
    async with shared_buffers([device], sizes.depth, sizes.request) as buffers:
        free = deque(buffers)

        async def read(piece: Piece) -> _Read:
            if piece.is_hole:
                return _Read(piece, None)
            buffer = free.popleft()
            await view.read_into(piece.offset, buffer[: piece.length])
            return _Read(piece, buffer)

        async def plan() -> AsyncGenerator[Coroutine[Any, Any, _Read]]:
            found = stretches(device, start, end, alignment=sizes.alignment, least=LEAST_HOLE)
            async with aclosing(found):
                async for stretch in found:
                    for piece in pieces_of(stretch, sizes, HOLE_AT_ONCE):
                        yield read(piece)

        try:
            async with aclosing(in_order(plan(), sizes.depth)) as pieces:
                async for piece, buffer in pieces:
                    await hashing.finish(run_blocking(partial(_update, digest, piece.length, buffer)))
                    if buffer is not None:
                        free.append(buffer)
                    yield piece.end
        finally:
            await hashing.until_ended()  # before the memory goes


def _update(digest: _Digest, length: int, buffer: View | None) -> None:
    if buffer is not None:
        digest.update(buffer[:length])
        return
    for position in range(0, length, len(ZEROES)):
        digest.update(memoryview(ZEROES)[: length - position])
