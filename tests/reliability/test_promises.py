"""What `./run faults` tries is what the documentation promises; the page tells of all of it."""

import re

import pytest

from .__main__ import attempt
from .book import FAULTS
from .row import DOCS, LIMITS, Fault, plain, section
from .table import PAGE


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_is_promised_stands_where_the_row_says(fault: Fault) -> None:
    assert plain(fault.promised) in plain(section(fault.link))


def test_a_promise_that_does_not_stand_there_is_found_out() -> None:
    assert plain("Requests never fail.") not in plain(section("errors.md#where-they-are-raised"))
    with pytest.raises(LookupError):
        section("errors.md#nowhere")


def test_the_page_tells_of_every_fault() -> None:
    assert re.findall(r"^\| `([\w-]+)` \|", PAGE.read_text(), re.MULTILINE) == [*FAULTS]


def test_the_page_has_the_words_of_every_row() -> None:
    page = PAGE.read_text()
    for fault in FAULTS.values():
        assert f"| {fault.words} | [{fault.promised}]({fault.link}) |" in page, fault.name
    assert PAGE.parent == DOCS


def test_a_scenario_that_fails_is_a_broken_promise(capfd: pytest.CaptureFixture[str]) -> None:
    some = FAULTS["latency"]
    outcome = attempt(Fault("nonesuch", some.words, some.promised, some.link, some.scenario), short=True)
    assert not outcome.kept
    assert outcome.seen == "KeyError: 'nonesuch'"
    assert "Traceback" in capfd.readouterr().err


def test_so_is_one_that_does_not_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(LIMITS, True, 0.01)
    outcome = attempt(FAULTS["latency"], short=True)
    assert not outcome.kept
    assert outcome.seen == "still going on after 0 s"
    assert "latency, status None" in capfd.readouterr().err
