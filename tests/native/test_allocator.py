"""Allocator: ranges never overlap, what fits is never refused, and what is given back merges."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aioblk._native._core import Allocator


def test_takes_and_gives() -> None:
    allocator = Allocator(4096, 512)
    assert (allocator.size, allocator.granule, allocator.largest_free) == (4096, 512, 4096)
    first, second = allocator.take(1), allocator.take(1024)
    assert first is not None
    assert second is not None
    assert {first, second} == {0, 512}
    assert (allocator.in_use, allocator.count, allocator.largest_free) == (1536, 2, 2560)
    assert allocator.take(2561) is None
    allocator.give(first)
    allocator.give(second)
    assert (allocator.in_use, allocator.count, allocator.largest_free) == (0, 0, 4096)


def test_the_whole_can_be_taken() -> None:
    allocator = Allocator(100 * 512, 512)
    assert allocator.take(100 * 512) == 0
    assert allocator.take(1) is None
    assert allocator.largest_free == 0
    allocator.give(0)
    assert allocator.take(100 * 512 + 1) is None


@pytest.mark.parametrize("offset", [0, 512, 1, -512, 4096, 1 << 40])
def test_refuses_to_give_back_what_was_not_taken(offset: int) -> None:
    allocator = Allocator(4096, 512)
    with pytest.raises(ValueError, match="no taken range"):
        allocator.give(offset)


def test_refuses_to_give_back_twice_or_from_the_middle() -> None:
    allocator = Allocator(4096, 512)
    assert allocator.take(1536) == 0
    for offset in (512, 1024):
        with pytest.raises(ValueError, match="no taken range"):
            allocator.give(offset)
    allocator.give(0)
    with pytest.raises(ValueError, match="no taken range"):
        allocator.give(0)


@pytest.mark.parametrize(
    ("size", "granule"), [(0, 512), (-512, 512), (513, 512), (4096, 0), (4096, -1), (4096, 768), (1 << 40, 1)]
)
def test_refuses_impossible_sizes(size: int, granule: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        Allocator(size, granule)


@pytest.mark.parametrize("length", [0, -1])
def test_refuses_impossible_lengths(length: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        Allocator(4096, 512).take(length)


@given(st.lists(st.integers(1, 5000), max_size=60), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_everything_merges_whatever_the_order(lengths: list[int], random: Random) -> None:
    allocator = Allocator(1 << 16, 64)
    offsets = [offset for length in lengths if (offset := allocator.take(length)) is not None]
    random.shuffle(offsets)
    for offset in offsets:
        allocator.give(offset)
    assert (allocator.in_use, allocator.count, allocator.largest_free) == (0, 0, 1 << 16)


# --- against a model ----------------------------------------------------------------------------------------


class AllocatorMachine(RuleBasedStateMachine):
    """The model is the set of taken granules."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[int, int] = {}  # offset -> granules

    @initialize(granules=st.integers(1, 600), granule=st.sampled_from([1, 64, 512, 4096]))
    def create(self, granules: int, granule: int) -> None:
        self.granules, self.granule = granules, granule
        self.allocator = Allocator(granules * granule, granule)
        self.free = [True] * granules

    def longest_free(self) -> int:
        longest = run = 0
        for free in self.free:
            run = run + 1 if free else 0
            longest = max(longest, run)
        return longest

    @rule(part=st.floats(0, 1), odd=st.booleans())
    def take(self, part: float, odd: bool) -> None:
        granules = 1 + int(part**3 * (self.granules - 1))  # mostly small, at times everything
        length = granules * self.granule - (odd and self.granule > 1)
        offset = self.allocator.take(length)
        if offset is None:
            assert self.longest_free() < granules
            return
        start, remainder = divmod(offset, self.granule)
        assert remainder == 0
        assert all(self.free[start : start + granules])
        assert start + granules <= self.granules
        self.free[start : start + granules] = [False] * granules
        self.taken[offset] = granules

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.taken)))
        self.allocator.give(offset)
        start, granules = offset // self.granule, self.taken.pop(offset)
        self.free[start : start + granules] = [True] * granules

    @rule(data=st.data())
    def give_wrongly(self, data: st.DataObject) -> None:
        offset = data.draw(st.integers(0, self.granules * self.granule))
        if offset not in self.taken:
            with pytest.raises(ValueError, match="no taken range"):
                self.allocator.give(offset)

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.allocator.in_use == sum(self.taken.values()) * self.granule
        assert self.allocator.count == len(self.taken)
        assert self.allocator.largest_free == self.longest_free() * self.granule


TestAllocator = AllocatorMachine.TestCase
TestAllocator.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
