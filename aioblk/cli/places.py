"""What of the file system an address names, before it is opened."""

import contextlib
import os
import stat
from typing import final

from .._libblkio.properties import IO_URING
from ..addresses import parse_address
from ..copying import in_use_by
from .parameters import Opener

__all__ = ["Place"]


@final
class Place:
    """The file or disk below all layers that io_uring would open, if it is one."""

    def __init__(self, opener: Opener) -> None:
        address = parse_address(opener.address)
        self._has_layers = address.base is not None
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
        return self.path is not None and self._status is None and not self._has_layers

    @property
    def has_content(self) -> bool:
        """Whether it is a regular file that is not empty."""
        return self._status is not None and stat.S_ISREG(self._status.st_mode) and self._status.st_size > 0

    def user(self) -> str | None:
        """Who would not bear it if it was written to: words, or None."""
        return None if self.path is None or self._status is None else in_use_by(self.path)
