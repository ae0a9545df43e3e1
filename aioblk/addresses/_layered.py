"""A device with layers over it that are opened and closed together."""

import asyncio
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import NoReturn, Self, cast, final

from .._sync.loops import running_loop
from .._sync.scopes import shielded_if_cancelled
from .._sync.tasks import start_steadfast_task
from ..errors import OptionError, UsageError
from ..layers._closed import Closed
from ..layers.block_device import BlockDevice
from ..layers.layer import REQUESTS, Layer
from ._escapes import shown
from ._layers import PutOver

__all__ = ["LayeredDevice"]


@final
class LayeredDevice(Layer[BlockDevice]):
    """What an address with a layer names: opens the device, then the layer, and closes both.

    ``device`` is the layer, as a :class:`Slice`, which has what lies below as its own ``device``.
    """

    def __init__(
        self, address: str, base: AbstractAsyncContextManager[BlockDevice], put_over: PutOver
    ) -> None:
        self._address = address
        self._base = base
        self._put_over = put_over
        self._state = "new"
        self._undo = AsyncExitStack()
        self._closing: asyncio.Task[None] | None = None
        self._device = self._below = cast(BlockDevice, _NotOpen(address))

    # --- life -----------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Open the device and put the layer over it. Whatever fails, or is cancelled, leaves nothing open.

        Raises:
            BlkioError: as opening the device does; OptionError, the layer does not fit it.
            UsageError: it was opened before.
        """
        running_loop("open", "device")
        if self._state != "new":
            raise UsageError(
                f"a device can be opened once; this one is {self._state}",
                operation="open",
                filename=shown(self._address),
            )
        self._state = "being opened"
        try:
            async with AsyncExitStack() as undo:
                base = await undo.enter_async_context(self._base)
                top = await self._put_over(base, undo)
                undo.push_async_callback(top.aclose)
                super().__init__(top)
                self._undo = undo.pop_all()
        except BaseException as error:
            self._refuse_from_now_on()
            if isinstance(error, OptionError) and error.filename is None:
                error.filename = shown(self._address)
            raise
        self._take_over(REQUESTS)  # all of them are the layer's, which also waits for those under way
        self._state = "open"
        return self

    async def __aenter__(self) -> Self:
        return await self.open()

    @property
    def base(self) -> BlockDevice:
        """The device below all layers, open or not."""
        return self._base.base if isinstance(self._base, LayeredDevice) else cast(BlockDevice, self._base)

    async def aclose(self) -> None:
        """Refuse new requests, close the layer, then the device; idempotent.

        A task that is cancelled here does not wait any longer; closing goes on without it.
        """
        loop = running_loop("close", "device")
        if self._state == "being opened":
            raise UsageError("it is being opened", operation="close", filename=shown(self._address))
        self._refuse_from_now_on()
        if self._closing is None:
            self._closing = start_steadfast_task(loop, self._undo.aclose())
            self._closing.add_done_callback(_look_at)
        with shielded_if_cancelled():
            await asyncio.shield(self._closing)

    def _refuse_from_now_on(self) -> None:
        self._state = "closed"
        self._below = cast(BlockDevice, Closed("the device"))
        self._take_back()

    def __repr__(self) -> str:
        return f"<aioblk device {shown(self._address)!r} {self._state}>"


def _look_at(closing: "asyncio.Task[None]") -> None:
    """Who waits is told what went wrong; where nobody does, nobody wants to know."""
    if not closing.cancelled():
        closing.exception()


@final
class _NotOpen:
    """Takes the device's place until there is one."""

    closed = False

    def __init__(self, address: str) -> None:
        self._address = address

    def __getattr__(self, operation: str) -> NoReturn:
        raise UsageError("the device is not open", operation=operation, filename=shown(self._address))
