"""What a driver class hands to Device, and the checks that come before libblkio is called.

libblkio reports a bad option late, some with an errno alone, and a few make it hang. These checks name the
option.
"""

import math
import os
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias, cast, final

from ..errors import OptionError
from .properties import INT_MAX, PropertyValue, is_utf8

StrPath: TypeAlias = str | os.PathLike[str]

DEFAULT_BOUNCE_POOL_SIZE = 64 << 20
SMALLEST_BOUNCE_POOL = 64 << 10
MOST_RING_ENTRIES = 32768  # of Linux; 4096 before 5.4
SMALLEST_VIRTQUEUE = 4  # header, status and at least one buffer have to fit
LONGEST_SOCKET_PATH = 107
SHORTEST_SILENCE = 0.1  # seconds
LONGEST_SECONDS = 86400.0


@final
class DriverOptions(NamedTuple):
    """Which driver, and which libblkio properties to set before connecting and before starting."""

    driver: str
    before_connect: Mapping[str, PropertyValue]
    before_start: Mapping[str, PropertyValue]
    bounce_pool_size: int = DEFAULT_BOUNCE_POOL_SIZE
    """The most memory the bounce pool may take, in bytes."""
    lost_after: float | None = None
    """Seconds without an answer to a request after which the device counts as lost; None: never."""
    lock: bool | Literal["auto"] = False
    """Whether the file is locked while the device is open; auto: where it can be."""
    create: int | None = None
    """Bytes of a file that is to be made at the path before the device is opened there; None: it is there."""
    reconnect_for: float | None = None
    """Seconds to look for another backend in place of one that died; None: not at all."""
    connect_timeout: float | None = None
    """Seconds that opening may take; None: as long as it takes."""

    @property
    def name(self) -> str | None:
        """What errors call the device: its path, or that of the file that the descriptor is open on."""
        path = self.before_connect.get("path")
        if path is not None:
            return str(path)
        try:
            return os.readlink(f"/proc/self/fd/{self.before_connect['fd']}")
        except OSError:
            return None


@final
class Checks:
    """Checks of one driver's options. Each returns the value that has passed, or raises OptionError."""

    def __init__(self, driver: str) -> None:
        self._driver = driver

    def path(self, value: object) -> str:
        try:
            path: object = os.fspath(cast(StrPath, value))
        except TypeError:
            raise self.error(f"path must be a string or a path object, not {value!r}") from None
        if not isinstance(path, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise self.error(f"path must be a string, not {path!r}; os.fsdecode() makes one of bytes")
        if not path:
            raise self.error("path must not be empty")
        if "\0" in path:
            raise self.error(f"path must not contain null characters, as {path!r} does")
        if not is_utf8(path):
            raise self.error(f"path must be UTF-8, the only encoding libblkio takes, unlike {path!r}")
        return path

    def socket_path(self, value: object) -> str:
        path = self.path(value)
        length = len(path.encode())
        if length > LONGEST_SOCKET_PATH:
            raise self.error(
                f"path must not be longer than {LONGEST_SOCKET_PATH} bytes, which is all that a Unix socket's"
                f" address has room for; this one has {length}: {path!r}"
            )
        return path

    def location(self, path: object, fd: object) -> dict[str, PropertyValue]:
        """The one of path and fd that is given."""
        if path is None and fd is None:
            raise self.error("path or fd is needed")
        if path is not None and fd is not None:
            raise self.error("path and fd exclude each other")
        if fd is not None:
            return {"fd": self.integer("fd", fd, at_least=0)}
        return {"path": self.path(path)}

    def flag(self, name: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise self.error(f"{name} must be True or False, not {value!r}")
        return value

    def locking(self, value: object) -> bool | Literal["auto"]:
        if isinstance(value, bool):
            return value
        if value == "auto":
            return "auto"
        raise self.error(f"lock must be True, False or 'auto', not {value!r}")

    def integer(self, name: str, value: object, *, at_least: int, at_most: int = INT_MAX) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(f"{name} must be an integer, not {value!r}")
        if not at_least <= value <= at_most:
            raise self.error(f"{name} must be from {at_least} to {at_most}, not {value}")
        return value

    def queues(self, num_queues: object, num_poll_queues: object) -> dict[str, PropertyValue]:
        poll_queues = self.integer("num_poll_queues", num_poll_queues, at_least=0)
        queues = self.integer("num_queues", num_queues, at_least=0)
        if queues + poll_queues == 0:
            raise self.error("num_queues must be at least 1 where there are no poll queues")
        return {"num-queues": queues, "num-poll-queues": poll_queues}

    def ring_entries(self, num_entries: object) -> dict[str, PropertyValue]:
        if num_entries is None:
            return {}
        return {
            "num-entries": self.integer("num_entries", num_entries, at_least=1, at_most=MOST_RING_ENTRIES)
        }

    def queue_size(self, queue_size: object) -> dict[str, PropertyValue]:
        size = self.integer("queue_size", queue_size, at_least=SMALLEST_VIRTQUEUE, at_most=32768)
        if size & (size - 1):
            raise self.error(f"queue_size must be a power of two, not {size}")
        return {"queue-size": size}

    def bounce_pool_size(self, value: object) -> int:
        return self.integer("bounce_pool_size", value, at_least=SMALLEST_BOUNCE_POOL, at_most=2**63 - 1)

    def seconds(self, name: str, value: object, *, at_least: float = SHORTEST_SILENCE) -> float | None:
        """None, or a time that can be waited for."""
        if value is None:
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.error(f"{name} must be a number of seconds or None, not {value!r}")
        if not (math.isfinite(value) and at_least <= value <= LONGEST_SECONDS):
            raise self.error(f"{name} must be from {at_least:g} to {LONGEST_SECONDS:g} seconds, not {value}")
        return float(value)

    def error(self, message: str) -> OptionError:
        return OptionError(message, driver=self._driver)
