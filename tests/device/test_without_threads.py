"""Where no thread is to be had, each call says so, and what it was about."""

import contextlib
import errno
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import aioblk
from aioblk._sync.threads import dismiss

from ..conftest import StorageDaemonFactory

BLOCK = 512
SIZE = 1 << 20


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def begin() -> None:
        def refuse(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        dismiss()
        monkeypatch.setattr(threading.Thread, "start", refuse)

    return begin


async def first_extent(device: aioblk.IoUring) -> None:
    async with contextlib.aclosing(device.extents()) as extents:
        await anext(extents)


def not_aligned(length: int) -> memoryview:
    return memoryview(bytearray(length + 1))[1:]


CALLS: dict[str, tuple[Callable[[aioblk.IoUring], Awaitable[Any]], tuple[Any, ...]]] = {
    "write": (lambda device: device.write(BLOCK, not_aligned(BLOCK)), ("write", BLOCK, BLOCK)),
    "write_many": (
        lambda device: device.write_many([(2 * BLOCK, not_aligned(BLOCK)), (8 * BLOCK, not_aligned(BLOCK))]),
        ("write", 2 * BLOCK, BLOCK),
    ),
    "truncate": (lambda device: device.truncate(SIZE), ("truncate", None, None)),
    "extents": (first_extent, ("extents", 0, SIZE)),
}


@pytest.mark.parametrize("call", CALLS)
async def test_what_it_was_about(tmp_path: Path, no_threads: Callable[[], None], call: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    function, about = CALLS[call]
    async with aioblk.IoUring(path, direct=True) as device:
        no_threads()
        with pytest.raises(aioblk.BlkioError, match="it needs a thread") as caught:
            await function(device)
        assert caught.value.errno == errno.EAGAIN
        assert caught.value.driver == "io_uring"
        assert (caught.value.operation, caught.value.offset, caught.value.length) == about


async def test_each_item_has_its_own(tmp_path: Path, no_threads: Callable[[], None]) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    async with aioblk.IoUring(path, direct=True) as device:
        no_threads()
        offsets = [BLOCK, 5 * BLOCK]
        items = [(offset, not_aligned(BLOCK)) for offset in offsets]
        errors = await device.write_many(items, return_exceptions=True)
        assert [error.offset for error in errors] == offsets
        assert {error.filename for error in errors} == {str(path)}


async def test_opening(tmp_path: Path, no_threads: Callable[[], None]) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    no_threads()
    with pytest.raises(aioblk.BlkioError, match="it needs a thread") as caught:
        await aioblk.IoUring(path).open()
    assert (caught.value.driver, caught.value.operation) == ("io_uring", "connect")
    assert caught.value.filename == str(path)


async def test_the_pool_of_a_detached_device_leaves_its_place(
    storage_daemon: StorageDaemonFactory, monkeypatch: pytest.MonkeyPatch, no_threads: Callable[[], None]
) -> None:
    """Its memory stays mapped, for want of a thread, until the next pool is made."""
    async with aioblk.VirtioBlkVhostUser(storage_daemon().socket) as device:
        mapped = device._session("look").handle._mapped
        await device.read(0, BLOCK)
        before = len(mapped)
        no_threads()
        await device.detach()
        monkeypatch.undo()
        assert len(mapped) == before
        await device.attach()
        await device.read(0, BLOCK)
        assert len(mapped) == before
