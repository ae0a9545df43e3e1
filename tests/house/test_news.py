"""News lies in changelog.d/, a file for each change; releases put it into the changelog (towncrier)."""

import re
import tomllib

import pytest

from ..support.scripts import ROOT

NEWS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
KINDS = [kind["directory"] for kind in NEWS["type"]]
CHANGELOG = (ROOT / NEWS["filename"]).read_text()
FRAGMENTS = {path.name: path for path in (ROOT / NEWS["directory"]).iterdir() if path.name != "README.md"}


def test_there_is_one_place_where_releases_put_news() -> None:
    before, _, released = CHANGELOG.partition(NEWS["start_string"])
    assert "\n## " not in before
    assert released.startswith("\n## ")
    assert NEWS["start_string"] not in released


def test_news_has_the_kinds_of_keep_a_changelog() -> None:
    assert KINDS == ["added", "changed", "deprecated", "removed", "fixed", "security"]
    said = (ROOT / NEWS["directory"] / "README.md").read_text()
    assert [kind for kind in KINDS if f"`{kind}`" not in said] == []
    assert set(re.findall(r"^### (\w+)$", CHANGELOG, re.MULTILINE)) <= {kind["name"] for kind in NEWS["type"]}


@pytest.mark.parametrize("name", sorted(FRAGMENTS) or ["none"])
def test_news_has_a_kind_and_is_one_paragraph_for_users(name: str) -> None:
    if not FRAGMENTS:  # right after a release
        return
    assert re.fullmatch(rf"\+[a-z0-9-]+\.({'|'.join(KINDS)})\.md", name)
    text = FRAGMENTS[name].read_text()
    assert re.fullmatch(r"[^\s\-*#](.+\n)+", text), "sentences, without a bullet or empty lines"
    assert [line for line in text.splitlines() if len(line) > 132] == []
