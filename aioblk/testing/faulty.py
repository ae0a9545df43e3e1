"""Faulty: a device that fails, is slow, lies or goes away, as it is told to."""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, NoReturn, TypeAlias, TypeVar, final, get_args

import typing_extensions
from typing_extensions import Buffer

from .._native.buffers import flat
from .._queues.statistics import QueueStatistics
from .._sync.loops import running_loop
from ..errors import BlkioError, DeviceLostError, OptionError
from ..layers._asked import Asked
from ..layers._begun import Begun
from ..layers._later import Later, Waiting
from ..layers._piecewise import Piecewise
from ..layers.block_device import BlockDevice
from .memory_device import MemoryDevice

__all__ = ["Fault", "Faulty", "Operation"]

T = TypeVar("T")
D_co = typing_extensions.TypeVar("D_co", bound=BlockDevice, default=MemoryDevice, covariant=True)

Operation: TypeAlias = Literal["read", "write", "write_zeroes", "discard", "flush"]
"""What a request is, by its method; reads and writes of vectors and batches are reads and writes."""


@final
@dataclass(slots=True, kw_only=True, eq=False)
class Fault:
    """A rule of a :class:`Faulty` device: which requests it is for, and what becomes of them.

    Of several that are for a request, delays add up; the first with an ``error`` decides that.
    """

    # which requests
    operations: frozenset[Operation] | set[Operation] | tuple[Operation, ...] = ()
    """None named: all."""
    offset: int = 0
    """See ``length``."""
    length: int | None = None
    """Those that touch ``length`` bytes from ``offset`` on, in bytes. A range is no flush's, unless it is
    named."""
    after: int = 0
    """Not the first so many of them."""
    times: int | None = None
    """Only so many of them."""
    probability: float = 1.0
    """Of those, by chance, which is the device's."""

    # what becomes of them
    delay: float | Callable[[random.Random], float] = 0.0
    """Seconds until it is executed, or how to draw them: ``lambda chance: chance.expovariate(1000)``."""
    error: int | Exception | None = None
    """With this errno, or exception, it fails."""
    executed: bool = False
    """It is executed though it fails: a request whose answer is lost."""
    corrupt: bool = False
    """One bit of what is read, or written, is another."""

    hits: int = 0
    """How many requests it was for, so far."""

    def __post_init__(self) -> None:
        if isinstance(self.operations, str) or not set(self.operations) <= set(get_args(Operation)):
            raise _wrong(f"operations are some of {', '.join(get_args(Operation))}, not {self.operations!r}")
        if not (self.error is None or isinstance(self.error, int | Exception)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise _wrong(f"error is an errno or an exception, not {self.error!r}")
        for name in ("offset", "length", "after", "times"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise _wrong(f"{name} must not be negative, as {value} is")
        if not callable(self.delay) and not self.delay >= 0:
            raise _wrong(f"delay must be seconds, or a function that chooses them, not {self.delay}")
        if not 0 <= self.probability <= 1:
            raise _wrong(f"probability must be from 0 to 1, not {self.probability}")
        if self.error is None and self.executed:
            raise _wrong("what is executed though it fails needs an error")

    def applies(self, operation: Operation, offset: int, length: int, chance: random.Random) -> bool:
        """Whether it is for this one; it counts then."""
        if self.operations and operation not in self.operations:
            return False
        has_range = self.offset > 0 or self.length is not None
        if has_range and operation == "flush" and not self.operations:
            return False
        if operation != "flush" and not self._touches(offset, length):
            return False
        if self.times is not None and self.hits >= self.after + self.times:
            return False
        if self.probability < 1 and chance.random() >= self.probability:
            return False
        self.hits += 1
        return self.hits > self.after

    def _touches(self, offset: int, length: int) -> bool:
        end = None if self.length is None else self.offset + self.length
        return offset + length > self.offset and (end is None or offset < end)


class _Fate(NamedTuple):
    """What becomes of one request."""

    delay: float = 0.0
    error: int | Exception | None = None
    executed: bool = True
    corrupt: float | None = None
    """Which bit, as a fraction of all."""


@final
class Faulty(Piecewise[D_co]):
    """A device with faults, by rule or by chance::

        dev = Faulty(MemoryDevice(1 << 20), seed=7)
        dev.add(Fault(operations={"write"}, after=3, times=1, error=errno.ENOSPC))
        dev.add(Fault(probability=0.01, delay=lambda chance: chance.expovariate(100)))
        dev.lose("the cable was pulled")

    Everything by chance comes of *seed*: the same requests have the same faults. Without rules, requests are
    the device's own. A batch is made of requests of its own, each with its faults.
    """

    def __init__(self, device: D_co, *faults: Fault, seed: int = 0) -> None:
        super().__init__(device)
        self._faults: list[Fault] = []
        for fault in faults:
            self.add(fault)
        self._chance = random.Random(seed)
        self._lost: DeviceLostError | None = None
        self._losses = 0
        self._asked = Asked("faulty", device.limits, lambda: device.capacity, lambda: device.read_only)
        self._waiting = Waiting()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The rules, in the order in which they are asked."""
        return tuple(self._faults)

    def add(self, fault: Fault) -> Fault:
        """One more rule; gives it, to look at what it hits."""
        if not isinstance(fault, Fault):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"a Fault is needed, not {fault!r}")
        self._faults.append(fault)
        return fault

    def remove(self, fault: Fault) -> None:
        """ValueError: there is no such rule."""
        self._faults.remove(fault)

    # --- loss -----------------------------------------------------------------------------------------------

    @property
    def lost(self) -> DeviceLostError | None:
        """Why the device is lost; None: it is not."""
        return self._lost

    @property
    def losses(self) -> int:
        """How often it was lost."""
        return self._losses

    def lose(self, reason: str = "the device was lost") -> None:
        """Be lost, as a device whose backend died: what has not been executed fails, and every new request is
        refused, with DeviceLostError."""
        if self._lost is None:
            self._losses += 1
        self._lost = DeviceLostError(reason, driver="faulty")
        for request in self._waiting:
            request.fail(DeviceLostError(reason, driver="faulty"))

    async def reconnect(self) -> None:
        """Come back, with what was executed."""
        running_loop("reconnect", "faulty")
        self._lost = None

    def _refuse_if_lost(self, operation: Operation) -> None:
        if self._lost is not None:
            raise DeviceLostError(self._lost.message, driver="faulty", operation=operation)

    async def _finish(self) -> None:
        await self._waiting.finish()
        await super()._finish()

    def statistics(self) -> QueueStatistics:
        """What the device counts, and what waits, or has failed before it came there: that is of no
        operation."""
        return self._waiting.added_to(self._device.statistics())

    # --- requests -------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> Awaitable[bytes]:
        offset, length = self._asked.to_read(offset, length)
        call = partial(self._below.read, offset, length)
        return self._request("read", offset, length, call, _corrupted)

    def readv(self, offset: int, buffers: Sequence[Buffer]) -> Awaitable[None]:
        offset, length = self._asked.to_fill(offset, buffers := [flat(buffer) for buffer in buffers])
        call = partial(self._below.readv, offset, buffers)
        return self._request("read", offset, length, call, lambda _, which: _corrupt(buffers, which))

    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        offset, length = self._asked.to_write(offset, buffers := [flat(buffer) for buffer in buffers])
        fate = self._fate("write", offset, length)
        if fate is not None and fate.corrupt is not None:
            buffers = (_corrupted(b"".join(flat(buffer) for buffer in buffers), fate.corrupt),)
        return self._with(
            fate, "write", offset, length, partial(self._below.writev, offset, buffers, fua=fua)
        )

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
        return self._request(
            "write_zeroes", offset, length, partial(self._below.write_zeroes, offset, length, **how)
        )

    def discard(self, offset: int, length: int) -> Awaitable[None]:
        offset, length = self._asked.to_discard(offset, length)
        return self._request("discard", offset, length, partial(self._below.discard, offset, length))

    def flush(self) -> Awaitable[None]:
        self._asked.to_flush()
        return self._request("flush", 0, 0, self._below.flush)

    # --- fates ----------------------------------------------------------------------------------------------

    def _request(
        self,
        operation: Operation,
        offset: int,
        length: int,
        call: Callable[[], Awaitable[T]],
        corrupt: Callable[[T, float], T] | None = None,
    ) -> Awaitable[T]:
        return self._with(self._fate(operation, offset, length), operation, offset, length, call, corrupt)

    def _fate(self, operation: Operation, offset: int, length: int) -> _Fate | None:
        """None: nothing becomes of it but what the device makes of it."""
        self._refuse_if_lost(operation)
        applying = [fault for fault in self._faults if fault.applies(operation, offset, length, self._chance)]
        if not applying:
            return None
        failing = next((fault for fault in applying if fault.error is not None), None)
        return _Fate(
            sum(fault.delay(self._chance) if callable(fault.delay) else fault.delay for fault in applying),
            None if failing is None else failing.error,
            failing is None or failing.executed,
            self._chance.random() if any(fault.corrupt for fault in applying) else None,
        )

    def _with(
        self,
        fate: _Fate | None,
        operation: Operation,
        offset: int,
        length: int,
        call: Callable[[], Awaitable[T]],
        corrupt: Callable[[T, float], T] | None = None,
    ) -> Awaitable[T]:
        if fate is None:
            return call() if operation in ("read", "flush") else self._change(call())
        error = fate.error
        if isinstance(error, int):
            error = BlkioError(
                errno=error, driver="faulty", operation=operation, offset=offset, length=length
            )
        request: Later[T]
        if error is not None:
            request = Later(call if fate.executed else partial(_fail, error), partial(_fail, error))
        else:
            which = fate.corrupt
            request = Later(
                call, None if corrupt is None or which is None else lambda result: corrupt(result, which)
            )
        begun = Begun(request)
        loop = running_loop("request")
        loop.call_later(fate.delay, request.begin) if fate.delay > 0 else loop.call_soon(request.begin)
        self._waiting.add(request)  # at last: what was not begun, nobody waits for
        return begun


def _corrupted(data: bytes, which: float) -> bytes:
    wrong = bytearray(data)
    _corrupt([wrong], which)
    return bytes(wrong)


def _corrupt(buffers: Sequence[Buffer], which: float) -> None:
    """One bit of all."""
    views = [flat(buffer) for buffer in buffers]
    bit = int(which * 8 * sum(len(view) for view in views))
    for view in views:
        if bit < 8 * len(view):
            view[bit // 8] ^= 1 << bit % 8
            return
        bit -= 8 * len(view)


def _wrong(message: str) -> OptionError:
    return OptionError(message, driver="faulty", operation="open")


def _fail(error: BaseException, result: object = None) -> NoReturn:
    raise error.with_traceback(None)  # the one before had frames, and these have memory
