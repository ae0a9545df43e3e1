"""The command ``aioblk`` as it begins, beside the package, whose import takes longest."""

import signal

__all__ = ["main"]


def main() -> None:
    """Run the command line, and end the process with its status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # nothing is open yet: Ctrl-C ends it without a traceback
    from aioblk.__main__ import main as run

    run()
