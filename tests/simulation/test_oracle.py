"""The oracle: what a sector may hold, from what has been seen of it."""

import pytest

from .oracle import SECTOR, Change, Oracle, Reading, Wrong


@pytest.fixture
def oracle() -> Oracle:
    return Oracle(4, repeats=False)


def write(oracle: Oracle, sector: int = 0, *, durable: bool = False) -> Change:
    """One that is acknowledged at once."""
    change = oracle.begin(sector, 1, zeroes=False)
    oracle.acknowledge(change, durable=durable)
    return change


def sees(oracle: Oracle, change: Change | None, reading: Reading | None = None) -> bool:
    """Whether a read of the change's sector may give what it has written; None: zeroes."""
    sector = 0 if change is None else change.first
    reading = reading or oracle.begin_read(sector, 1)
    try:
        oracle.end_read(reading, bytes(SECTOR) if change is None else change.data())
    except Wrong:
        return False
    return True


def test_what_was_acknowledged_last_is_read(oracle: Oracle) -> None:
    assert sees(oracle, None)
    first, second = write(oracle), write(oracle)
    assert not sees(oracle, first)
    assert not sees(oracle, None)
    assert sees(oracle, second)


def test_changes_beside_each_other_end_in_either_order_once(oracle: Oracle) -> None:
    first = oracle.begin(0, 1, zeroes=False)
    second = oracle.begin(0, 1, zeroes=False)
    oracle.acknowledge(second, durable=False)
    oracle.acknowledge(first, durable=False)
    assert sees(oracle, second)
    assert sees(oracle, second)
    assert not sees(oracle, first), "a read has seen the other, with nothing under way"


def test_a_read_beside_a_change_sees_it_or_not(oracle: Oracle) -> None:
    before = write(oracle)
    reading, other = oracle.begin_read(0, 1), oracle.begin_read(0, 1)
    change = write(oracle)
    assert sees(oracle, before, reading)
    assert sees(oracle, change, other)
    assert not sees(oracle, before)


def test_a_failed_change_may_have_happened(oracle: Oracle) -> None:
    before, failed = write(oracle), oracle.begin(0, 1, zeroes=False)
    oracle.end(failed)
    assert sees(oracle, before)
    assert not sees(oracle, failed), "a read has seen that it has not"


def test_a_change_under_way_may_happen_late(oracle: Oracle) -> None:
    before, late = write(oracle), oracle.begin(0, 1, zeroes=False)
    assert sees(oracle, before)
    assert sees(oracle, late)
    assert sees(oracle, late)
    oracle.end(late)
    assert sees(oracle, late)
    assert not sees(oracle, before)


def test_what_meets_a_change_that_was_given_up_comes_after_it(oracle: Oracle) -> None:
    given_up = oracle.begin(0, 1, zeroes=False)
    oracle.end(given_up)  # when it is cancelled
    again = write(oracle)
    assert not sees(oracle, given_up)
    assert sees(oracle, again)


def test_what_was_refused_has_never_been(oracle: Oracle) -> None:
    refused = oracle.begin(0, 1, zeroes=False)
    oracle.withdraw(refused)
    assert not sees(oracle, refused)
    assert sees(oracle, None)


def test_sectors_are_not_torn(oracle: Oracle) -> None:
    change = write(oracle)
    reading = oracle.begin_read(0, 1)
    with pytest.raises(Wrong, match="sector 0 is torn: #1 of sector 0, zeroes"):
        oracle.end_read(reading, change.data()[:100] + bytes(SECTOR - 100))


def test_what_belongs_elsewhere_is_named(oracle: Oracle) -> None:
    write(oracle, 1)
    reading = oracle.begin_read(0, 1)
    with pytest.raises(
        Wrong, match=r"sector 0 was read as #1 of sector 1, from 3 on; it could hold only: #0"
    ):
        oracle.end_read(reading, Change(1, 1, 1, zeroes=False, begun=0).data())


def test_what_was_taken_for_ended_may_do_something_yet(oracle: Oracle) -> None:
    change = oracle.begin(0, 1, zeroes=False)
    oracle.end(change)
    successor = write(oracle)
    assert not sees(oracle, change)
    oracle.reopen(change)
    assert sees(oracle, successor), "or not yet"
    assert sees(oracle, change)


# --- when the power fails -----------------------------------------------------------------------------------


def test_without_a_flush_any_of_the_changes_is_left(oracle: Oracle) -> None:
    for index in range(3):
        oracle = Oracle(4, repeats=False)
        changes = [write(oracle) for _ in range(3)]
        oracle.power_failure()
        assert sees(oracle, changes[index])
        assert not sees(oracle, changes[index - 1]), "there is one, and it stays"


def test_a_flush_covers_what_was_acknowledged_when_it_began(oracle: Oracle) -> None:
    first = write(oracle)
    flush = oracle.begin_flush()
    second = write(oracle)
    oracle.end_flush(flush)
    oracle.power_failure()
    assert not sees(oracle, None)
    assert sees(oracle, first)
    assert not sees(oracle, second)


def test_a_flush_that_was_not_acknowledged_covers_nothing(oracle: Oracle) -> None:
    write(oracle)
    oracle.begin_flush()
    oracle.power_failure()
    assert sees(oracle, None)


def test_fua_covers_its_own(oracle: Oracle) -> None:
    other = write(oracle, 1)
    change = write(oracle, durable=True)
    oracle.power_failure()
    assert not sees(oracle, None)
    assert sees(oracle, change)
    reading = oracle.begin_read(1, 1)
    oracle.end_read(reading, bytes(SECTOR))
    assert not sees(oracle, other)


def test_what_is_acknowledged_after_the_failure_was_done_before_it_or_is_lost(oracle: Oracle) -> None:
    late = oracle.begin(0, 1, zeroes=False)
    oracle.power_failure()
    oracle.acknowledge(late, durable=False)
    assert sees(oracle, None)


def test_a_flush_that_is_acknowledged_after_the_failure_was_done_before_it(oracle: Oracle) -> None:
    change = write(oracle)
    flush = oracle.begin_flush()
    oracle.power_failure()
    oracle.end_flush(flush)
    assert not sees(oracle, None)
    assert sees(oracle, change)


def test_where_requests_are_made_again_it_may_have_been_done_after_it() -> None:
    oracle = Oracle(4, repeats=True)
    write(oracle)
    flush = oracle.begin_flush()
    oracle.power_failure()
    oracle.end_flush(flush)
    assert sees(oracle, None)


def test_a_read_across_the_failure_sees_what_was_before_or_after(oracle: Oracle) -> None:
    change = write(oracle)
    before, after = oracle.begin_read(0, 1), oracle.begin_read(0, 1)
    oracle.power_failure()
    assert sees(oracle, change, before)
    assert sees(oracle, None, after)
