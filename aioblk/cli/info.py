"""``aioblk info``: what this machine can run, or what a device is."""

from dataclasses import asdict

import click

from .output import print_json
from .parameters import Opener, device_argument
from .running import fail, run

__all__ = ["command"]


@click.command("info")
@device_argument(required=False)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, with sizes in bytes: docs/command-line.md."
)
def command(device: Opener | None, as_json: bool) -> int:
    """Show what DEVICE is: its size and limits, what it holds, and who has it in use. Without one, show what
    this machine can run, why not the rest, and what would help.

    \b
        aioblk info
        aioblk info disk.img
        aioblk info --json /dev/sdb
        aioblk info virtio-blk-vhost-user:blk.sock

    Nothing is changed. A device that does not open is described as far as it is known; the exit status is 1
    then.
    """
    if device is None:
        return _show_machine(as_json)
    return _show_device(device, as_json)


def _show_machine(as_json: bool) -> int:
    from .machine import examine

    machine = examine()
    if as_json:
        print_json(asdict(machine))
    else:
        from .tables import console, show_machine

        show_machine(machine, console())
    return 0


def _show_device(device: Opener, as_json: bool) -> int:
    from .description import describe

    found = run(describe(device))
    if as_json:
        print_json(asdict(found))
    else:
        from .tables import console, show_description

        show_description(found, console())
    if found.error is None:
        return 0
    return fail(found.error)
