"""Try mutants: python -m tests.simulation.mutants [NAME ...]

Plants one fault after the other in a copy of the package, and has the search of simulated histories look for
it. The seed that shows it must pass without it. Prints for each mutant whether it was caught, after how many
histories, and how it showed; the status is 1 if one was not, and 2 if there is no such mutant.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from ..commands import run
from . import MUTANTS
from .copies import Copies
from .mutant import Mutant
from .trial import SEARCH, SearchError, Trial, Verdict

MOST_JOBS = 2  # each is a search of its own


def main(
    arguments: Sequence[str],
    *,
    mutants: Sequence[Mutant] = MUTANTS,
    copies: Copies | None = None,
    search: Sequence[str] = SEARCH,
) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - {mutant.name for mutant in mutants})
    if unknown:
        parser.error(f"there is no mutant {', '.join(unknown)}; ./run simulate --list says which there are")
    chosen = [mutant for mutant in mutants if not options.names or mutant.name in options.names]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name} (aioblk/{mutant.file})\n    {mutant.planted}\n    Like {mutant.like}.")
        return 0
    trial = Trial(
        copies or Copies(jobs=options.jobs),
        first=options.first,
        histories=options.histories,
        seconds=options.seconds,
        search=search,
    )
    with ThreadPoolExecutor(options.jobs) as threads:
        try:
            outcomes = list(threads.map(lambda mutant: _try(trial, mutant), chosen))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            trial.end()
            raise
    verdicts = [outcome for outcome in outcomes if outcome is not None]
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1))
    _print_table(verdicts)
    caught = sum(verdict.caught for verdict in verdicts)
    print(f"{caught} of {len(chosen)} caught")
    return 0 if caught == len(chosen) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run simulate --mutants",
        usage="./run simulate --mutants [NAME ...] [--list]; python -m tests.simulation.mutants knows more",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants to try; otherwise all")
    parser.add_argument("--list", action="store_true", help="say what is planted, and try nothing")
    parser.add_argument("--first", type=int, default=1, metavar="SEED", help="of the first history (1)")
    parser.add_argument("--histories", type=int, default=5000, metavar="N", help="for each, at most (5000)")
    parser.add_argument("--seconds", type=float, default=600, metavar="S", help="for each, at most (600)")
    parser.add_argument(
        "--jobs", type=int, choices=range(1, MOST_JOBS + 1), default=1, help="mutants at a time (1)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts there, too")
    return parser


def _try(trial: Trial, mutant: Mutant) -> Verdict | None:
    try:
        verdict = trial.verdict_on(mutant)
    except SearchError as error:
        print(f"{mutant.name}: {error}", file=sys.stderr, flush=True)
        return None
    how = f"caught after {verdict.histories} histories" if verdict.caught else "not caught"
    what = f": {verdict.what.strip().splitlines()[-1][:200]}" if verdict.what else ""
    print(f"{verdict.name}: {how} ({verdict.kind}{what})", file=sys.stderr, flush=True)
    return verdict


def _print_table(verdicts: Sequence[Verdict]) -> None:
    print("| mutant | caught | histories | how it showed | seconds |")
    print("|---|---|---|---|---|")
    for verdict in verdicts:
        caught = "yes" if verdict.caught else "no"
        print(f"| {verdict.name} | {caught} | {verdict.histories} | {verdict.kind} | {verdict.seconds:.0f} |")


if __name__ == "__main__":
    sys.exit(run("simulate", lambda: main(sys.argv[1:])))
