"""`./run interop [SUITE...]`: the tests that other projects have for NBD, against this server."""

import argparse
import sys
import tomllib
from pathlib import Path

from .place import DECLINED, FAILED, PASSED, WORDS, Outcome
from .suites import SUITES

EXPECTED = Path(__file__).with_name("expected.toml")


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run interop", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"one of {', '.join(SUITES)}; all of them")
    parser.add_argument("--verbose", action="store_true", help="show what tests say that fail as expected")
    options = parser.parse_args()
    if unknown := set(options.suites) - SUITES.keys():
        parser.error(f"there is no suite {', '.join(sorted(unknown))}: there are {', '.join(SUITES)}")
    expected: dict[str, dict[str, str]] = tomllib.loads(EXPECTED.read_text())
    wrong: list[str] = []
    for suite in options.suites or SUITES:
        wrong += run(suite, expected.get(suite, {}), verbose=options.verbose)
    for line in wrong:
        print(f"interop: {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


def run(suite: str, expected: dict[str, str], *, verbose: bool) -> list[str]:
    """What is not as expected, in words."""
    wrong: list[str] = []
    count: dict[str, int] = dict.fromkeys(WORDS, 0)
    for test, outcome in SUITES[suite]():
        count[outcome.word] += 1
        print(f"{suite} {test}: {outcome.word}{_remark(outcome, expected.get(test))}", flush=True)
        if outcome.word == FAILED and (verbose or test not in expected):
            print(outcome.why)
        if outcome.word == FAILED and test not in expected:
            wrong.append(f"{suite} {test} failed")
        if outcome.word == PASSED and test in expected:
            wrong.append(f"{suite} {test} passed, though {EXPECTED.name} says that it cannot: strike it out")
    print(f"{suite}: {', '.join(f'{number} {word}' for word, number in count.items())}", flush=True)
    return wrong


def _remark(outcome: Outcome, reason: str | None) -> str:
    if outcome.word == DECLINED:
        return f", {outcome.why}"
    return f", as expected: {reason}" if reason is not None and outcome.word == FAILED else ""


if __name__ == "__main__":
    main()
