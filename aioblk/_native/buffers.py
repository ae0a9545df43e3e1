"""What may be given where bytes are wanted, for type checkers."""

from typing import Any, Protocol, TypeAlias, cast

from typing_extensions import Buffer

__all__ = ["BytesLike", "SupportsArrayInterface", "as_memoryview"]


class SupportsArrayInterface(Protocol):
    """An array of numpy's, and what is like one: a buffer, though until Python 3.12 no type says so."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


BytesLike: TypeAlias = Buffer | SupportsArrayInterface
"""Any object with the buffer protocol."""


def as_memoryview(buffer: BytesLike) -> memoryview:
    return memoryview(cast(Buffer, buffer))
