"""NBD: a server that dies under its client; a server whose device fails, and whose clients go."""

import asyncio
import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

import aioblk
from aioblk.nbd import Export, Policy, Server
from aioblk.testing.storage_daemon import StorageDaemon

from ..support.verified_load import BLOCK, VerifiedLoad, stamped
from .backends import SIZE, errors_of, failing, image, killed_each_second, over
from .files import FULL, fill, small_file_system
from .processes import descriptors
from .row import ROOT, Setting, fault


class Program:
    """A server that is a program of its own, at a Unix socket, and can be killed and started again."""

    def __init__(self, socket: Path, *command: str | Path, silent: bool = False) -> None:
        """*silent*: what it warns of is expected."""
        self.socket, self._command = socket, command
        self._errors = subprocess.DEVNULL if silent else None
        self.uri = f"nbd+unix:///?socket={socket}"
        self.start()

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *self._command],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        while not self.socket.exists():
            assert self._process.poll() is None, f"{self._command} ended"
            time.sleep(0.005)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def restart(self) -> None:
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def own(setting: Setting, path: Path) -> Program:
    socket = setting.directory / "own.sock"
    return Program(socket, sys.executable, "-m", "aioblk", "serve", "nbd", "--unix", socket, path)


def qemus(setting: Setting, path: Path) -> Program:
    socket = setting.directory / "qemu.sock"
    return Program(
        socket, "qemu-nbd", "--persistent", "--shared=8", "--format=raw", f"--socket={socket}", path
    )


AGAIN = "What was in flight is sent again, in its order, and new requests wait behind."
BREAKS = "nbd-client.md#when-the-connection-breaks"


async def _killed_each_second(setting: Setting, path: Path, server: Program) -> str:
    with server:
        device = aioblk.Nbd(server.uri, reconnect_for=60, connections=2, unflushed="trust")
        return await killed_each_second(setting, device, path, server.restart)


@fault(
    "nbd-own-server-killed",
    "aioblk serve nbd is killed each second under aioblk.Nbd",
    AGAIN,
    BREAKS,
)
async def own_server_killed(setting: Setting) -> str:
    path = image(setting)
    return await _killed_each_second(setting, path, own(setting, path))


@fault("nbd-qemu-server-killed", "qemu-nbd is killed each second under aioblk.Nbd", AGAIN, BREAKS)
async def qemu_server_killed(setting: Setting) -> str:
    path = image(setting)
    return await _killed_each_second(setting, path, qemus(setting, path))


@fault(
    "nbd-server-silent",
    "an NBD server is stopped for good, the client has lost_after=1",
    "So it is if the server broke the protocol, or was silent (lost_after), since one that is only slow would"
    " do later what it was sent.",
    BREAKS,
)
async def server_silent(setting: Setting) -> str:
    with qemus(setting, image(setting)) as server:
        async with aioblk.Nbd(server.uri, lost_after=1.0, reconnect_for=60) as device:
            await device.write(0, bytes(BLOCK))
            server.stop()
            start = time.monotonic()
            requests = [device.write(number * BLOCK, bytes(BLOCK)) for number in range(32)]
            outcomes = await asyncio.gather(*requests, return_exceptions=True)
            took = time.monotonic() - start
            assert all(isinstance(outcome, aioblk.DeviceLostError) for outcome in outcomes), outcomes
            assert device.lost is not None
        closed = time.monotonic() - start
    failed = f"32 of 32 requests failed with DeviceLostError after {took:.2f} s"
    return f"{failed}; closed {closed - took:.2f} s later"


@fault(
    "nbd-unflushed",
    "qemu-nbd is killed when it has answered a write that no flush has covered",
    "the device is lost: whoever uses it finds out, all of them. reconnect() when it was told to them",
    BREAKS,
)
async def unflushed(setting: Setting) -> str:
    with qemus(setting, image(setting)) as server:
        async with aioblk.Nbd(server.uri, reconnect_for=60) as device:
            await device.write(0, stamped(0, 1))
            await asyncio.to_thread(server.restart)
            try:
                await device.flush()
                raise AssertionError("the flush succeeded")
            except aioblk.DeviceLostError as error:
                cause = str(error.__cause__)
            await device.reconnect()
            await device.write(0, stamped(0, 1))
            await device.flush()
            await asyncio.to_thread(server.restart)
            assert await device.read(0, BLOCK) == stamped(0, 1)
            assert device.lost is None
    assert "flush" in cause, cause
    return "the flush failed with DeviceLostError; killed again after a flush, the client came back by itself"


@contextlib.asynccontextmanager
async def serving(
    setting: Setting, *devices: aioblk.BlockDevice, policy: Policy | None = None
) -> AsyncIterator[Server]:
    """A server in this process; its exports are d0, d1 and so on."""
    exports = [Export(device, f"d{number}") for number, device in enumerate(devices)]
    async with Server(exports, policy=policy or Policy(drain=1.0)) as server:
        server.listen_at_path(setting.directory / "nbd.sock")
        task = asyncio.create_task(server.serve())
        try:
            yield server
        finally:
            task.cancel()
            await asyncio.wait([task])


def address(server: Server, name: str) -> str:
    [uri] = server.uris(name)
    return uri


@fault(
    "nbd-server-device-fails",
    "the device of an NBD server answers its third write and a flush with EIO (blkdebug)",
    "An error of the device that the protocol has no number for is an input/output error.",
    "nbd.md#the-protocol",
)
async def server_device_fails(setting: Setting) -> str:
    first, second = image(setting), setting.directory / "second.img"
    second.write_bytes(bytes(SIZE))
    bad_write = {"event": "pwritev", "iotype": "write", "state": 3, "errno": errno.EIO, "once": True}
    bad_flush = {"event": "none", "iotype": "flush", "errno": errno.EIO, "once": True}
    with (
        StorageDaemon(failing(first, bad_write, states=3)) as one,
        StorageDaemon(failing(second, bad_flush)) as two,
    ):
        async with (
            aioblk.VirtioBlkVhostUser(one.socket) as writes,
            aioblk.VirtioBlkVhostUser(two.socket) as flushes,
            serving(setting, writes, flushes) as server,
            aioblk.Nbd(address(server, "d0")) as writer,
            aioblk.Nbd(address(server, "d1")) as flusher,
        ):
            outcomes: list[object] = []
            for number in range(5):
                change = writer.write(number * BLOCK, stamped(number, 1))
                outcomes += await asyncio.gather(change, return_exceptions=True)
            await flusher.write(0, stamped(0, 1))  # of a disk that was not written QEMU flushes nothing
            for _ in range(2):
                outcomes += await asyncio.gather(flusher.flush(), return_exceptions=True)
            codes = errors_of(outcomes)
            assert codes[5:] == [errno.EIO, None], codes
            assert sorted(code or 0 for code in codes[:5]) == [0] * 4 + [errno.EIO], codes
            assert writer.lost is flusher.lost is None
    return "1 of 5 writes and 1 of 2 flushes failed with EIO at their clients, which stayed connected"


@fault(
    "nbd-server-device-full",
    "the file of an NBD server is on a file system that is full",
    FULL + " BlkioError and its errno (ENOSPC, EIO)",
    "errors.md#what-to-catch",
)
async def server_device_full(setting: Setting) -> str:
    with small_file_system(setting) as where:
        async with (
            aioblk.IoUring(where / "disk.img", create=SIZE) as device,
            serving(setting, device) as server,
            aioblk.Nbd(address(server, "d0")) as client,
        ):
            written, error = await fill(client)
            assert error.errno == errno.ENOSPC, error
            await client.discard(0, BLOCK)
            await client.write(written * BLOCK, stamped(written, 1))
            assert await client.read(written * BLOCK, BLOCK) == stamped(written, 1)
            assert await client.read(BLOCK, BLOCK) == stamped(1, 1)
    return f"block {written} failed with ENOSPC at the client, and succeeded when another had been discarded"


@fault(
    "nbd-server-device-lost",
    "the backend of an NBD server's device is killed under a load, comes back, and when_lost is 'reconnect'",
    "opens the device again as soon as that can be done, and until then refuses clients in words",
    "nbd.md#when-the-device-is-lost",
)
async def server_device_lost(setting: Setting) -> str:
    path = image(setting)
    policy = Policy(drain=1.0, when_lost="reconnect")
    with StorageDaemon(over(path)) as daemon:
        async with (
            aioblk.VirtioBlkVhostUser(daemon.socket) as device,
            serving(setting, device, policy=policy) as server,
        ):
            async with aioblk.Nbd(address(server, "d0")) as client:
                requests = [client.write(number * BLOCK, stamped(number, 1)) for number in range(32)]
                await requests[0]
                daemon.kill()
                outcomes = await asyncio.gather(*requests, client.flush(), return_exceptions=True)
                while client.lost is None:  # noqa: ASYNC110 (its event ends with the device)
                    await asyncio.sleep(0.01)
            assert isinstance(outcomes[-1], OSError), "a flush succeeded"
            with pytest.raises(aioblk.BlkioError, match="the device is lost"):
                await aioblk.Nbd(address(server, "d0")).open()
            await asyncio.to_thread(daemon.restart)
            again = await let_in(address(server, "d0"))
            async with contextlib.aclosing(again), VerifiedLoad(again, zeroes_first=True) as load:
                await load.progress(100)
        load.check_file(path)
    verified = f"{load.writes} writes of the next client verified"
    return f"the client was sent away, and no flush succeeded; back, {verified}"


async def let_in(uri: str) -> aioblk.Nbd:
    """As soon as the server does not refuse its client any more."""
    while True:
        try:
            return await aioblk.Nbd(uri).open()
        except aioblk.BlkioError as error:
            assert "the device is lost" in str(error), error  # noqa: PT017 (it may be let in)
            await asyncio.sleep(0.05)


ENDURES = "However clients behave, others go on and the end comes."


@fault(
    "nbd-client-gone",
    "clients of an NBD server are killed in the middle of what they write",
    ENDURES,
    "nbd.md#limits",
)
async def client_gone(setting: Setting) -> str:
    path = image(setting)
    times = setting.times(5, 100)
    source = """if True:
        import asyncio, sys
        import aioblk
        async def main():
            async with aioblk.Nbd(sys.argv[1]) as device:
                requests = [device.write((4 << 20) + (n % 32) * 65536, bytes(65536)) for n in range(512)]
                await requests[0]
                print("begun", flush=True)
                await asyncio.gather(*requests)
                await asyncio.sleep(60)
        asyncio.run(main())
    """
    async with (
        aioblk.IoUring(path) as device,
        serving(setting, device) as server,
        aioblk.Nbd(address(server, "d0")) as other,
        VerifiedLoad(other) as load,
    ):
        await load.progress()
        before = descriptors()
        for _ in range(times):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", source, address(server, "d0"), cwd=ROOT, stdout=asyncio.subprocess.PIPE
            )
            assert process.stdout is not None
            assert await process.stdout.readline() == b"begun\n"
            process.kill()
            await process.wait()
            await load.progress(10)
        async with asyncio.timeout(30):
            while server.statistics().clients > 1 or descriptors() > before:  # noqa: ASYNC110 (there is no event)
                await asyncio.sleep(0.01)
    load.check_file(path)
    return f"{times} clients killed, nothing of them left; {load.writes} writes of another verified"


def next_descriptor() -> int:
    """The number that the next one would have."""
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    return fd


CALLER = """if True:
    import socket, sys
    sys.stdin.read(1)
    caller = socket.socket(socket.AF_UNIX)
    caller.settimeout(30)
    caller.connect(sys.argv[1])
    print(len(caller.recv(1)))
"""


@fault(
    "nbd-descriptors",
    "an NBD server has no more descriptors when clients come",
    "Where the process may have no more descriptors, and all are at work, who comes is closed",
    "nbd.md#limits",
)
async def server_out_of_descriptors(setting: Setting) -> str:
    path = image(setting)
    async with aioblk.IoUring(path) as device, serving(setting, device) as server:
        where = server.sockets[0].getsockname()
        async with aioblk.Nbd(address(server, "d0")) as client, VerifiedLoad(client) as load:
            await load.progress(10)
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            turned_away = 0
            for _ in range(setting.times(3, 50)):
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-S", "-c", CALLER, where),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                )
                assert process.stdin is not None
                resource.setrlimit(resource.RLIMIT_NOFILE, (next_descriptor(), limits[1]))
                try:
                    process.stdin.write(b"x")
                    said, _ = await process.communicate()
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                turned_away += said == b"0\n"
                await load.progress(10)
            async with aioblk.Nbd(address(server, "d0")) as later:
                assert len(await later.read(0, BLOCK)) == BLOCK
    load.check_file(path)
    assert turned_away
    return (
        f"{turned_away} callers closed at once, one later let in; {load.writes} writes of a client verified"
    )
