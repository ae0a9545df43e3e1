"""Servers on every kind of export there is, each a process of its own."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .server_process import NbdServer

if TYPE_CHECKING:
    from ..conftest import StorageDaemonFactory

SIZE = 16 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The file in which the bytes of the export are, in the end: zeroes, to begin with, and a hole."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(SIZE)
    return path


@pytest.fixture(params=["file", "direct", "vhost-user"])
def server(
    request: pytest.FixtureRequest, image: Path, storage_daemon: "StorageDaemonFactory"
) -> Iterator[NbdServer]:
    """A server of ``image``: through the page cache, around it, and by way of a storage daemon."""
    if request.param == "vhost-user":
        arguments = ["virtio-blk-vhost-user", f"path={storage_daemon(image).socket}"]
    else:
        arguments = ["io_uring", f"path={image}", f"direct={request.param == 'direct'}"]
    with NbdServer(*arguments) as server:
        yield server


@pytest.fixture
def file_server(image: Path) -> Iterator[NbdServer]:
    """A server of ``image`` through the page cache, for what does not depend on the device."""
    with NbdServer("io_uring", f"path={image}") as server:
        yield server


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of the export's size: noise, text, and holes of all sizes between."""
    path = tmp_path / "source"
    with path.open("wb") as file:
        for start in range(0, SIZE, 1 << 20):
            file.seek(start + (start >> 20) * 4096)
            file.write(os.urandom(64 << 10) + b"block " * 1000)
        file.truncate(SIZE)
    return path
