"""Layer: a block device over another one, which passes on all that it does not change."""

from collections.abc import AsyncGenerator, Awaitable, Iterable, Sequence
from typing import Any, Generic, Literal, Self, cast, overload

from typing_extensions import Buffer, TypeVar

from .._device.extents import Extent
from .._libblkio.limits import Limits
from .._memory.mapping import MapsMemory
from .._native._core import Request
from .._queues.statistics import QueueStatistics
from .._sync.loops import running_loop
from .._sync.scopes import AsyncClosing, shielded_if_cancelled
from ._asked import end_of_stretch
from ._begun import Begun, begun
from ._closed import Closed
from ._under_way import UnderWay
from .block_device import BlockDevice, KnowsExtents, require_block_device

__all__ = ["REQUESTS", "Layer", "extents_of"]

REQUESTS = (
    *("read", "read_into", "readv", "read_many", "read_into_many", "discard", "flush"),
    *("write", "writev", "write_many", "write_zeroes"),
)

T = TypeVar("T")
D_co = TypeVar("D_co", bound=BlockDevice, default=BlockDevice, covariant=True)


class Layer(AsyncClosing, BlockDevice, Generic[D_co]):
    """A block device over another one. Derive from it, and define what differs::

        class Counting(aioblk.Layer):
            reads = 0

            def read(self, offset, length):
                self.reads += 1
                return super().read(offset, length)

    What is not defined is the device's own: requests go to it by the call, batches as batches, buffers as
    they are, so that memory that the device knows is reached without copying. A layer that changes
    ``read_into``, ``write`` or a batch as little as ``readv`` and ``writev`` says so once: it derives those
    of :class:`BlockDevice`, which are made of the others, by ``read_into = aioblk.BlockDevice.read_into``.

    Where the device can be told of memory (:class:`MapsMemory`), so can the layer: it has the device's
    ``register()`` and ``allocate()``, for who asks with ``isinstance()``. It always tells extents: of a
    device that does not know its own, everything is data.

    Belongs to the event loop of its device, which it neither opens nor closes.
    """

    def __init__(self, device: D_co) -> None:
        """Over an open device."""
        require_block_device(device)
        self._device = device
        self._below: BlockDevice = device
        self._under_way = UnderWay(device)  # changes
        self._are_known = self._under_way.is_known
        if self._are_known:
            self._take_over(name for name in REQUESTS if getattr(type(self), name) is getattr(Layer, name))
        if isinstance(device, MapsMemory):  # not declared: whether there are any depends on the device
            self.__dict__.update(register=device.register, allocate=device.allocate)

    def _take_over(self, names: Iterable[str]) -> None:
        """Have the device's own methods, without a detour."""
        self.__dict__.update((name, getattr(self._device, name)) for name in names)

    def _take_back(self) -> None:
        """Have the class's methods, for all requests."""
        for name in REQUESTS:
            self.__dict__.pop(name, None)

    @property
    def device(self) -> D_co:
        """What lies below."""
        return self._device

    @property
    def below(self) -> BlockDevice:
        """Whom to hand requests to: the device or, when the layer is closed, what refuses them all."""
        return self._below

    # --- life -----------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the layer is closed, or being closed, or its device is."""
        return self._below is not self._device or bool(getattr(self._device, "closed", False))

    async def __aenter__(self) -> Self:
        running_loop("enter", "layer")
        return self

    async def aclose(self) -> None:
        """Refuse new requests, and wait for changes in flight; idempotent.

        The device stays open. Reads in flight are the device's own, which finishes them before it is closed.
        """
        running_loop("close", "layer")
        self._below = cast(BlockDevice, Closed(f"the {type(self).__name__}"))
        self._take_back()
        with shielded_if_cancelled():
            await self._finish()

    async def _finish(self) -> None:
        """Wait for what is under way."""
        await self._under_way.finish()

    # --- what it is -----------------------------------------------------------------------------------------

    @property
    def limits(self) -> Limits:
        return self._device.limits

    @property
    def capacity(self) -> int:
        return self._device.capacity

    @property
    def read_only(self) -> bool:
        return self._device.read_only

    def statistics(self) -> QueueStatistics:
        """What the device counts: the requests that those of the layer, and of others, were made of."""
        return self._device.statistics()

    def extents(self, offset: int = 0, length: int | None = None) -> AsyncGenerator[Extent]:
        return extents_of(self._device, offset, length)

    # --- requests -------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> Awaitable[bytes]:
        return self._below.read(offset, length)

    def read_into(self, offset: int, buffer: Buffer) -> Awaitable[None]:
        return self._below.read_into(offset, buffer)

    def readv(self, offset: int, buffers: Sequence[Buffer]) -> Awaitable[None]:
        return self._below.readv(offset, buffers)

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> Awaitable[None]:
        return self._change(self._below.write(offset, data, fua=fua))

    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        return self._change(self._below.writev(offset, buffers, fua=fua))

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_unmap: bool = False,
        no_fallback: bool = False,
    ) -> Awaitable[None]:
        zeroing = self._below.write_zeroes(
            offset, length, fua=fua, no_unmap=no_unmap, no_fallback=no_fallback
        )
        return self._change(zeroing)

    def discard(self, offset: int, length: int) -> Awaitable[None]:
        return self._change(self._below.discard(offset, length))

    def flush(self) -> Awaitable[None]:
        return self._below.flush()

    @overload
    def read_many(
        self, requests: Iterable[tuple[int, int]], *, return_exceptions: Literal[False] = False
    ) -> Awaitable[list[bytes]]: ...
    @overload
    def read_many(
        self, requests: Iterable[tuple[int, int]], *, return_exceptions: bool
    ) -> Awaitable[list[bytes | BaseException]]: ...
    def read_many(self, requests: Iterable[tuple[int, int]], *, return_exceptions: bool = False) -> Any:
        return self._below.read_many(requests, return_exceptions=return_exceptions)

    def read_into_many(
        self, requests: Iterable[tuple[int, Buffer]], *, return_exceptions: bool = False
    ) -> Awaitable[Any]:
        return self._below.read_into_many(requests, return_exceptions=return_exceptions)

    def write_many(
        self, requests: Iterable[tuple[int, Buffer]], *, fua: bool = False, return_exceptions: bool = False
    ) -> Awaitable[Any]:
        return self._change(self._below.write_many(requests, fua=fua, return_exceptions=return_exceptions))

    def _change(self, request: Awaitable[T], offset: int = 0, end: int = 0) -> Awaitable[T]:
        """A change that the device was asked for, from where to where if anyone is to know: closing waits for
        it."""
        change: Request[T] | Begun[T] = request if isinstance(request, Request) else begun(request)
        self._under_way.add(offset, end, change)
        return change

    def __repr__(self) -> str:
        return f"<aioblk.{type(self).__name__} over {self._device!r}>"


def extents_of(device: BlockDevice, offset: int = 0, length: int | None = None) -> AsyncGenerator[Extent]:
    """Those that the device tells, or one of data where it tells none."""
    running_loop("extents", type(device).__name__)
    if isinstance(device, KnowsExtents):
        return device.extents(offset, length)
    return _one_of_data(offset, end_of_stretch(type(device).__name__, device.capacity, offset, length))


async def _one_of_data(offset: int, end: int) -> AsyncGenerator[Extent]:
    if offset < end:
        yield Extent(offset, end - offset)
