"""The reference has every public name, with its fields; a site that is not as it should be is found out."""

import ast
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import pytest

from ..site.__main__ import (
    FACES,
    fetched_from_elsewhere,
    links_to_nothing,
    main,
    public_classes,
    public_names,
    read,
)

ROOT = Path(__file__).parents[2]
SHOWN = re.compile(r"^::: (?P<name>[\w.]+)$", re.MULTILINE)

# --- the reference -----------------------------------------------------------------------------------------


def test_every_public_name_is_in_the_reference_once() -> None:
    shown = [
        name for page in (ROOT / "docs/reference").glob("*.md") for name in SHOWN.findall(page.read_text())
    ]
    public = {name for name in public_names() if name.rpartition(".")[0] in FACES}
    assert sorted(shown) == sorted(public)


def test_every_public_name_is_in_the_index_of_the_reference() -> None:
    index = (ROOT / "docs/reference/index.md").read_text()
    for page in (ROOT / "docs/reference").glob("*.md"):
        assert [name for name in SHOWN.findall(page.read_text()) if f"][{name}]" not in index] == []


CLASSES = sorted(public_classes(), key=str)


@pytest.mark.parametrize("kind", CLASSES, ids=[kind.__name__ for kind in CLASSES])
def test_every_field_says_what_it_is(kind: type) -> None:
    """Beside the class as a whole."""
    assert kind.__doc__
    assert undocumented(kind) == []


def undocumented(kind: type) -> list[str]:
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):
        return []  # compiled: its stub has no fields
    [definition] = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    following = zip(definition.body, [*definition.body[1:], None], strict=True)
    return [
        node.target.id
        for node, after in following
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and not node.target.id.startswith("_")
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    ]


def test_what_says_nothing_is_found() -> None:
    class Silent:
        first: int
        """Said."""
        second: int
        third: int = 0

    assert undocumented(Silent) == ["second", "third"]


# --- the site ----------------------------------------------------------------------------------------------


def _site(path: Path, **files: str) -> Path:
    for name, content in files.items():
        stem, _, kind = name.rpartition("_")
        (path / f"{stem}.{kind}").write_text(content)
    return path


@pytest.mark.parametrize(
    "element",
    [
        '<script src="https://elsewhere.example/x.js"></script>',
        '<script src="//elsewhere.example/x.js"></script>',
        '<link rel="stylesheet" href="https://elsewhere.example/x.css">',
        '<link rel="preconnect" href="https://elsewhere.example">',
        '<img src="HTTPS://elsewhere.example/x.png">',
        '<img srcset="own.png 1x, https://elsewhere.example/x.png 2x">',
        "<style>@font-face { src: url('https://elsewhere.example/x.woff2') }</style>",
        '<style>@import "https://elsewhere.example/x.css";</style>',
        '<p style="background: url(https://elsewhere.example/x.png)">',
        '<svg><image href="https://elsewhere.example/x.png"/></svg>',
    ],
)
def test_what_is_fetched_from_elsewhere_is_found(tmp_path: Path, element: str) -> None:
    site = _site(tmp_path, index_html=f"<html><body>{element}</body></html>")
    [found] = fetched_from_elsewhere(site, read(site))
    assert found.startswith("index.html fetches ")
    assert "elsewhere.example" in found.lower()


def test_so_is_what_a_style_sheet_and_a_picture_fetch(tmp_path: Path) -> None:
    url = "https://elsewhere.example/x.woff2"
    site = _site(
        tmp_path,
        a_css=f"@font-face {{ src: url({url}) }} p {{ background: url(own.png) }}",
        b_svg=f'<svg xmlns="http://www.w3.org/2000/svg"><style>@import url("{url}")</style></svg>',
    )
    assert sorted(fetched_from_elsewhere(site, read(site))) == [
        f"a.css fetches {url}",
        f"b.svg fetches {url}",
    ]


def test_who_is_led_elsewhere_by_a_click_fetches_nothing(tmp_path: Path) -> None:
    site = _site(
        tmp_path,
        index_html='<link rel="canonical" href="https://x.example"><a href="https://x.example">x</a>',
    )
    assert list(fetched_from_elsewhere(site, read(site))) == []


def test_links_to_nothing_are_found(tmp_path: Path) -> None:
    links = "b.html", "b.html#there", "#here", "./", "https://x.example", "c.html", "b.html#gone", "#gone"
    site = _site(
        tmp_path,
        index_html='<p id="here">' + "".join(f'<a href="{link}">x</a>' for link in links),
        b_html='<p id="there">',
    )
    assert [found.split()[-1] for found in links_to_nothing(site, read(site))] == [
        "c.html",
        "b.html#gone",
        "#gone",
    ]


def test_a_site_without_the_names_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [*public_names()]
    anchors = "".join(f'<p id="{name}">' for name in names)
    assert main(_site(tmp_path, index_html=anchors)) == 0
    left_out = "aioblk.Limits.max_transfer"
    assert left_out in names
    assert main(_site(tmp_path, index_html=anchors.replace(f'"{left_out}"', '""'))) == 1
    assert capsys.readouterr().out == f"{left_out} is not in the reference\n"


def test_a_folder_without_pages_is_no_site(tmp_path: Path) -> None:
    assert main(tmp_path) == 1


def test_the_docstrings_are_read_from_the_same_modules() -> None:
    source = ast.parse((ROOT / "docs/theme/docstrings.py").read_text())
    [faces] = [
        ast.literal_eval(node.value)
        for node in source.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "FACES"
    ]
    assert faces == FACES
    assert [name for name in FACES if not hasattr(importlib.import_module(name), "__all__")] == []
