"""Fixtures for pytest. A project that wants them says so in its conftest.py::

    pytest_plugins = ["aioblk.testing.plugin"]

``block_device``
    A :class:`MemoryDevice` of 8 MiB with blocks of 512 bytes. Override the fixture ``block_device_limits``
    for others.
``vhost_user_daemon``
    Starts qemu-storage-daemon, which must be installed, with a vhost-user-blk export: real devices for
    :class:`aioblk.VirtioBlkVhostUser`.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from .._libblkio.limits import Limits
from .memory_device import MemoryDevice
from .storage_daemon import StorageDaemon

__all__ = ["VhostUserDaemons", "block_device", "block_device_limits", "vhost_user_daemon"]

SIZE = 8 << 20

pytest.register_assert_rewrite("aioblk.testing.conformance")


@pytest.fixture
def block_device_limits() -> Limits:
    """What ``block_device`` accepts."""
    return Limits(request_alignment=512)


@pytest.fixture
def block_device(block_device_limits: Limits) -> MemoryDevice:
    """A device in memory."""
    return MemoryDevice(SIZE, limits=block_device_limits)


class VhostUserDaemons(Protocol):
    """Starts daemons, which end with the test."""

    def __call__(
        self,
        file: Path | None = None,
        *,
        size: int = SIZE,
        latency_ns: int = 0,
        num_queues: int = 1,
        writable: bool = True,
        block_size: int = 512,
    ) -> StorageDaemon:
        """One that exports *file* or, without one, ``size`` bytes of zeroes, each request taking
        ``latency_ns``; :attr:`StorageDaemon.socket` is where."""
        ...


@pytest.fixture
def vhost_user_daemon() -> Iterator[VhostUserDaemons]:
    """Starts qemu-storage-daemon."""
    if shutil.which("qemu-storage-daemon") is None:
        pytest.fail(
            "qemu-storage-daemon is missing; Debian has it in qemu-utils (before 8.0: qemu-system-common)"
        )
    with ExitStack() as daemons:

        def start(
            file: Path | None = None,
            *,
            size: int = SIZE,
            latency_ns: int = 0,
            num_queues: int = 1,
            writable: bool = True,
            block_size: int = 512,
        ) -> StorageDaemon:
            blockdev: dict[str, object]
            if file is None:
                blockdev = {"driver": "null-co", "size": size, "latency-ns": latency_ns, "read-zeroes": True}
            else:
                blockdev = {"driver": "file", "filename": str(file), "discard": "unmap"}
            if not writable:
                blockdev["read-only"] = True
            daemon = StorageDaemon(blockdev, num_queues=num_queues, writable=writable, block_size=block_size)
            return daemons.enter_context(daemon)

        yield start
