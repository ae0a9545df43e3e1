"""Tests whose programs are missing, where `./run test` may install nothing: they are left out, and told of.

Nowhere else: a program that is missing there is a failure.
"""

import os
from collections.abc import Generator, Iterator

import pytest

__all__ = ["MISSING", "LeftOut"]

MISSING = frozenset(os.environ.get("AIOBLK_TESTS_WITHOUT", "").split())
"""Names of programs: of `./run test`."""


class LeftOut:
    """A plugin of pytest."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.failed and call.excinfo is not None:
            for error in _all_of(call.excinfo.value):
                if (program := _missing(error)) is not None:
                    path, line, _ = item.location
                    report.outcome, report.longrepr = "skipped", (path, line or 0, f"needs {program}")
                    break
        return report

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])]
        terminalreporter.section("NOT TESTED: what needs programs that are missing", red=True, bold=True)
        for program in sorted(MISSING):
            count = sum(reason.endswith(f"needs {program}") for reason in reasons)
            terminalreporter.line(f"{program}: {count} tests were left out")


def _all_of(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what is in it and what it came from."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                yield from _all_of(each)
        error = error.__cause__ or error.__context__


def _missing(error: BaseException) -> str | None:
    if isinstance(error, FileNotFoundError):
        name = os.path.basename(os.fsdecode(error.filename or ""))
        return name if name in MISSING else None
    words = str(error).split() if isinstance(error, pytest.fail.Exception) else []
    return words[0] if words[1:3] == ["is", "missing;"] and words[0] in MISSING else None
