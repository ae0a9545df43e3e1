"""What of the file system an address names, before it is opened."""

import contextlib
import os
import stat
from typing import final

from .._device.holders import in_use_by
from .._libblkio.properties import IO_URING, VIRTIO
from ..addresses import parse_address
from ..errors import OptionError
from .parameters import Opener

__all__ = ["Place", "refuse_one_backend_twice"]


def refuse_one_backend_twice(one: Opener, other: Opener) -> None:
    """Two names of one socket: its backend serves one client, and the second would wait for the first.

    Raises:
        OptionError: they are that.
    """
    if one.innermost.name not in VIRTIO or one.path is None or other.path is None:
        return
    try:
        are_one = os.path.samefile(one.path, other.path)
    except OSError:  # it is told when it is opened
        return
    if are_one:
        raise OptionError(
            "both are the same device, which serves one client at a time",
            driver=one.innermost.name,
            operation="open",
            filename=one.path,
        )


@final
class Place:
    """The file or disk below all layers that io_uring would open, if it is one."""

    def __init__(self, opener: Opener) -> None:
        address = parse_address(opener.address)
        self.has_layers: bool = address.base is not None
        while address.base is not None:
            address = address.base
        path = address.options.get("path") if address.name == IO_URING else None
        self.path: str | None = None if path is None else str(path)
        """None: it is something else."""
        self._status: os.stat_result | None = None
        if self.path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._status = os.stat(self.path)

    @property
    def can_be_made(self) -> bool:
        """Whether there is nothing, and it is to be a file."""
        return self.path is not None and self._status is None and not self.has_layers

    @property
    def has_content(self) -> bool:
        """Whether it is a regular file that is not empty."""
        return self._status is not None and stat.S_ISREG(self._status.st_mode) and self._status.st_size > 0

    def is_same_file(self, other: "Place") -> bool:
        """By whatever names, and with whatever layers over it."""
        one, another = self._status, other._status
        return one is not None and another is not None and os.path.samestat(one, another)

    def user(self) -> str | None:
        """Who would not bear it if it was written to: words behind "it is", or None."""
        return None if self.path is None or self._status is None else in_use_by(self.path)
