"""A queue of the core by itself, on a loop that does what a test says: nothing reaches a device."""

from collections.abc import Callable
from typing import Any

import aioblk
from aioblk._native._core import QueueCore, Submitter

from .refused_memory import new_device_core

BLOCK = 512


class Loop:
    """Keeps what it is asked to call; raises, instead, what is in ``errors``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self.errors: list[BaseException] = []
        self.before: Callable[[], object] | None = None  # called within the next call_soon
        self.reported: list[dict[str, Any]] = []

    def get_debug(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., object], *arguments: Any, context: Any = None) -> object:
        before, self.before = self.before, None
        if before:
            before()
        if self.errors:
            raise self.errors.pop(0)
        self.calls.append((callback, arguments))
        return self

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.reported.append(context)

    def run(self) -> None:
        while self.calls:
            callback, arguments = self.calls.pop(0)
            callback(*arguments)


class Bench:
    """A suspended queue on the loop."""

    def __init__(self, *, suspended: bool = True, **options: Any) -> None:
        self.loop = Loop()
        loop: Any = self.loop
        self.device = new_device_core(**options)
        self.core = QueueCore(self.device, 1, -1, loop, 8)
        if suspended:
            self.core.suspend()
        self.submitter = Submitter()
        self.submitter._core = self.core
        self.called: list[object] = []

    def read(self) -> aioblk.Request[bytes]:
        """It waits in the backlog, and somebody waits for it."""
        request = self.submitter.read(0, BLOCK)
        request.add_done_callback(self.called.append)
        return request

    def end(self) -> None:
        self.loop.errors.clear()
        self.core.abandon(OSError("lost"))
        self.loop.run()


def closed() -> RuntimeError:
    return RuntimeError("Event loop is closed")
