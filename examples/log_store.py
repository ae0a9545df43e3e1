"""An append-only log of records on a block device. See `python examples/log_store.py --help`.

An appended record is durable: it is there after a crash. Many appenders that wait together share one write to
the medium (group commit), so the more there are, the cheaper each one is.

On the device, the first block says that this is a log. Groups of records follow, each beginning at a block of
its own and filled up with zeroes to whole blocks: a block that holds acknowledged records is never written
again, so that no crash can tear them. A record is a header and data. Its checksum goes on from the checksum
of the record before it. That makes the records a chain which recovery follows from the first block to the
last whole record; what a crash left behind it, however whole it looks, does not continue the chain.

Opening a log therefore reads all of it, from its start on: it takes as long as that. A log that is opened
often, or is large, would keep checkpoints: the end of the log as of some record, written now and then to one
of two blocks that are set aside, from where recovery could begin.
"""

import argparse
import asyncio
import random
import struct
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self, final
from zlib import crc32

import aioblk

BLOCK = 4096
MAGIC = b"aioblklg"
SUPERBLOCK = struct.Struct("<8sIIQ")  # magic, checksum of the rest, block size, identity
HEADER = struct.Struct("<IIQI")  # checksum, length of the data, number, session; then the data
CHECKED = struct.Struct("<IQI")  # what of the header the checksum covers, beside the data

GROUP = 1 << 20  # the most that is written at once
LARGEST_RECORD = GROUP - HEADER.size
READ_AHEAD = 1 << 20


class LogError(Exception):
    """The device holds no log, or cannot go on holding it."""


class LogFullError(LogError):
    """There is no room for the record."""


class Record(NamedTuple):
    number: int
    """1, 2, 3 and so on."""
    data: bytes


class _Found(NamedTuple):
    """A whole record on the device."""

    record: Record
    checksum: int
    end: int


@final
@dataclass(frozen=True, slots=True)
class _Waiting:
    data: bytes
    appended: "asyncio.Future[int]"


@final
class LogStore:
    """A log on an open device::

        async with aioblk.IoUring("log.img") as device:
            await LogStore.format(device)
            async with LogStore(device) as log:
                number = await log.append(b"something to remember")
                async for record in log.records():
                    ...

    Belongs to the device's event loop.
    """

    def __init__(self, device: aioblk.Device) -> None:
        self._device = device
        self._block = max(BLOCK, device.limits.request_alignment)
        self._capacity = device.capacity
        self._buffer = device.allocate(_round_up(GROUP, self._block))
        self._session = random.getrandbits(32)  # so that equal data do not make equal chains
        self._identity = 0
        # Where the next group goes, and what its first record continues.
        self._end = self._block
        self._last = 0
        self._checksum = 0
        self._waiting: list[_Waiting] = []
        self._committing: asyncio.Task[None] | None = None
        self._closed: LogError | None = LogError("the log is not open")
        self.groups_written = 0

    @staticmethod
    async def format(device: aioblk.Device) -> None:
        """Begin a new, empty log; whatever was on the device is forgotten."""
        block = max(BLOCK, device.limits.request_alignment)
        rest = struct.pack("<IQ", block, random.getrandbits(64))
        first = MAGIC + struct.pack("<I", crc32(rest)) + rest
        await device.write(0, first.ljust(block, b"\0"), fua=True)

    async def __aenter__(self) -> Self:
        """Find the end of the log. Raises LogError if the device holds none."""
        await self._read_superblock()
        async with aclosing(self._scan()) as scan:
            async for found in scan:
                self._last, self._checksum = found.record.number, found.checksum
                self._end = _round_up(found.end, self._block)
        await self._buffer.__aenter__()
        self._closed = None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until everything that was to be appended has been."""
        self._closed = self._closed or LogError("the log is closed")
        if self._committing is not None:
            await asyncio.wait([self._committing])
        await self._buffer.aclose()

    @property
    def last(self) -> int:
        """The number of the last durable record; 0 if there is none."""
        return self._last

    @property
    def used(self) -> int:
        """How many bytes of the device the log takes."""
        return self._end

    # --- appending ------------------------------------------------------------------------------------------

    async def append(self, data: bytes) -> int:
        """Append a record; its number, once it is durable.

        A cancelled append may have happened or not. After an error of the device, which of the records were
        written is not known until the log is opened again, and until then it takes no more.

        Raises:
            ValueError: the record is too large.
            LogFullError: there is no room for it; a smaller one may still fit.
            LogError: the log is closed, or has had an error.
            aioblk.BlkioError: the device failed.
        """
        if len(data) > LARGEST_RECORD:
            raise ValueError(f"a record has at most {LARGEST_RECORD} bytes, not {len(data)}")
        if self._closed is not None:
            raise self._closed
        loop = asyncio.get_running_loop()
        appended: asyncio.Future[int] = loop.create_future()
        self._waiting.append(_Waiting(data, appended))
        if self._committing is None:
            self._committing = loop.create_task(self._commit())
        return await appended

    async def _commit(self) -> None:
        """Write group after group, each of all that came while the one before it was being written."""
        try:
            await asyncio.sleep(0)  # so that all who append in this turn of the loop go together
            while self._waiting:
                group = self._take_group()
                if group:
                    try:
                        await self._write(group)
                    except aioblk.BlkioError as error:
                        self._fail(group, error)
        finally:
            self._committing = None

    def _take_group(self) -> list[_Waiting]:
        """Those who come next: as many as go together, and fit on the device."""
        room = min(GROUP, self._capacity - self._end)
        count = size = 0
        for waiting in self._waiting:
            size += HEADER.size + len(waiting.data)
            if size > room:
                break
            count += 1
        if count == 0:
            full = self._waiting.pop(0)
            _settle(full.appended, error=LogFullError("the log is full"))
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        return group

    async def _write(self, group: list[_Waiting]) -> None:
        """Make the group durable: one write, past all caches, and only then tell who waits."""
        number, checksum, end = self._last, self._checksum, 0
        for waiting in group:
            number += 1
            checksum = _checksum(checksum, number, self._session, waiting.data)
            HEADER.pack_into(self._buffer, end, checksum, len(waiting.data), number, self._session)
            start = end + HEADER.size
            end = start + len(waiting.data)
            self._buffer[start:end] = waiting.data
        whole = _round_up(end, self._block)
        self._buffer[end:whole] = bytes(whole - end)

        await self._device.write(self._end, self._buffer[:whole], fua=True)

        self.groups_written += 1
        self._end += whole
        first, self._last, self._checksum = self._last + 1, number, checksum
        for number, waiting in enumerate(group, first):
            _settle(waiting.appended, number)

    def _fail(self, group: list[_Waiting], error: aioblk.BlkioError) -> None:
        self._closed = LogError(f"the log has had an error and must be opened again: {error}")
        for waiting in group:
            _settle(waiting.appended, error=error)
        for waiting in self._waiting:
            _settle(waiting.appended, error=self._closed)
        self._waiting.clear()

    # --- reading --------------------------------------------------------------------------------------------

    async def records(self, first: int = 1) -> AsyncGenerator[Record]:
        """The durable records, from number *first* on."""
        last = self._last
        async with aclosing(self._scan()) as scan:
            async for found in scan:
                if found.record.number > last:
                    return
                if found.record.number >= first:
                    yield found.record

    async def _read_superblock(self) -> None:
        start = await self._device.read(0, self._block)
        magic, checksum, block, identity = SUPERBLOCK.unpack_from(start)
        if magic != MAGIC or checksum != crc32(start[12 : SUPERBLOCK.size]):
            raise LogError("the device holds no log; format it first")
        if block < self._block or block % self._device.limits.request_alignment:
            raise LogError(f"the log was made for blocks of {block} bytes")
        self._block = block
        self._identity = identity
        self._checksum = crc32(identity.to_bytes(8, "little"))

    async def _scan(self) -> AsyncGenerator[_Found]:
        """Follow the chain of whole records from the beginning."""
        reader = _Reader(self._device, self._block)
        position, number = self._block, 0
        checksum = crc32(self._identity.to_bytes(8, "little"))
        while True:
            found = await _find(reader, position, number + 1, checksum)
            if found is not None:
                yield found
                number, checksum, position = found.record.number, found.checksum, found.end
            elif position % self._block:
                position = _round_up(position, self._block)  # the next one begins a group
            else:
                return


async def _find(reader: "_Reader", position: int, number: int, previous: int) -> _Found | None:
    """The record at that position, if it is whole and the one that continues the chain."""
    header = await reader.get(position, HEADER.size)
    if len(header) < HEADER.size:
        return None
    checksum, length, its_number, session = HEADER.unpack(header)
    if its_number != number or length > LARGEST_RECORD:
        return None
    data = await reader.get(position + HEADER.size, length)
    if len(data) < length or checksum != _checksum(previous, number, session, data):
        return None
    return _Found(Record(number, data), checksum, position + HEADER.size + length)


@final
class _Reader:
    """Reads a device from the front to the back, always a step ahead of its user."""

    def __init__(self, device: aioblk.Device, start: int) -> None:
        self._device = device
        self._data = b""
        self._start = self._ahead_from = start
        self._ahead = self._read_ahead()

    async def get(self, position: int, length: int) -> bytes:
        """The bytes there, fewer at the end of the device. Positions never decrease."""
        while self._ahead is not None and position + length > self._start + len(self._data):
            more = await self._ahead
            self._ahead = self._read_ahead()
            self._data = self._data[position - self._start :] + more
            self._start = position
        begin = position - self._start
        return self._data[begin : begin + length]

    def _read_ahead(self) -> aioblk.Request[bytes] | None:
        """The next piece: a request is under way as soon as it is made, whoever awaits it and when."""
        unit = self._device.limits.request_alignment
        end = self._device.capacity // unit * unit
        start, self._ahead_from = self._ahead_from, min(self._ahead_from + READ_AHEAD, end)
        return self._device.read(start, self._ahead_from - start) if start < end else None


def _checksum(previous: int, number: int, session: int, data: bytes) -> int:
    return crc32(data, crc32(CHECKED.pack(len(data), number, session), previous))


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _settle(appended: "asyncio.Future[int]", number: int = 0, *, error: BaseException | None = None) -> None:
    if appended.done():  # cancelled: nobody waits any more
        return
    if error is not None:
        appended.set_exception(error)
    else:
        appended.set_result(number)


# --- command line -------------------------------------------------------------------------------------------

DESCRIPTION = """\
Keep an append-only log of records on a block device.

  truncate --size 1G log.img
  python examples/log_store.py format io_uring path=log.img
  journalctl | python examples/log_store.py append io_uring path=log.img
  python examples/log_store.py read io_uring path=log.img --from 100
  python examples/log_store.py info io_uring path=log.img

append makes a record of every line of its input and prints the record's number when it is durable; kill it
whenever you like. read prints the records. DRIVER and PROPERTY=VALUE are those of aioblk's device classes.
"""

MOST_APPENDERS = 1000


async def append_lines(log: LogStore) -> None:
    """A record for each line of the standard input."""
    places = asyncio.Semaphore(MOST_APPENDERS)

    async def append(line: bytes) -> None:
        try:
            print(await log.append(line), flush=True)
        finally:
            places.release()

    async with asyncio.TaskGroup() as appenders:
        while line := await asyncio.to_thread(sys.stdin.buffer.readline):
            await places.acquire()
            appenders.create_task(append(line.rstrip(b"\n")))


async def print_records(log: LogStore, first: int) -> None:
    async for record in log.records(first):
        sys.stdout.buffer.write(record.data + b"\n")
    sys.stdout.flush()


async def run(device: aioblk.Device, options: argparse.Namespace) -> None:
    async with device:
        if options.command == "format":
            await LogStore.format(device)
            return
        async with LogStore(device) as log:
            match options.command:
                case "append":
                    await append_lines(log)
                case "read":
                    await print_records(log, options.first)
                case _:
                    print(f"{log.last} records in {log.used} of {device.capacity} bytes")


def split_property(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        sys.exit(f"log_store: {text!r} is no PROPERTY=VALUE, such as path=log.img")
    return name, value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["format", "append", "read", "info"])
    parser.add_argument("driver", metavar="DRIVER", help="io_uring, virtio-blk-vhost-user, ...")
    parser.add_argument("properties", nargs="*", metavar="PROPERTY=VALUE", help="path=log.img direct=true")
    parser.add_argument(
        "--from", dest="first", type=int, default=1, metavar="NUMBER", help="first record to read"
    )
    options = parser.parse_args()
    try:
        device = aioblk.open(options.driver, **dict(map(split_property, options.properties)))
        asyncio.run(run(device, options))
    except* (OSError, LogError) as errors:
        sys.exit("\n".join(f"log_store: {error}" for error in errors.exceptions))
    except* KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
