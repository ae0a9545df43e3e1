"""What a scenario is given: the fault, and the devices that it happens to."""

import os
import resource
import signal
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aioblk
from aioblk.testing.storage_daemon import StorageDaemon

from ..support.injector import FOR_EVER, Injector, Kind
from ..support.loop_device import LoopDevice

__all__ = ["BLOCK", "CONTENT", "FAULTS", "Fault", "World", "make_fault"]

BLOCK = 4096
GRACE = 0.1  # seconds for a daemon that falls to be gone
CONTENT = bytes(range(256)) * (32 << 10)


class Fault:
    """Within ``with fault:`` something fails, and the block ends well, or with a BlkioError, which is kept.

    Several blocks are one: the calls that are made in them are counted through.
    """

    def __init__(self, injector: Injector, kind: str) -> None:
        self.injector = injector
        self.kind = kind
        self.error: BaseException | None = None

    def arm(self, number: int) -> None:
        """Let the *number*th call of the kind fail."""
        raise NotImplementedError

    def begin(self) -> None:
        self.injector.__enter__()

    def end(self) -> None:
        self.injector.__exit__()

    @property
    def happened(self) -> bool:
        return self.error is not None or self.injector.refusals > 0

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.end()
        if isinstance(error, aioblk.BlkioError) and error.errno:
            self.error = error.with_traceback(None)
            return True
        return False


class Injected(Fault):
    """*times* calls from the nth on."""

    def __init__(self, injector: Injector, kind: Kind, times: int = 1) -> None:
        super().__init__(injector, kind)
        self._kind = kind
        self._times = times

    def arm(self, number: int) -> None:
        self.injector.arm(self._kind, number, self._times)


class OpenFilesLimit(Fault):
    """There are n - 1 descriptors left, as under RLIMIT_NOFILE."""

    def __init__(self, injector: Injector) -> None:
        super().__init__(injector, "open-files limit")
        self._left = 0

    def arm(self, number: int) -> None:
        self.injector.disarm()
        self._left = number - 1

    def begin(self) -> None:
        soft, hard = self._before = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = (fd for fd in range(soft) if not _is_open(fd))
        limit = next(islice(free, self._left, None), soft)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        super().begin()

    def end(self) -> None:
        super().end()
        resource.setrlimit(resource.RLIMIT_NOFILE, self._before)


class FileSizeLimit(Fault):
    """No file may be longer than n - 1 steps of 256 KiB, as under RLIMIT_FSIZE."""

    STEP = 256 << 10

    def __init__(self, injector: Injector) -> None:
        super().__init__(injector, "file-size limit")
        self._limit = 0

    def arm(self, number: int) -> None:
        self.injector.disarm()
        self._limit = (number - 1) * self.STEP

    def begin(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._limit, self._before[1]))
        super().begin()

    def end(self) -> None:
        super().end()
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def make_fault(injector: Injector, name: str) -> Fault:
    """Of a name in FAULTS."""
    if name == "open-files-limit":
        return OpenFilesLimit(injector)
    if name == "file-size-limit":
        return FileSizeLimit(injector)
    kind, _, onwards = name.partition(" ")
    return Injected(injector, Kind(kind), FOR_EVER // 2 if onwards else 1)


FAULTS = (
    "descriptor",
    "descriptor onwards",
    "open-files-limit",
    "memory",
    "memory onwards",
    "file-size-limit",
    "thread",
    "thread onwards",
    "libblkio",
    "libblkio onwards",
    "libblkio-descriptor",
    "libblkio-memory",
)
"""From the nth on ("onwards"), or the nth alone."""


class World:
    """The file, the backend and the block device that scenarios open devices on."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "disk"
        self.file.write_bytes(CONTENT)
        self._daemon: StorageDaemon | None = None
        self._loop_device: LoopDevice | None = None

    @property
    def loop_device(self) -> Path:
        if self._loop_device is None:
            self._loop_device = LoopDevice(self.file)
        return self._loop_device.path

    @property
    def daemon(self) -> StorageDaemon:
        if self._daemon is None:
            blockdev = {"driver": "file", "filename": str(self.file), "discard": "unmap"}
            self._daemon = StorageDaemon(blockdev, num_queues=2)
        return self._daemon

    def io_uring(self, **options: Any) -> aioblk.IoUring:
        return aioblk.IoUring(self.file, **options)

    def vhost_user(self, **options: Any) -> aioblk.VirtioBlkVhostUser:
        return aioblk.VirtioBlkVhostUser(self.daemon.socket, **options)

    async def closes(self, *devices: aioblk.Device) -> None:
        """Each goes on, or is lost; then it closes, and another one can be opened."""
        for device in devices:
            try:
                assert await device.read(0, BLOCK) == CONTENT[:BLOCK]
            except aioblk.DeviceLostError:
                assert device.lost
            await device.aclose()
        await self.is_free(*devices)

    async def is_free(self, *devices: aioblk.Device) -> None:
        """What the closed devices were opened on can be opened again."""
        for device in devices:
            assert device.closed
            if device.lost and isinstance(device, aioblk.VirtioBlkVhostUser):
                self._replace_a_daemon_that_fell()
            other = self.vhost_user() if isinstance(device, aioblk.VirtioBlkVhostUser) else self.io_uring()
            async with other:
                assert await other.read(0, BLOCK) == CONTENT[:BLOCK]

    def _replace_a_daemon_that_fell(self) -> None:
        """Some versions of QEMU end in an assertion (vhost_user_server_ref: !server->wait_idle) when a client
        goes while its queue still holds requests, as a device that is given up does."""
        status = self.daemon.ended_within(GRACE)
        assert status in (None, -signal.SIGABRT)
        if status is not None:
            self.daemon.restart()

    def made(self, held: str) -> bool:
        """Whether what Holdings names is the world's own."""
        return self._daemon is not None and self._daemon.holds(held)

    def close(self) -> None:
        if self._daemon is not None:
            self._daemon.close()
        if self._loop_device is not None:
            self._loop_device.close()
