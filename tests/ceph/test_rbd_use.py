"""What is written for a device of this machine, on an image of a cluster: the socket is all that changes."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import quickstart
from log_store import LogStore

import aioblk
from aioblk.testing.conformance import BlockDeviceConformance, Opener

from ..support.nbd_server import NbdServer
from ..support.scripts import ROOT
from .cluster import Cluster
from .conftest import Daemons

CLEAN = 1 << 20


class TestAnImage(BlockDeviceConformance):
    @pytest.fixture
    def opener(self, socket: Path) -> Opener:
        @asynccontextmanager
        async def opened(*, read_only: bool = False) -> AsyncIterator[aioblk.BlockDevice]:
            async with aioblk.VirtioBlkVhostUser(socket) as device:
                await device.write_zeroes(0, CLEAN)
            async with aioblk.VirtioBlkVhostUser(socket, read_only=read_only) as device:
                yield device

        return opened


class TestAnImageServedOverNbd(BlockDeviceConformance):
    """The client of a server of the image: two engines, one above the other."""

    @pytest.fixture(scope="class")
    def server(self, socket: Path) -> Iterator[NbdServer]:
        with NbdServer("virtio-blk-vhost-user", f"path={socket}") as server:
            yield server

    @pytest.fixture
    def opener(self, server: NbdServer) -> Opener:
        @asynccontextmanager
        async def opened(*, read_only: bool = False) -> AsyncIterator[aioblk.BlockDevice]:
            async with aioblk.Nbd(server.uri) as device:
                await device.write_zeroes(0, CLEAN)
            async with aioblk.Nbd(server.uri, read_only=read_only) as device:
                yield device

        return opened


async def test_the_quickstart(socket: Path) -> None:
    await quickstart.tour(aioblk.VirtioBlkVhostUser(socket))


async def test_a_log_is_there_for_another_client_of_the_cluster(rbd_daemon: Daemons) -> None:
    records = [os.urandom(size) for size in (0, 1, 4096, 100_000)]
    daemon = rbd_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        await LogStore.format(device)
        async with LogStore(device) as log:
            await asyncio.gather(*map(log.append, records))
    daemon.kill()
    async with (
        aioblk.VirtioBlkVhostUser(rbd_daemon().socket) as device,
        LogStore(device, read_only=True) as log,
    ):
        assert [record.data async for record in log.records()] == records


def test_copies_to_an_image_and_from_it_are_equal(
    rbd_daemon: Daemons, cluster: Cluster, image: str, tmp_path: Path
) -> None:
    source, back, exported = (tmp_path / name for name in ("source", "back", "exported"))
    with source.open("wb") as file:
        for start in range(0, 16 << 20, 4 << 20):
            file.seek(start)
            file.write(os.urandom(300_000))
        file.truncate(16 << 20)
    address = f"slice,length=16M:virtio-blk-vhost-user:{rbd_daemon().socket}"
    for words in (("--verify", str(source), address), ("--verify", address, str(back))):
        done = subprocess.run(
            [sys.executable, "-m", "aioblk", "copy", *words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    assert back.read_bytes() == source.read_bytes()
    cluster.rbd("export", f"rbd/{image}", str(exported))
    with exported.open("rb") as file:
        assert file.read(16 << 20) == source.read_bytes()
