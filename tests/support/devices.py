"""Open devices for the tests of the request path: one test, every driver that this machine can offer it.

Every device begins with 8 MiB of zeroes. ``slow_device`` answers each request after LATENCY, and not at all
while its daemon is held: what is in flight then stays in flight for as long as a test wants.
"""

import array
import asyncio
import functools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import aioblk
from aioblk.testing.storage_daemon import StorageDaemon

if TYPE_CHECKING:
    from ..conftest import StorageDaemonFactory

LATENCY = 0.02  # seconds
BLOCK = 4096  # bytes; a multiple of what any device here asks for


@dataclass(frozen=True)
class Target:
    """What a device is opened on."""

    driver: str
    path: Path
    """The file or the socket."""
    file: Path
    """Where the bytes are, in the end."""

    def device(self, **options: Any) -> aioblk.Device:
        """A device that is not open yet."""
        device = aioblk.open(self.driver, path=self.path, **options)
        assert isinstance(device, aioblk.Device)
        return device

    @property
    def is_file(self) -> bool:
        return self.driver == "io_uring"


@pytest.fixture(params=["io_uring", "vhost_user"])
def target(
    request: pytest.FixtureRequest, scratch_file: Path, storage_daemon: "StorageDaemonFactory"
) -> Target:
    if request.param == "io_uring":
        return Target("io_uring", scratch_file, scratch_file)
    return Target("virtio-blk-vhost-user", storage_daemon(scratch_file).socket, scratch_file)


@pytest.fixture
async def device(target: Target) -> AsyncIterator[aioblk.Device]:
    async with target.device() as device:
        yield device


@pytest.fixture
async def file_device(scratch_file: Path) -> AsyncIterator[aioblk.Device]:
    """io_uring on ``scratch_file``."""
    async with aioblk.IoUring(scratch_file) as device:
        yield device


@pytest.fixture
def slow_daemon(storage_daemon: "StorageDaemonFactory") -> StorageDaemon:
    return storage_daemon(latency_ns=int(LATENCY * 1e9))


@pytest.fixture
async def slow_device(slow_daemon: StorageDaemon) -> AsyncIterator[aioblk.Device]:
    """vhost-user, each request taking LATENCY; its bounce pool exists already."""
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket) as device:
        await device.read(0, BLOCK)
        yield device


@contextmanager
def held(daemon: StorageDaemon) -> Iterator[None]:
    """Inside the block no request completes."""
    daemon.pause()
    os.waitid(os.P_PID, daemon.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield
    finally:
        daemon.resume()


@functools.lru_cache(maxsize=64)  # most tests write the same few
def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes that differ from block to block and from seed to seed."""
    word, step, mask = seed * 0x9E3779B97F4A7C15, 0x2545F4914F6CDD1D, 2**64 - 1
    words = array.array("Q", ((word + index * step) & mask for index in range(-(-length // 8))))
    return words.tobytes()[:length]


async def settled(*requests: "aioblk.Request[Any]") -> None:
    """Wait until the requests are done, whatever their outcome."""
    await asyncio.wait(requests)  # type: ignore[type-var] # asyncio takes more than its types say
