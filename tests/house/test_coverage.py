"""The table of branches that need no test: tests/coverage/argued.toml."""

from pathlib import Path

from ..coverage.__main__ import ARGUED, MOST_ARGUED, read_arguments

SOURCES = Path(__file__).parents[2] / "aioblk" / "_native" / "src"


def test_what_is_argued_is_there() -> None:
    argued, _ = read_arguments(ARGUED)
    lines = {line.strip() for file in SOURCES.glob("*.[ch]") for line in file.read_text().splitlines()}
    text = "\n".join(file.read_text() for file in SOURCES.glob("*.[ch]"))
    for place in argued:
        assert place.source in lines, place
        assert f"{place.function}(" in text, place


def test_little_is_argued() -> None:
    argued, _ = read_arguments(ARGUED)
    assert argued.total() <= MOST_ARGUED
