"""What a process may run out of, or is not let do; forks, signals, its end."""

import asyncio
import errno
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import aioblk
from aioblk.testing.storage_daemon import StorageDaemon

from ..support.no_io_uring import forbid_io_uring
from ..support.verified_load import BLOCK, VerifiedLoad, stamped
from .backends import SIZE, image, over
from .row import LIMITS, ROOT, Setting, fault


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


EXHAUSTED = (
    "Where threads or descriptors have run out, a request, a registration or open() fails with that error and"
    " nothing is left behind"
)


@fault("descriptors", "a process has no more descriptors", EXHAUSTED, "architecture.md#life-of-a-device")
async def out_of_descriptors(setting: Setting) -> str:
    path = image(setting)
    with StorageDaemon(over(path)) as daemon:
        kinds: list[Callable[[], aioblk.Device]] = [
            lambda: aioblk.IoUring(path),
            lambda: aioblk.VirtioBlkVhostUser(daemon.socket),
        ]
        for make in kinds:
            async with make() as warm:
                await warm.read(0, BLOCK)
        before = descriptors()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        failed = opened = 0
        for make in kinds:
            for spare in range(32):
                resource.setrlimit(resource.RLIMIT_NOFILE, (before + spare, limits[1]))
                try:
                    async with make() as device:
                        await device.write(0, stamped(0, 1))
                        assert await device.read(0, BLOCK) == stamped(0, 1)
                        opened += 1
                except aioblk.BlkioError as error:
                    assert error.errno == errno.EMFILE, error  # noqa: PT017 (it may open)
                    failed += 1
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                assert descriptors() == before
        assert failed
        assert opened
    return f"with 0 to 31 spare: {failed} times EMFILE, {opened} times all went well, never one left open"


def alone(source: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program of its own; it may end as it likes."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LIMITS[False],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@fault(
    "memlock",
    "a user may lock no more than 40 KiB, and opens twenty rings, one after the other",
    "takes the file out of the ring before, and waits for the memory where the next device lacks it",
    "hazards.md#life-and-death",
)
async def memlock(setting: Setting) -> str:
    path = image(setting)
    path.chmod(0o666)
    ended = await asyncio.to_thread(
        alone,
        """
        import asyncio, os, resource, sys
        import aioblk
        aioblk.IoUring  # is imported when it is named: as long as this is a user who may read the interpreter
        fd = os.open(sys.argv[1], os.O_RDWR)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (40 << 10, 40 << 10))
        with open("/proc/self/uid_map") as file:
            [*_, users] = file.readline().split()
        if os.getuid() == 0 and int(users) > 1:  # the only user of a namespace is no root
            os.setgid(65534)
            os.setuid(65534)
        async def main():
            for number in range(20):
                async with aioblk.IoUring(fd=fd) as device:
                    await device.write(4096 * number, bytes(4096))
            print(number + 1)
        asyncio.run(main())
        """,
        path,
    )
    assert ended.returncode == 0, ended.stderr
    return f"{ended.stdout.strip()} of 20 rings opened, used and closed"


@fault(
    "seccomp",
    "a sandbox forbids io_uring (a seccomp filter, as of containers)",
    "BlkioError with what the system said and, where it is known, what usually lies behind it.",
    "errors.md#where-they-are-raised",
)
async def seccomp(setting: Setting) -> str:
    path = image(setting)
    with StorageDaemon(over(path)) as daemon:
        before = descriptors()
        forbid_io_uring(errno.EPERM)
        with pytest.raises(aioblk.BlkioError, match="seccomp") as caught:
            await aioblk.IoUring(path).open()
        assert caught.value.errno == errno.EPERM
        assert descriptors() == before
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device, VerifiedLoad(device) as load:
            await load.progress(100)
    return f"IoUring: EPERM, which names seccomp; vhost-user beside it: {load.writes} writes verified"


def address_space() -> int:
    """Bytes that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@fault(
    "memory",
    "a process may have no more memory (RLIMIT_AS), while it reads, writes and registers",
    "wait for descriptors, memory or threads of the process BlkioError and its errno (EMFILE, ENOMEM,"
    " EAGAIN)",
    "errors.md#what-to-catch",
)
async def out_of_memory(setting: Setting) -> str:
    path = image(setting, 256 << 20)
    refused: dict[tuple[str, int], int] = {}
    with StorageDaemon(over(path)) as daemon:
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device, VerifiedLoad(device) as load:
            await load.progress(100)
            limits = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (address_space() + (16 << 20), limits[1]))
            try:
                for _ in range(setting.times(20, 500)):
                    for what in ("read", "allocate"):
                        try:
                            if what == "read":
                                await device.read(0, 128 << 20)
                            else:
                                async with device.allocate(128 << 20):
                                    raise AssertionError("it was allocated")
                        except (MemoryError, aioblk.BlkioError) as error:
                            code = getattr(error, "errno", errno.ENOMEM)
                            refused[what, code] = refused.get((what, code), 0) + 1
                    await load.progress()
            finally:
                resource.setrlimit(resource.RLIMIT_AS, limits)
            assert len(await device.read(0, 128 << 20)) == 128 << 20
    load.check_file(path)
    assert {code for _, code in refused} == {errno.ENOMEM}, refused
    told = ", ".join(f"{what}() refused {times} times" for (what, _), times in refused.items())
    return f"{told}; {load.writes} writes beside them verified, and it goes on afterwards"


@fault(
    "fork",
    "a program forks while requests are in flight",
    "everything that reaches the device raises UsageError in the child.",
    "queues.md#after-fork",
)
async def fork(setting: Setting) -> str:
    path = image(setting)
    forks = setting.times(10, 100)
    with StorageDaemon(over(path)) as daemon:
        async with aioblk.VirtioBlkVhostUser(daemon.socket) as device, VerifiedLoad(device) as load:
            for _ in range(forks):
                await load.progress(10)
                child = os.fork()
                if child == 0:
                    status = 1
                    for call in (
                        lambda: device.read(0, BLOCK),
                        device.flush,
                        lambda: device.write(0, bytes(BLOCK)),
                    ):
                        try:
                            call()
                        except aioblk.UsageError:
                            continue
                        os._exit(status)
                    os._exit(0)
                _, status = await asyncio.to_thread(os.waitpid, child, 0)
                assert os.waitstatus_to_exitcode(status) == 0
    load.check_file(path)
    return f"{forks} forks: 3 of 3 calls refused in each child; {load.writes} writes of the parent verified"


@fault(
    "interpreter-exit",
    "a program ends in the middle: devices open, requests in flight",
    "the interpreter's end everything still open ends cleanly",
    "memory.md#use-after",
)
async def interpreter_exit(setting: Setting) -> str:
    path = image(setting)
    times = setting.times(2, 20)
    with StorageDaemon(over(path)) as daemon:
        for _ in range(times):
            for end in ("sys.exit(7)", "os._exit(7)", "loop.stop()"):
                ended = await asyncio.to_thread(
                    alone,
                    f"""
                    import asyncio, os, sys, warnings
                    import aioblk
                    warnings.simplefilter("ignore", ResourceWarning)
                    loop = asyncio.new_event_loop()
                    loop.set_exception_handler(lambda *_: None)
                    async def main():
                        global devices, requests
                        devices = [aioblk.IoUring(sys.argv[1]), aioblk.VirtioBlkVhostUser(sys.argv[2])]
                        for device in devices:
                            await device.open()
                        requests = [d.write(n * 4096, bytes(4096)) for n in range(256) for d in devices]
                        await asyncio.sleep(0)
                        {end}
                    if {end == "loop.stop()"}:
                        loop.create_task(main())
                        loop.run_forever()
                        sys.exit(7)
                    loop.run_until_complete(main())
                    """,
                    path,
                    daemon.socket,
                )
                assert ended.returncode == 7, (end, ended.returncode, ended.stderr)
            async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
                assert await device.read(0, BLOCK) == bytes(BLOCK)
    ended_well = f"{3 * times} of {3 * times} programs ended with their own status"
    return f"{ended_well}; the backend served the next client each time"


@fault(
    "ctrl-c",
    "SIGINT at random moments of a load that verifies",
    "wherever they arrive, in a call, a callback, the items of a batch or a buffer that is let go, they are"
    " raised there or in the loop's next turn.",
    "errors.md#where-they-are-raised",
)
async def ctrl_c(setting: Setting) -> str:
    times = setting.times(20, 300)
    return await asyncio.to_thread(_interrupted, image(setting), times)


def _interrupted(path: Path, times: int) -> str:
    ended = alone("from tests.reliability.processes import interrupt; interrupt()", path, times)
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr, ended.stderr
    return ended.stdout.strip()


PATIENCE = 30  # seconds, in which SIGINT has to end a load


def given_back(before: int) -> None:
    """What was being opened is given back by the thread that opens it, maybe a moment later."""
    end = time.monotonic() + 10
    while descriptors() > before:
        assert time.monotonic() < end, f"{descriptors()} descriptors are open, not {before}"
        time.sleep(0.01)


async def warm(path: Path, socket: Path) -> None:
    """What is opened once in a process is open afterwards."""
    async with aioblk.IoUring(path) as first, aioblk.VirtioBlkVhostUser(socket) as second:
        await asyncio.gather(first.read(0, BLOCK), second.read(0, BLOCK))


def interrupt() -> None:
    """The program that is interrupted: many times in one process, so that what is left behind is seen."""
    # In the background of a shell SIGINT is ignored, by all that it starts; asyncio.run() leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    path, times = Path(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(1)
    writes = 0
    with StorageDaemon(over(path)) as daemon:
        asyncio.run(warm(path, daemon.socket))
        before = descriptors()
        for number in range(times):
            loads: list[VerifiedLoad] = []

            delay = chance.uniform(0, 0.1)
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))

            async def main(
                first: bool = number % 2 == 0,
                loads: list[VerifiedLoad] = loads,
                timer: threading.Timer = timer,
            ) -> None:
                # Not before: asyncio.run() that is interrupted while it makes its loop, or begins the task,
                # leaves the loop's descriptors to the garbage collection, or for ever.
                timer.start()
                make = aioblk.IoUring(path) if first else aioblk.VirtioBlkVhostUser(daemon.socket)
                async with make as device:
                    loads.append(VerifiedLoad(device))
                    async with asyncio.timeout(PATIENCE):
                        await loads[0].run()

            with suppress(KeyboardInterrupt):
                with suppress(TimeoutError):
                    asyncio.run(main())
                raise AssertionError(f"round {number}: SIGINT after {delay:.4f} s did not end it")
            timer.join()
            for load in loads:
                load.check_file(path)
                writes += load.writes
            path.write_bytes(bytes(SIZE))
            given_back(before)
    print(
        f"{times} of {times} ended with KeyboardInterrupt, no descriptor was left; {writes} writes verified"
    )
