"""Histograms of how long requests took."""

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aioblk
from aioblk import LatencyHistogram
from aioblk._native.latency import LatencyRecorder

times = st.lists(st.integers(min_value=0, max_value=1 << 50), max_size=40)


def histogram(nanoseconds: list[int]) -> LatencyHistogram:
    recorder = LatencyRecorder()
    for each in nanoseconds:
        recorder.add(each * 1e-9)
    return recorder.histogram()


@given(times, st.floats(min_value=0, max_value=100))
def test_a_percentile_is_right_to_a_thirtysecond(nanoseconds: list[int], percent: float) -> None:
    found = histogram(nanoseconds).percentile(percent)
    rank = max(math.ceil(len(nanoseconds) * percent / 100), 1)
    exact = sorted(nanoseconds)[rank - 1] * 1e-9 if nanoseconds else 0.0
    assert exact * (1 - 1e-9) <= found <= exact * (1 + 1 / 32) + 1e-9


@given(times)
def test_buckets_hold_all(nanoseconds: list[int]) -> None:
    whole = histogram(nanoseconds)
    buckets = list(whole)
    assert sum(each.requests for each in buckets) == whole.count == len(nanoseconds)
    assert buckets == sorted(buckets)
    assert all(each.end - each.start <= max(each.start / 31, 1.001e-9) for each in buckets)
    counts = [whole.count_up_to(end) for _, end, _ in buckets]
    assert counts == list(itertools.accumulate(each.requests for each in buckets))
    assert whole.count_up_to(0) == 0
    assert whole.mean * len(nanoseconds) == pytest.approx(whole.sum)
    if nanoseconds:
        assert buckets[0].start <= whole.min * (1 + 1e-9)
        assert whole.max <= buckets[-1].end


def test_a_histogram_shows_how_many_and_seconds() -> None:
    assert repr(LatencyHistogram()) == "<LatencyHistogram of 0>"
    assert repr(histogram([1_500, 2_000_000])) == "<LatencyHistogram of 2, from 1.5e-06 to 0.002 s>"


@given(times, times)
def test_histograms_add_up_and_give_back_what_came_between(some: list[int], more: list[int]) -> None:
    together = histogram(some) + histogram(more)
    assert together == histogram(some + more) or together.sum == pytest.approx(histogram(some + more).sum)
    assert list(together) == list(histogram(some + more))
    since = together - histogram(some)
    assert list(since) == list(histogram(more))
    assert since.sum == pytest.approx(histogram(more).sum, abs=1e-3)
    if more:
        assert since.min <= min(more) * 1e-9 * (1 + 1e-9)
        assert max(more) * 1e-9 <= since.max * (1 + 1e-9)


def test_an_earlier_histogram_less_the_later_one_is_refused() -> None:
    early, late = histogram([1000]), histogram([1000, 1000, 5000])
    assert (late - early).count == 2
    for less in (early, LatencyHistogram()):
        with pytest.raises(ValueError, match="is no later one of what <LatencyHistogram of 3, from"):
            _ = less - late


def test_of_nothing_everything_is_nothing() -> None:
    nothing = LatencyHistogram()
    assert (nothing.count, nothing.mean, nothing.percentile(99), nothing.max) == (0, 0.0, 0.0, 0.0)
    assert nothing - nothing == nothing + nothing == nothing
    assert list(nothing) == []


@pytest.mark.parametrize("percent", [-1, 100.5, math.nan])
def test_there_are_a_hundred_percent(percent: float) -> None:
    with pytest.raises(ValueError, match="percent must be from 0 to 100, not"):
        LatencyHistogram().percentile(percent)


async def test_the_core_counts_in_the_same_buckets(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file) as device:
        device.measuring = True
        for _ in range(200):
            await device.read(0, 4096)
            taken = device.statistics().read.latency
            first, *_, last = [*taken, *taken]
            assert first.start <= taken.min < first.end
            assert last.start <= taken.max < last.end
        assert device.statistics().read.latency.count == 200
