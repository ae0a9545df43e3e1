"""Two machines with one image: what keeps them apart, and what does not."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from log_store import LogError, LogStore

import aioblk

from ..support.scripts import ROOT
from ..support.verified_load import BLOCK
from .cluster import Cluster
from .conftest import Daemons
from .network import Network


async def test_the_exclusive_lock_of_an_image_keeps_no_second_writer_out(rbd_daemon: Daemons) -> None:
    """It goes to whoever writes: it protects the image, and not what is in it."""
    async with (
        aioblk.VirtioBlkVhostUser(rbd_daemon().socket) as one,
        aioblk.VirtioBlkVhostUser(rbd_daemon().socket) as other,
    ):
        for number in range(4):
            writer, reader = (one, other) if number % 2 else (other, one)
            await writer.write(0, bytes([number]) * BLOCK)
            assert await reader.read(0, BLOCK) == bytes([number]) * BLOCK


def append_elsewhere(network: Network, socket: Path, line: str) -> str:
    """What the log store's program answers on the other machine, whose locks are not ours."""
    done = subprocess.run(
        [
            *(*network.prefix, sys.executable, str(ROOT / "examples" / "log_store.py")),
            *("append", f"virtio-blk-vhost-user:{socket}"),
        ],
        input=line,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_log_that_was_replaced_on_another_machine_acknowledges_nothing_more(
    rbd_daemon: Daemons, network: Network
) -> None:
    """It notices when it has written, over what the other one had: only the cluster can keep it from that."""
    ours, theirs = rbd_daemon(), rbd_daemon()
    async with aioblk.VirtioBlkVhostUser(ours.socket) as device:
        await LogStore.format(device)
        async with LogStore(device) as log:
            assert await log.append(b"ours") == 1
            assert await asyncio.to_thread(append_elsewhere, network, theirs.socket, "theirs\n") == "2\n"
            with pytest.raises(LogError):
                await log.append(b"ours, and too late")


async def test_a_machine_that_the_cluster_has_shut_out_changes_nothing_more(
    rbd_daemon: Daemons, network: Network, cluster: Cluster, image: str
) -> None:
    ours, theirs = rbd_daemon(), rbd_daemon()
    async with aioblk.VirtioBlkVhostUser(ours.socket) as device:
        await LogStore.format(device)
        async with LogStore(device) as log:
            assert await log.append(b"ours") == 1
            [holder] = json.loads(cluster.rbd("lock", "ls", f"rbd/{image}", "--format", "json"))
            cluster.ceph("osd", "blocklist", "add", holder["address"])
            assert await asyncio.to_thread(append_elsewhere, network, theirs.socket, "theirs\n") == "2\n"
            with pytest.raises((LogError, aioblk.BlkioError)):
                await log.append(b"ours, and too late")
    async with (
        aioblk.VirtioBlkVhostUser(theirs.socket) as device,
        LogStore(device, read_only=True) as log,
    ):
        assert [record.data async for record in log.records()] == [b"ours", b"theirs"]
