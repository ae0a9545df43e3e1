"""python vm/table.py JUNIT: print what each driver passed, as a table of tests by drivers.

Only tests that record the property ``driver`` are shown. One that also records ``unsupported`` has shown that
the driver refuses what it cannot do; the recorded text says why, and appears below the table.
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from typing import NamedTuple


class Result(NamedTuple):
    test: str
    driver: str
    verdict: str
    reason: str | None


def results(path: str) -> Iterable[Result]:
    for case in ElementTree.parse(path).iter("testcase"):
        properties = {each.get("name"): each.get("value") for each in case.iter("property")}
        driver = properties.get("driver")
        if driver is None:
            continue
        test = case.attrib["name"].partition("[")[0].removeprefix("test_").replace("_", " ")
        reason = properties.get("unsupported")
        if case.find("failure") is not None or case.find("error") is not None:
            yield Result(test, driver, "FAILED", None)
        elif case.find("skipped") is not None:
            yield Result(test, driver, "SKIPPED", None)
        else:
            yield Result(test, driver, "not supported" if reason else "passed", reason)


# A test that runs several times for a driver, on several loops say, is shown with the worst of its verdicts.
WORST_FIRST = ["FAILED", "SKIPPED", "passed", "not supported"]


def table(found: list[Result]) -> Iterable[str]:
    drivers = list(dict.fromkeys(each.driver for each in found))
    tests = list(dict.fromkeys(each.test for each in found))
    reasons = list(dict.fromkeys(each.reason for each in found if each.reason))

    def cell(test: str, driver: str) -> str:
        here = [each for each in found if each.test == test and each.driver == driver]
        if not here:
            return "-"
        worst = min(here, key=lambda each: WORST_FIRST.index(each.verdict))
        return f"not supported ({reasons.index(worst.reason) + 1})" if worst.reason else worst.verdict

    rows = [["", *drivers], *([test, *(cell(test, driver) for driver in drivers)] for test in tests)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
    if reasons:
        yield ""
    for number, reason in enumerate(reasons, 1):
        yield f"({number}) {reason}"


def main(path: str) -> int:
    found = list(results(path))
    print(*table(found), sep="\n")
    good = bool(found) and all(each.verdict in ("passed", "not supported") for each in found)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
