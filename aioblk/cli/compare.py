"""``aioblk compare``: whether two devices read as the same."""

from contextlib import AsyncExitStack
from typing import Any

import click

from ..copying.comparison import Comparison, compare
from .output import in_words, print_json
from .parameters import Opener, Whole, device_argument, size
from .places import refuse_one_backend_twice
from .progress import meter, progress_option
from .running import run
from .text import of_size

__all__ = ["command"]

DIFFERENT, FAILED = 1, 2
"""Exit statuses, as of cmp and qemu-img compare."""


class _FailedError(click.ClickException):
    exit_code = FAILED


@click.command("compare")
@device_argument("one", metavar="ONE")
@device_argument("other", metavar="OTHER")
@click.option("--all", "find_all", is_flag=True, help="Go on to the end, and list everything that differs.")
@click.option("--strict", is_flag=True, help="The sizes must be equal; else zeroes at the end do not count.")
@click.option("--offset", type=size, default="0", metavar="SIZE", help="Begin there.")
@click.option("--length", type=size, metavar="SIZE", help="Compare so much, and not all.")
@click.option(
    "--unit", type=size, default="512", show_default=True, metavar="SIZE", help="List in units of so much."
)
@click.option(
    "--request-size", type=size, metavar="SIZE", help="The length of requests; else what suits both."
)
@click.option("--depth", type=Whole(1, 1024), help="Requests at a time on each.")
@progress_option
@click.option("-q", "--quiet", is_flag=True, help="Say nothing: the exit status tells.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    one: Opener, other: Opener, progress: bool | None, quiet: bool, as_json: bool, **options: Any
) -> int:
    """Whether ONE and OTHER read as the same. Exit status: 0, the same; 1, different; 2, an error.

    \b
        aioblk compare disk.img copy.img
        aioblk compare --all --json disk.img virtio-blk-vhost-user:blk.sock
    """
    try:
        found = run(_compare(one, other, False if quiet else progress, options))
        if as_json:
            print_json(_as_json(found))
        elif not quiet:
            for line in _lines(found, options["find_all"]):
                click.echo(line)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _FailedError(in_words(error)) from error
    return 0 if found.same else DIFFERENT


async def _compare(one: Opener, other: Opener, progress: bool | None, options: dict[str, Any]) -> Comparison:
    refuse_one_backend_twice(one, other)
    async with AsyncExitStack() as resources:
        ours = await resources.enter_async_context(one(read_only=True))
        theirs = await resources.enter_async_context(other(read_only=True))
        told = await resources.enter_async_context(meter(progress))
        return await compare(
            ours, theirs, on_progress=lambda done, of: told.tell("comparing", done, of), **options
        )


def _as_json(found: Comparison) -> dict[str, Any]:
    return {
        "same": found.same,
        "first": found.first,
        "compared": found.compared,
        "sizes": found.sizes,
        "ranges": [{"offset": each.offset, "length": each.length} for each in found.ranges],
    }


def _lines(found: Comparison, find_all: bool) -> list[str]:
    if found.same:
        longer = "" if found.sizes[0] == found.sizes[1] else "; the longer one has zeroes behind that"
        return [f"the same: {of_size(min(found.compared, *found.sizes))}{longer}"]
    lines = [f"different: the first byte is at {found.first}"]
    if found.sizes[0] != found.sizes[1]:
        lines.append(f"the sizes are {found.sizes[0]} and {found.sizes[1]}")
    if find_all:
        lines += [f"{each.offset:>20} {each.length:>16}" for each in found.ranges]
        total = sum(each.length for each in found.ranges)
        lines.append(f"{total} bytes in {len(found.ranges)} ranges (offset, length)")
    return lines
