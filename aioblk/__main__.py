"""``python -m aioblk``, and the command ``aioblk``."""

import gc
import sys

__all__ = ["main"]

GARBAGE = 50_000
"""Objects that are made before garbage is looked for: what is imported stays, and little else is made."""


def main() -> None:
    """Run the command line, and end the process with its status."""
    gc.set_threshold(GARBAGE)
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


if __name__ == "__main__":
    main()
