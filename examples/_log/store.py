"""The log: opening, appending, reading."""

import asyncio
import copy
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, final

from typing_extensions import Buffer

import aioblk

from .errors import LogDamagedError, LogError, LogFullError, LogInUseError, OccupiedError
from .layout import (
    BLOCK,
    GROUP,
    GROUP_HEAD,
    LARGEST_RECORD,
    MARK_EVERY,
    RECORD,
    GroupHead,
    Header,
    record_checksum,
    round_up,
)
from .lock import IN_USE, WriterLock
from .recovery import Place, Record, follow, judge, read_headers
from .signatures import LOOK_AT, recognise

IDLE = 0.1  # seconds after the last write, before a header says how far the log goes


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

    def __init__(self, device: aioblk.BlockDevice, *, read_only: bool = False) -> None:
        """Of an open device. A log that is *read_only* can be opened beside a writer, and when it is damaged:
        it has the records before the damage."""
        self._device = device
        self._read_only = read_only
        self._lock = WriterLock()
        self._resources = AsyncExitStack()
        self._header: Header | None = None  # as it was written last
        self._buffer: aioblk.View | memoryview | None = None  # for a group
        self._capacity = 0
        # Where the next group goes, and what its first record continues.
        self._end = 0
        self._last = 0
        self._checksum = 0
        self._waiting: list[_Waiting] = []
        self._more = asyncio.Event()
        self._committing: asyncio.Task[None] | None = None
        self._closed: str | None = "the log is not open"
        self._failed = False
        self._damage: LogDamagedError | None = None
        self.groups_written = 0
        self.notes: list[str] = []
        """What was found when the log was opened, and is no reason to refuse it."""

    @staticmethod
    async def format(device: aioblk.BlockDevice, *, force: bool = False) -> None:
        """Begin a new, empty log; whatever was on the device is forgotten.

        Raises:
            OccupiedError: the device holds something that is known; *force* overwrites it.
            LogInUseError: it is a log, and somebody writes to it. That is not overwritten.
            LogError: the device is too small.
        """
        block = max(BLOCK, device.limits.request_alignment)
        capacity = device.capacity // block * block
        if capacity < 3 * block:
            raise LogError(f"a log needs {3 * block} bytes at least; the device has {device.capacity}")
        lock = WriterLock()
        try:
            lock.lock_file(device)
            beginning = await device.read(0, min(capacity, round_up(LOOK_AT, block)))
            found = recognise(beginning)
            if (old := await _log_on(device)) is not None:
                found = "a log"
                lock.lock_name(old.identity)
            if found and not force:
                raise OccupiedError(f"the device holds {found}, which would be lost")
            await device.write(0, bytes(len(beginning)), fua=True)  # so that no two things are mixed up
            header = Header(*(block, random.getrandbits(64), 0, 0, 0, 0, 2 * block, 0))
            for sequence in (2, 3):
                header = replace(header, sequence=sequence, checksum=header.seed)
                await device.write(header.offset, header.pack(), fua=True)
        finally:
            lock.release()

    async def __aenter__(self) -> Self:
        """Find the end of the log.

        A writer makes sure then that what it has found is on the medium: after a flush that failed, it may be
        in a cache only.

        Raises:
            LogDamagedError: records that were acknowledged cannot be read. The device is as it was.
            LogInUseError: another writer has the log open.
            LogError: the device holds no log, or the log is open already.
        """
        if self._closed is None:
            raise LogError("the log is open already")
        self._failed, self._damage = False, None
        self.notes.clear()
        async with AsyncExitStack() as resources:
            resources.callback(self._lock.release)
            if self._read_only:
                await self._find_end_beside_a_writer()
            else:
                self._lock.lock_file(self._device)
                place = await self._find_end()
                await self._take_over(place)
                self._buffer = await self._new_buffer(resources)
            self._closed = None
            self._resources = resources.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until everything that was to be appended has been, and let go of the log.

        Also when this is cancelled: what is in flight could land on what the next writer writes.
        """
        async with self._resources:
            self._closed = self._closed or "the log is closed"
            self._more.set()
            finishing = asyncio.get_running_loop().create_task(self._finish())
            cancelled: asyncio.CancelledError | None = None
            while not finishing.done():
                try:
                    await asyncio.wait([finishing])
                except asyncio.CancelledError as again:
                    cancelled = again
            finishing.result()
            if cancelled is not None:
                raise cancelled

    async def _finish(self) -> None:
        if self._committing is not None:
            await asyncio.wait([self._committing])
        if not (self._read_only or self._failed):
            await self._mark()

    @property
    def last(self) -> int:
        """The number of the last durable record; 0 if there is none."""
        return self._last

    @property
    def used(self) -> int:
        """How many bytes of the device the log takes."""
        return self._end

    @property
    def damage(self) -> LogDamagedError | None:
        """Why a log that is read only does not go further."""
        return self._damage

    @property
    def _opened(self) -> Header:
        if self._header is None:
            raise LogError("the log is not open")
        return self._header

    # --- opening --------------------------------------------------------------------------------------------

    async def _find_end(self) -> Place:
        """Follow the records to the end; raise if that is not a good one."""
        found = await read_headers(self._device)
        header = self._header = found.newest
        if found.damaged is not None:
            self.notes.append(f"the header at offset {found.damaged} is damaged; the other one is good")
        self._capacity = self._device.capacity // header.block * header.block
        place = await self._follow(Place.start(header))
        if (torn := await judge(self._device, header, place)) is not None:
            self.notes.append(torn)
        return place

    async def _follow(self, place: Place) -> Place:
        async with aclosing(follow(self._device, self._opened, place)) as records:
            async for found in records:
                place = found.place
        self._last, self._checksum = place.number, place.checksum
        self._end = round_up(place.position, self._opened.block)
        return place

    async def _find_end_beside_a_writer(self) -> None:
        """What looks like damage may have been written since it was read: look until it stays as it is."""
        seen: tuple[int, int] | None = None
        while True:
            self.notes.clear()
            try:
                await self._find_end()
            except LogDamagedError as damage:
                if seen == (damage.number, damage.offset):
                    self._damage = damage
                    return
                seen = damage.number, damage.offset
            else:
                return

    async def _take_over(self, place: Place) -> None:
        """Become the writer, and make sure of what has been found."""
        self._lock.lock_name(self._opened.identity)
        epoch, writer = max(self._opened.epoch, place.epoch) + 1, random.getrandbits(64)
        if not self._lock.covers_all:
            await self._write_header(epoch=epoch, writer=writer)
            await self._refuse_if_replaced()
            place = await self._follow(place)  # there may have been a writer until now, on another machine
        if place.number > self._opened.last:
            # All but the last group were acknowledged, and this one may be in caches only.
            tail = await self._device.read(place.group, self._end - place.group)
            await self._device.write(place.group, tail, fua=True)
        await self._write_header(
            epoch=epoch, writer=writer, last=self._last, end=self._end, checksum=self._checksum
        )

    async def _new_buffer(self, resources: AsyncExitStack) -> aioblk.View | memoryview:
        """Memory that the device reaches without a copy, if it can be told of any."""
        length = round_up(GROUP, self._opened.block)
        if isinstance(self._device, aioblk.MapsMemory):
            return await resources.enter_async_context(self._device.allocate(length))
        return memoryview(bytearray(length))

    # --- headers --------------------------------------------------------------------------------------------

    async def _write_header(self, **changes: Any) -> None:
        header = replace(self._opened, sequence=self._opened.sequence + 1, **changes)
        await self._device.write(header.offset, header.pack(), fua=True)
        self._header = header

    async def _mark(self) -> None:
        """Say in a header how far the log goes, so that damage up to there is known as such."""
        if self._opened.last != self._last:
            await self._write_header(last=self._last, end=self._end, checksum=self._checksum)

    async def _refuse_if_replaced(self) -> None:
        """Where there is no lock that holds against everybody, look whether another writer has come."""
        if self._lock.covers_all:
            return
        found = (await read_headers(self._device)).newest
        ours = self._opened
        if (found.identity, found.epoch, found.writer) != (ours.identity, ours.epoch, ours.writer):
            raise LogInUseError(f"{IN_USE}, and has taken it over")

    # --- appending ------------------------------------------------------------------------------------------

    async def append(self, data: Buffer) -> int:
        """Append a record; its number, once it is durable.

        A cancelled append may have happened or not. After an error of the device, which of the records were
        written is not known until the log is opened again, and until then it takes no more.

        Raises:
            TypeError: a record is bytes.
            ValueError: the record is too large.
            LogFullError: there is no room for it; a smaller one may still fit.
            LogError: the log is closed, or has had an error, or is read only.
            aioblk.BlkioError: the device failed.
        """
        try:
            record = data if type(data) is bytes else memoryview(data).tobytes()
        except TypeError:
            raise TypeError(f"a record is bytes, not {type(data).__name__}") from None
        if len(record) > LARGEST_RECORD:
            raise ValueError(f"a record has at most {LARGEST_RECORD} bytes, not {len(record)}")
        if self._closed is not None or self._read_only:
            raise LogError(self._closed or "the log is read only")
        loop = asyncio.get_running_loop()
        appended: asyncio.Future[int] = loop.create_future()
        self._waiting.append(_Waiting(record, appended))
        self._more.set()
        if self._committing is None:
            self._committing = loop.create_task(self._commit())
        return await appended

    async def _commit(self) -> None:
        """Write group after group, each of all that came while the one before it was being written."""
        group: list[_Waiting] = []
        try:
            while await self._is_wanted() or await self._rest():
                while self._waiting:
                    group = self._take_group()
                    if group:
                        await self._write(group)
                        group = []
        except BaseException as error:
            self._fail(group, error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._committing = None

    async def _is_wanted(self) -> bool:
        """Wait for records, for a while; all that are appended in a turn of the loop go together."""
        if not self._waiting and self._closed is None:
            self._more.clear()
            try:
                async with asyncio.timeout(IDLE):
                    await self._more.wait()
            except TimeoutError:
                pass
        elif self._waiting:
            await asyncio.sleep(0)
        return bool(self._waiting)

    async def _rest(self) -> bool:
        """Nothing has been appended for a while; whether something is by now."""
        if self._closed is None:
            await self._mark()
        return bool(self._waiting)

    def _take_group(self) -> list[_Waiting]:
        """Those who come next: as many as go together, and fit on the device."""
        room = min(GROUP, self._capacity - self._end)
        count, size = 0, GROUP_HEAD.size
        for waiting in self._waiting:
            size += RECORD.size + len(waiting.data)
            if size > room:
                break
            count += 1
        if count == 0:
            full = self._waiting.pop(0)
            why = (
                f"the log is full: the record takes {size} bytes, and of {self._capacity} there are"
                f" {self._capacity - self._end} left; make the device larger, or begin another log"
            )
            _settle(full.appended, error=LogFullError(why))
        group, self._waiting = self._waiting[:count], self._waiting[count:]
        return group

    async def _write(self, group: list[_Waiting]) -> None:
        """Make the group durable: one write, past all caches, and only then tell who waits."""
        buffer, header = self._buffer, self._opened
        assert buffer is not None
        length = sum(RECORD.size + len(waiting.data) for waiting in group)
        head = GroupHead(
            *(header.identity, self._end, self._last + 1, self._checksum), length=length, epoch=header.epoch
        )
        end = GROUP_HEAD.size
        buffer[:end] = head.pack()
        number, checksum = self._last, head.checksum
        for waiting in group:
            number += 1
            checksum = record_checksum(checksum, number, waiting.data)
            RECORD.pack_into(buffer, end, checksum, len(waiting.data), number)
            start = end + RECORD.size
            end = start + len(waiting.data)
            buffer[start:end] = waiting.data
        whole = round_up(end, header.block)
        buffer[end:whole] = bytes(whole - end)

        written = self._device.write(self._end, buffer[:whole], fua=True)
        if self._end - header.end >= MARK_EVERY:
            # A mark beside the group: it speaks of those that were acknowledged before.
            for outcome in await asyncio.gather(written, self._mark(), return_exceptions=True):
                if outcome is not None:
                    raise outcome
        else:
            await written
        await self._refuse_if_replaced()

        self.groups_written += 1
        self._end += whole
        first, self._last, self._checksum = self._last + 1, number, checksum
        for number, waiting in enumerate(group, first):
            _settle(waiting.appended, number)

    def _fail(self, group: list[_Waiting], error: BaseException) -> None:
        why = f"the log has had an error and must be opened again: {error!r}"
        self._closed, self._failed = why, True
        for waiting in group:
            _settle(waiting.appended, error=_own(error) or LogError(why))
        for waiting in self._waiting:
            _settle(waiting.appended, error=LogError(why))
        self._waiting.clear()

    # --- reading --------------------------------------------------------------------------------------------

    async def records(self, first: int = 1) -> AsyncGenerator[Record]:
        """The durable records, from number *first* on.

        Raises LogDamagedError where one that was acknowledged cannot be read.
        """
        last, header = self._last, self._opened
        place = Place.start(header)
        async with aclosing(follow(self._device, header, place)) as records:
            async for found in records:
                if found.record.number > last:
                    return
                place = found.place
                if found.record.number >= first:
                    yield found.record
        if place.number < last:
            await judge(self._device, replace(header, last=last, end=self._end), place)
        if self._damage is not None:
            raise _own(self._damage) or self._damage


async def _log_on(device: aioblk.BlockDevice) -> Header | None:
    with suppress(LogError):
        return (await read_headers(device)).newest
    return None


def _own(error: BaseException) -> Exception | None:
    """A copy: an exception that is raised in several places collects the frames of all."""
    with suppress(Exception):
        if isinstance(error, Exception):
            return copy.copy(error)
    return None


def _settle(appended: "asyncio.Future[int]", number: int = 0, *, error: BaseException | None = None) -> None:
    if appended.done():  # cancelled: nobody waits any more
        return
    if error is not None:
        appended.set_exception(error)
    else:
        appended.set_result(number)
