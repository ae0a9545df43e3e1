"""How the search's commands end: with nothing left behind, and a status that tells what has failed from what
could not be done."""

import os
import signal
import sys
from collections.abc import Callable

__all__ = ["IMPOSSIBLE", "INTERRUPTED", "ImpossibleError", "run"]

IMPOSSIBLE = 2  # the status where nothing is known: it could not be done, or not to its end
INTERRUPTED = 128 + signal.SIGINT  # what a shell says of a command that Ctrl-C has ended


class ImpossibleError(Exception):
    """The search cannot go on, and that is no fault of what it searches."""


def run(name: str, main: Callable[[], int]) -> int:
    """The status of *main*. An order to end is an exception in it, so that it tidies up."""
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    try:
        status = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # who reads has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (OSError, ImpossibleError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return IMPOSSIBLE
    return status


def _end(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough
    sys.exit(128 + number)
