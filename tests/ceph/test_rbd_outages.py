"""Parts of the cluster end, and daemons above it, under a load that knows what every block must hold."""

import asyncio
import errno
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from log_store import LogStore

import aioblk

from ..support.verified_load import BLOCK, SIZE, VerifiedLoad
from .cluster import MONITOR, OSD, Cluster
from .conftest import Daemons

FAR = 64 << 20  # of the image, beyond what the load writes to
A_WHILE = 1.0  # seconds; nothing that needs the OSD happens meanwhile
FOR = 60.0


async def check_by_another_way(cluster: Cluster, image: str, load: VerifiedLoad, tmp_path: Path) -> None:
    exported = tmp_path / "exported"
    await asyncio.to_thread(cluster.rbd, "export", f"rbd/{image}", str(exported))
    with exported.open("rb") as file:
        load.check(file.read(SIZE))


@asynccontextmanager
async def without(
    cluster: Cluster, *daemons: str, how: signal.Signals = signal.SIGTERM
) -> AsyncIterator[None]:
    """They are stopped, and started again when the block ends, however it does: nothing closes without."""
    try:
        for daemon in daemons:
            await asyncio.to_thread(cluster.stop, daemon, how)
        yield
    finally:
        for daemon in daemons:
            cluster.start(daemon)


@asynccontextmanager
async def paused(cluster: Cluster, daemon: str) -> AsyncIterator[None]:
    cluster.processes.pause(daemon)
    try:
        yield
    finally:
        cluster.processes.resume(daemon)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_requests_wait_for_an_osd_that_was_stopped(
    rbd_daemon: Daemons, cluster: Cluster, image: str, tmp_path: Path, how: signal.Signals
) -> None:
    daemon = rbd_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        async with VerifiedLoad(device, workers=8, zeroes_first=True) as load:
            await load.progress(200)
            async with without(cluster, OSD, how=how):
                write = asyncio.ensure_future(device.write(FAR, b"w" * BLOCK))
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(A_WHILE):
                        await device.read(0, BLOCK)  # a block that was never written is known to be zeroes
                assert not write.done()
                assert device.lost is None
            await write
            await load.progress(200)
        assert await device.read(FAR, BLOCK) == b"w" * BLOCK
        load.check(await device.read(0, SIZE))
    daemon.kill()
    await check_by_another_way(cluster, image, load, tmp_path)


async def test_a_log_keeps_what_it_acknowledged_when_the_osd_crashes(
    rbd_daemon: Daemons, cluster: Cluster
) -> None:
    acknowledged: dict[int, bytes] = {}
    some, ending = asyncio.Event(), asyncio.Event()

    async def append(log: LogStore, number: int) -> None:
        for count in range(1_000_000):
            if ending.is_set():
                return
            data = b"record %d of %d" % (count, number)
            acknowledged[await log.append(data)] = data
            some.set()

    async with aioblk.VirtioBlkVhostUser(rbd_daemon().socket) as device:
        await LogStore.format(device)
        async with LogStore(device) as log, asyncio.TaskGroup() as appenders:
            for number in range(8):
                appenders.create_task(append(log, number))
            await some.wait()
            async with without(cluster, OSD, how=signal.SIGKILL):
                some.clear()
            async with asyncio.timeout(FOR):
                await some.wait()
            ending.set()
        async with LogStore(device, read_only=True) as log:
            found = {record.number: record.data async for record in log.records()}
    assert found == acknowledged


@pytest.mark.abandons_memory
async def test_lost_after_gives_the_device_up_and_it_comes_back_when_the_osd_does(
    rbd_daemon: Daemons, cluster: Cluster
) -> None:
    async with aioblk.VirtioBlkVhostUser(rbd_daemon().socket, lost_after=A_WHILE) as device:
        await device.write(FAR, b"1" * BLOCK)
        async with without(cluster, OSD):
            write = device.write(FAR, b"2" * BLOCK)
            with pytest.raises(aioblk.DeviceLostError, match="has not answered for 1 second"):
                await write
            with pytest.raises(aioblk.DeviceLostError):
                device.read(FAR, BLOCK)
        # The daemon lets the next one in when the cluster has done what the one before had asked for.
        async with asyncio.timeout(FOR):
            await device.reconnect()
        assert await device.read(FAR, BLOCK) == b"2" * BLOCK
        await device.write(FAR, b"3" * BLOCK)


async def test_with_a_time_out_of_the_client_requests_fail_and_the_device_goes_on(
    rbd_daemon: Daemons, cluster: Cluster
) -> None:
    impatient = cluster.configured("impatient", rados_osd_op_timeout=2)
    async with aioblk.VirtioBlkVhostUser(rbd_daemon(configuration=impatient).socket) as device:
        await device.write(FAR, b"1" * BLOCK)
        async with without(cluster, OSD), asyncio.timeout(FOR):
            for request in (device.write(FAR, b"2" * BLOCK), device.read(FAR, BLOCK)):
                with pytest.raises(aioblk.BlkioError) as failed:
                    await request
                assert failed.value.errno == errno.EIO
                assert not isinstance(failed.value, aioblk.DeviceLostError)
        assert device.lost is None
        await asyncio.to_thread(cluster.wait_until_served)
        await device.write(FAR, b"3" * BLOCK)
        await device.flush()
        assert await device.read(FAR, BLOCK) == b"3" * BLOCK


async def test_the_load_goes_on_without_the_monitor(rbd_daemon: Daemons, cluster: Cluster) -> None:
    async with aioblk.VirtioBlkVhostUser(rbd_daemon().socket) as device:
        async with VerifiedLoad(device, workers=8, zeroes_first=True) as load:
            await load.progress(200)
            async with without(cluster, MONITOR):
                await load.progress(1000)
            await asyncio.to_thread(cluster.wait_until_served)
            await load.progress(200)
        load.check(await device.read(0, SIZE))


async def test_after_both_were_stopped_the_load_goes_on(rbd_daemon: Daemons, cluster: Cluster) -> None:
    async with aioblk.VirtioBlkVhostUser(rbd_daemon().socket) as device:
        async with VerifiedLoad(device, workers=8, zeroes_first=True) as load:
            await load.progress(200)
            async with without(cluster, MONITOR, OSD):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(A_WHILE):
                        await device.read(0, BLOCK)
            await load.progress(200)
        load.check(await device.read(0, SIZE))


async def test_with_reconnect_for_the_load_outlives_the_daemon_whose_leftovers_the_cluster_refuses(
    rbd_daemon: Daemons, cluster: Cluster, image: str, tmp_path: Path
) -> None:
    """The exclusive lock of the image sees to it: the next daemon has it when the one before is shut out."""
    daemon = rbd_daemon()
    async with aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=FOR) as device:
        async with VerifiedLoad(device, workers=8, zeroes_first=True) as load:
            await load.progress(200)
            before = set(cluster.blocklist())
            await asyncio.to_thread(daemon.restart)
            await load.progress(200)
        assert device.reconnections == 1
        assert len(set(cluster.blocklist()) - before) == 1
        load.check(await device.read(0, SIZE))
    daemon.kill()
    await check_by_another_way(cluster, image, load, tmp_path)


async def test_without_a_cache_a_write_waits_for_the_cluster(rbd_daemon: Daemons, cluster: Cluster) -> None:
    """As reconnect_for needs it: what was acknowledged is not in the daemon alone."""
    async with aioblk.VirtioBlkVhostUser(rbd_daemon().socket) as device:
        await device.write(FAR, b"1" * BLOCK)
        await device.flush()
        async with paused(cluster, OSD):
            write = device.write(FAR, b"2" * BLOCK)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(A_WHILE):
                    await asyncio.shield(write)
        await write


async def test_an_image_cannot_be_exported_while_there_is_no_monitor(cluster: Cluster, image: str) -> None:
    """The daemon waits, as every client of Ceph does; with a time-out of the client it ends with a word."""
    brief = cluster.configured("brief", client_mount_timeout=1, rados_mon_op_timeout=1)
    async with without(cluster, MONITOR):
        ended = await asyncio.to_thread(
            subprocess.run,
            ["qemu-img", "info", f"rbd:rbd/{image}:conf={brief}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FOR,
        )
        assert ended.returncode == 1
        assert "error connecting" in ended.stderr
