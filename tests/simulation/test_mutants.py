"""The mutants can be planted, and whether one is caught is told rightly. Catching them takes minutes each:
python -m tests.simulation.mutants."""

import ast
import json
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from aioblk._native import _core

from .mutants import MUTANTS
from .mutants.__main__ import main
from .mutants.copies import Copies
from .mutants.mutant import ROOT, Mutant, TextIsGoneError
from .mutants.trial import SearchError, Trial

PACKAGE = ROOT / "aioblk"
ENOUGH = 28

FAULT = Mutant(
    "plus-for-minus",
    "An item of one list lands in another.",
    "no fault that there has been",
    "_sync/wait_queue.py",
    "return len(self._waiting) + self._woken",
    "return len(self._waiting) - self._woken",
)

Search = Callable[[str], list[str]]


# --- what there is to plant --------------------------------------------------------------------------------


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_can_be_planted(mutant: Mutant) -> None:
    before = (PACKAGE / mutant.file).read_text()
    after = mutant.applied_to(before)
    assert after != before
    if not mutant.is_compiled:
        assert ast.dump(ast.parse(after)) != ast.dump(ast.parse(before))


def test_they_are_many_and_told_apart() -> None:
    assert len(MUTANTS) >= ENOUGH
    assert [name for name, count in Counter(mutant.name for mutant in MUTANTS).items() if count > 1] == []
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("text", ["", FAULT.old * 2])
def test_a_text_that_is_gone_or_there_twice_is_an_error(text: str) -> None:
    with pytest.raises(TextIsGoneError, match="plus-for-minus"):
        FAULT.applied_to(text)


# --- what is said of them ----------------------------------------------------------------------------------


SCRIPT = """
import argparse, inspect, json, signal, subprocess, sys
from pathlib import Path
from aioblk._sync import wait_queue

is_planted = FAULT in inspect.getsource(wait_queue)

def search(options):
BODY

parser = argparse.ArgumentParser()
for name in ("first", "histories", "jobs"):
    parser.add_argument("--" + name, type=int, required=True)
parser.add_argument("--json", type=Path, required=True)
options = parser.parse_args()
status, found = search(options)
options.json.write_text(json.dumps(found))
sys.exit(status)
"""


@pytest.fixture
def search(tmp_path: Path) -> Search:
    """A search that is told what to find: the body of a function of its options, which returns the status and
    what is written. `is_planted` says whether the package that it is run on has the fault."""

    def make(body: str) -> list[str]:
        script = tmp_path / "search.py"
        body = textwrap.indent(textwrap.dedent(body), "    ")
        script.write_text(SCRIPT.replace("FAULT", repr(FAULT.new)).replace("BODY", body))
        return [sys.executable, str(script)]

    return make


@pytest.fixture
def copies() -> Copies:
    """Of a package that is compiled already."""
    assert _core.__file__ is not None
    return Copies(core=Path(_core.__file__))


def test_a_mutant_that_is_found_is_caught(search: Search, copies: Copies) -> None:
    find = search(
        """
        if not is_planted:
            return 0, {"histories": options.histories}
        return 1, {"histories": 7, "seed": options.first + 6, "kind": "hang", "what": "nobody is woken"}
        """
    )
    verdict = Trial(copies, first=100, histories=50, seconds=60, search=find).verdict_on(FAULT)
    assert (verdict.caught, verdict.histories, verdict.seed) == (True, 7, 106)
    assert (verdict.kind, verdict.what) == ("hang", "nobody is woken")


def test_a_mutant_that_no_history_shows_is_not_caught(search: Search, copies: Copies) -> None:
    find = search('return 0, {"histories": options.histories}')
    verdict = Trial(copies, histories=50, seconds=60, search=find).verdict_on(FAULT)
    assert (verdict.caught, verdict.histories, verdict.kind) == (False, 50, "out of histories")


def test_a_search_that_takes_too_long_is_ended_with_what_it_has_started(
    search: Search, copies: Copies, tmp_path: Path
) -> None:
    alive = tmp_path / "alive"
    os.mkfifo(alive)
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    find = search(
        """
        pause = [sys.executable, "-c", "import signal; signal.pause()"]
        with open(PLACE, "w") as alive:
            subprocess.run(pause, pass_fds=[alive.fileno()])
        """.replace("PLACE", repr(str(alive)))
    )
    verdict = Trial(copies, histories=50, seconds=2, search=find).verdict_on(FAULT)
    assert (verdict.caught, verdict.kind) == (False, "out of time")
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""  # as nobody has the other end any more
    os.close(reader)


def test_a_seed_that_fails_anyway_proves_nothing(search: Search, copies: Copies) -> None:
    find = search(
        """
        if is_planted and options.first == 2:
            return 0, {"histories": options.histories}
        return 1, {"histories": 1, "seed": options.first, "kind": "wrong data", "what": ""}
        """
    )
    verdict = Trial(copies, histories=3, seconds=60, search=find).verdict_on(FAULT)
    assert (verdict.caught, verdict.histories) == (False, 3)


@pytest.mark.parametrize(
    "body",
    [
        "raise ZeroDivisionError",
        'return 2, {"histories": 0}',
        'return 1, {"histories": 0}',
        'return 0, {"histories": 3, "seed": 4, "kind": "hang", "what": ""}',
    ],
)
def test_a_search_that_fails_is_no_verdict(search: Search, copies: Copies, body: str) -> None:
    with pytest.raises(SearchError):
        Trial(copies, histories=50, seconds=60, search=search(body)).verdict_on(FAULT)


# --- the command -------------------------------------------------------------------------------------------


def test_names_that_there_are_not_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["such-a-thing"])
    assert (
        "there is no mutant such-a-thing; ./run simulate --list says which there are"
        in capsys.readouterr().err
    )


def test_the_list_says_what_each_of_them_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    told = capsys.readouterr().out
    assert [mutant.name for mutant in MUTANTS if f"{mutant.name} (aioblk/{mutant.file})" not in told] == []


@pytest.mark.parametrize(("seen", "status"), [("is_planted", 0), ("False", 1)])
def test_the_status_says_whether_all_were_caught(
    search: Search,
    copies: Copies,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    seen: str,
    status: int,
) -> None:
    find = search(
        """
        if SEEN:
            return 1, {"histories": 3, "seed": 3, "kind": "hang", "what": ""}
        return 0, {"histories": options.histories}
        """.replace("SEEN", seen)
    )
    told = tmp_path / "verdicts.json"
    arguments = ["--histories", "9", "--json", str(told)]
    assert main(arguments, mutants=[FAULT], copies=copies, search=find) == status
    [verdict] = json.loads(told.read_text())
    caught = status == 0
    assert (verdict["caught"], verdict["histories"]) == ((True, 3) if caught else (False, 9))
    row = (
        "| plus-for-minus | yes | 3 | hang |" if caught else "| plus-for-minus | no | 9 | out of histories |"
    )
    assert row in capsys.readouterr().out
