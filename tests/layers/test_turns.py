"""Turns: who shares bytes waits for whoever came before, and many that wait cost no more than a few."""

import asyncio
import random

import pytest

from aioblk.layers._turns import Turn, Turns

from ..support.turns import turns as loop_turns

Range = tuple[int, int]


class Oracle:
    """Turns, and what becomes of them by the rule: each waits for all that came before and share a byte."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.ranges: list[Range] = []
        self.begun: dict[int, Turn] = {}
        self.ended: set[int] = set()

    def take(self, start: int, end: int) -> None:
        number = len(self.ranges)
        self.ranges.append((start, end))
        self.turns.take(start, end, lambda turn: self._begin(number, turn))

    def _begin(self, number: int, turn: Turn) -> None:
        assert number not in self.begun
        assert not self.before(number)
        self.begun[number] = turn

    def before(self, number: int) -> list[int]:
        """Those that it has to wait for."""
        start, end = self.ranges[number]
        return [
            other
            for other, (its_start, its_end) in enumerate(self.ranges[:number])
            if other not in self.ended and max(start, its_start) < min(end, its_end)
        ]

    @property
    def under_way(self) -> list[int]:
        return [number for number in self.begun if number not in self.ended]

    @property
    def present(self) -> list[Range]:
        return [each for number, each in enumerate(self.ranges) if number not in self.ended]

    def end(self, number: int) -> None:
        self.ended.add(number)
        self.turns.end(self.begun[number])

    def look(self) -> None:
        for number in range(len(self.ranges)):
            assert (number in self.begun) == (number in self.ended or not self.before(number))
        bytes_of = {byte for start, end in self.present for byte in range(start, end)}
        assert bytes_of == {byte for start, end in self.turns.ranges for byte in range(start, end)}
        for start, end in ((0, 8), (5, 6), (11, 40), (3, 3)):
            assert self.turns.meet(start, end) == bool(bytes_of & set(range(start, end)))


@pytest.mark.parametrize("seed", range(40))
def test_each_begins_when_all_have_ended_that_came_before_and_share_bytes(seed: int) -> None:
    chance = random.Random(seed)
    oracle = Oracle()
    longest = chance.choice([3, 10, 40])
    for _ in range(80):
        if chance.random() < 0.55 or not oracle.under_way:
            start = chance.randrange(40)
            oracle.take(start, min(40, start + chance.randrange(longest)))
        else:
            oracle.end(chance.choice(oracle.under_way))
        oracle.look()
    while oracle.under_way:
        oracle.end(chance.choice(oracle.under_way))
    assert len(oracle.ended) == len(oracle.ranges)
    assert not oracle.turns.ranges


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 100)] * 3000,
        [(0, 100 + number) for number in range(3000)],
        [(number, number + 50) for number in range(3000)],
        [(0, 3000) if number % 50 == 0 else (number, number + 1) for number in range(3000)],
    ],
    ids=["the same bytes", "more and more", "overlapping", "all and parts of it"],
)
def test_however_many_wait_each_waits_for_a_few(ranges: list[Range]) -> None:
    begun: list[Turn] = []
    many = Turns()
    for start, end in ranges:
        many.take(start, end, begun.append)
    waits = sum(turn.earlier for turn in many._last)
    pieces = len(many._last)
    for turn in begun:  # which goes on with those that begin meanwhile
        waits += len(turn.later)
        many.end(turn)
        pieces = max(pieces, len(many._last))
    assert len(begun) == len(ranges)
    assert waits <= 3 * len(ranges)
    assert pieces <= 2 * len(ranges) + 1
    assert len(many._last) <= 64, "what has ended is forgotten"


async def test_who_gives_up_waiting_for_its_turn_holds_nobody_up() -> None:
    many = Turns()
    async with many.hold(0, 10):

        async def hold() -> None:
            async with many.hold(5, 15):
                pass

        given_up, waiting = asyncio.create_task(hold()), asyncio.create_task(hold())
        finishing = asyncio.create_task(many.finish())
        await loop_turns()
        given_up.cancel()
        await loop_turns()
        assert not waiting.done()
    await asyncio.wait_for(asyncio.gather(waiting, finishing), 10)
    assert given_up.cancelled()
    assert not many.meet(0, 15)
