"""The documentation keeps its word: its code runs, its links lead somewhere, what it names exists.

Blocks of Python in docs/ are run from the top of a page to its end, with the names of those before, where
``disk.img`` is a file and ``blk.sock`` a vhost-user device. A block below a comment that begins with
``<!-- not run:`` needs what a machine may lack; it is compiled only.
"""

import ast
import dataclasses
import enum
import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import aioblk
from aioblk._native._core import Submitter
from aioblk.metrics import METRICS, NBD_METRICS, Metric, NbdMetric

from ..conftest import StorageDaemonFactory
from ..contract.drivers import BUFFERED, DIRECT, LOOP, NVME, VDUSE, VFIO, VHOST_USER
from ..support.devices import SCRATCH_SIZE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS).with_suffix("")): path for path in sorted(DOCS.rglob("*.md"))}
WITH_README = {**PAGES, "README": ROOT / "README.md"}

BLOCK = re.compile(r"(?P<before>[^\n]*)\n\n?```python\n(?P<source>.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "<!-- not run:"


class Block(NamedTuple):
    source: str
    """Preceded by as many empty lines as make its line numbers those of the page."""
    runs: bool


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("source"))
        yield Block("\n" * line + match["source"], not match["before"].startswith(NOT_RUN))


@pytest.fixture
def disk_and_socket(
    scratch_file: Path, storage_daemon: StorageDaemonFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current directory has what the pages speak of."""
    monkeypatch.chdir(scratch_file.parent)
    scratch_file.rename("disk.img")
    exported = Path("exported.img")
    exported.write_bytes(bytes(SCRATCH_SIZE))
    Path("blk.sock").symlink_to(storage_daemon(exported.absolute(), num_queues=2).socket)


@pytest.mark.usefixtures("disk_and_socket")
@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
async def test_code_runs(page: Path) -> None:
    names: dict[str, Any] = {"__name__": "a_sample"}
    for block in blocks(page):
        code = compile(block.source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if block.runs:
            waiting = eval(code, names)
            if inspect.iscoroutine(waiting):
                await waiting


@pytest.mark.usefixtures("disk_and_socket")
def test_code_in_the_readme_runs() -> None:
    [block] = blocks(ROOT / "README.md")
    exec(compile(block.source, "README.md", "exec"), {})


@pytest.mark.parametrize("page", WITH_README.values(), ids=WITH_README)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("https://", "http://")):
            continue
        file, _, heading = target.partition("#")
        aim = page.parent / file if file else page
        assert aim.exists(), f"{page.name} links to {target}"
        assert not heading or heading in headings(aim), f"{page.name} links to {target}"


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as sites and code hosts make them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", WITH_README.values(), ids=WITH_README)
def test_what_is_called_a_function_is_one(page: Path) -> None:
    named = set(re.findall(r"`(\w+)\(\)`", page.read_text()))
    assert named <= words_of_the_sources(), f"{page.name} names {named - words_of_the_sources()}"


@functools.cache
def words_of_the_sources() -> set[str]:
    rooms = (ROOT / "aioblk", ROOT / "tests/simulation")
    sources = [path for room in rooms for kind in ("py", "pyi", "c", "h") for path in room.rglob(f"*.{kind}")]
    return set(re.findall(r"\w+", "\n".join(path.read_text() for path in sources)))


@pytest.mark.parametrize("page", WITH_README.values(), ids=WITH_README)
def test_what_is_called_a_test_is_one(page: Path) -> None:
    assert set(re.findall(r"`(test_\w+)`", page.read_text())) <= names_of_tests()


@functools.cache
def names_of_tests() -> set[str]:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    return set(re.findall(r"def (test_\w+)\(", tests))


def test_what_is_said_to_be_among_the_tests_is_there() -> None:
    pages = [*WITH_README.values(), ROOT / "CONTRIBUTING.md"]
    named = {path for page in pages for path in re.findall(r"`(tests/[\w./]+)`", page.read_text())}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_page_is_in_the_index() -> None:
    """In that of its folder, if there is one, and that is in the first."""
    missing = [name for name, page in PAGES.items() if page not in _told_of(_index_of(page))]
    assert missing == ["index"]


def _index_of(page: Path) -> Path:
    own = page.parent / "index.md"
    return own if own.exists() and own != page else PAGES["index"]


def _told_of(index: Path) -> set[Path]:
    links = re.findall(r"\]\(([^)\s#]+\.md)\)", index.read_text())
    return {(index.parent / link).resolve() for link in links}


@pytest.mark.parametrize(
    ("kind", "page"),
    [
        (aioblk.Limits, "drivers"),
        (aioblk.QueueStatistics, "observability"),
        (aioblk.OperationStatistics, "observability"),
        (aioblk.BounceStatistics, "observability"),
    ],
)
def test_every_limit_and_counter_is_explained(kind: type, page: str) -> None:
    """help() does not show what is written below a field."""
    text = PAGES[page].read_text()
    assert [field.name for field in dataclasses.fields(kind) if f"`{field.name}`" not in text] == []


def test_every_metric_is_told_of_with_its_attributes() -> None:
    text = PAGES["observability"].read_text()
    metrics: list[Metric | NbdMetric] = [*METRICS, *NBD_METRICS]
    for metric in metrics:
        kind = metric.kind if metric.unit.startswith("{") else f"{metric.kind}, {metric.unit}"
        attributes = ", ".join(f"`{name}`" for name in metric.attributes)
        assert f"| `{metric.name}` | {kind} | {attributes} | " in text


@pytest.mark.parametrize("page", ["how-to/prometheus", "observability"])
def test_what_is_asked_of_prometheus_is_told_to_it(page: str) -> None:
    metrics: list[Metric | NbdMetric] = [*METRICS, *NBD_METRICS]
    told = {metric.prometheus_name for metric in metrics}
    asked = set(re.findall(r"\baioblk_(?:device|nbd)_\w+", PAGES[page].read_text()))
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in asked} <= told
    assert len(asked) > 3


def test_the_table_of_capabilities_is_that_of_the_contract() -> None:
    columns = [BUFFERED, DIRECT, LOOP, VHOST_USER, VDUSE, VFIO, NVME]
    features = sorted({feature for driver in columns for feature in driver.lacks} - {"polling"})
    text = PAGES["drivers"].read_text()
    for feature in features:
        cells = ["no" if feature in driver.lacks else "yes" for driver in columns]
        assert "| " + " | ".join([feature, *cells]) + " |" in text
    # What can be polled depends on the disk under a file; the rest is settled.
    assert [driver.name for driver in columns if "polling" not in driver.lacks and driver is not DIRECT] == [
        "vhost-user",
        "vduse",
        "vfio",
    ]


PUBLIC = sorted(
    {getattr(aioblk, name) for name in aioblk.__all__ if inspect.isclass(getattr(aioblk, name))},
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_what_a_public_class_shows_is_told_of(kind: type) -> None:
    """So that no completion offers what is not for users. Each field of a record and each member of an
    enumeration is told of where it is, and what comes from other libraries by those."""
    told = {*words_in_code_of_the_pages()}
    for base in kind.__mro__:
        if not base.__module__.startswith("aioblk"):
            told.update(dir(base))
    if dataclasses.is_dataclass(kind):
        told.update(field.name for field in dataclasses.fields(kind))
    if issubclass(kind, enum.Enum):
        told.update(kind.__members__)
    assert [name for name in dir(kind) if not name.startswith("_") and name not in told] == []


@functools.cache
def words_in_code_of_the_pages() -> set[str]:
    text = "\n".join(page.read_text() for page in WITH_README.values())
    code = re.findall(r"```.*?```", text, re.DOTALL)
    code += re.findall(r"`[^`\n]+`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return set(re.findall(r"\w+", "\n".join(code)))


# What a page says of something else counts above, so those that have much to do with each other name it here.
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            aioblk.Queue,
            {
                "aclose",
                "capacity",
                "close",
                "drain",
                "in_flight",
                "limits",
                "loop",
                "read_only",
                "spin",
                "statistics",
            },
        ),
        (aioblk.BlockingQueue, {"close", "in_flight", "statistics", "wait"}),
        (aioblk.BouncePool, {"statistics"}),
        (aioblk.ArenaBlock, {"buffers", "in_use", "size"}),
    ],
)
def test_what_queues_have_for_each_other_is_not_shown(kind: type, names: set[str]) -> None:
    requests = {name for name in dir(Submitter) if not name.startswith("_")}
    assert {name for name in dir(kind) if not name.startswith("_")} - requests == names
