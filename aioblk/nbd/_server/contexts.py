"""Metadata contexts: what clients may ask about a range of an export."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from typing import NamedTuple, TypeAlias

from ..._device.extents import ExtentKind
from ...layers._bitmaps import Runs, bitmaps_of
from ...layers.block_device import BlockDevice
from ...layers.layer import extents_of
from .. import protocol

MOST_STATES = 1024  # of one answer
MOST_EXTENTS = 8192  # that are looked at for it

States: TypeAlias = Sequence[tuple[int, int]]
"""Lengths, and the flags that hold for each; one after the other, at least one."""


class Context(NamedTuple):
    """One that is offered."""

    name: bytes
    """A namespace, a colon, and more."""
    states: Callable[[int, int, int], Awaitable[States]]
    """What there is from an offset on, within a length, in so many states at most: not always all of it."""


WILDCARDS = (b"base:", b"qemu:", protocol.QEMU_DIRTY_BITMAP)


def contexts_of(device: BlockDevice) -> list[Context]:
    """All that the device has."""
    return [
        Context(protocol.BASE_ALLOCATION, partial(_allocation, device)),
        *(
            Context(protocol.QEMU_DIRTY_BITMAP + name.encode(), partial(_dirty, runs))
            for name, runs in bitmaps_of(device).items()
        ),
    ]


def asked_for(contexts: Iterable[Context], queries: Collection[bytes], *, to_list: bool) -> list[Context]:
    """Those that a client means. To have them listed, it may name a whole namespace, or nothing."""
    wildcards = tuple(query for query in queries if query in WILDCARDS) if to_list else ()
    return [
        context
        for context in contexts
        if (to_list and not queries) or context.name in queries or context.name.startswith(wildcards)
    ]


async def _allocation(device: BlockDevice, offset: int, length: int, most: int) -> States:
    found = _Merged(most, length)
    looked_at = 0
    async with aclosing(extents_of(device, offset, length)) as extents:
        async for extent in extents:
            is_hole = extent.kind is ExtentKind.HOLE
            state = protocol.STATE_HOLE | protocol.STATE_ZERO if is_hole else protocol.STATE_DATA
            looked_at += 1
            if not found.add(extent.length, state) or looked_at == MOST_EXTENTS:
                break
    return found.states or [(length, protocol.STATE_DATA)]  # of a device that says nothing


async def _dirty(runs: Runs, offset: int, length: int, most: int) -> States:
    found = _Merged(most, length)
    for _, size, is_marked in runs(offset, length):
        if not found.add(size, protocol.STATE_DIRTY if is_marked else 0):
            break
    return found.states


class _Merged:
    """States, of which no two that are alike follow one on the other, and that end where the range does,
    whatever a device says."""

    def __init__(self, most: int, length: int) -> None:
        self._most = most
        self._left = length
        self.states: list[tuple[int, int]] = []

    def add(self, length: int, state: int) -> bool:
        """Whether there was room for it."""
        length = min(length, self._left)
        if length <= 0:
            return self._left > 0
        if self.states and self.states[-1][1] == state:
            self.states[-1] = self.states[-1][0] + length, state
        elif len(self.states) == self._most:
            return False
        else:
            self.states.append((length, state))
        self._left -= length
        return True
