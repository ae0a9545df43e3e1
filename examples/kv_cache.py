"""A cache for the keys and values of language models: pages of memory, kept on several fast disks.

An engine that serves a language model keeps what attention needs of each token, its keys and values, in
pages. Those of a text that comes again are cheaper read from a disk than computed anew. :class:`KvCache` has
them there, many at a time: a batch is one await, and each of its pages has an outcome of its own.

    python examples/kv_cache.py                                     # on two scratch files
    python examples/kv_cache.py 'io_uring:/dev/nvme1n1?direct=on' 'io_uring:/dev/nvme2n1?direct=on'
"""

import argparse
import asyncio
import contextlib
import hashlib
import os
import random
import sys
import tempfile
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from typing_extensions import Buffer

import aioblk

KIB = 1 << 10
LEAST_PAGE, MOST_PAGE = 64 * KIB, 1024 * KIB

Outcome: TypeAlias = int | BaseException | None
"""Of a page in a batch: how many bytes it has; None: it is not there; or why it could not be had."""


class CacheFullError(Exception):
    """All pages are in use: they are being stored or loaded."""


class DamagedPageError(Exception):
    """What a disk gave back is not what was stored."""


@dataclass(eq=False, slots=True)
class _Disk:
    """A device, divided into slots of one page each."""

    bytes: aioblk.ByteView[aioblk.BlockDevice]
    """Pages may have any length: the bytes behind the last whole block are bounced, and they alone."""
    free: deque[int]
    """Offsets of slots."""


@dataclass(eq=False, slots=True)
class _Page:
    disk: _Disk
    offset: int
    length: int
    checksum: int | None
    loading: int = 0
    """By so many: nothing else may be written there meanwhile."""
    is_dropped: bool = False
    """Its slot is free when nobody loads it any more."""

    def fault_of(self, memory: memoryview) -> DamagedPageError | None:
        """What is wrong with it, where that can be told."""
        if self.checksum is None or zlib.crc32(memory) == self.checksum:
            return None
        return DamagedPageError(
            f"the page of {self.length} bytes at {self.offset} of {self.disk.bytes.device!r} has changed"
        )


@dataclass(slots=True)
class Counts:
    """What has happened so far, in pages."""

    hits: int = 0
    misses: int = 0
    stored: int = 0
    evicted: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Batch:
    """What one disk is asked for."""

    places: list[int] = field(default_factory=list[int])
    """Of its items, in the caller's batch."""
    pairs: list[tuple[int, memoryview]] = field(default_factory=list[tuple[int, memoryview]])
    """Offsets and memory."""

    def add(self, place: int, offset: int, memory: memoryview) -> None:
        self.places.append(place)
        self.pairs.append((offset, memory))


class KvCache:
    """Pages by their keys, spread over open devices, which it has for itself. The one that was not used for
    the longest time makes room for a new one.

    What is where is known only here: it is a cache, and empty when it is made. Belongs to the devices' loop.
    """

    def __init__(
        self, devices: Iterable[aioblk.BlockDevice], *, page_size: int = 256 * KIB, verify: bool = False
    ) -> None:
        """*page_size*: the most bytes of a page, from 64 KiB to 1 MiB, a multiple of the devices' blocks.
        *verify*: pages have checksums, which takes the loop's time, a millisecond or so for each MiB.
        """
        self._disks: list[_Disk] = []
        for device in devices:
            block = device.limits.request_alignment
            if not LEAST_PAGE <= page_size <= MOST_PAGE or page_size % block:
                raise ValueError(
                    f"page_size is {page_size}; it must be from {LEAST_PAGE} to {MOST_PAGE},"
                    f" and a multiple of {block}, the blocks of {device!r}"
                )
            slots = range(0, device.capacity - page_size + 1, page_size)
            self._disks.append(_Disk(aioblk.ByteView[aioblk.BlockDevice](device), deque(slots)))
        if not any(disk.free for disk in self._disks):
            raise ValueError(f"there is no room for a page of {page_size} bytes on any device")
        self.page_size = page_size
        self.counts = Counts()
        self._verify = verify
        self._pages: OrderedDict[bytes, _Page] = OrderedDict()  # the one that was used last is last
        self._turn = 0  # of the disk that has the next page

    def __len__(self) -> int:
        return len(self._pages)

    def __contains__(self, key: bytes) -> bool:
        return key in self._pages

    # --- loading --------------------------------------------------------------------------------------------

    async def load(self, wanted: Sequence[tuple[bytes, Buffer]]) -> list[Outcome]:
        """Fill buffers with the pages of keys. What is wrong with one of them is its outcome, and no other's.

        A buffer may be longer than its page. If the call is cancelled, it ends when no device writes to the
        buffers any more.
        """
        outcomes: list[Outcome] = [None] * len(wanted)
        batches: dict[_Disk, _Batch] = {}
        found: list[tuple[int, bytes, _Page, memoryview]] = []
        for place, (key, buffer) in enumerate(wanted):
            page = self._pages.get(key)
            if page is None:
                self.counts.misses += 1
                continue
            try:
                memory = memoryview(buffer).cast("B")
                if memory.readonly:
                    raise ValueError("the buffer can only be read")
                if len(memory) < page.length:
                    raise ValueError(
                        f"the page has {page.length} bytes, the buffer {len(memory)} to be written"
                    )
            except (TypeError, ValueError) as error:
                outcomes[place] = error
                continue
            memory = memory[: page.length]
            page.loading += 1
            found.append((place, key, page, memory))
            batches.setdefault(page.disk, _Batch()).add(place, page.offset, memory)
        try:
            errors = await _all_of(batches, lambda disk: disk.bytes.read_into_many)
        finally:
            for _, _, page, _ in found:
                self._end_loading(page)
        for place, key, page, memory in found:
            fault = errors[place] or page.fault_of(memory)
            if fault is None:
                self.counts.hits += 1
                self._use(key, page)
            else:
                self.counts.failed += 1
                self._drop(key, page)  # it is computed anew, and stored again
            outcomes[place] = page.length if fault is None else fault
        return outcomes

    # --- storing --------------------------------------------------------------------------------------------

    async def store(self, pages: Sequence[tuple[bytes, Buffer]]) -> list[Outcome]:
        """Keep pages, which can be loaded when this is done; one that is there already is not written again.

        The memory must not change before. If the call is cancelled, none of the pages that it would have
        written is there, and it ends when no device reads from the memory any more.
        """
        outcomes: list[Outcome] = [None] * len(pages)
        batches: dict[_Disk, _Batch] = {}
        new: list[tuple[int, bytes, _Page]] = []
        done = False
        try:
            for place, (key, buffer) in enumerate(pages):
                try:
                    memory = memoryview(buffer).cast("B")
                    if not 0 < len(memory) <= self.page_size:
                        raise ValueError(f"a page has from 1 to {self.page_size} bytes, not {len(memory)}")
                    if (old := self._pages.get(key)) is not None:
                        self._use(key, old)
                        outcomes[place] = old.length
                        continue
                    disk, offset = self._slot()
                except (TypeError, ValueError, CacheFullError) as error:
                    outcomes[place] = error
                    continue
                checksum = zlib.crc32(memory) if self._verify else None
                new.append((place, key, _Page(disk, offset, len(memory), checksum)))
                batches.setdefault(disk, _Batch()).add(place, offset, memory)
            errors = await _all_of(batches, lambda disk: disk.bytes.write_many)
            done = True
        finally:
            if not done:  # whatever uses the slots now waits until nothing lands there any more
                for _, _, page in new:
                    page.disk.free.append(page.offset)
        for place, key, page in new:
            if (fault := errors[place]) is not None:
                self.counts.failed += 1
                outcomes[place] = fault  # the slot is not used again: it would fail the next page, too
                continue
            outcomes[place] = page.length
            self.counts.stored += 1
            if key in self._pages:  # somebody else was faster
                page.disk.free.append(page.offset)
            else:
                self._pages[key] = page
        return outcomes

    def drop(self, key: bytes) -> None:
        """Have no page of that key any more."""
        if (page := self._pages.get(key)) is not None:
            self._drop(key, page)

    # --- places ---------------------------------------------------------------------------------------------

    def _slot(self) -> tuple[_Disk, int]:
        """Of the next disk that has one, or of the page that was not used for the longest time."""
        for turn in range(self._turn, self._turn + len(self._disks)):
            disk = self._disks[turn % len(self._disks)]
            if disk.free:
                self._turn = turn + 1
                return disk, disk.free.popleft()
        for key, page in self._pages.items():
            if not page.loading:
                del self._pages[key]
                self.counts.evicted += 1
                return page.disk, page.offset
        raise CacheFullError(f"all {len(self._pages)} pages are being loaded, and no slot is free; try again")

    def _use(self, key: bytes, page: _Page) -> None:
        if self._pages.get(key) is page:
            self._pages.move_to_end(key)

    def _drop(self, key: bytes, page: _Page) -> None:
        if self._pages.get(key) is page:
            del self._pages[key]
            page.is_dropped = True
            if not page.loading:
                page.disk.free.append(page.offset)

    def _end_loading(self, page: _Page) -> None:
        page.loading -= 1
        if page.is_dropped and not page.loading:
            page.disk.free.append(page.offset)


async def _all_of(
    batches: dict[_Disk, _Batch], call: Callable[[_Disk], Callable[..., Awaitable[Any]]]
) -> dict[int, BaseException | None]:
    """Have all disks do their batches, beside each other. What came of the items, by their places."""
    begun: list[tuple[_Batch, Awaitable[Any]]] = []
    errors: dict[int, BaseException | None] = {}
    for disk, batch in batches.items():
        try:
            begun.append((batch, call(disk)(batch.pairs, return_exceptions=True)))
        except aioblk.BlkioError as error:  # of all of them: the device is closed, or lost
            errors |= dict.fromkeys(batch.places, error)
    results = await asyncio.gather(*(request for _, request in begun), return_exceptions=True)
    for (batch, _), result in zip(begun, results, strict=True):
        of_each = [result] * len(batch.places) if isinstance(result, BaseException) else result
        errors |= zip(batch.places, of_each, strict=True)
    return errors


# --- as a program -------------------------------------------------------------------------------------------


async def demonstrate(devices: Sequence[aioblk.Device], page_size: int, pages: int, batch: int) -> None:
    """Store pages of random length, load random ones in batches, and say how fast that was."""
    async with contextlib.AsyncExitStack() as stack:
        for device in devices:
            await stack.enter_async_context(device)
        cache = KvCache(devices, page_size=page_size)
        arena = await stack.enter_async_context(aioblk.Arena(2 * batch * page_size))
        for device in devices:
            await arena.attach(device)  # so that each of them takes its memory in place
        buffers = [arena.allocate(page_size) for _ in range(batch)]
        for buffer in buffers:
            buffer[:] = os.urandom(page_size)
        lengths = [random.randint(page_size * 3 // 4, page_size) for _ in range(pages)]
        keys = [hashlib.sha256(str(number).encode()).digest() for number in range(pages)]

        start = time.perf_counter()
        for first in range(0, pages, batch):
            chosen = range(first, min(first + batch, pages))
            await cache.store(
                [(keys[n], buffer[: lengths[n]]) for n, buffer in zip(chosen, buffers, strict=False)]
            )
        say("stored", sum(lengths), time.perf_counter() - start)
        loads = [random.sample(keys, batch) for _ in range(2 * pages // batch)]
        loaded = 0
        start = time.perf_counter()
        for wanted in loads:
            outcomes = await cache.load(list(zip(wanted, buffers, strict=True)))
            loaded += sum(outcome for outcome in outcomes if isinstance(outcome, int))
        say("loaded", loaded, time.perf_counter() - start)
        counts = cache.counts
        bounced = sum(device.statistics().bounced_bytes for device in devices)
        copied = bounced / max(counts.hits + counts.stored, 1)
        print(f"{counts.hits:,} pages were there, {counts.misses:,} were not; {counts.evicted:,} made room")
        print(f"{copied:,.0f} bytes of a page were copied, on the average")
        for buffer in buffers:
            buffer.release()


def say(what: str, size: int, seconds: float) -> None:
    print(f"{what} {size / 1e6:,.0f} MB in {seconds:.2f} s, {size / seconds / 1e6:,.0f} MB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description="Store and load pages of a cache on fast disks.")
    parser.add_argument("device", nargs="*", help="addresses of what is written over; else two scratch files")
    parser.add_argument("--page-size", type=int, default=256 * KIB, help="bytes, from 64 KiB to 1 MiB")
    parser.add_argument("--pages", type=int, default=1000, help="to be stored")
    parser.add_argument("--batch", type=int, default=32, help="pages that are loaded with one await")
    given = parser.parse_args()
    if given.pages < given.batch or given.batch < 1:
        parser.error("--batch must be at least 1, and --pages no less")
    with tempfile.TemporaryDirectory(prefix="aioblk-", dir="/var/tmp") as directory:
        size = given.page_size * (given.pages // 2 + 1)
        try:
            devices: list[aioblk.Device] = [aioblk.open(address) for address in given.device]
            if not devices:
                devices += [aioblk.IoUring(Path(directory, name), create=size, direct=True) for name in "ab"]
            asyncio.run(demonstrate(devices, given.page_size, given.pages, given.batch))
        except (OSError, ValueError) as error:
            sys.exit(f"kv_cache: {error}")


if __name__ == "__main__":
    main()
