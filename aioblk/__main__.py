"""``python -m aioblk``, and the command ``aioblk``."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, and end the process with its status."""
    try:
        from .cli.output import have_standard_streams
        from .cli.program import program
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print("aioblk: the command line needs click: pip install aioblk[cli]", file=sys.stderr)
        sys.exit(1)
    have_standard_streams()
    program.main()


if __name__ == "__main__":
    main()
