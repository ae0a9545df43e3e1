"""NBD servers on every kind of export there is, each a process of its own."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from aioblk.testing.storage_daemon import StorageDaemon

from .nbd_server import NbdServer

SIZE = 16 << 20


def new_image(directory: Path) -> Path:
    """A file of zeroes, which is one hole."""
    path = directory / "image"
    path.touch()
    os.truncate(path, SIZE)
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The file in which the bytes of an export are, in the end."""
    return new_image(tmp_path)


@pytest.fixture(scope="module", params=["file", "direct", "vhost-user"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NbdServer]:
    """A server on each kind of device: through the page cache, around it, by way of a storage daemon.

    It serves all tests of a module, one after the other, so they find what the ones before have written.
    """
    image = new_image(tmp_path_factory.mktemp("server"))
    with ExitStack() as stack:
        if request.param == "vhost-user":
            blockdev = {"driver": "file", "filename": str(image), "discard": "unmap"}
            daemon = stack.enter_context(StorageDaemon(blockdev))
            arguments = ["virtio-blk-vhost-user", f"path={daemon.socket}"]
        else:
            arguments = ["io_uring", f"path={image}", f"direct={request.param == 'direct'}"]
        yield stack.enter_context(NbdServer(*arguments))


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
