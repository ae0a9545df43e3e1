"""The arguments of ./run simulate."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from .history import History

__all__ = ["HISTORIES", "LENGTH", "understood"]

LENGTH = 220
HISTORIES = 10_000
MOST_JOBS = 256
OF_A_SEARCH = ("first", "histories", "minutes", "jobs", "json")


def _at_least(lowest: int, most: int | None = None) -> Callable[[str], int]:
    """For argparse."""

    def number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if value < lowest:
            raise argparse.ArgumentTypeError(f"{value} is less than {lowest}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"{value} is more than {most}")
        return value

    return number


def _some_minutes(text: str) -> float:
    """For argparse."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes above 0")
    return minutes


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run simulate", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    one = parser.add_argument_group("one history, or planted faults").add_mutually_exclusive_group()
    one.add_argument(
        "--seed", type=_at_least(0), metavar="N", help="play the history of this seed, and show it"
    )
    one.add_argument(
        "--replay", type=Path, metavar="FILE", help="play a history that was written down, and show it"
    )
    many = parser.add_argument_group("many")
    many.add_argument("--first", type=_at_least(0), metavar="N", help="the first seed (0)")
    many.add_argument(
        "--histories",
        type=_at_least(1),
        metavar="N",
        help=f"how many ({HISTORIES:,}; unlimited with --minutes)",
    )
    many.add_argument("--minutes", type=_some_minutes, metavar="M", help="begin no other after so long")
    many.add_argument("--jobs", type=_at_least(1, MOST_JOBS), metavar="N", help="side by side (processors)")
    many.add_argument(
        "--json", type=Path, metavar="FILE", help="write what came of it there, and do not explain it"
    )
    many_or_a_seed = parser.add_argument_group("many, or that of a seed")
    many_or_a_seed.add_argument(
        "--length",
        type=_at_least(0),
        metavar="N",
        help=f"actions of each ({LENGTH}); with another, a seed means another history",
    )
    one.add_argument("--mutants", nargs="*", metavar="NAME", help="find planted faults, all or these")
    parser.add_argument(
        "--list", action="store_true", help="say which there are and what they do, and play nothing"
    )
    return parser


def understood(given: Sequence[str] | None, description: str) -> argparse.Namespace:
    """What the command is to do. What makes no sense, by itself or with others, is refused."""
    parser = _parser(description)
    options = parser.parse_args(given)
    modes = [mode for mode in ("seed", "replay", "mutants") if getattr(options, mode) is not None]
    if options.list and not modes:
        modes = ["list"]
    for mode in modes:
        fitting = ("length",) if mode == "seed" else ("list",) if mode in ("mutants", "list") else ()
        for name in (*OF_A_SEARCH, "length", "list"):
            value = getattr(options, name)
            if name not in fitting and value is not None and value is not False:
                parser.error(f"--{name} says nothing where --{mode} is given")
    if options.json is not None and (options.json.is_dir() or not options.json.parent.is_dir()):
        parser.error(f"--json: {options.json} cannot be a file")
    if options.replay is not None:
        try:
            options.replay = History.from_json(options.replay.read_text())
        except OSError as error:
            parser.error(f"--replay: {error.strerror}: {options.replay}")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            parser.error(f"--replay: {options.replay} holds no history: {error!r}")
    return options
