"""Run a Python program under the simulator: python -m tests.simulation [NAME=NUMBER ...] PROGRAM [ARGS]

PROGRAM is what python would be given: a file, or -m and a module. The numbers are those of control.c's KEYS::

    python -m tests.simulation seed=7 late=3 -m pytest tests/simulation/test_completions.py -k late
"""

import os
import sys

from .library import preloaded


def main(arguments: list[str]) -> None:
    configuration = {}
    while arguments and "=" in arguments[0]:
        name, _, value = arguments.pop(0).partition("=")
        configuration[name] = int(value)
    if not arguments:
        sys.exit(__doc__)
    os.execve(sys.executable, [sys.executable, *arguments], preloaded(**configuration))


main(sys.argv[1:])
