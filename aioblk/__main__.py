"""``python -m aioblk``, and the command ``aioblk``."""

import gc
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["main"]

GARBAGE = 50_000
"""Objects that are made before garbage is looked for: what is imported stays, and little else is made."""


def main() -> None:
    """Run the command line, and end the process with its status."""
    gc.set_threshold(GARBAGE)
    with _ended_by_interrupts():
        try:
            from .cli.output import have_standard_streams
            from .cli.program import program
        except ModuleNotFoundError as error:
            if error.name != "click":
                raise
            print("aioblk: the command line needs click: pip install aioblk[cli]", file=sys.stderr)
            sys.exit(1)
        have_standard_streams()
        try:
            program.main()
        finally:
            gc.freeze()  # all is closed: to look through what is left takes a sixth of a short command's time


@contextmanager
def _ended_by_interrupts() -> Generator[None]:
    """As long as things are imported, there is nothing to close and nobody to tell: Ctrl-C ends the process
    without a word. The group of commands takes it over when it has imported the one that is called."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)


if __name__ == "__main__":
    main()
