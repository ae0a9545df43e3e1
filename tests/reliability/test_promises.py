"""What `./run faults` tries is what the documentation promises; the page tells of all of it."""

import re

import pytest

from .book import FAULTS
from .row import DOCS, Fault, plain, section
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
