# ruff: noqa: ASYNC240 - some tests look at the device's file, and do nothing else meanwhile
"""The log store: what it promises about its records, also to those who are killed."""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import pytest
from log_store import LARGEST_RECORD, LogError, LogFullError, LogInUseError, LogStore, Record
from typing_extensions import Buffer

import aioblk

from ..support.nbd_server import EXAMPLES, TIME_LIMIT
from .appender import is_whole

if TYPE_CHECKING:
    from ..conftest import StorageDaemonFactory

LIVES = 120
LIVES_OF_A_LOG = 10
SIZE = 64 << 20
LONGEST_LIFE = 0.03  # seconds, once the log is open


@pytest.fixture
async def device(scratch_file: Path) -> AsyncIterator[aioblk.Device]:
    async with aioblk.IoUring(scratch_file, direct=True) as device:
        await LogStore.format(device)
        yield device


async def contents(log: LogStore, first: int = 1) -> list[bytes]:
    return [record.data async for record in log.records(first)]


async def reopened(device: aioblk.Device) -> list[bytes]:
    async with LogStore(device) as log:
        return await contents(log)


# --- appending and reading ----------------------------------------------------------------------------------


async def test_records_come_back_in_order(device: aioblk.Device) -> None:
    records = [b"", b"a", b"b" * 4095, b"c" * 100_000, b"\0" * 5000, b"", b"d" * LARGEST_RECORD, b"e"]
    async with LogStore(device) as log:
        assert [await log.append(record) for record in records] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert log.last == 8
        assert await contents(log) == records
        assert await contents(log, 6) == records[5:]
    assert await reopened(device) == records


async def test_appending_goes_on_after_reopening(device: aioblk.Device) -> None:
    for number in range(1, 6):
        async with LogStore(device) as log:
            assert await log.append(b"%d" % number) == number
    assert await reopened(device) == [b"1", b"2", b"3", b"4", b"5"]


async def test_those_who_append_together_share_a_write(device: aioblk.Device) -> None:
    async with LogStore(device) as log:
        numbers = await asyncio.gather(*(log.append(b"%d" % number) for number in range(1000)))
        assert numbers == list(range(1, 1001))
        assert log.groups_written == 1
    assert await reopened(device) == [b"%d" % number for number in range(1000)]


async def test_a_full_log_refuses_and_keeps_what_it_has(device: aioblk.Device) -> None:
    async with LogStore(device) as log:
        outcomes = await asyncio.gather(
            *(log.append(bytes([number]) * 1_000_000) for number in range(20)), return_exceptions=True
        )
        fitting = [outcome for outcome in outcomes if isinstance(outcome, int)]
        refused = [outcome for outcome in outcomes if isinstance(outcome, LogFullError)]
        assert len(fitting) + len(refused) == 20
        assert fitting == [1, 2, 3, 4, 5, 6, 7, 8]
        last = await log.append(b"small")
    assert [record[:1] for record in await reopened(device)][-2:] == [b"\7", b"s"]
    assert last == 9


async def test_what_cannot_be_appended(device: aioblk.Device) -> None:
    log = LogStore(device)
    with pytest.raises(LogError, match="not open"):
        await log.append(b"")
    async with log:
        with pytest.raises(ValueError, match="at most"):
            await log.append(bytes(LARGEST_RECORD + 1))
    with pytest.raises(LogError, match="closed"):
        await log.append(b"")
    async with LogStore(device, read_only=True) as log:
        with pytest.raises(LogError, match="read only"):
            await log.append(b"")


async def test_a_bad_record_is_its_appenders_business(device: aioblk.Device) -> None:
    async with LogStore(device) as log:
        bad: list[Any] = ["text", 5, None, ["list"], bytes(LARGEST_RECORD + 1)]
        changing = bytearray(b"as it was")
        async with asyncio.timeout(TIME_LIMIT):
            good = [asyncio.create_task(log.append(b"before %d" % number)) for number in range(3)]
            worse = [asyncio.create_task(log.append(record)) for record in bad]
            good += [
                asyncio.create_task(log.append(record)) for record in (changing, memoryview(b"abcd")[::2])
            ]
            await asyncio.sleep(0)
            changing[:] = b"something else"
            for task in worse:
                with pytest.raises((TypeError, ValueError), match="a record"):
                    await task
            assert await asyncio.gather(*good) == [1, 2, 3, 4, 5]
    assert await reopened(device) == [b"before 0", b"before 1", b"before 2", b"as it was", b"ac"]


class Faulty:
    """A device whose writes fail with anything."""

    def __init__(self, device: aioblk.Device, error: BaseException) -> None:
        self._device = device
        self._error = error
        self.armed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        if self.armed:
            raise self._error
        await self._device.write(offset, data, fua=fua)


@pytest.mark.parametrize("error", [MemoryError("none left"), RuntimeError("whatever")])
async def test_nobody_waits_for_ever_whatever_fails(device: aioblk.Device, error: Exception) -> None:
    faulty = Faulty(device, error)
    async with LogStore(cast(aioblk.Device, faulty)) as log, asyncio.timeout(TIME_LIMIT):
        await log.append(b"before")
        faulty.armed = True
        outcomes = await asyncio.gather(
            *map(log.append, [b"1", b"2", bytes(LARGEST_RECORD)]), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [type(error), type(error), LogError]
        with pytest.raises(LogError, match="opened again"):
            await log.append(b"after")
    assert await reopened(device) == [b"before"]


async def test_errors_do_not_collect_the_frames_of_all_who_meet_them(device: aioblk.Device) -> None:
    faulty = Faulty(device, MemoryError("none left"))
    async with LogStore(cast(aioblk.Device, faulty)) as log, asyncio.timeout(TIME_LIMIT):
        faulty.armed = True
        met: list[BaseException] = []
        for outcome in await asyncio.gather(*map(log.append, [b"1", b"2"]), return_exceptions=True):
            assert isinstance(outcome, MemoryError)
            met.append(outcome)
        for _ in range(5):
            with pytest.raises(LogError) as caught:
                await log.append(b"")
            met.append(caught.value)
    assert len(set(map(id, met))) == len(met)


async def test_a_device_without_a_log(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        with pytest.raises(LogError, match="format"):
            await LogStore(device).__aenter__()


async def test_formatting_forgets_everything(device: aioblk.Device) -> None:
    async with LogStore(device) as log:
        await log.append(b"old")
    await LogStore.format(device, force=True)
    assert await reopened(device) == []


async def test_a_cancelled_append_harms_nobody(device: aioblk.Device) -> None:
    async with LogStore(device) as log:
        tasks = [asyncio.create_task(log.append(b"%d" % number)) for number in range(10)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(outcomes[3], asyncio.CancelledError)
        assert await log.append(b"after") == 11
    assert (await reopened(device))[-1] == b"after"


async def test_leaving_that_is_cancelled_leaves_nothing_in_flight(device: aioblk.Device) -> None:
    """It could land on what the next writer writes."""
    log = await LogStore(device).__aenter__()
    appending = [asyncio.create_task(log.append(bytes(100_000))) for _ in range(50)]
    await asyncio.sleep(0)
    leaving = asyncio.create_task(log.__aexit__(None, None, None))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert log.last == 50
    assert await asyncio.gather(*appending) == [*range(1, 51)]
    async with LogStore(device, read_only=True) as reader:
        assert reader.last == 50


async def test_a_log_is_opened_once_at_a_time(device: aioblk.Device) -> None:
    """And again when it is closed."""
    log = LogStore(device)
    for number in (1, 2):
        async with log:
            with pytest.raises(LogError, match="open already"):
                await log.__aenter__()
            async with LogStore(device, read_only=True):
                with pytest.raises(LogInUseError):
                    await LogStore(device).__aenter__()
            assert await log.append(b"a record") == number


async def test_a_device_that_fails_ends_the_log(
    scratch_file: Path, storage_daemon: "StorageDaemonFactory"
) -> None:
    daemon = storage_daemon(scratch_file)
    async with aioblk.VirtioBlkVhostUser(daemon.socket) as device:
        await LogStore.format(device)
        async with LogStore(device) as log:
            await log.append(b"before")
            daemon.kill()
            with pytest.raises(aioblk.DeviceLostError):
                await device.flush()
            outcomes = await asyncio.gather(*map(log.append, [b"1", b"2", b"3"]), return_exceptions=True)
            assert all(isinstance(outcome, aioblk.DeviceLostError) for outcome in outcomes)
            with pytest.raises(LogError, match="opened again"):
                await log.append(b"after")


# --- what a crash leaves ------------------------------------------------------------------------------------


async def test_a_torn_group_is_cut_at_the_last_whole_record(
    device: aioblk.Device, scratch_file: Path
) -> None:
    """Whatever blocks of the last group reached the medium, in whatever order."""
    chance = random.Random(1)
    records = [chance.randbytes(chance.randrange(3000)) for _ in range(20)]
    async with LogStore(device) as log:
        await log.append(b"safe")
        group = log.used
        before = scratch_file.read_bytes()
        await asyncio.gather(*map(log.append, records))
        assert log.groups_written == 2
        end = log.used
    after = scratch_file.read_bytes()
    for _ in range(30):
        torn = bytearray(before)
        for block in range(group, end, 512):
            if chance.random() < 0.8:
                torn[block : block + 512] = after[block : block + 512]
        scratch_file.write_bytes(torn)
        kept = await reopened(device)
        assert kept[0] == b"safe"
        assert kept[1:] == records[: len(kept) - 1]
        # What lies behind the tear is not taken for a continuation, even where the numbers would fit.
        async with LogStore(device) as log:
            await log.append(b"new")
        assert await reopened(device) == [*kept, b"new"]


# --- kill -9 ------------------------------------------------------------------------------------------------


@contextmanager
def forker() -> Iterator[IO[str]]:
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES)}
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("appender.py")],
        stdin=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None
        try:
            yield process.stdin
        finally:
            process.kill()


class Life:
    """A process that appended until it was killed, and what it had been told by then."""

    def __init__(
        self, forker: IO[str], driver: str, path: Path, listener: socket.socket, seconds: float
    ) -> None:
        forker.write(f"{driver} {path} {listener.getsockname()}\n")
        forker.flush()
        connection, _ = listener.accept()
        with connection:
            told = connection.recv(100)  # the log is open
            self.pid = int(told.split()[1])
            end = time.monotonic() + seconds
            with suppress(TimeoutError):
                while (left := end - time.monotonic()) > 0:
                    connection.settimeout(left)
                    told += connection.recv(1 << 16)
            os.kill(self.pid, signal.SIGKILL)
            connection.settimeout(None)
            while piece := connection.recv(1 << 16):
                told += piece
        *lines, _ = told.decode().split("\n")
        self.durable = {
            int(number): f"{self.pid} {appender} {turn} ".encode()
            for number, appender, turn in (line.split() for line in lines[1:])
        }


def check(life: Life, records: list[Record]) -> None:
    """Every record that was acknowledged is there, and nothing is torn, lost in between or out of order."""
    assert all(is_whole(record.data) for record in records)
    by_number = {record.number: record.data for record in records}
    for number, beginning in life.durable.items():
        assert by_number[number].startswith(beginning)
    turns: dict[bytes, int] = {}
    for record in records:
        _, appender, turn, _ = record.data.split(b" ", 3)
        assert int(turn) == turns.get(appender, 0)
        turns[appender] = int(turn) + 1


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(TIME_LIMIT)
        listener.bind(os.path.relpath(tmp_path / "told"))
        listener.listen()
        yield listener


@pytest.mark.parametrize("kind", ["direct", "vhost-user"])
def test_killed_at_any_moment(
    kind: str, tmp_path: Path, storage_daemon: "StorageDaemonFactory", listener: socket.socket
) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, SIZE)
    if kind == "vhost-user":
        driver, path = "virtio-blk-vhost-user", storage_daemon(image).socket
    else:
        driver, path = "io_uring", image
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    durable = known = 0
    with forker() as processes:
        for count in range(LIVES // 2):
            if count % LIVES_OF_A_LOG == 0:
                known = asyncio.run(recover(aioblk.open(driver, path=path), None, 0))
            life = Life(processes, driver, path, listener, chance.uniform(0, LONGEST_LIFE))
            durable += len(life.durable)
            known = asyncio.run(recover(aioblk.open(driver, path=path), life, known))
    assert durable > LIVES, f"seed {seed}"


async def recover(device: aioblk.Openable, life: Life | None, known: int) -> int:
    """Check what a life has added to the *known* records, or begin with none; how many there are."""
    async with device:
        if life is None:
            await LogStore.format(device, force=True)
            return 0
        async with LogStore(device) as log:
            check(life, [record async for record in log.records(known + 1)])
            return log.last
