"""``aioblk map``: where a device has data, and where holes."""

import shutil
import sys
from collections.abc import Iterable
from contextlib import aclosing

import click

from .._device.extents import Extent, ExtentKind
from ..copying.listing import map_extents
from .output import print_json
from .parameters import Opener, device_argument, size
from .progress import meter, progress_option
from .running import run
from .text import of_size

__all__ = ["command"]

SHADES = " ░▒▓█"
MOST_WIDTH = 100


@click.command("map")
@device_argument(metavar="DEVICE")
@click.option("--offset", type=size, default="0", metavar="SIZE", help="Begin there.")
@click.option("--length", type=size, metavar="SIZE", help="So much, and not up to the end.")
@click.option(
    "--detect-zeroes",
    type=size,
    default="0",
    metavar="SIZE",
    help="Read what is data, and have so many zeroes in a row, or more, be a hole.",
)
@click.option("-s", "--summary", is_flag=True, help="Leave out the table.")
@progress_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of offset, length and kind.")
def command(
    device: Opener,
    offset: int,
    length: int | None,
    detect_zeroes: int,
    summary: bool,
    progress: bool | None,
    as_json: bool,
) -> None:
    """Show where DEVICE has data, and where holes, which read as zeroes and take no space.

    Files tell their holes; what does not tell is all data.

    \b
        aioblk map disk.img
        aioblk map --summary --detect-zeroes 64K virtio-blk-vhost-user:blk.sock
    """

    async def look() -> list[Extent]:
        found: list[Extent] = []
        async with device(read_only=True) as dev, meter(progress) as told:
            end = dev.capacity if length is None else offset + length
            async with aclosing(map_extents(dev, offset, length, detect_zeroes=detect_zeroes)) as coming:
                async for extent in coming:
                    found.append(extent)
                    told.tell("looking", extent.end - offset, end - offset)
        return found

    found = run(look())
    if as_json:
        rows = [{"offset": each.offset, "length": each.length, "kind": each.kind.value} for each in found]
        print_json(rows)
        return
    if not summary:
        click.echo(f"{'offset':>20} {'length':>20}  kind")
        for each in found:
            click.echo(f"{each.offset:>20} {each.length:>20}  {each.kind.value}")
        click.echo()
    for line in _summary(found):
        click.echo(line)


def _summary(found: list[Extent]) -> Iterable[str]:
    total = sum(each.length for each in found)
    if total and sys.stdout.isatty():
        yield f"[{picture(found, min(shutil.get_terminal_size().columns - 2, MOST_WIDTH))}]"
    for kind in ExtentKind:
        of_kind = [each.length for each in found if each.kind is kind]
        share = 100 * sum(of_kind) / total if total else 0
        pieces = "piece" if len(of_kind) == 1 else "pieces"
        yield f"{kind.value}: {of_size(sum(of_kind))}, {share:.1f} %, in {len(of_kind)} {pieces}"


def picture(found: list[Extent], width: int) -> str:
    """How much of each part is data: nothing, some, about half, most, all."""
    start = found[0].offset
    total = found[-1].end - start
    data = [0.0] * width
    for each in found:
        if each.kind is ExtentKind.HOLE:
            continue
        first, last = (each.offset - start) * width / total, (each.end - start) * width / total
        for cell in range(int(first), min(int(last) + 1, width)):
            data[cell] += max(min(last, cell + 1) - max(first, cell), 0)
    return "".join(SHADES[min(-int(-share * 4 // 1), 4)] for share in data)
