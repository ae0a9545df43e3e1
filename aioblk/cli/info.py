"""``aioblk info``: what a device is."""

import click

from .output import print_json
from .parameters import Opener, device_argument
from .running import run

__all__ = ["command"]


@click.command("info")
@device_argument()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(device: Opener, as_json: bool) -> None:
    """Show what DEVICE is.

    \b
        aioblk info disk.img
        aioblk info --json /dev/sdb
    """
    found = run(_describe(device))
    if as_json:
        print_json(found)
    else:
        click.echo(f"{device.address}: {found['capacity']} bytes")


async def _describe(device: Opener) -> dict[str, object]:
    async with device() as dev:
        return {"capacity": dev.capacity, "read_only": dev.read_only}
