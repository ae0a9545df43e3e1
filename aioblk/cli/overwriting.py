"""What speaks against writing to a device: who uses it, and what it holds."""

from functools import partial

from .._device.holders import find_holders
from .._sync.blocking import run_blocking
from ..layers.block_device import BlockDevice
from ..layers.signatures import signatures
from ._load.pattern import is_ours
from .parameters import Opener

__all__ = ["LOOKED_AT", "find_obstacles"]

LOOKED_AT = 128 << 10  # bytes, from the beginning of the device and of what is to be written


async def find_obstacles(opener: Opener, device: BlockDevice, offset: int) -> list[str]:
    """Why *device*, which *opener* has opened, should not be written to from *offset* on: each is the end of
    a sentence that begins with its name.

    It is in use: mounted, swapped to, a part of something, locked, open for writing elsewhere. It holds what
    is recognised, or anything else but zeroes and what a benchmark has left, as far as that is looked at.

    Raises:
        BlkioError: it cannot be read.
    """
    found: list[str] = []
    if opener.path is not None:
        holders = await run_blocking(partial(find_holders, opener.path))
        found += [f"is {holder.who}" for holder in holders if holder.writes]
    marks = await signatures(device)
    found += [f"holds {mark.name}, at offset {mark.offset}" for mark in marks]
    if not marks:
        for start in dict.fromkeys((0, offset)):
            step = device.limits.request_alignment
            end = min(start + LOOKED_AT, device.capacity) // step * step
            if end > start and (place := is_ours(await device.read(start, end - start), start)) is not None:
                found.append(f"holds something that is not recognised, from offset {place} on")
                break
    return found
