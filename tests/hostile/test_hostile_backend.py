"""Whatever a vhost-user backend does, requests end, and only memory that was lent is touched; ./run campaign
hostile-backend tries it for longer.

What libblkio does not survive is a list, and each of its entries is shown here.
"""

import pytest

from .deeds import AT_REQUESTS, MESSAGES, plan_of
from .known import HANGS, KNOWN, Known, find_known
from .search import Search, play

SEEDS = range(1, 21)
FATAL = {deed for known in KNOWN for deed in known.deeds}


def test_each_deed_alone_is_survived() -> None:
    search = Search()
    search.try_keys([deed for deed in AT_REQUESTS if deed not in FATAL])
    assert not search.findings, search.report()
    assert {"fine", "lost", "error"} <= search.counts.keys()


def test_a_backend_may_hang_up_at_every_message() -> None:
    search = Search()
    search.try_keys([f"hangs up at {message}" for message in MESSAGES])
    assert not search.findings, search.report()
    assert search.counts.total() == len(MESSAGES)


@pytest.mark.parametrize("what", ["answers another message", "answers too little", "answers too much"])
def test_a_device_is_lost_when_it_is_not_known_what_it_has_mapped(what: str) -> None:
    [end] = play([f"{what} at ADD_MEM_REG"])
    assert end.kind == "lost", end
    assert "what is no answer" in end.words


def test_memory_that_is_refused_costs_no_more_than_a_request() -> None:
    [end] = play(["refuses at ADD_MEM_REG"])
    assert end.kind in ("fine", "error"), end


def test_several_deeds_by_seed_are_survived_but_for_what_is_known() -> None:
    search = Search()
    search.try_keys([str(seed) for seed in SEEDS])
    assert not search.findings, search.report()
    assert search.counts.total() == len(SEEDS)


TRIES = 5


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_libblkio_does_not_survive(known: Known) -> None:
    """Where this fails, libblkio has become better: then the entry goes, here and in docs/hazards.md.

    The connection may have been closed before libblkio came across what was done: then the device is lost.
    Or it comes across something else of what was done, first."""
    ends = list(play([known.deed]))
    if ends[0].words != known.name:
        ends += play([known.deed] * TRIES)
    assert ("known", known.name) in {(end.kind, end.words) for end in ends}, ends
    assert {end.kind for end in ends} <= {"known", "lost"}, ends


def test_what_no_deed_explains_is_a_finding() -> None:
    assert find_known(plan_of("is slow"), 6, "assertion failed: old.is_none()") is None
    assert find_known(plan_of("names a request twice"), 11, "assertion failed: old.is_none()") is None
    assert find_known(plan_of("names a request twice"), 6, "assertion failed: old.is_none()") is KNOWN[0]
    waits = 'Thread 0x1 (most recent call first):\n  File "selectors.py", line 468 in select\n'
    calls = waits.replace("select\n", "<lambda>\n")
    assert find_known(plan_of("fills the kick"), HANGS, waits) is None
    assert find_known(plan_of("fills the kick"), HANGS, calls) is KNOWN[3]
