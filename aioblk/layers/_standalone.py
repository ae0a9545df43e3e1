"""What block devices have in common that pass on no request as it is: each makes its own."""

from abc import abstractmethod
from collections.abc import AsyncGenerator
from typing import Self

from .._device.extents import Extent
from .._libblkio.limits import Limits
from .._sync.loops import running_loop
from .._sync.scopes import AsyncClosing, shielded_if_cancelled
from ..errors import BlkioError, DeviceClosedError
from ._asked import Asked, end_of_stretch
from .block_device import BlockDevice

__all__ = ["Standalone"]


class Standalone(AsyncClosing, BlockDevice):
    """Has limits and a size of its own, and is closed by itself."""

    def __init__(self, name: str, limits: Limits, capacity: int) -> None:
        """*name* stands where a driver's would in errors."""
        self._name = name
        self._limits = limits
        self._capacity = capacity
        self._asked = Asked(name, limits, lambda: self._capacity, lambda: self.read_only)
        self._closed = False

    # --- life -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        running_loop("enter", self._name)
        return self

    async def aclose(self) -> None:
        """Refuse new requests, and wait for whatever is under way; idempotent. A device that lies below stays
        open."""
        running_loop("close", self._name)
        self._closed = True
        with shielded_if_cancelled():
            await self._finish()

    @abstractmethod
    async def _finish(self) -> None:
        """Wait for whatever is under way."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it is closed, or being closed."""
        return self._closed

    # --- what it is -----------------------------------------------------------------------------------------

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def capacity(self) -> int:
        return self._capacity

    def extents(self, offset: int = 0, length: int | None = None) -> AsyncGenerator[Extent]:
        running_loop("extents", self._name)
        self._refuse_if_closed("extents")
        return self._extents(offset, end_of_stretch(self._name, self._capacity, offset, length) - offset)

    @abstractmethod
    def _extents(self, offset: int, length: int) -> AsyncGenerator[Extent]:
        """Of a range that is within the device."""
        ...

    # --- what it refuses ------------------------------------------------------------------------------------

    def _refusal(self, operation: str, offset: int, length: int) -> BlkioError | None:
        """What is wrong with a request that was asked for in the right way."""
        self._refuse_if_closed(operation)
        return self._asked.beyond_the_end(operation, offset, length)

    def _refuse_if_closed(self, operation: str) -> None:
        if self._closed:
            raise DeviceClosedError(
                f"the {self._name} device is closed", driver=self._name, operation=operation
            )
