"""What may be given where bytes are wanted, and how many bytes that is."""

from collections.abc import Iterable
from typing import Any, Protocol, TypeAlias, cast

from typing_extensions import Buffer

__all__ = ["BytesLike", "SupportsArrayInterface", "as_memoryview", "flat", "length_of"]


class SupportsArrayInterface(Protocol):
    """An array of numpy's, and what is like one: a buffer, though until Python 3.12 no type says so."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


BytesLike: TypeAlias = Buffer | SupportsArrayInterface
"""Any object with the buffer protocol."""


def as_memoryview(buffer: BytesLike) -> memoryview:
    return memoryview(cast(Buffer, buffer))


def flat(buffer: BytesLike) -> memoryview:
    """Its bytes; BufferError: they do not lie side by side."""
    memory = as_memoryview(buffer)
    if not memory.c_contiguous:
        raise BufferError("the buffer is not contiguous")
    if memory.nbytes:
        return memory.cast("B")
    return memoryview(b"" if memory.readonly else bytearray())  # a shape with a zero cannot be cast


def length_of(buffers: Iterable[BytesLike], *, contiguous: bool = False, writable: bool = False) -> int:
    """Of all together, in bytes; BufferError: one of them is not as it must be."""
    length = 0
    for buffer in buffers:
        memory = as_memoryview(buffer)
        if (contiguous or writable) and not memory.c_contiguous:
            raise BufferError("the buffer is not contiguous")
        if writable and memory.readonly:
            raise BufferError("the buffer is read-only")
        length += memory.nbytes
    return length
