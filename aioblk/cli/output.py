"""Standard output and error, whatever the caller has made of them."""

import contextlib
import errno
import os
import sys
from typing import TextIO

import click

from ..errors import BlkioError

__all__ = ["have_standard_streams", "in_words", "lose_output", "print_json", "printable", "say"]

OUTPUT_FAILS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}


def have_standard_streams() -> None:
    """Take the descriptors 0 to 2 where the caller has closed them: no device is to become one of them, since
    much else is printed there. What is printed on stdout fails then, as it should; stderr is silent."""
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # the lowest that is free
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for good


def printable(text: str) -> str:
    """The same, without what a terminal would obey: it may come from the name of a file."""
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode()
        for each in text
    )


def say(text: str) -> None:
    """A line on stderr. Where nobody reads it, that is no reason to fail."""
    try:
        click.echo(printable(text), err=True)
    except OSError:
        _lose(sys.stderr)  # or the interpreter would try again in the end, and fail


def lose_output() -> None:
    """Nothing is written to stdout from now on, be it what waits to be."""
    _lose(sys.stdout)


def _lose(stream: TextIO) -> None:
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def in_words(error: OSError) -> str:
    """Files and devices name themselves; what has no name, and fails so, is what is printed to."""
    if isinstance(error, BlkioError) or error.filename is not None or error.errno not in OUTPUT_FAILS:
        return str(error)
    lose_output()
    return f"standard output: {error}"


def print_json(found: object) -> None:
    import json  # few runs want it, and every run would wait for it

    click.echo(json.dumps(found, indent=2))
