"""Throttle: a device of which no more is asked than a group allows, and such groups."""

import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, final, overload

import typing_extensions
from typing_extensions import Buffer

from .._native.buffers import as_memoryview, length_of
from .._queues.statistics import QueueStatistics
from .._sync.fair_queue import LEAST_WEIGHT, MOST_WEIGHT
from ..errors import OptionError
from ._asked import Asked
from ._begun import Begun
from ._later import Later, Waiting
from ._throttling import Direction, Flow, Gate, Limited, Rate, Share, ThrottleStatistics
from .block_device import BlockDevice
from .layer import REQUESTS, Layer

__all__ = ["Rate", "Throttle", "ThrottleGroup", "ThrottleStatistics"]

T = TypeVar("T")
D_co = typing_extensions.TypeVar("D_co", bound=BlockDevice, default=BlockDevice, covariant=True)


@final
class ThrottleGroup:
    """Limits that several :class:`Throttle` layers share: those of one device or of many, one for each client
    of a service::

        group = aioblk.ThrottleGroup(total=aioblk.Rate(operations=5000, bytes=200 << 20))
        gold = aioblk.Throttle(dev, group, weight=4)
        rest = aioblk.Throttle(dev, group)

    While nobody has to wait, requests pass. Where somebody has, each layer has its share by its weight: what
    one does not use, others have. Within a layer requests of one direction begin in the order of their calls.

    *reads* and *writes* are limited by themselves as well as in *total*. Write-zeroes and discards count as
    writes of their length. Flushes always pass. Rates may be changed at any time; None takes a limit away.

    Belongs to one event loop.
    """

    def __init__(
        self, *, total: Rate | None = None, reads: Rate | None = None, writes: Rate | None = None
    ) -> None:
        self._gate = Gate(_rate(total), _rate(reads), _rate(writes))
        self._layers: weakref.WeakSet[Throttle[Any]] = weakref.WeakSet()

    def _set_rate(self, name: Limited, rate: Rate | None) -> None:
        self._gate.set_rate(name, _rate(rate))
        for layer in tuple(self._layers):
            layer._look_at_gate()  # pyright: ignore[reportPrivateUsage] # the other half of this module

    @property
    def total(self) -> Rate:
        """Of reads and writes together."""
        return self._gate.rates["total"]

    @total.setter
    def total(self, rate: Rate | None) -> None:
        self._set_rate("total", rate)

    @property
    def reads(self) -> Rate:
        """Of reads alone."""
        return self._gate.rates["read"]

    @reads.setter
    def reads(self, rate: Rate | None) -> None:
        self._set_rate("read", rate)

    @property
    def writes(self) -> Rate:
        """Of everything that changes the device."""
        return self._gate.rates["write"]

    @writes.setter
    def writes(self, rate: Rate | None) -> None:
        self._set_rate("write", rate)

    def statistics(self) -> ThrottleStatistics:
        """What became of the requests so far. Those that no rate limits are not counted."""
        return self._gate.statistics()

    def __repr__(self) -> str:
        return f"<aioblk.ThrottleGroup {self._gate.waiting} waiting>"


def _rate(rate: Rate | None) -> Rate:
    if rate is None:
        return Rate()
    if not isinstance(rate, Rate):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise OptionError(f"a Rate is needed, or None, not {rate!r}", driver="throttle", operation="open")
    return rate


@final
class Throttle(Layer[D_co]):
    """A device whose requests begin no faster than its :class:`ThrottleGroup` allows.

    What has to wait is checked by the call as always, and counts as submitted when it begins. A request that
    is cancelled while it waits was never made. Each of a batch waits for itself, unless there is room for
    all.
    """

    def __init__(self, device: D_co, group: ThrottleGroup, *, weight: float = 1.0) -> None:
        """``weight``: its share beside the others of the group, while there is not enough for all.

        Raises:
            OptionError: ``weight`` is not from a millionth to a million.
            TypeError: *device* is no :class:`BlockDevice`, or *group* no :class:`ThrottleGroup`.
        """
        super().__init__(device)
        if not isinstance(group, ThrottleGroup):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"a ThrottleGroup is needed, not {group!r}")
        if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
            raise OptionError(
                f"weight must be from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}, not {weight}",
                driver="throttle",
                operation="open",
            )
        self._group = group
        self._gate = group._gate  # pyright: ignore[reportPrivateUsage]
        share = Share(weight)
        self._flows: dict[Direction, Flow] = {"read": Flow("read", share), "write": Flow("write", share)}
        self._asked = Asked("throttle", device.limits, lambda: device.capacity, lambda: device.read_only)
        self._waiting = Waiting()
        group._layers.add(self)  # pyright: ignore[reportPrivateUsage]
        self._look_at_gate()

    def _look_at_gate(self) -> None:
        """While nothing is limited, the device's own methods are had without a detour."""
        if self._gate.is_open and self._are_known and self._below is self._device:
            self._take_over(REQUESTS)
        else:
            self._take_back()

    @property
    def group(self) -> ThrottleGroup:
        """What has the rates."""
        return self._group

    async def _finish(self) -> None:
        await self._waiting.finish()
        await super()._finish()

    def statistics(self) -> QueueStatistics:
        """What the device counts, and what waits."""
        return self._waiting.added_to(self._device.statistics())

    # --- reading --------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> Awaitable[bytes]:
        if self._gate.is_open:
            return self._below.read(offset, length)
        offset, length = self._asked.to_read(offset, length)
        if self._passes("read", 1, length):
            return self._below.read(offset, length)
        return self._later("read", length, partial(self._device.read, offset, length))

    def read_into(self, offset: int, buffer: Buffer) -> Awaitable[None]:
        if self._gate.is_open:
            return self._below.read_into(offset, buffer)
        return self.readv(offset, [buffer])

    def readv(self, offset: int, buffers: Sequence[Buffer]) -> Awaitable[None]:
        buffers = _views(buffers)
        offset, length = self._asked.to_fill(offset, buffers)
        if self._passes("read", 1, length):
            return self._below.readv(offset, buffers)
        return self._later("read", length, partial(self._device.readv, offset, buffers))

    @overload
    def read_many(
        self, requests: Iterable[tuple[int, int]], *, return_exceptions: Literal[False] = False
    ) -> Awaitable[list[bytes]]: ...
    @overload
    def read_many(
        self, requests: Iterable[tuple[int, int]], *, return_exceptions: bool
    ) -> Awaitable[list[bytes | BaseException]]: ...
    def read_many(self, requests: Iterable[tuple[int, int]], *, return_exceptions: bool = False) -> Any:
        items = list(requests)
        if self._pass_at_once("read", items, lambda length: length):
            return self._below.read_many(items, return_exceptions=return_exceptions)
        return BlockDevice.read_many(self, items, return_exceptions=return_exceptions)

    def read_into_many(
        self, requests: Iterable[tuple[int, Buffer]], *, return_exceptions: bool = False
    ) -> Awaitable[Any]:
        items = list(requests)
        if self._pass_at_once("read", items, lambda buffer: length_of([buffer])):
            return self._below.read_into_many(items, return_exceptions=return_exceptions)
        return BlockDevice.read_into_many(self, items, return_exceptions=return_exceptions)

    # --- changing -------------------------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> Awaitable[None]:
        if self._gate.is_open:
            return self._change(self._below.write(offset, data, fua=fua))
        return self.writev(offset, [data], fua=fua)

    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        buffers = _views(buffers)
        offset, length = self._asked.to_write(offset, buffers)
        if self._passes("write", 1, length):
            return self._change(self._below.writev(offset, buffers, fua=fua))
        return self._later("write", length, partial(self._device.writev, offset, buffers, fua=fua))

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_unmap: bool = False,
        no_fallback: bool = False,
    ) -> Awaitable[None]:
        offset, length = self._asked.to_change("write_zeroes", offset, length)
        how = {"fua": fua, "no_unmap": no_unmap, "no_fallback": no_fallback}
        if self._passes("write", 1, length):
            return self._change(self._below.write_zeroes(offset, length, **how))
        return self._later("write", length, partial(self._device.write_zeroes, offset, length, **how))

    def discard(self, offset: int, length: int) -> Awaitable[None]:
        offset, length = self._asked.to_discard(offset, length)
        if self._passes("write", 1, length):
            return self._change(self._below.discard(offset, length))
        return self._later("write", length, partial(self._device.discard, offset, length))

    def write_many(
        self, requests: Iterable[tuple[int, Buffer]], *, fua: bool = False, return_exceptions: bool = False
    ) -> Awaitable[Any]:
        items = list(requests)
        if self._pass_at_once("write", items, lambda data: length_of([data])):
            return super().write_many(items, fua=fua, return_exceptions=return_exceptions)
        return BlockDevice.write_many(self, items, fua=fua, return_exceptions=return_exceptions)

    # --- turns ----------------------------------------------------------------------------------------------

    def _passes(self, direction: Direction, operations: int, length: int) -> bool:
        """Whether it may begin at once. Of a closed layer nothing is counted."""
        if self._below is not self._device:
            self._below.capacity  # noqa: B018 (it refuses)
        return self._gate.passes(direction, operations, length)

    def _pass_at_once(self, direction: Direction, items: list[Any], length: Callable[[Any], int]) -> bool:
        """Whether a batch may begin as a whole. One with an item that is no pair may: it is refused."""
        if self._gate.is_open:
            return True
        try:
            total = sum(length(what) for _, what in items)
        except (TypeError, ValueError, BufferError):
            return True
        return self._gate.passes_at_once(direction, len(items), total)

    def _later(self, direction: Direction, length: int, call: Callable[[], Awaitable[T]]) -> Awaitable[T]:
        """Begin when it is its turn."""
        self._below.capacity  # noqa: B018 (a closed layer refuses that)
        delayed = Later(call)
        self._waiting.add(delayed)
        self._gate.wait(self._flows[direction], length, delayed)
        return Begun(delayed)


def _views(buffers: Sequence[Buffer]) -> list[memoryview]:
    """The same, held still for a request that may have to wait."""
    return [as_memoryview(buffer) for buffer in buffers]
