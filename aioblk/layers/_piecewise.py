"""A layer over another device, all of whose reads and writes are made of a few."""

from collections.abc import Awaitable, Iterable
from typing import Any, Literal, overload

from typing_extensions import Buffer, TypeVar

from .block_device import BlockDevice
from .layer import Layer

__all__ = ["Piecewise"]

D_co = TypeVar("D_co", bound=BlockDevice, default=BlockDevice, covariant=True)


class Piecewise(Layer[D_co]):
    """Whoever derives from it defines ``read``, ``readv`` and ``writev``: the others are made of them."""

    def read_into(self, offset: int, buffer: Buffer) -> Awaitable[None]:
        return BlockDevice.read_into(self, offset, buffer)

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> Awaitable[None]:
        return BlockDevice.write(self, offset, data, fua=fua)

    @overload
    def read_many(
        self, requests: Iterable[tuple[int, int]], *, return_exceptions: Literal[False] = False
    ) -> Awaitable[list[bytes]]: ...
    @overload
    def read_many(
        self, requests: Iterable[tuple[int, int]], *, return_exceptions: bool
    ) -> Awaitable[list[bytes | BaseException]]: ...
    def read_many(self, requests: Iterable[tuple[int, int]], *, return_exceptions: bool = False) -> Any:
        return BlockDevice.read_many(self, requests, return_exceptions=return_exceptions)

    def read_into_many(
        self, requests: Iterable[tuple[int, Buffer]], *, return_exceptions: bool = False
    ) -> Awaitable[Any]:
        return BlockDevice.read_into_many(self, requests, return_exceptions=return_exceptions)

    def write_many(
        self, requests: Iterable[tuple[int, Buffer]], *, fua: bool = False, return_exceptions: bool = False
    ) -> Awaitable[Any]:
        return BlockDevice.write_many(self, requests, fua=fua, return_exceptions=return_exceptions)
