"""The example that is watched by Prometheus, and the dashboard for it."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from aioblk.metrics import METRICS

from ..support.nbd_server import EXAMPLES

TIME_LIMIT = 30
PROGRAM = (sys.executable, str(EXAMPLES / "observed.py"))
DASHBOARD = json.loads((EXAMPLES / "grafana.json").read_text())


@contextmanager
def observed(*arguments: str | Path) -> Generator[tuple["subprocess.Popen[str]", str]]:
    """The program and the address that it prints."""
    with subprocess.Popen(
        [*PROGRAM, "--port", "0", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        try:
            assert program.stdout is not None
            yield program, program.stdout.readline().strip()
        finally:
            program.kill()


def metrics(address: str) -> dict[str, float]:
    """The sum of each."""
    with urllib.request.urlopen(address, timeout=TIME_LIMIT) as answer:
        text = answer.read().decode()
    found: dict[str, float] = {}
    for family in parse(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_prometheus_sees_it_work_until_it_is_interrupted(number: signal.Signals) -> None:
    with observed("--rate", "0") as (program, address):
        before = metrics(address)["aioblk_device_operations_total"]
        while metrics(address)["aioblk_device_operations_total"] < before + 100:
            pass
        assert metrics(address)["aioblk_device_operation_duration_seconds_count"] > 0
        program.send_signal(number)
        told, errors = program.communicate(timeout=TIME_LIMIT)
    assert (program.returncode, errors) == (0, "")
    assert re.search(r"^read +[\d,]+ requests, 0 failed; half of them within ", told, re.MULTILINE)
    assert re.search(r"^write +[\d,]+ requests, 0 failed; ", told, re.MULTILINE)


def test_a_file_that_is_named_is_only_read(scratch_file: Path) -> None:
    with observed(scratch_file, "--seconds", "0.01", "--depth", "2") as (program, _):
        told, errors = program.communicate(timeout=TIME_LIMIT)
    assert (program.returncode, errors) == (0, "")
    assert {line.split()[0] for line in told.splitlines()} <= {"read"}
    assert not any(scratch_file.read_bytes())


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "--port", "0", str(tmp_path / "nothing")],
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )
    assert done.returncode == 1
    assert re.fullmatch(r"observed: .*nothing.*No such file or directory\n", done.stderr)


# --- the dashboard ------------------------------------------------------------------------------------------

SERIES: dict[str, set[str]] = {}
"""Every name that there is in the exposition, and its labels."""
for _metric in METRICS:
    if _metric.kind == "histogram":
        for _end, _more in (("_bucket", {"le"}), ("_sum", set[str]()), ("_count", set[str]())):
            SERIES[_metric.prometheus_name + _end] = {*_metric.labels, *_more}
    else:
        SERIES[_metric.prometheus_name] = set(_metric.labels)

OF_TARGETS = {"job", "instance"}
"""Labels that Prometheus adds."""

SELECTOR = re.compile(r"(aioblk_\w+)(?:\{([^}]*)\})?")
GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")


def targets() -> list[tuple[str, dict[str, Any]]]:
    return [(panel["title"], target) for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


@pytest.mark.parametrize(("title", "target"), targets(), ids=[title for title, _ in targets()])
def test_what_the_dashboard_asks_for_there_is(title: str, target: dict[str, Any]) -> None:
    expression = target["expr"]
    selectors = SELECTOR.findall(expression)
    assert selectors, title
    for name, matchers in selectors:
        assert name in SERIES, title
        assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= SERIES[name] | OF_TARGETS, title
    known = set[str]().union(*(SERIES[name] for name, _ in selectors)) | OF_TARGETS
    grouped = {label.strip() for group in GROUPING.findall(expression) for label in group.split(",")}
    assert grouped <= known, title
    shown = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"]))
    assert shown <= (grouped or known), title
    assert all(
        expression.count(opening) == expression.count(closing) for opening, closing in ("()", "{}", "[]")
    )


def test_what_the_documentation_asks_for_there_is() -> None:
    page = (EXAMPLES.parent / "docs" / "observability.md").read_text()
    asked = {name for name, _ in SELECTOR.findall(page)}
    assert len(asked) > 5
    assert asked <= SERIES.keys()


def test_the_dashboard_chooses_by_labels_that_there_are() -> None:
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            name, label = re.fullmatch(
                r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variable["query"]["query"]
            ).groups()  # type: ignore[union-attr]
            assert label in SERIES[name] | OF_TARGETS
    used = set(re.findall(r"\$(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used - {"__rate_interval", "__range"} == {
        variable["name"] for variable in DASHBOARD["templating"]["list"]
    }


def test_the_panels_lie_beside_each_other() -> None:
    places = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert all(x < 24 for x, _ in places)
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))


def test_the_regular_expressions_find_what_is_wrong() -> None:
    """Otherwise the tests above could not fail."""
    assert SELECTOR.findall('rate(aioblk_device_x_total{a="b", c=~"d"}[1m])') == [
        ("aioblk_device_x_total", 'a="b", c=~"d"')
    ]
    assert GROUPING.findall("sum by (le, b) (x)") == ["le, b"]
    assert "aioblk_device_x_total" not in SERIES
