"""Memory between guards: a page of canaries on either side, and behind that one which nobody may touch."""

import ctypes
import fcntl
import mmap
import os

__all__ = ["Guarded"]

PAGE = mmap.PAGESIZE
CANARY = bytes(range(256)) * (PAGE // 256)
FIXED, NONE = 0x10, 0

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]


def _map(address: int | None, length: int, protection: int, flags: int, fd: int = -1) -> int:
    result = libc.mmap(address, length, protection, flags, fd, 0)
    assert result not in (None, ctypes.c_void_p(-1).value), os.strerror(ctypes.get_errno())
    return int(result)


class Guarded:
    """*length* bytes, whole pages: private, or a file in memory that can be lent. It stays for ever."""

    def __init__(self, length: int, *, shared: bool) -> None:
        writable, own = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        start = _map(None, length + 4 * PAGE, NONE, own)
        _map(start + PAGE, length + 2 * PAGE, writable, own | FIXED)
        self.fd = -1
        if shared:
            self.fd = os.memfd_create("lent", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.fd, length)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # as docs/memory.md tells to
            _map(start + 2 * PAGE, length, writable, mmap.MAP_SHARED | FIXED, self.fd)
        self._before = _view(start + PAGE, PAGE)
        self._behind = _view(start + 2 * PAGE + length, PAGE)
        self._before[:] = self._behind[:] = CANARY
        self.bytes = _view(start + 2 * PAGE, length)

    @property
    def is_intact(self) -> bool:
        """Whether nothing was written beside it."""
        return bytes(self._before) == CANARY == bytes(self._behind)


def _view(address: int, length: int) -> memoryview:
    return memoryview((ctypes.c_char * length).from_address(address)).cast("B")
