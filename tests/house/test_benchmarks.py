"""What the suite of benchmarks makes of its samples: what is judged, and what survives a broken-off run."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import copies
from benchmarks.bars import judge
from benchmarks.journal import Journal
from benchmarks.model import CASES, Cell, Record, Run, Sample
from benchmarks.plan import PLANS, choose_cells
from benchmarks.standing import explain, standing
from benchmarks.summary import Interval
from benchmarks.workers.measuring import Job

DEEP = Cell("cached-file", "read", 4096, 32)
SETTINGS = {"rounds": 3, "depths": [1, 32]}


def run_of(*records: Record) -> Run:
    labels = {
        "blkio-bench": "blkio-bench (C)",
        "aioblk-await": "aioblk, one await each",
        "aioblk-batch": "aioblk, one await for the batch",
        "threads": "reads in threads",
    }
    return Run(
        "a run",
        "./run bench",
        "today",
        "blkio-bench",
        {"Python": "CPython 3.11.2, GIL"},
        labels,
        {},
        [*records],
    )


def rates(contender: str, *rates: float, cell: Cell = DEEP, p50: float | None = None) -> list[Record]:
    return [
        Record(contender, cell, number, Sample(rate, mean=10.0, p50=p50, cpu=1.0))
        for number, rate in enumerate(rates, start=1)
    ]


def test_a_bar_compares_samples_of_the_same_round() -> None:
    run = run_of(*rates("blkio-bench", 100, 200, 1000), *rates("aioblk-await", 76, 160, 740))
    [verdict] = judge(run)
    assert (verdict.value.low, verdict.value.median, verdict.value.high) == (0.74, 0.76, 0.8)
    assert verdict.word == "met"


def test_a_bar_for_another_python_is_left_out() -> None:
    run = run_of(*rates("blkio-bench", 100), *rates("aioblk-await", 78))
    assert [verdict.word for verdict in judge(run)] == ["met"]
    run.machine["Python"] = "CPython 3.13.5, GIL"
    assert [verdict.word for verdict in judge(run)] == ["NOT MET"]


def test_an_interval_holds_the_median_and_grows_with_the_scatter() -> None:
    narrow, wide = Interval.of([0.99, 1.0, 1.01] * 5), Interval.of([0.5, 1.0, 1.5] * 5)
    assert wide.low < narrow.low <= narrow.median == 1.0 <= narrow.high < wide.high
    assert (narrow.count, str(narrow)) == (15, "1.00 [0.99-1.01]")


def test_whoever_is_ahead_is_found_and_named() -> None:
    run = run_of(*rates("aioblk-await", 100, 100), *rates("threads", 120, 110, p50=200_000))
    beside = standing(run)
    assert beside.compared == 1
    [lead] = beside.leads
    assert (lead.peer, lead.value.low, explain(lead)) == ("threads", 1.1, "not explained")


def test_one_that_does_one_after_the_other_is_told_by_its_latency() -> None:
    run = run_of(*rates("aioblk-await", 100, 100), *rates("threads", 120, 110, p50=9_000))
    [lead] = standing(run).leads
    assert explain(lead).startswith("one at a time")


def test_a_run_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    run = run_of()
    first, second = rates("aioblk-await", 1, 2)
    journal = Journal(tmp_path / "run.journal")
    journal.begin(run, SETTINGS)
    journal.add(first)
    journal.add(second)
    with (tmp_path / "run.journal").open("a") as file:
        file.write('{"contender": "aio')  # the sample that was being written
    assert journal.resume(SETTINGS) == replace(run, records=[first, second])
    with pytest.raises(SystemExit, match="--rounds is 5, and was 3"):
        journal.resume({**SETTINGS, "rounds": 5})
    journal.end()
    with pytest.raises(SystemExit, match="nothing to resume"):
        journal.resume(SETTINGS)


@pytest.mark.parametrize("command", PLANS)
def test_a_plan_measures_no_cell_twice(command: str) -> None:
    for cells in choose_cells(command, cases=None, operations=None, block_sizes=None, depths=None).values():
        assert cells
        assert len(cells) == len(set(cells))


def test_what_is_asked_for_is_measured_in_all_combinations() -> None:
    found = choose_cells("full", cases=["direct-file"], operations=None, block_sizes=(512,), depths=(2, 4))
    assert found == {CASES["direct-file"]: [Cell("direct-file", "read", 512, depth) for depth in (2, 4)]}


def test_each_slot_goes_through_the_whole_device() -> None:
    job = Job("disk.img", "file", capacity=64 * 4096, operation="read", block_size=4096, depth=4, seconds=1.0)
    orders = job.orders(128)
    assert [sorted(order) for order in orders] == [sorted([*range(0, 64 * 4096, 4096)] * 2)] * 4
    assert len({order[0] for order in orders}) == 4


def test_a_copy_is_compared_with_that_of_the_same_round() -> None:
    samples = {
        "file to file": {
            "aioblk": [copies.Sample(1.0, 0.5), copies.Sample(2.0, 0.5), copies.Sample(4.0, 0.5)],
            "cp": [copies.Sample(2.0, 1.0), copies.Sample(3.0, 1.0), copies.Sample(16.0, 1.0)],
        }
    }
    [ours, theirs] = copies.grid(samples, 1 << 30, 3).rows
    assert ours == ["file to file", "aioblk", "2.00", "512", "0.50", ""]
    assert theirs[-1] == "2.00 [1.50-4.00]"
