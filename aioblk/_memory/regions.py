"""Memory that a device reaches without copying: regions, as whoever registers memory has them.

A driver that needs memory regions transfers only from and to memory it was told of beforehand. Telling it is
slow, and the number of regions is limited; transferring is then as fast as can be. Memory that is not
registered is copied through the bounce pool instead, so registration is never needed for a correct result.
"""

import logging
import warnings
from typing import Protocol, Self, final

from .._libblkio.limits import Limits
from .._native._core import Memory, View
from .._sync.loops import running_loop
from .._sync.scopes import AsyncClosing, shielded_if_cancelled
from ..errors import RegistrationError, UsageError
from .mapped import Mapped

__all__ = ["MemoryRegion"]

log: logging.Logger = logging.getLogger("aioblk.memory")
log.addHandler(logging.NullHandler())  # who has set up no logging is told of loss by exceptions


class Registrar(Protocol):
    """The memory of a device, where regions are entered."""

    @property
    def limits(self) -> Limits: ...
    def refuse_other_loops(self) -> None: ...
    def misuse(self, message: str) -> UsageError: ...
    async def attach(self, memory: Memory, fd: int | None, fd_offset: int) -> Mapped | None: ...
    async def detach(self, memory: Memory, mapped: Mapped | None) -> None: ...


@final
class MemoryRegion(AsyncClosing, View):
    """A range of memory that a device was told of: ``async with dev.register(buffer) as region``.

    The region is a buffer of bytes, as are its slices: ``region[a:b]`` takes part in requests without being
    copied, and ``memoryview``, ``numpy.frombuffer`` and ``struct`` accept both. So does any other view of the
    same memory.

    Leaving the ``async with`` block waits until no request uses the region and unmaps it. From then on the
    region and its slices raise ``ValueError``. What was made of them before (a memoryview, an array) stays
    valid, and keeps the memory, for as long as it exists. A task that is cancelled while it leaves does not
    wait; unmapping goes on without it.

    Belongs to the event loop of its device.
    """

    __slots__ = (
        "_entered",
        "_fd",
        "_fd_offset",
        "_length",
        "_mapped",
        "_memory_of_device",
        "_reason",
        "_required",
        "device",
    )

    # What a View refers to is settled by __new__ and never changes.
    def __new__(
        cls,
        device: Registrar,
        memory: Memory,
        length: int,
        *,
        fd: int | None = None,
        fd_offset: int = 0,
        required: bool = False,
    ) -> Self:
        return super().__new__(cls, memory, 0, length)

    def __init__(
        self,
        device: Registrar,
        memory: Memory,
        length: int,
        *,
        fd: int | None = None,
        fd_offset: int = 0,
        required: bool = False,
    ) -> None:
        self._memory_of_device = device
        self.device: object = None
        """Kept until the region is closed: the device would otherwise end with its last reference."""
        self._length = length
        self._fd = fd
        self._fd_offset = fd_offset
        self._required = required
        self._entered = False
        self._mapped: Mapped | None = None
        self._reason: str | None = None

    @property
    def mapped(self) -> bool:
        """Whether the region is mapped into the device. Never so where the device needs no regions."""
        return self._mapped is not None and not self._mapped.abandoned and not self.memory.closed

    @property
    def zero_copy(self) -> bool:
        """Whether aligned requests on the region avoid the bounce pool."""
        return self.mapped or not (self._reason or self._memory_of_device.limits.needs_mem_regions)

    @property
    def reason(self) -> str | None:
        """Why the device does not reach the region, if having it so was tried in vain."""
        return self._reason

    async def __aenter__(self) -> Self:
        """Map the region.

        Where that fails, requests on the region bounce, and :attr:`reason` says why; with ``required=True``
        it raises.

        Raises:
            RegistrationError: ``required`` and misaligned, overlapping another region, without a file where
                the device needs one, more regions than the device can take, or refused by the device.
            DeviceClosedError: the device is closed.
            UsageError: the region has been entered before, or the device belongs to another loop.
        """
        self._memory_of_device.refuse_other_loops()
        if self._entered:
            raise self._memory_of_device.misuse("a region can be entered once")
        self._entered = True
        try:
            self._mapped = await self._memory_of_device.attach(self.memory, self._fd, self._fd_offset)
        except BaseException as error:
            if not isinstance(error, RegistrationError) or self._required:
                await self.aclose()
                raise
            self._reason = error.message or error.strerror
            log.debug("%d bytes are not registered, and requests on them copied: %s", self._length, error)
        return self

    async def aclose(self) -> None:
        """Unmap the region as soon as no request uses it, as leaving the block does; idempotent."""
        running_loop("unregister")
        with shielded_if_cancelled():
            await self._memory_of_device.detach(self.memory, self._mapped)
        self.device = None

    def __del__(self) -> None:
        if not hasattr(self, "_entered") or self.memory.closed:
            return
        if self._entered:
            what = f"unclosed {self!r}: it stays registered until its device is closed"
        else:
            what = f"{self!r} was never entered, so nothing was registered; use `async with`"
        warnings.warn(what, ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        state = "closed" if self.memory.closed else "mapped" if self.mapped else "not mapped"
        return f"<MemoryRegion of {self._length} bytes at {self.memory.address:#x}, {state}>"
