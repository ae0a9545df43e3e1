"""What was acknowledged as durable is there after any power failure, on QEMU's daemon; ./run campaign
durability tries more seeds.
"""

import random
from collections.abc import Awaitable

import pytest
from typing_extensions import Buffer

import aioblk

from .replay import ZEROES, Replay
from .search import Search, play, play_records
from .write_log import DISCARD, ENTRY, FLUSH, FUA, MAGIC, MARK, SECTOR, SUPER, Entry, entries

SEEDS = range(1, 7)

# --- the promise --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
async def test_what_was_promised_is_there_whenever_the_power_fails(seed: int) -> None:
    search = Search()
    await play(seed, search)
    assert not search.findings, search.report()
    assert search.counts["prefixes"] > 20
    assert search.counts["promises"] > 5
    assert (search.counts["reconnections"] > 0) == (seed % 2 == 1)


async def test_so_are_the_records_of_a_log() -> None:
    search = Search()
    await play_records(1, search)
    assert not search.findings, search.report()
    assert search.counts["opened_again"] > 50


# --- it would be noticed ------------------------------------------------------------------------------------


class WithoutFlush(aioblk.Layer[aioblk.BlockDevice]):
    """Every third flush is none."""

    count = 0

    def flush(self) -> Awaitable[None]:
        self.count += 1
        return self._device.flush() if self.count % 3 else self._nothing()

    async def _nothing(self) -> None:
        pass


class WithoutFua(aioblk.Layer[aioblk.BlockDevice]):
    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> Awaitable[None]:
        return super().write(offset, data)


class FlushesFirst(aioblk.Layer[aioblk.BlockDevice]):
    """What is written with FUA is flushed, but by a flush that does not wait for it."""

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        if fua:
            await super().flush()
        await super().write(offset, data)


@pytest.mark.parametrize("careless", [WithoutFlush, WithoutFua, FlushesFirst])
async def test_a_device_that_breaks_it_is_found_out(careless: type[aioblk.Layer[aioblk.BlockDevice]]) -> None:
    search = Search()
    await play(2, search, over=careless)
    assert search.findings, search.report()


# --- logs ---------------------------------------------------------------------------------------------------


def head(sector: int, count: int, flags: int = 0, length: int = 0) -> bytes:
    return ENTRY.pack(sector, count, flags, length).ljust(SECTOR, b"\0")


def block(byte: bytes) -> bytes:
    return byte * SECTOR


SUPERBLOCK = SUPER.pack(MAGIC, 1, 1, SECTOR).ljust(SECTOR, b"\0")


def test_a_log_has_entries_beyond_those_that_its_superblock_counts() -> None:
    log = SUPERBLOCK + head(1, 2) + block(b"a") + block(b"b") + head(0, 0, FLUSH) + head(8, 4, DISCARD)
    assert list(entries(log)) == [
        Entry(1, 2, 0, block(b"a") + block(b"b"), 4 * SECTOR),
        Entry(0, 0, FLUSH, None, 5 * SECTOR),
        Entry(8, 4, DISCARD, None, 6 * SECTOR),
    ]


def test_a_log_without_a_flush_has_no_superblock() -> None:
    assert list(entries(b"")) == []
    [entry] = entries(bytes(SECTOR) + head(1, 1) + block(b"a"))
    assert entry.data == block(b"a")


def test_gaps_of_a_log_are_passed_over() -> None:
    log = SUPERBLOCK + bytes(3 * SECTOR) + head(1, 1) + block(b"a")
    assert [entry.sector for entry in entries(log)] == [1]


def test_zeroes_that_were_logged_elsewhere_hide_no_entry() -> None:
    log = SUPERBLOCK + head(8, 2) + head(1, 1) + block(b"a") + bytes(2 * SECTOR)
    found = entries(log, lambda count: count == 2)
    assert [(entry.sector, entry.data) for entry in found] == [(8, None), (1, block(b"a"))]


def test_a_mark_says_something() -> None:
    mark = (ENTRY.pack(0, 0, MARK, 5) + b"three").ljust(SECTOR, b"\0")
    [entry] = entries(SUPERBLOCK + mark)
    assert entry.data == b"three"
    assert not Replay().add(entry)


def test_what_is_no_log_is_refused() -> None:
    with pytest.raises(AssertionError, match="no log of writes"):
        list(entries(block(b"x")))
    with pytest.raises(AssertionError, match="no entry at 512"):
        list(entries(SUPERBLOCK + block(b"x")))


# --- what a power failure may leave -------------------------------------------------------------------------


def written(sector: int, byte: bytes, flags: int = 0) -> Entry:
    return Entry(sector, 1, flags, block(byte), 0)


def test_a_sector_may_be_anything_that_no_flush_has_covered() -> None:
    replay = Replay()
    assert [*replay.add(written(1, b"a")), *replay.add(written(1, b"b"))] == [1, 1]
    assert replay.possible(1) == [ZEROES, block(b"a"), block(b"b")]
    assert replay.possible(0) == [ZEROES]
    assert set(replay.add(Entry(0, 0, FLUSH, None, 0))) == {1}
    assert replay.possible(1) == [block(b"b")]
    replay.add(Entry(0, 2, DISCARD, None, 0))
    assert replay.possible(1) == [block(b"b"), ZEROES]


def test_what_was_written_with_fua_is_there_and_nothing_else() -> None:
    replay = Replay()
    replay.add(written(0, b"a"))
    replay.add(written(1, b"b", FUA))
    assert replay.possible(0) == [ZEROES, block(b"a")]
    assert replay.possible(1) == [block(b"b")]


def test_a_flush_goes_before_what_is_written_with_it() -> None:
    replay = Replay()
    replay.add(written(0, b"a"))
    replay.add(written(1, b"b", FLUSH))
    assert replay.possible(0) == [block(b"a")]
    assert replay.possible(1) == [ZEROES, block(b"b")]


def test_what_was_not_logged_in_whole_was_not_written() -> None:
    replay = Replay(stamped=True)
    replay.add(Entry(0, 3, 0, block(b"a") + bytes(2 * SECTOR), 0))
    replay.add(Entry(3, 1, 0, None, 0))
    assert [len(replay.possible(sector)) for sector in range(4)] == [2, 1, 1, 1]


def test_a_state_is_of_what_each_sector_may_be() -> None:
    replay = Replay()
    replay.add(written(2, b"c", FUA))
    replay.add(written(0, b"a"))
    replay.add(written(1, b"b"))
    states = {tuple(sorted(replay.state(random.Random(seed)))) for seed in range(100)}
    assert states == {(2,), (0, 2), (1, 2), (0, 1, 2)}
