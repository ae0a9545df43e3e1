"""``aioblk copy``: a device or file to another one."""

import dataclasses
import errno
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import click

from .._sync.blocking import run_blocking
from ..addresses import Openable
from ..copying._journal import sync_directory
from ..copying.transfer import CopyProgress, CopyResult, copy
from ..errors import BlkioError, OptionError
from ..layers.block_device import BlockDevice
from .output import print_json, say
from .parameters import Opener, Whole, device_argument, rate, size
from .places import Place, refuse_one_backend_twice
from .progress import meter, progress_option
from .running import run
from .text import of_size, of_wait

__all__ = ["command"]

WHOLE = 4096  # bytes: a multiple of the blocks of any disk
PHASES = {"copy": "copying", "flush": "flushing", "verify": "verifying"}


@click.command("copy")
@device_argument("source", metavar="SRC")
@device_argument("destination", metavar="DST")
@click.option("--overwrite", is_flag=True, help="DST may be a file that is there and not empty.")
@click.option("--verify", is_flag=True, help="Read DST again when it is flushed, and compare.")
@click.option(
    "--resume",
    "journal",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Keep in FILE what is done, so that the same command goes on after it was ended, by whatever. FILE"
    " is gone when the copy is done.",
)
@click.option(
    "--sparse",
    type=size,
    default="4K",
    show_default=True,
    metavar="SIZE",
    help="So many zeroes in a row, or more, are not written; 0: everything that is read is.",
)
@click.option("--allocate", is_flag=True, help="Have DST take space for holes and zeroes, too.")
@click.option(
    "--destination-is-zero", is_flag=True, help="DST reads as zeroes: holes and zeroes need not be made."
)
@click.option("--discard-rest", is_flag=True, help="Discard what DST has behind the copy.")
@click.option(
    "--resize/--no-resize",
    default=True,
    show_default=True,
    help="Whether a file DST gets the size of SRC, or keeps what it has behind the copy.",
)
@click.option(
    "--clone/--no-clone",
    default=True,
    show_default=True,
    help="Whether files may share their content until one is changed, where XFS or btrfs have both.",
)
@click.option("--rate", type=rate, metavar="RATE", help="Read no more than so much a second: 100M/s.")
@click.option(
    "--request-size", type=size, metavar="SIZE", help="The length of requests; else what suits both."
)
@click.option("--depth", type=Whole(1, 1024), help="Requests at a time.")
@click.option(
    "--lock/--no-lock",
    default=True,
    show_default=True,
    help="Whether files and disks are locked meanwhile, as QEMU does it, and refused if somebody else has.",
)
@progress_option
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def command(
    source: Opener,
    destination: Opener,
    overwrite: bool,
    lock: bool,
    progress: bool | None,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make DST what SRC is, and durable.

    Holes stay holes. A file that is not there is made; one that is not empty is written over with --overwrite
    only. What is mounted or in use is never written to.

    \b
        aioblk copy disk.img copy.img
        aioblk copy --verify disk.img virtio-blk-vhost-user:blk.sock
        aioblk copy --resume copy.state /dev/sdb backup.img
    """
    if options["rate"] is not None and not options["rate"] > 0:
        raise click.UsageError("--rate 0: nothing would be done")
    wanted = False if quiet else progress
    result = run(_copy(source, destination, overwrite, lock, wanted, options))
    if as_json:
        print_json(dataclasses.asdict(result))
    elif not quiet:
        say(_summary(result))
    if result.source_changed:
        say(f"aioblk: warning: {source.address} was written to while it was copied")


async def _copy(
    source: Opener,
    destination: Opener,
    overwrite: bool,
    lock: bool,
    progress: bool | None,
    options: dict[str, Any],
) -> CopyResult:
    refuse_one_backend_twice(source, destination)
    place, origin = Place(destination), Place(source)
    if place.is_same_file(origin) and not (place.has_layers or origin.has_layers):
        raise click.ClickException(f"{source.address} and {destination.address} are the same")
    _refuse_unless_safe(destination, place, overwrite or is_there(options["journal"]))
    # Of parts of one file, the lock of the part that is written to is for both.
    open_source = source.locked if lock and not place.is_same_file(origin) else source
    open_destination = destination.locked if lock else destination
    async with AsyncExitStack() as resources:
        ours = await resources.enter_async_context(open_source(read_only=True))
        made = place.can_be_made
        if made:
            is_whole = ours.capacity % WHOLE == options["sparse"] % WHOLE == 0
            theirs = await _make_file(resources, open_destination, direct=is_whole)
        else:
            theirs = await resources.enter_async_context(open_destination())
        if theirs.read_only:
            raise click.ClickException(
                f"{destination.address} can only be read: it is opened, or offered, so"
            )
        told = await resources.enter_async_context(meter(progress))
        last: CopyProgress | None = None

        def tell(now: CopyProgress) -> None:
            nonlocal last
            last = now
            told.tell(PHASES[now.phase], now.done, now.size)

        try:
            result = await copy(ours, theirs, on_progress=tell, **options)
            if made:
                assert place.path is not None
                await run_blocking(lambda: sync_directory(place.path or ""))
            return result
        except BaseException as error:
            is_kept = is_there(options["journal"]) and not isinstance(error, OptionError)
            if last is None and made and not is_kept:
                os.unlink(place.path or "")  # nothing of it was copied
            elif last is not None and last.phase == "copy":
                _say_what_is_kept(destination, last, options["journal"])
            _name_the_side(error, source, destination)
            raise


async def _make_file(
    resources: AsyncExitStack, open_file: Callable[..., Openable], *, direct: bool
) -> BlockDevice:
    """Without content: it grows when the journal knows of it. Past the page cache, if *direct*: nobody reads
    it soon, and it takes less time. Through it, where the address says so, or the file system can nothing
    else."""
    if direct:
        try:
            return await resources.enter_async_context(open_file(create=0, direct=True))
        except BlkioError as error:  # what is wrong besides is found again
            if error.errno != errno.EINVAL:
                raise
    return await resources.enter_async_context(open_file(create=0))


def _refuse_unless_safe(destination: Opener, place: Place, overwrite: bool) -> None:
    if (user := place.user()) is not None:
        raise click.ClickException(f"{destination.address} is not written to: it is {user}")
    if place.has_content and not overwrite:
        raise click.ClickException(f"{destination.address} is there already; --overwrite writes over it")


def is_there(journal: str | None) -> bool:
    return journal is not None and os.path.exists(journal)


def _say_what_is_kept(destination: Opener, last: CopyProgress, journal: str | None) -> None:
    if last.done >= last.size:
        return
    kept = f"{destination.address} has {of_size(last.done)} of {of_size(last.size)}"
    if is_there(journal):
        kept += "; the same command goes on from there"
    else:
        kept += " and is not complete"
    say(f"aioblk: {kept}")


def _name_the_side(error: BaseException, source: Opener, destination: Opener) -> None:
    """Where the error does not name the device itself."""
    notes = getattr(error, "__notes__", [])
    if isinstance(error, BlkioError) and error.filename is None:
        for side, opener in (("source", source), ("destination", destination)):
            if f"of the {side}" in notes:
                error.filename = opener.address


def _summary(result: CopyResult) -> str:
    if result.cloned:
        done = f"{of_size(result.size)} shared with the source by the file system"
    else:
        done = f"{of_size(result.copied)} copied"
        zeroes = result.zeroed + result.skipped
        done += f", {of_size(zeroes)} of zeroes" if zeroes else ""
    done += f", after {of_size(result.resumed_at)} before" if result.resumed_at else ""
    done += f", {of_size(result.discarded)} discarded behind it" if result.discarded else ""
    rate = f" ({of_size(int(result.copied / result.seconds))}/s)" if result.copied and result.seconds else ""
    return f"{done}{', verified' if result.verified else ''}, in {of_wait(result.seconds)}{rate}"
