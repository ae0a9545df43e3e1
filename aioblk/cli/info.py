"""``aioblk info``: what a device is."""

import json

import click

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
    click.echo(json.dumps(found, indent=2) if as_json else f"{device.address}: {found['capacity']} bytes")


async def _describe(device: Opener) -> dict[str, object]:
    async with device() as dev:
        return {"capacity": dev.capacity, "read_only": dev.read_only}
