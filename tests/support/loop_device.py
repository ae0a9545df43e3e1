"""Real loop devices, made with the kernel's own calls (loop(4))."""

import errno
import fcntl
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

LOOP_CTL_GET_FREE = 0x4C82
LOOP_CONFIGURE = 0x4C0A
LO_FLAGS_AUTOCLEAR = 4
LOOP_CONFIG = struct.Struct("=II 5Q 4I 192x 64x")  # fd, block_size, loop_info64, reserved


def cannot_have_loop_devices() -> str | None:
    """Why this machine gives no loop devices; None if it does."""
    try:
        os.close(os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return str(error)
    return None


class LoopDevice:
    """A block device with the contents of *file*; detached when its last descriptor is closed."""

    def __init__(self, file: Path, *, block_size: int = 512) -> None:
        backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            self.path, self._fd = self._attach(control, backing, block_size)
        finally:
            os.close(control)
            os.close(backing)

    @staticmethod
    def _attach(control: int, backing: int, block_size: int) -> tuple[Path, int]:
        config = LOOP_CONFIG.pack(backing, block_size, *(0,) * 5, 0, 0, 0, LO_FLAGS_AUTOCLEAR)
        while True:
            path = Path(f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}")
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # busy: someone else was given the same free device
                    raise
            else:
                return path, device

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
