"""What of the file system an address names, before it is opened."""

import contextlib
import os
import stat
from typing import final

from .parameters import Opener

__all__ = ["Place"]


@final
class Place:
    """The file or disk that io_uring would open, if it is one."""

    def __init__(self, opener: Opener) -> None:
        driver, colon, rest = opener.address.partition(":")
        if colon and "/" not in driver:
            path = rest.partition("?")[0] if driver.replace("_", "-") == "io-uring" else None
        else:
            path = opener.address
        self.path = path
        """None: it is something else."""
        self.status: os.stat_result | None = None
        """None: there is nothing."""
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                self.status = os.stat(path)

    @property
    def is_missing(self) -> bool:
        """Whether a file can be made there."""
        return self.path is not None and self.status is None

    @property
    def has_content(self) -> bool:
        """Whether it is a regular file that is not empty."""
        return self.status is not None and stat.S_ISREG(self.status.st_mode) and self.status.st_size > 0
