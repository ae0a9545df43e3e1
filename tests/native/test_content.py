"""What the core finds in buffers: zeroes, and differences."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioblk._native._core import Memory, View, differing_runs, zero_runs

# few values, so that there are runs
contents = st.lists(st.tuples(st.sampled_from([0, 0, 1]), st.integers(1, 9)), max_size=12).map(
    lambda runs: b"".join(bytes([value]) * length for value, length in runs)
)
units = st.integers(1, 8)


def blocks_of(content: bytes, unit: int) -> list[bytes]:
    return [content[start : start + unit] for start in range(0, len(content), unit)]


@given(content=contents, unit=units)
@settings(max_examples=200, deadline=None)
def test_runs_of_zeroes_are_told_apart_in_units(content: bytes, unit: int) -> None:
    runs = zero_runs(content, unit)
    assert b"".join(content[start:end] for start, end, _ in runs) == content
    for start, end, is_zero in runs:
        assert all(any(block) is not is_zero for block in blocks_of(content[start:end], unit))
        assert start % unit == 0
    assert all(one[2] is not other[2] for one, other in pairwise(runs))


@given(one=contents, other=contents, unit=units)
@settings(max_examples=200, deadline=None)
def test_what_differs_is_told_in_units(one: bytes, other: bytes, unit: int) -> None:
    runs = differing_runs(one, other, unit)
    length = min(len(one), len(other))
    differing = {
        start
        for start in range(0, length, unit)
        if one[start : min(start + unit, length)] != other[start : min(start + unit, length)]
    }
    assert {start for first, end in runs for start in range(first, end, unit)} == differing
    assert all(before[1] < after[0] for before, after in pairwise(runs))


def test_the_memory_of_a_device_is_looked_at_as_it_is() -> None:
    content = random.Random(1).randbytes(4096) + bytes(4096)
    memory = Memory.from_buffer(bytearray(content))
    view = View(memory)
    assert zero_runs(view, 512) == [(0, 4096, False), (4096, 8192, True)]
    assert differing_runs(view, bytes(8192), 4096) == [(0, 4096)]
    memory.close()
    with pytest.raises(ValueError, match="closed"):
        zero_runs(view, 512)


@pytest.mark.parametrize("unit", [0, -1])
def test_a_unit_is_positive(unit: int) -> None:
    with pytest.raises(ValueError, match=f"a unit is a positive number of bytes, not {unit}"):
        zero_runs(b"abc", unit)
    with pytest.raises(ValueError, match=f"a unit is a positive number of bytes, not {unit}"):
        differing_runs(b"abc", b"abd", unit)


def test_a_unit_may_be_longer_than_all() -> None:
    assert zero_runs(bytes(3), 1 << 62) == [(0, 3, True)]
    assert differing_runs(b"abc", b"abd", 1 << 62) == [(0, 3)]
    with pytest.raises(OverflowError):
        zero_runs(bytes(3), 1 << 63)
    with pytest.raises(TypeError):
        zero_runs(bytes(3), "1")  # type: ignore[arg-type]


def test_only_bytes_that_lie_side_by_side_are_looked_at() -> None:
    with pytest.raises(BufferError):
        zero_runs(memoryview(bytes(8))[::2], 1)
    with pytest.raises(BufferError):
        differing_runs(bytes(8), memoryview(bytes(8))[::2], 1)
