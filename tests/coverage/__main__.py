"""The branches of the C core that no test has taken, beside those that argued.toml argues.

    python -m tests.coverage FILE      as gcovr --json made it

It fails when more are left than are argued. A branch is an outcome: each `if` has two.
"""

import json
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ARGUED = Path(__file__).with_name("argued.toml")
MOST_ARGUED = 40


class Place(NamedTuple):
    """A line by what it says and not by its number: arguments outlive what happens around them."""

    function: str
    source: str


@dataclass
class File:
    """What gcov has counted in one."""

    name: str
    lines: int
    branches: int
    untaken: list[tuple[int, Place]]  # with the line's number, once for each branch


def read_counts(path: Path) -> list[File]:
    report: dict[str, Any] = json.loads(path.read_text())
    return sorted((_read_file(file) for file in report["files"]), key=lambda file: file.name)


def _read_file(counted: dict[str, Any]) -> File:
    source = Path(counted["file"]).read_text().splitlines()
    file = File(counted["file"], lines=0, branches=0, untaken=[])
    for line in counted["lines"]:
        number = line["line_number"]
        branches = [branch for branch in line["branches"] if not branch.get("gcovr/excluded")]
        file.lines += 1
        file.branches += len(branches)
        place = Place(line["function_name"], source[number - 1].strip())
        file.untaken += [(number, place)] * sum(branch["count"] == 0 for branch in branches)
    return file


def read_arguments(path: Path) -> tuple[Counter[Place], int]:
    """How many branches of each place are argued, and how many more may be left for now."""
    table = tomllib.loads(path.read_text())
    arguments = table["branch"]
    assert all(argument["why"] for argument in arguments)
    argued = Counter({Place(each["function"], each["source"]): each.get("branches", 1) for each in arguments})
    return argued, table.get("unargued", 0)


def report(files: list[File], argued: Counter[Place], unargued: int) -> bool:
    """Print the table; whether everything that is left is argued, but for so many."""
    print(f"{'of the C core':40} {'lines':>7} {'branches':>9} {'not taken':>10}")
    for file in files:
        print(f"{file.name:40} {file.lines:7} {file.branches:9} {len(file.untaken):10}")
    branches, left = sum(file.branches for file in files), sum(len(file.untaken) for file in files)
    print(f"{'':40} {sum(file.lines for file in files):7} {branches:9} {left:10}")

    untaken = Counter(place for file in files for _, place in file.untaken)
    surplus = untaken - argued
    for file in files:
        for number, place in dict.fromkeys(file.untaken):
            if surplus[place]:
                print(
                    f"{file.name}:{number}: in {place.function}(): {place.source}  {surplus[place]} not taken"
                )
    for place, count in (argued - untaken).items():
        print(f"argued in vain, in {place.function}(): {place.source}  {count} taken, or gone")
    print(f"{left} of {branches} branches are not taken; {left - surplus.total()} of them are argued")
    return surplus.total() <= unargued


if __name__ == "__main__":
    sys.exit(not report(read_counts(Path(sys.argv[1])), *read_arguments(ARGUED)))
