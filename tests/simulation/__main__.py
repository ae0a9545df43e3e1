"""Run a Python program under the simulator: python -m tests.simulation [NAME=NUMBER ...] PROGRAM [ARGS]

PROGRAM is what python would be given: a file, or -m and a module. The numbers are those of control.c's KEYS,
most of which docs/simulation.md tells of::

    python -m tests.simulation seed=7 late=3 -m pytest tests/simulation/test_completions.py -k late

The disks PROGRAM makes by itself, with Simulator in tests/simulation/library.py; there are none before.
"""

import os
import sys

from .library import preloaded


def main(arguments: list[str]) -> None:
    configuration = {}
    while arguments and "=" in arguments[0]:
        name, _, value = arguments.pop(0).partition("=")
        if not value.isdecimal():
            sys.exit(f"python -m tests.simulation: {name}={value}: a number is wanted, of 0 or more")
        configuration[name] = int(value)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.exit(__doc__)
    os.execve(sys.executable, [sys.executable, *arguments], preloaded(**configuration))


main(sys.argv[1:])
