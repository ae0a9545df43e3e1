"""What a block device is, whoever has made it: a device, one of its queues, a layer over them, your own."""

from abc import abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, overload

from typing_extensions import Buffer, Protocol, runtime_checkable

from .._device.extents import Extent
from .._libblkio.limits import Limits
from .._queues.statistics import QueueStatistics
from ._begun import begin_all, calls_of

__all__ = ["BlockDevice", "KnowsExtents", "require_block_device"]


@runtime_checkable
class BlockDevice(Protocol):
    """What can be read and written in blocks. :class:`Device`, :class:`Queue` and :class:`ByteView` are, and
    so is whatever else has these methods and keeps these rules. It need not derive from anything; what
    derives from this class is given ``read_into``, ``write`` and the batches, made of the other requests.

    **Units.** Offsets and lengths are bytes, and multiples of ``limits.request_alignment``.

    **Beginning.** A request begins when its method is called. By the time the method returns, the arguments
    have been checked, :meth:`statistics` counts the request, and it goes on by itself, whether it is awaited
    or not. So the methods are plain functions that return something under way (a future, a task, a
    :class:`Request`): an ``async def`` would begin when it is awaited, or never.

    **Results.** What a method returns is awaited once, or handed to ``asyncio.gather()`` or
    ``asyncio.ensure_future()``, which gives ``done()``, ``cancel()`` and callbacks.

    **Errors.** What is wrong with the call is raised by the call, and nothing has begun then:
    :class:`AlignmentError`, :class:`OptionError`, ``TypeError`` and ``BufferError`` for the arguments,
    :class:`DeviceClosedError` after closing, and for a change where ``read_only`` a :class:`BlkioError` with
    ``EBADF``. What goes wrong with the I/O is raised by the await: a :class:`BlkioError`. So is a range that
    ends beyond the capacity, unless the device can grow: what is read there is zeroes then.

    **Order.** Requests in flight together take effect in any order. What begins when another is done comes
    after it.

    **Memory.** Until a request is done, its buffer must not be resized, nor changed where it is written from.
    Afterwards the device does not touch it.

    **Cancellation.** A request whose awaiting is cancelled is given up. It is done at once, or as soon as the
    device does not use the caller's memory any more. A change that was given up may have been made, in part
    or not at all; what begins later on the same range comes after it.

    **Threads.** A block device belongs to one event loop, and to the thread of that.
    """

    @property
    @abstractmethod
    def limits(self) -> Limits:
        """What is accepted; fixed while the device is open. Longer requests than a limit of the length are
        divided by the device."""
        ...

    @property
    @abstractmethod
    def capacity(self) -> int:
        """The size in bytes. It may change: with ``limits.can_grow``, by writing past the end."""
        ...

    @property
    @abstractmethod
    def read_only(self) -> bool:
        """Whether changes are refused."""
        ...

    @abstractmethod
    def statistics(self) -> QueueStatistics:
        """A snapshot of the counters. What a device does not know of is 0."""
        ...

    @abstractmethod
    async def aclose(self) -> None:
        """Refuse new requests, wait for those in flight, and give back what the device has; idempotent.

        A layer closes what it has opened, and leaves open what it was given.
        """

    # --- requests -------------------------------------------------------------------------------------------

    @abstractmethod
    def read(self, offset: int, length: int) -> Awaitable[bytes]:
        """``length`` bytes from ``offset``."""
        ...

    def read_into(self, offset: int, buffer: Buffer) -> Awaitable[None]:
        """Fill the writable ``buffer`` from ``offset`` on. BufferError: it is read-only or not contiguous."""
        return self.readv(offset, [buffer])

    @abstractmethod
    def readv(self, offset: int, buffers: Sequence[Buffer]) -> Awaitable[None]:
        """Fill several writable buffers, one after the other. Only their whole length must be aligned."""
        ...

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> Awaitable[None]:
        """Write ``data``; with ``fua`` it is on stable storage when the request is done."""
        return self.writev(offset, [data], fua=fua)

    @abstractmethod
    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        """Write several buffers, one after the other. Only their whole length must be aligned."""
        ...

    @abstractmethod
    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_unmap: bool = False,
        no_fallback: bool = False,
    ) -> Awaitable[None]:
        """Make the range read as zeroes. Space may be given back unless ``no_unmap``.

        With ``no_fallback`` it fails with UnsupportedError where zeroes would have to be written out.
        """
        ...

    @abstractmethod
    def discard(self, offset: int, length: int) -> Awaitable[None]:
        """Give the range back to the storage; what it reads as then is unspecified.

        AlignmentError: the range breaks ``limits.discard_alignment``.
        """
        ...

    @abstractmethod
    def flush(self) -> Awaitable[None]:
        """Make what changes that are done have written durable. Those in flight are not covered."""
        ...

    # --- many with one await --------------------------------------------------------------------------------

    @overload
    def read_many(
        self, requests: Iterable[tuple[int, int]], *, return_exceptions: Literal[False] = False
    ) -> Awaitable[list[bytes]]: ...
    @overload
    def read_many(
        self, requests: Iterable[tuple[int, int]], *, return_exceptions: bool
    ) -> Awaitable[list[bytes | BaseException]]: ...
    def read_many(self, requests: Iterable[tuple[int, int]], *, return_exceptions: bool = False) -> Any:
        """What is at many (offset, length) pairs, in the order of the pairs.

        What is wrong with one of them is raised by the call; the others have not begun then, or are given up.
        The first error, in the order of the pairs, is raised when all are over. With ``return_exceptions``
        both are in the list instead.
        """
        calls = calls_of(self.read, requests, "length")
        return begin_all(calls, return_exceptions=return_exceptions)

    def read_into_many(
        self, requests: Iterable[tuple[int, Buffer]], *, return_exceptions: bool = False
    ) -> Awaitable[Any]:
        """Fill the buffers of many (offset, buffer) pairs; errors as by :meth:`read_many`.

        Gives None or, with ``return_exceptions``, a list with an exception or None for each pair.
        """
        calls = calls_of(self.read_into, requests, "buffer")
        return begin_all(calls, results=False, return_exceptions=return_exceptions)

    def write_many(
        self, requests: Iterable[tuple[int, Buffer]], *, fua: bool = False, return_exceptions: bool = False
    ) -> Awaitable[Any]:
        """Write many (offset, buffer) pairs, in any order; otherwise as :meth:`read_into_many`."""
        calls = calls_of(partial(self.write, fua=fua), requests, "buffer")
        return begin_all(calls, results=False, return_exceptions=return_exceptions)


def require_block_device(device: object) -> None:
    """TypeError, that says what it is instead."""
    if not isinstance(device, BlockDevice):
        raise TypeError(f"a BlockDevice is needed, not {type(device).__name__}: {device!r}")


@runtime_checkable
class KnowsExtents(Protocol):
    """A block device that can tell where it has holes. Of any other, everything counts as data."""

    def extents(self, offset: int = 0, length: int | None = None) -> AsyncGenerator[Extent, None]:
        """What there is from ``offset`` on, up to the end or for ``length`` bytes, in order, without gaps.

        What is written meanwhile may be missed. OptionError, at the call: the range is not of the device.
        """
        ...
