# ruff: noqa: ASYNC240 - these tests change the device's file, and do nothing else meanwhile
"""The log store under attack: flipped bits, flushes that fail, a second writer, devices of other uses."""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from _log.layout import GROUP_HEAD, HEADER, RECORD, Header
from _log.signatures import LOOK_AT, SIGNATURES
from log_store import (
    BLOCK,
    LARGEST_RECORD,
    MARK_EVERY,
    LogDamagedError,
    LogError,
    LogFullError,
    LogInUseError,
    LogStore,
    OccupiedError,
    Record,
)
from typing_extensions import Buffer

import aioblk
from aioblk.testing.storage_daemon import StorageDaemon

if TYPE_CHECKING:
    from ..conftest import StorageDaemonFactory

TIME_LIMIT = 20
SMALL = 512 << 10


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.touch()
    os.truncate(path, SMALL)
    return path


@pytest.fixture
async def device(image: Path) -> AsyncIterator[aioblk.Device]:
    async with aioblk.IoUring(image) as device:
        await LogStore.format(device)
        yield device


async def contents(device: aioblk.Device) -> list[bytes]:
    """What a reader gets. It raises where that is not all there was."""
    async with LogStore(device, read_only=True) as log:
        return [record.data async for record in log.records()]


# --- flipped bits -------------------------------------------------------------------------------------------


class Written:
    """A log of groups and records of many sizes, its bytes, and where everything is."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.groups: list[int] = []
        self.heads: list[int] = []
        """Of records."""
        self.killed = b""
        """The device, had its writer been killed after the last acknowledgement."""
        self.closed = b""


async def write(device: aioblk.Device, image: Path) -> Written:
    written, chance = Written(), random.Random(11)
    async with LogStore(device) as log:
        for _ in range(12):
            group = [
                chance.randbytes(chance.choice([0, 1, 100, 4000, 4096, 9000]))
                for _ in range(chance.randrange(1, 4))
            ]
            written.groups.append(log.used)
            position = log.used + GROUP_HEAD.size
            for record in group:
                written.heads.append(position)
                position += RECORD.size + len(record)
            await asyncio.gather(*map(log.append, group))
            written.records += group
        written.killed = image.read_bytes()
    written.closed = image.read_bytes()
    return written


def bytes_to_flip(written: Written) -> list[int]:
    """Everything that is small and important, and a choice of all the rest."""
    places = {*range(HEADER.size), *range(BLOCK, BLOCK + HEADER.size)}
    for group in written.groups[::4]:
        places |= {*range(group, group + GROUP_HEAD.size)}
    for head in written.heads[::5]:
        places |= {*range(head, head + RECORD.size)}
    chance = random.Random(12)
    places |= {chance.randrange(len(written.closed.rstrip(b"\0"))) for _ in range(150)}
    return sorted(places)


def flip(image: Path, whole: bytes, place: int) -> bytes:
    flipped = bytearray(whole)
    flipped[place] ^= 1 << random.Random(place).randrange(8)
    image.write_bytes(flipped)
    return bytes(flipped)


class Opened:
    """What a writer finds."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.notes: list[str] = []
        self.damage: LogDamagedError | None = None


async def open_and_read(device: aioblk.Device) -> Opened:
    opened = Opened()
    try:
        async with LogStore(device) as log:
            opened.notes = log.notes
            opened.records = [record.data async for record in log.records()]
    except LogDamagedError as damage:
        opened.damage = damage
    return opened


async def test_a_flipped_bit_anywhere_is_refused_or_does_no_harm(device: aioblk.Device, image: Path) -> None:
    written = await write(device, image)
    refused = 0
    for place in bytes_to_flip(written):
        flipped = flip(image, written.closed, place)
        opened = await open_and_read(device)
        if (damage := opened.damage) is None:
            assert opened.records == written.records
            in_a_header = place < HEADER.size or BLOCK <= place < BLOCK + HEADER.size
            assert bool(opened.notes) == in_a_header
            continue
        refused += 1
        assert image.read_bytes() == flipped, "something was changed"
        head = written.heads[damage.number - 1]
        group = max(group for group in written.groups if group <= head)
        assert damage.offset in (head, group)
        assert damage.offset <= place
        assert f"record {damage.number} is damaged, at offset {damage.offset}" in str(damage)
        # Whoever only reads gets what is before.
        found: list[bytes] = []
        async with LogStore(device, read_only=True) as log:
            with pytest.raises(LogDamagedError):  # noqa: PT012
                async for record in log.records():
                    found.append(record.data)  # noqa: PERF401
        assert found == written.records[: damage.number - 1]
        assert image.read_bytes() == flipped
    assert refused > 100


async def test_a_bit_that_is_flipped_after_a_crash(device: aioblk.Device, image: Path) -> None:
    """Only in the last group can it be taken for what the crash did, and that is said."""
    written = await write(device, image)
    last = written.groups[-1]
    before = sum(head < last for head in written.heads)
    for place in bytes_to_flip(written):
        flip(image, written.killed, place)
        opened = await open_and_read(device)
        if opened.damage is not None:
            assert opened.damage.number <= before
            continue
        assert len(opened.records) >= before
        assert opened.records == written.records[: len(opened.records)]
        if len(opened.records) < len(written.records):
            assert place >= last
            assert any("not whole" in note for note in opened.notes)


async def test_a_log_that_rests_is_as_safe_as_a_closed_one(device: aioblk.Device, image: Path) -> None:
    async with LogStore(device) as log:
        await log.append(b"a record that was acknowledged")
        async with asyncio.timeout(TIME_LIMIT):
            while newest_header(image).last != 1:  # noqa: ASYNC110 (it tells nobody)
                await asyncio.sleep(0.01)
        whole = image.read_bytes()
    image.write_bytes(whole.replace(b"acknowledged", b"acKnowledged"))
    with pytest.raises(LogDamagedError):
        await LogStore(device).__aenter__()


def newest_header(image: Path) -> Header:
    data = image.read_bytes()
    headers = [Header.unpack(data[offset : offset + BLOCK]) for offset in (0, BLOCK)]
    return max((header for header in headers if header), key=lambda header: header.sequence)


OTHER = bytes(reversed(range(256)))
"""For each byte another one."""


async def test_damage_of_any_size_is_seen_from_what_comes_behind(tmp_path: Path) -> None:
    """After a crash as well: some header is never far behind."""
    image = tmp_path / "large"
    image.touch()
    os.truncate(image, 12 * MARK_EVERY)
    async with aioblk.IoUring(image) as device:
        await LogStore.format(device)
        async with LogStore(device) as log:
            while log.used < 8 * MARK_EVERY:
                await asyncio.gather(*(log.append(bytes([log.last % 256]) * 50_000) for _ in range(15)))
            end = log.used
            whole = image.read_bytes()
        chance = random.Random(2)
        for _ in range(20):
            first = chance.randrange(2 * BLOCK, end - 2 * MARK_EVERY)
            length = chance.choice([1, 512, BLOCK, MARK_EVERY, 2 * MARK_EVERY, end - MARK_EVERY - first])
            image.write_bytes(whole)
            with image.open("r+b") as file:
                file.seek(first)
                file.write(whole[first : first + length].translate(OTHER))
            with pytest.raises(LogDamagedError):
                await LogStore(device).__aenter__()


async def test_damage_that_comes_while_a_log_is_open_is_not_passed_over(
    device: aioblk.Device, image: Path
) -> None:
    async with LogStore(device) as log:
        for number in range(10):
            await log.append(b"record %d" % number)
        image.write_bytes(image.read_bytes().replace(b"record 4", b"record x"))
        with pytest.raises(LogDamagedError, match="record 5 is damaged"):
            [record async for record in log.records()]


@pytest.mark.parametrize(
    ("place", "words"), [(0, "offset 0 is damaged"), (BLOCK, f"offset {BLOCK} is damaged")]
)
async def test_one_header_is_enough(device: aioblk.Device, image: Path, place: int, words: str) -> None:
    async with LogStore(device) as log:
        await log.append(b"kept")
    with image.open("r+b") as file:
        file.seek(place)
        file.write(os.urandom(BLOCK))
    async with LogStore(device) as log:
        assert any(words in note for note in log.notes)
        assert await log.append(b"more") == 2
    async with LogStore(device) as log:
        assert not log.notes
    assert await contents(device) == [b"kept", b"more"]


async def test_without_any_header_there_is_no_log(device: aioblk.Device, image: Path) -> None:
    for garbage in (b"aioblkl2" * 1024, os.urandom(2 * BLOCK)):
        with image.open("r+b") as file:
            file.write(garbage)
        with pytest.raises(LogError, match=r"damaged|holds no log"):
            await LogStore(device).__aenter__()


async def test_a_log_that_has_lost_its_end(device: aioblk.Device, image: Path) -> None:
    async with LogStore(device) as log:
        for _ in range(10):
            await log.append(bytes(9000))
    os.truncate(image, 64 << 10)
    with pytest.raises(LogError, match="the device only"):
        await LogStore(device).__aenter__()


# --- flushes that fail --------------------------------------------------------------------------------------


class Medium:
    """A device, and what survives a power failure: what was written by requests that succeeded.

    So it is where a failed flush leaves what it should have written in a cache, clean and readable.
    """

    def __init__(self, device: aioblk.Device, survives: bytearray) -> None:
        self._device = device
        self._survives = survives

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    async def write(self, offset: int, data: Buffer, *, fua: bool) -> None:
        assert fua
        await self._device.write(offset, data, fua=True)
        written = bytes(memoryview(data))
        self._survives[offset : offset + len(written)] = written


def failing_flushes(image: Path, failing: set[int]) -> dict[str, object]:
    """A device whose first, second... flush fails; see QEMU's docs/devel/blkdebug.rst."""
    last = max(failing)
    return {
        "driver": "raw",
        "file": {
            "driver": "blkdebug",
            "image": {"driver": "file", "filename": str(image)},
            "set-state": [
                {"event": "flush_to_disk", "state": number, "new_state": number + 1}
                for number in range(1, last + 1)
            ],
            "inject-error": [
                {"event": "flush_to_disk", "state": number, "iotype": "flush", "errno": 5, "once": True}
                for number in failing
            ],
        },
    }


async def append_whatever_fails(device: aioblk.Device, survives: bytearray) -> tuple[list[bytes], int]:
    """Go on until six records are acknowledged; those, and how often something failed."""
    medium = cast(aioblk.Device, Medium(device, survives))
    acknowledged: dict[int, bytes] = {}
    failures = attempts = 0
    formatted = False
    while len(acknowledged) < 6:
        attempts += 1
        assert attempts < 20
        with contextlib.suppress(aioblk.BlkioError):
            failures += 1
            if not formatted:
                await LogStore.format(medium, force=True)
                formatted = True
            async with LogStore(medium) as log:
                while len(acknowledged) < 6:
                    data = b"attempt %d, record %d " % (attempts, log.last + 1) + bytes(5000)
                    acknowledged[await log.append(data)] = data
            failures -= 1
    return [acknowledged[number] for number in sorted(acknowledged)], failures


@pytest.mark.parametrize("distance", [0, 1, 2, 3])
def test_acknowledged_records_survive_flushes_that_fail(image: Path, distance: int) -> None:
    """Any flush and another one so many later: of formatting, opening, appending, opening again."""
    for first in range(1, 12):
        image.write_bytes(bytes(SMALL))
        survives = bytearray(SMALL)

        async def attack(path: Path, survives: bytearray = survives) -> tuple[list[bytes], int]:
            async with aioblk.VirtioBlkVhostUser(path) as device:
                return await append_whatever_fails(device, survives)

        async def records() -> list[bytes]:
            async with aioblk.IoUring(image) as device:
                return await contents(device)

        with StorageDaemon(failing_flushes(image, {first, first + distance})) as daemon:
            acknowledged, failures = asyncio.run(attack(daemon.socket))
        assert failures == len({first, first + distance}), f"flush {first}"
        image.write_bytes(survives)  # the power fails
        found = asyncio.run(records())
        assert [record for record in found if record in acknowledged] == acknowledged, f"flush {first}"


# --- two writers --------------------------------------------------------------------------------------------


async def test_a_second_writer_is_refused(device: aioblk.Device, image: Path) -> None:
    async with aioblk.IoUring(image) as another, LogStore(device) as log:
        for other in (another, device):
            with pytest.raises(LogInUseError, match="another writer"):
                await LogStore(other).__aenter__()
            with pytest.raises(LogInUseError):
                await LogStore.format(other, force=True)
            assert await contents(other) == []
        await log.append(b"undisturbed")
        # It may read meanwhile.
        assert await contents(another) == [b"undisturbed"]
    async with LogStore(device) as log:
        assert await log.append(b"and on") == 2


async def test_a_second_writer_by_another_way_is_refused(image: Path) -> None:
    """Two backends of one file: only the name of the log tells."""
    with contextlib.ExitStack() as stack:
        blockdev = {"driver": "file", "filename": str(image), "locking": "off"}
        one, two = (stack.enter_context(StorageDaemon(blockdev)).socket for _ in range(2))
        async with aioblk.VirtioBlkVhostUser(one) as device, aioblk.VirtioBlkVhostUser(two) as another:
            await LogStore.format(device)
            async with LogStore(device) as log:
                with pytest.raises(LogInUseError, match="another writer"):
                    await LogStore(another).__aenter__()
                with pytest.raises(LogInUseError):
                    await LogStore.format(another, force=True)
                await log.append(b"undisturbed")
            async with LogStore(another) as log:
                assert await log.append(b"and on") == 2


async def test_a_writer_that_was_replaced_from_afar_stops(
    image: Path, storage_daemon: "StorageDaemonFactory"
) -> None:
    """On another machine no lock is seen. Nothing is acknowledged that the new writer would not know of."""
    async with aioblk.VirtioBlkVhostUser(storage_daemon(image).socket) as device:
        await LogStore.format(device)
        async with LogStore(device) as log:
            await log.append(b"ours")
            header = newest_header(image)
            theirs = replace(header, sequence=header.sequence + 1, epoch=header.epoch + 1, writer=1)
            await device.write(theirs.offset, theirs.pack(), fua=True)
            with pytest.raises(LogInUseError, match="taken it over"):
                await log.append(b"too late")
            with pytest.raises(LogError, match="taken it over"):
                await log.append(b"and later")
        assert newest_header(image) == theirs


async def test_refused_openings_leave_no_lock(device: aioblk.Device, image: Path) -> None:
    async with LogStore(device) as log:
        await log.append(b"one record")
    whole = image.read_bytes()
    image.write_bytes(whole.replace(b"one record", b"one recorD"))
    for _ in range(2):
        with pytest.raises(LogDamagedError):
            await LogStore(device).__aenter__()
    image.write_bytes(whole)
    assert await contents(device) == [b"one record"]
    async with LogStore(device):
        pass


async def test_reading_beside_a_writer_sees_no_damage(device: aioblk.Device, image: Path) -> None:
    async with aioblk.IoUring(image) as another, LogStore(device) as log:
        done = asyncio.Event()

        async def read() -> int:
            looked = 0
            while not done.is_set():
                known = log.last
                async with LogStore(another, read_only=True) as reader:
                    assert reader.damage is None
                    numbers = [record.number async for record in reader.records()]
                    assert numbers[:known] == list(range(1, known + 1))
                looked += 1
            return looked

        reading = asyncio.create_task(read())
        for _ in range(30):
            await asyncio.gather(*(log.append(os.urandom(300)) for _ in range(3)))
        done.set()
        assert await reading > 0


# --- devices that are something else ------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "signature", "name"), SIGNATURES)
async def test_what_is_known_is_not_formatted_unasked(
    image: Path, offset: int, signature: bytes, name: str
) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(signature)
    before = image.read_bytes()
    async with aioblk.IoUring(image) as device:
        with pytest.raises(OccupiedError, match=f"holds {name}"):
            await LogStore.format(device)
        assert image.read_bytes() == before
        await LogStore.format(device, force=True)
        assert await contents(device) == []
    assert not image.read_bytes()[2 * BLOCK : LOOK_AT].strip(b"\0")


async def test_a_log_with_one_header_is_a_log(device: aioblk.Device, image: Path) -> None:
    for place in (0, BLOCK):
        await LogStore.format(device, force=True)
        with image.open("r+b") as file:
            file.seek(place)
            file.write(bytes(BLOCK))
        with pytest.raises(OccupiedError, match="holds a log"):
            await LogStore.format(device)


@pytest.mark.parametrize("odd", [1, 511, 512, 4095])
async def test_a_device_is_used_to_its_last_whole_block(tmp_path: Path, odd: int) -> None:
    """And no further: a file does not grow."""
    image = tmp_path / "odd"
    image.touch()
    size = 10 * BLOCK + odd
    os.truncate(image, size)
    async with aioblk.IoUring(image) as device:
        await LogStore.format(device)
        await fill(device, blocks=8)
    assert image.stat().st_size == size


async def fill(device: aioblk.Device, *, blocks: int) -> None:
    room = BLOCK - GROUP_HEAD.size - RECORD.size
    async with LogStore(device) as log:
        for number in range(1, blocks + 1):
            assert await log.append(bytes(room)) == number
        with pytest.raises(LogFullError):
            await log.append(b"")
    assert await contents(device) == [bytes(room)] * blocks


async def test_a_backend_of_an_odd_size(tmp_path: Path, storage_daemon: "StorageDaemonFactory") -> None:
    image = tmp_path / "odd"
    image.touch()
    os.truncate(image, 10 * BLOCK + 512)
    async with aioblk.VirtioBlkVhostUser(storage_daemon(image).socket) as device:
        await LogStore.format(device)
        await fill(device, blocks=8)


async def test_a_device_that_is_too_small(tmp_path: Path) -> None:
    image = tmp_path / "small"
    image.touch()
    os.truncate(image, 3 * BLOCK - 1)
    async with aioblk.IoUring(image) as device:
        with pytest.raises(LogError, match="at least"):
            await LogStore.format(device)


async def test_the_largest_record_fits_and_one_more_byte_does_not(tmp_path: Path) -> None:
    image = tmp_path / "two"
    image.touch()
    os.truncate(image, 2 * BLOCK + (1 << 20))
    async with aioblk.IoUring(image) as device:
        await LogStore.format(device)
        async with LogStore(device) as log:
            assert await log.append(bytes(LARGEST_RECORD)) == 1
            with pytest.raises(LogFullError):
                await log.append(b"")
            assert [record async for record in log.records()] == [Record(1, bytes(LARGEST_RECORD))]
