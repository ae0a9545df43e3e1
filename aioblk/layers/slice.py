"""Slice: a stretch of a device, as a device."""

import math
from collections.abc import AsyncGenerator, Awaitable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from operator import index
from typing import Any, Literal, final, overload

from typing_extensions import Buffer, TypeVar

from .._device.extents import Extent
from .._libblkio.limits import Limits
from .._native._core import Moved, move_pairs
from .._native.buffers import length_of
from ..errors import OptionError
from ._asked import Asked, end_of_stretch
from ._begun import failed
from .block_device import BlockDevice
from .layer import Layer, extents_of

__all__ = ["Slice"]

D_co = TypeVar("D_co", bound=BlockDevice, default=BlockDevice, covariant=True)


@final
class Slice(Layer[D_co]):
    """``length`` bytes of a device from ``offset`` on, which are its bytes from 0 on::

        async with aioblk.IoUring("disk.img") as dev:
            part = aioblk.Slice(dev, 1 << 20, 64 << 20)
            await part.write(0, data)          # is dev.write(1 << 20, data)

    It does not grow, and nothing beyond its ends is reached. Requests are the device's own, with the offset
    moved: so are errors, which name the device's offsets. Several slices of one device know nothing of each
    other; :meth:`flush` is the device's, and covers all of it.
    """

    def __init__(
        self, device: D_co, offset: int = 0, length: int | None = None, *, read_only: bool = False
    ) -> None:
        """Bytes, multiples of ``device.limits.request_alignment``. Without ``length`` it goes to the end.

        Raises:
            OptionError: the range is not one of the device, or misaligned.
        """
        super().__init__(device)
        limits, capacity = device.limits, device.capacity
        alignment = limits.request_alignment
        if length is None:
            length = max((capacity - offset) // alignment * alignment, 0)
        self._refuse_unless(
            offset >= 0 and length >= 0, "offset and length must not be negative", offset, length
        )
        self._refuse_unless(
            offset + length <= capacity,
            f"the slice ends at {offset + length}, beyond the device's capacity of {capacity} bytes",
            offset,
            length,
        )
        self._refuse_unless(
            (offset | length) % alignment == 0,
            f"a slice begins and ends at a multiple of {alignment} bytes, the device's request-alignment;"
            " align it, or make it of a ByteView",
            offset,
            length,
        )
        self._start = offset
        self._length = length
        self._read_only = read_only
        self._writable = -1 if self.read_only else length  # the end of what can be changed
        self._limits = _moved(limits, offset)
        self._asked = Asked("slice", self._limits, lambda: self._length, lambda: self.read_only)
        self._move("read", "read_into")
        if self._are_known and self._writable >= 0:
            self._move("write", "write_zeroes", "discard")

    def _move(self, *names: str) -> None:
        """Have the device's own methods, with the offset moved. What is not within, the class refuses.

        A layer that has its device's own loses them when it is closed: those are asked for anew each time.
        """
        is_layer = issubclass(type(self._device), Layer)
        for name in names:
            if is_layer and name in vars(self._device):
                continue
            method, own = getattr(self._device, name), getattr(self, name)
            self.__dict__[name] = Moved(method, own, self._start, self._length)

    @staticmethod
    def _refuse_unless(kept: bool, rule: str, offset: int, length: int) -> None:
        if not kept:
            raise OptionError(rule, driver="slice", operation="open", offset=offset, length=length)

    # --- what it is -----------------------------------------------------------------------------------------

    @property
    def offset(self) -> int:
        """Where it begins on the device."""
        return self._start

    @property
    def limits(self) -> Limits:
        """The device's, but it does not grow, and what is aligned is so within the slice."""
        return self._limits

    @property
    def capacity(self) -> int:
        """Its length, which never changes."""
        return self._length

    @property
    def read_only(self) -> bool:
        return self._read_only or self._device.read_only

    def extents(self, offset: int = 0, length: int | None = None) -> AsyncGenerator[Extent]:
        """As of the device, which tells where in the slice it has holes."""
        end = end_of_stretch("slice", self._length, offset, length)
        return self._moved_back(extents_of(self._device, self._start + offset, end - offset))

    async def _moved_back(self, extents: AsyncGenerator[Extent]) -> AsyncGenerator[Extent]:
        async with aclosing(extents):
            async for extent in extents:
                yield extent._replace(offset=extent.offset - self._start)

    # --- requests -------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> Awaitable[bytes]:
        offset, length = index(offset), index(length)
        if 0 <= offset <= self._length - length:
            return self._below.read(self._start + offset, length)
        return self._refused("read", *self._asked.to_read(offset, length))

    def read_into(self, offset: int, buffer: Buffer) -> Awaitable[None]:
        offset = index(offset)
        if 0 <= offset <= self._length - memoryview(buffer).nbytes:
            return self._below.read_into(self._start + offset, buffer)
        return self._refused("read", *self._asked.to_fill(offset, [buffer]))

    def readv(self, offset: int, buffers: Sequence[Buffer]) -> Awaitable[None]:
        offset, buffers = index(offset), tuple(buffers)
        if 0 <= offset <= self._length - length_of(buffers):
            return self._below.readv(self._start + offset, buffers)
        return self._refused("read", *self._asked.to_fill(offset, buffers))

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> Awaitable[None]:
        offset = index(offset)
        if 0 <= offset <= self._writable - memoryview(data).nbytes:
            return self._change(self._below.write(self._start + offset, data, fua=fua))
        return self._refused("write", *self._asked.to_write(offset, [data]))

    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        offset, buffers = index(offset), tuple(buffers)
        if 0 <= offset <= self._writable - length_of(buffers):
            return self._change(self._below.writev(self._start + offset, buffers, fua=fua))
        return self._refused("write", *self._asked.to_write(offset, buffers))

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_unmap: bool = False,
        no_fallback: bool = False,
    ) -> Awaitable[None]:
        offset, length = index(offset), index(length)
        if 0 <= offset <= self._writable - length:
            zeroing = self._below.write_zeroes(
                self._start + offset, length, fua=fua, no_unmap=no_unmap, no_fallback=no_fallback
            )
            return self._change(zeroing)
        return self._refused("write_zeroes", *self._asked.to_change("write_zeroes", offset, length))

    def discard(self, offset: int, length: int) -> Awaitable[None]:
        offset, length = index(offset), index(length)
        if 0 <= offset <= self._writable - length:
            return self._change(self._below.discard(self._start + offset, length))
        return self._refused("discard", *self._asked.to_discard(offset, length))

    @overload
    def read_many(
        self, requests: Iterable[tuple[int, int]], *, return_exceptions: Literal[False] = False
    ) -> Awaitable[list[bytes]]: ...
    @overload
    def read_many(
        self, requests: Iterable[tuple[int, int]], *, return_exceptions: bool
    ) -> Awaitable[list[bytes | BaseException]]: ...
    def read_many(self, requests: Iterable[tuple[int, int]], *, return_exceptions: bool = False) -> Any:
        items = tuple(requests)
        if (moved := move_pairs(items, self._start, self._length)) is not None:
            return self._below.read_many(moved, return_exceptions=return_exceptions)
        return BlockDevice.read_many(self, items, return_exceptions=return_exceptions)

    def read_into_many(
        self, requests: Iterable[tuple[int, Buffer]], *, return_exceptions: bool = False
    ) -> Awaitable[Any]:
        items = tuple(requests)
        if (moved := move_pairs(items, self._start, self._length)) is not None:
            return self._below.read_into_many(moved, return_exceptions=return_exceptions)
        return BlockDevice.read_into_many(self, items, return_exceptions=return_exceptions)

    def write_many(
        self, requests: Iterable[tuple[int, Buffer]], *, fua: bool = False, return_exceptions: bool = False
    ) -> Awaitable[Any]:
        items = tuple(requests)
        if self._writable >= 0 and (moved := move_pairs(items, self._start, self._writable)) is not None:
            return self._change(self._below.write_many(moved, fua=fua, return_exceptions=return_exceptions))
        return BlockDevice.write_many(self, items, fua=fua, return_exceptions=return_exceptions)

    def _refused(self, operation: str, offset: int, length: int) -> Awaitable[Any]:
        """Nothing is wrong with what was asked for, but that it ends beyond the end."""
        self._below.capacity  # noqa: B018 (a closed slice refuses that first)
        error = self._asked.beyond_the_end(operation, offset, length)
        assert error is not None
        return failed(error)


def _moved(limits: Limits, start: int) -> Limits:
    """Those of a stretch that begins at *start*."""
    return replace(
        limits,
        can_grow=False,
        optimal_io_alignment=math.gcd(limits.optimal_io_alignment, start),
        discard_alignment_offset=(limits.discard_alignment_offset - start) % max(limits.discard_alignment, 1),
    )
