"""What systemd, and whatever does as it does, hands to a service and is told by it."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import MutableMapping
from typing import final

from .._sync.ticker import Ticker
from ..errors import OptionError

__all__ = ["ServiceManager", "sockets_handed_in"]

FIRST = 3  # descriptor
FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


def sockets_handed_in(environment: MutableMapping[str, str]) -> list[socket.socket]:
    """Those that listen already (``LISTEN_FDS``). The environment forgets them, so that no child takes them.

    Raises:
        OptionError: what was handed in is no stream socket that listens.
    """
    number, process = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if not number or process != str(os.getpid()):
        return []
    if not _is_number(number):
        raise OptionError(f"LISTEN_FDS must be the number of sockets that are handed in, not {number!r}")
    found: list[socket.socket] = []
    for position in range(int(number)):
        descriptor = FIRST + position
        name = names[position] if position < len(names) else ""
        try:
            handed = socket.socket(fileno=descriptor)
            handed.set_inheritable(False)
            listens = handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            is_stream = handed.type == socket.SOCK_STREAM and handed.family in FAMILIES
        except OSError as error:
            raise OptionError(f"descriptor {descriptor} ({name}) is no socket: {error.strerror}") from None
        if not (listens and is_stream):
            raise OptionError(
                f"descriptor {descriptor} ({name}) is no TCP or Unix socket that listens; use Accept=no"
            )
        found.append(handed)
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


@final
class ServiceManager:
    """Who has started the program and is told how it is (``NOTIFY_SOCKET``), if there is anybody."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        path = environment.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        interval, process = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        self.watchdog: float | None = None
        """Seconds within which it wants to hear that all is well."""
        if self._address and _is_number(interval) and process in ("", str(os.getpid())):
            self.watchdog = int(interval) / 1e6 or None  # 0 is none
        self._feeding: Ticker | None = None
        self._messenger: socket.socket | None = None
        if self._address:  # now: whoever has no descriptor left would not be heard, and be taken for dead
            self._messenger = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def tell(self, *lines: str) -> None:
        """Never waits, and never fails."""
        if self._messenger is not None:
            with contextlib.suppress(OSError):  # it may be gone, or have no time
                self._messenger.sendto("\n".join(lines).encode(errors="replace"), self._address)

    def close(self) -> None:
        """Tell it nothing more; idempotent."""
        if self._feeding is not None:
            self._feeding.stop()
        if self._messenger is not None:
            self._messenger.close()
            self._messenger = None

    def ready(self, status: str) -> None:
        self.tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        self.tell("STOPPING=1", f"STATUS={status}")

    def keep_fed(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell it twice within its time that all is well, for as long as the loop turns."""
        if self.watchdog is not None:
            self._feed()
            self._feeding = Ticker(loop, self.watchdog / 2, self._feed)

    def _feed(self) -> None:
        self.tell("WATCHDOG=1")
