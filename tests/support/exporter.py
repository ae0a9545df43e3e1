"""A device of aioblk's own, exported by a thread that has a loop for it: a client may block its own."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aioblk
from aioblk.export import VhostUser


class Exporter:
    """Serves what *open_device* gives at a socket beside *place*, from entering to leaving."""

    def __init__(self, place: Path, open_device: Callable[[], aioblk.Device], **options: Any) -> None:
        self.socket = place / "export.sock"
        self._open_device = open_device
        self._options = options
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with self._open_device() as device, VhostUser(device, self.socket, **self._options):
                self._ready.set()
                await self._end.wait()
        finally:
            self._ready.set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None and self._end is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
