"""What registration and arenas need of a device: that it can be told of memory."""

from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

from typing_extensions import Buffer, Protocol, runtime_checkable

from .._libblkio.limits import Limits
from .._native._core import View

__all__ = ["MapsMemory", "Region"]

Region: TypeAlias = AbstractAsyncContextManager[View | memoryview]
"""Memory that a device knows of from entering to leaving: a buffer of bytes, and so are its slices."""


@runtime_checkable
class MapsMemory(Protocol):
    """A device that can be told of memory, to reach it without copying.

    Telling it is never needed for a correct result: requests on other memory are copied, and slower. Belongs
    to the event loop of the device.
    """

    @property
    def limits(self) -> Limits:
        """``needs_mem_regions``: whether it makes a difference. ``may_pin_mem_regions``: whether pages of
        what is mapped must not be given back to the system."""
        ...

    @property
    def closed(self) -> bool:
        """Whether the device is closed, or being closed. It knows of no memory then."""
        ...

    def register(
        self, buffer: Buffer, *, fd: int | None = None, fd_offset: int = 0, required: bool = False
    ) -> Region:
        """Have the device know of existing memory: ``async with device.register(buffer) as region``.

        ``fd`` and ``fd_offset``, in bytes, say which file lies under the memory, where the device needs one
        and it is known. Leaving waits until no request uses the memory.

        Entering raises:
            RegistrationError: it is not possible, and ``required``. Otherwise requests on it are copied.
            DeviceClosedError: the device is closed.
        """
        ...

    def allocate(self, length: int) -> Region:
        """New memory of ``length`` zero bytes that the device knows of: ``async with device.allocate(n)``."""
        ...
