"""``aioblk checksum``: digests of what devices read as."""

import click

from ..copying.digest import checksum
from .output import print_json
from .parameters import Opener, Whole, device_argument, size
from .progress import meter, progress_option
from .running import run

__all__ = ["command"]


@click.command("checksum")
@device_argument("devices", nargs=-1, required=True, metavar="DEVICE...")
@click.option(
    "-a", "--algorithm", default="sha256", show_default=True, help="One of Python's hashlib: blake2b."
)
@click.option("--offset", type=size, default="0", metavar="SIZE", help="Begin there.")
@click.option("--length", type=size, metavar="SIZE", help="So much, and not up to the end.")
@click.option("--request-size", type=size, metavar="SIZE", help="The length of requests; else what suits.")
@click.option("--depth", type=Whole(1, 1024), help="Requests at a time.")
@progress_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    devices: tuple[Opener, ...],
    algorithm: str,
    offset: int,
    length: int | None,
    request_size: int | None,
    depth: int | None,
    progress: bool | None,
    as_json: bool,
) -> None:
    """Print a digest of what each DEVICE reads as; of a file, it is what sha256sum prints.

    Holes are not read, and the next bytes are, while the last ones are hashed.

    \b
        aioblk checksum disk.img
        aioblk checksum -a blake2b --length 1G /dev/sdb
    """

    async def digest_of(device: Opener) -> str:
        async with device(read_only=True) as dev, meter(progress) as told:
            return await checksum(
                dev,
                algorithm,
                offset=offset,
                length=length,
                request_size=request_size,
                depth=depth,
                on_progress=lambda done, of: told.tell(device.address, done, of),
            )

    digests: dict[str, str] = {}
    for device in devices:
        digests[device.address] = run(digest_of(device))
        if not as_json:
            click.echo(f"{digests[device.address]}  {device.address}")
    if as_json:
        found = [{"device": name, "algorithm": algorithm, "digest": each} for name, each in digests.items()]
        print_json(found)
