"""A caller of libblkio's interface without any of aioblk's care."""

import mmap
import os
from types import TracebackType
from typing import Any, Self, cast, final

from aioblk._native._blkio import ffi, lib

from .library import Disk, Driver

__all__ = ["CONNECTED", "CREATED", "MAPPED", "MEMORY", "STARTED", "Caller"]

NAMES = {
    Driver.IO_URING: "io_uring",
    Driver.VHOST_USER: "virtio-blk-vhost-user",
    Driver.VHOST_VDPA: "virtio-blk-vhost-vdpa",
    Driver.VFIO_PCI: "virtio-blk-vfio-pci",
    Driver.NVME_IO_URING: "nvme-io_uring",
}
MEMORY = 1 << 16
CREATED, CONNECTED, STARTED, MAPPED = range(4)


@final
class Caller:
    """One instance, by default started, with a queue, and with memory that is mapped."""

    def __init__(self, disk: Disk, *, stage: int = MAPPED, **before_start: int) -> None:
        self.ffi = cast(Any, ffi)
        self.lib = cast(Any, lib)
        self._cell: Any = self.ffi.new("struct blkio **")
        self.must(self.lib.blkio_create(NAMES[disk.driver].encode(), self._cell))
        self.instance = self._cell[0]
        self.must(self.lib.blkio_set_str(self.instance, b"path", os.fsencode(disk.path)))
        self._vectors: list[Any] = []
        self._memfd = os.memfd_create("caller")
        os.ftruncate(self._memfd, MEMORY)
        self._mapping = mmap.mmap(self._memfd, MEMORY)
        self.memory: Any = self.ffi.from_buffer("char[]", self._mapping)
        self.region: Any = self.region_of(0, MEMORY)
        self.queue = self.ffi.NULL
        try:
            self._go_to(stage, before_start)
        except BaseException:
            self.close()
            raise

    def _go_to(self, stage: int, before_start: dict[str, int]) -> None:
        if stage >= CONNECTED:
            self.must(self.lib.blkio_connect(self.instance))
            for name, value in before_start.items():
                self.must(self.lib.blkio_set_int(self.instance, name.replace("_", "-").encode(), value))
        if stage >= STARTED:
            self.must(self.lib.blkio_start(self.instance))
            self.queue = self.lib.blkio_get_queue(self.instance, 0)
            self.fd = self.lib.blkioq_get_completion_fd(self.queue)
            self.lib.blkioq_set_completion_fd_enabled(self.queue, True)
        if stage >= MAPPED:
            self.must(self.lib.blkio_map_mem_region(self.instance, self.region))

    def must(self, result: int) -> int:
        assert result >= 0, (result, os.strerror(-result))
        return result

    def region_of(self, offset: int, length: int, fd: int | None = None) -> Any:
        """A description of part of the memory."""
        region = self.ffi.new("struct blkio_mem_region *")
        region.addr, region.len = self.memory + offset, length
        region.fd, region.fd_offset = (self._memfd if fd is None else fd), offset
        return region

    def vector(self, *parts: tuple[int, int]) -> Any:
        """Of (offset in the memory, length). It stays for as long as the caller."""
        vector = self.ffi.new("struct iovec[]", [(self.memory + offset, length) for offset, length in parts])
        self._vectors.append(vector)
        return vector

    def read(self, start: int, at: int, length: int, flags: int = 0) -> None:
        self.lib.blkioq_read(self.queue, start, self.memory + at, length, self.ffi.NULL, flags)

    def write(self, start: int, at: int, length: int, flags: int = 0) -> None:
        self.lib.blkioq_write(self.queue, start, self.memory + at, length, self.ffi.NULL, flags)

    def do_io(self, least: int = 0, most: int = 64) -> list[int]:
        """The results of what has completed."""
        completions = self.ffi.new("struct blkio_completion[]", most)
        count = self.must(self.lib.blkioq_do_io(self.queue, completions, least, most, self.ffi.NULL))
        return [completions[index].ret for index in range(count)]

    def try_io(self) -> list[int]:
        """As do_io(), or nothing where that fails, as it may for once."""
        completions = self.ffi.new("struct blkio_completion[]", 64)
        count = self.lib.blkioq_do_io(self.queue, completions, 0, 64, self.ffi.NULL)
        return [completions[index].ret for index in range(count)]

    def destroy(self) -> None:
        if self._cell[0] != self.ffi.NULL:
            self.lib.blkio_destroy(self._cell)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Destroy the instance, and give everything back."""
        self.destroy()
        self.memory = self.region = None
        self._vectors.clear()
        self.ffi.release(self._cell)
        self._mapping.close()
        os.close(self._memfd)
