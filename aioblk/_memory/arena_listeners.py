"""Who follows the blocks of an arena: devices that are attached to it, and listeners of one's own."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol, final

from .._native._core import View
from .._sync.loops import running_loop
from .._sync.scopes import shielded_if_cancelled
from .._sync.tasks import SteadfastTasks
from ..errors import BlkioError
from .arena_block import ArenaBlock
from .mapping import MapsMemory

__all__ = ["ArenaAttachment", "ArenaListener", "Listeners"]


class ArenaListener(Protocol):
    """Told of every block. May remove itself, or others, while it is being called. What it raises is reported
    to the event loop's exception handler, and stops nothing."""

    async def block_added(self, block: ArenaBlock, /) -> None:
        """The block exists; no buffer of it has been handed out yet."""

    async def block_removed(self, block: ArenaBlock, /) -> None:
        """No buffer of the block is in use; it goes when everybody has been told."""


@final
class Listeners:
    """Those who are told, in the order in which they came."""

    def __init__(self) -> None:
        self._listeners: list[ArenaListener] = []

    @property
    def attachments(self) -> "tuple[ArenaAttachment, ...]":
        """The devices among them."""
        return tuple(
            listener
            for listener in self._listeners
            if isinstance(listener, ArenaAttachment) and listener.attached
        )

    def add(self, listener: ArenaListener) -> None:
        self._listeners.append(listener)

    def remove(self, listener: ArenaListener) -> None:
        """Idempotent."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def clear(self) -> None:
        self._listeners.clear()

    async def tell(self, call: Callable[[ArenaListener], Awaitable[None]]) -> None:
        """Call every listener that is still one when its turn comes."""
        for listener in tuple(self._listeners):
            if listener not in self._listeners:
                continue
            if isinstance(listener, ArenaAttachment) and listener.device.closed:
                self._listeners.remove(listener)
                continue
            try:
                await call(listener)
            except Exception as error:
                message = f"{listener!r} failed to follow an arena"
                running_loop("arena").call_exception_handler({"message": message, "exception": error})


@final
class ArenaAttachment:
    """A device's registrations of an arena's blocks: all of them or, after a failure, none."""

    def __init__(self, device: MapsMemory, listeners: Listeners, work: SteadfastTasks) -> None:
        """Of an open device, that is not yet among the listeners. *work* is finished in any case."""
        self._device = device
        self._listeners = listeners
        self._work = work
        limits = device.limits
        self._pins = limits.needs_mem_regions and limits.may_pin_mem_regions
        self._registrations: dict[ArenaBlock, contextlib.AsyncExitStack] = {}
        self._attached = True
        self._error: BlkioError | None = None

    @property
    def device(self) -> MapsMemory:
        """What the blocks are registered with."""
        return self._device

    @property
    def attached(self) -> bool:
        """Whether the device has every block. Requests on buffers of the arena are correct either way."""
        return self._attached and not self._device.closed

    @property
    def error(self) -> BlkioError | None:
        """Why the device was detached, if not by :meth:`detach`."""
        return self._error

    @property
    def _may_pin(self) -> bool:
        """Whether the device may have pinned pages of the arena."""
        return self.attached and self._pins

    async def detach(self) -> None:
        """Unregister every block, each as soon as no request uses it; idempotent."""
        running_loop("detach")
        self._attached = False
        self._listeners.remove(self)
        with shielded_if_cancelled():
            await self._work.finish(self._unregister_all())

    async def _unregister_all(self) -> None:
        problem: BlkioError | None = None
        while self._registrations:
            _block, registration = self._registrations.popitem()
            try:
                await registration.aclose()
            except BlkioError as error:  # the device unmaps it at the latest when it is closed
                problem = problem or error
        try:
            if problem is not None:
                raise problem
        finally:
            problem = None  # which would otherwise keep this frame, and the frame it

    async def block_added(self, block: ArenaBlock, /) -> None:
        """Register the block; a failure detaches the device, so that it has all blocks or none."""
        running_loop("arena")
        registration = contextlib.AsyncExitStack()
        try:
            region = self._device.register(View(block.memory), fd=block.fd, required=True)
            await registration.enter_async_context(region)
        except BlkioError as error:
            self._error = error
            with contextlib.suppress(BlkioError):  # what cannot be unmapped now goes with the device
                await self.detach()
            return
        if self._attached:
            self._registrations[block] = registration
        else:  # detached meanwhile
            await registration.aclose()

    async def block_removed(self, block: ArenaBlock, /) -> None:
        running_loop("arena")
        registration = self._registrations.pop(block, None)
        if registration is not None:
            await registration.aclose()
