"""vhost-user devices that fail, are slow, fall silent, die, change: qemu-storage-daemon and its nodes."""

import asyncio
import errno
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import aioblk
from aioblk.testing.storage_daemon import StorageDaemon

from ..support.verified_load import BLOCK, VerifiedLoad, stamped
from .row import Setting, fault

SIZE = 8 << 20


def image(setting: Setting, size: int = SIZE) -> Path:
    path = setting.directory / "disk.img"
    with path.open("wb") as file:
        file.truncate(size)
    return path


def over(path: Path) -> dict[str, object]:
    return {"driver": "file", "filename": str(path)}


def failing(path: Path, *rules: Mapping[str, object], states: int = 0) -> dict[str, object]:
    """A file whose requests fail by rule. With *states*, the nth write has state n when it arrives."""
    node: dict[str, object] = {"driver": "blkdebug", "image": over(path), "inject-error": list(rules)}
    if states:
        counted = range(1, states)
        node["set-state"] = [{"event": "pwritev", "state": n, "new_state": n + 1} for n in counted]
    return node


def errors_of(outcomes: list[object]) -> list[int | None]:
    found: list[int | None] = []
    for outcome in outcomes:
        assert outcome is None or isinstance(outcome, aioblk.BlkioError), repr(outcome)
        found.append(None if outcome is None else outcome.errno)
    return found


AT_ITS_REQUEST = "what the device answered, at the request that it answered so; others, and the device, go on"


@fault(
    "eio-nth-write",
    "a disk answers its third write with EIO (blkdebug)",
    AT_ITS_REQUEST,
    "errors.md#where-they-are-raised",
)
async def eio_nth_write(setting: Setting) -> str:
    path = image(setting)
    rule = {"event": "pwritev", "iotype": "write", "state": 3, "errno": errno.EIO, "once": True}
    with StorageDaemon(failing(path, rule, states=3)) as daemon:
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
            outcomes: list[object] = []
            for number in range(5):
                change = device.write(number * BLOCK, stamped(number, 1))
                outcomes += await asyncio.gather(change, return_exceptions=True)
            codes = errors_of(outcomes)
            [failed] = [number for number, code in enumerate(codes) if code]
            assert codes[failed] == errno.EIO
            await device.write(failed * BLOCK, stamped(failed, 1))
            assert device.lost is None
            data = await device.read(0, 5 * BLOCK)
    assert data == b"".join(stamped(number, 1) for number in range(5))
    return f"write {failed + 1} of 5 failed with EIO, the same one again succeeded; 5 of 5 blocks right"


@fault(
    "eio-flush",
    "a disk answers a flush with EIO (blkdebug)",
    AT_ITS_REQUEST,
    "errors.md#where-they-are-raised",
)
async def eio_flush(setting: Setting) -> str:
    rule = {"event": "none", "iotype": "flush", "errno": errno.EIO, "once": True}
    with StorageDaemon(failing(image(setting), rule)) as daemon:
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
            await device.write(0, stamped(0, 1))
            outcomes = await asyncio.gather(device.flush(), device.read(0, BLOCK), return_exceptions=True)
            assert errors_of([outcomes[0]]) == [errno.EIO]
            assert outcomes[1] == stamped(0, 1)
            await device.flush()
    return "the flush failed with EIO, a read beside it did not, the next flush succeeded"


@fault(
    "throttle",
    "a disk that does 200 requests a second (QEMU's throttle)",
    "A device that is late is still a device: other requests on it go on, and closing waits for the late"
    " one.",
    "cancellation.md#deadlines",
)
async def throttle(setting: Setting) -> str:
    path = image(setting)
    node = {"driver": "throttle", "throttle-group": "slow", "file": over(path)}
    options = ["--object", "throttle-group,id=slow,limits.iops-total=200"]
    with StorageDaemon(node, options=options) as daemon:
        start = time.monotonic()
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
            requests = [device.write(number * BLOCK, stamped(number, 1)) for number in range(200)]
            await requests[0]
            late = sum(not request.done() for request in requests)
        assert late
        assert all(request.done() for request in requests)
        took = time.monotonic() - start
        for request in requests:
            request.result()
    assert path.read_bytes()[: 200 * BLOCK] == b"".join(stamped(number, 1) for number in range(200))
    return (
        f"{late} of 200 writes in flight when closing began; closed after {took:.1f} s, all of them on disk"
    )


@fault(
    "latency",
    "a disk that takes 700 ms for a request (null-co)",
    "on private memory a deadline is punctual, on the caller's memory it is as late as the device.",
    "cancellation.md#deadlines",
)
async def latency(_: Setting) -> str:
    with StorageDaemon({"driver": "null-co", "size": SIZE, "latency-ns": 700_000_000}) as daemon:
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device, device.allocate(BLOCK) as region:
            took: list[float] = []
            for request in (lambda: device.read(0, BLOCK), lambda: device.read_into(0, region)):
                await device.read(0, BLOCK)
                start = time.monotonic()
                try:
                    async with asyncio.timeout(0.05):
                        await request()
                except TimeoutError:
                    took.append(time.monotonic() - start)
            private, callers = took
            assert private < 0.7 <= callers + 0.01
    ended = f"read() ended after {1000 * private:.0f} ms, read_into() a region after {1000 * callers:.0f}"
    return f"a deadline of 50 ms: {ended}"


@fault(
    "sigstop",
    "a backend is stopped for a second, then goes on",
    "none of them closes anything, and without lost_after they are waited for, for ever.",
    "loss.md#how-it-is-noticed",
)
async def sigstop(setting: Setting) -> str:
    path = image(setting)
    with StorageDaemon(over(path)) as daemon:
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device, VerifiedLoad(device) as load:
            await load.progress(100)
            daemon.pause()
            turns = 0
            until = time.monotonic() + 1
            while time.monotonic() < until:
                await asyncio.sleep(0.001)
                turns += 1
            daemon.resume()
            await load.progress(100)
    load.check_file(path)
    return f"the loop made {turns} turns meanwhile; {load.writes} writes verified, none failed"


@fault(
    "silence",
    "a backend is stopped for good, the device has lost_after=1",
    "after that time, and at most a quarter of it later",
    "loss.md#how-it-is-noticed",
)
async def silence(setting: Setting) -> str:
    with StorageDaemon(over(image(setting))) as daemon:
        async with aioblk.VirtioBlkVhostUser(daemon.socket, lost_after=1.0) as device:
            await device.write(0, bytes(BLOCK))
            daemon.pause()
            start = time.monotonic()
            requests = [device.write(number * BLOCK, bytes(BLOCK)) for number in range(32)]
            outcomes = await asyncio.gather(*requests, return_exceptions=True)
            took = time.monotonic() - start
            assert all(isinstance(outcome, aioblk.DeviceLostError) for outcome in outcomes), outcomes
        closed = time.monotonic() - start
        assert took >= 0.75
    failed = f"32 of 32 requests failed with DeviceLostError after {took:.2f} s"
    return f"{failed}; closed {closed - took:.2f} s later"


@fault(
    "sigkill-each-second",
    "a backend is killed each second, for five minutes, under a load that verifies",
    "Nobody notices but by the time that it takes.",
    "loss.md#coming-back-by-itself",
)
async def sigkill_each_second(setting: Setting) -> str:
    path = image(setting)
    with StorageDaemon(over(path)) as daemon:
        device = aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=60, lost_after=60)
        return await killed_each_second(setting, device, path, daemon.restart)


async def killed_each_second(
    setting: Setting, device: aioblk.Device | aioblk.Nbd, path: Path, restart: Callable[[], object]
) -> str:
    """Whoever serves the file at *path* to the device, under a load that is verified to the end."""
    kills = 0
    async with device, VerifiedLoad(device) as load:
        until = time.monotonic() + setting.seconds(5, 300)
        while time.monotonic() < until:
            await load.progress()
            await asyncio.sleep(1)
            await asyncio.to_thread(restart)
            kills += 1
        await load.progress(100)
        assert device.lost is None
        back = device.reconnections
        assert back, "it was never lost"
    load.check_file(path)
    return f"killed {kills} times, back {back} times; {load.writes} writes verified, none failed"


@fault(
    "socket-removed",
    "the socket is removed, later the backend is killed and does not come back",
    "After SECONDS without success, all fail with DeviceLostError.",
    "loss.md#coming-back-by-itself",
)
async def socket_removed(setting: Setting) -> str:
    path = image(setting)
    with StorageDaemon(over(path)) as daemon:
        async with aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=1.0) as device:
            await device.write(0, stamped(0, 1))
            daemon.socket.unlink()
            assert await device.read(0, BLOCK) == stamped(0, 1)
            start = time.monotonic()
            daemon.kill()
            outcomes = await asyncio.gather(
                *(device.read(0, BLOCK) for _ in range(32)), return_exceptions=True
            )
            took = time.monotonic() - start
            assert all(isinstance(outcome, aioblk.DeviceLostError) for outcome in outcomes), outcomes
    failed = f"32 of 32 requests failed with DeviceLostError after {took:.2f} s"
    return f"went on without its socket; killed, {failed}"


async def resized(events: AsyncIterator[aioblk.DeviceEvent]) -> aioblk.DeviceEvent:
    """The first event of a new size."""
    async for event in events:
        if isinstance(event, aioblk.DeviceResized):
            return event
    raise AssertionError("nothing was told of it")


@fault(
    "resize",
    "a disk is made larger while it is used (QMP's block_resize)",
    "capacity_every asks for it every so many seconds, as refresh_capacity() does; that is what finds a"
    " volume that was made larger.",
    "loss.md#being-told",
)
async def resize(setting: Setting) -> str:
    path = image(setting)
    with StorageDaemon(over(path)) as daemon:
        async with (
            aioblk.VirtioBlkVhostUser(daemon.socket, reconnect_for=60) as device,
            VerifiedLoad(device) as load,
        ):
            events = device.events(capacity_every=0.1)
            told = asyncio.create_task(resized(events))
            await load.progress(100)
            await asyncio.to_thread(daemon.qmp, "block_resize", node_name="disk", size=2 * SIZE)
            await load.progress(100)
            how = "at once"
            if await device.refresh_capacity() == SIZE:
                # This QEMU tells of the size that it began with: its next process has the new one.
                how = "by the backend's next process"
                await asyncio.to_thread(daemon.restart)
            event = await told
            await events.aclose()
            assert event == aioblk.DeviceResized(SIZE, 2 * SIZE), event
            await device.write(2 * SIZE - BLOCK, stamped(7, 7))
            await load.progress(100)
    load.check_file(path)
    grown = f"{SIZE >> 20} MiB became {2 * SIZE >> 20}"
    return f"{grown}, told {how}, the last block written; {load.writes} writes verified"
