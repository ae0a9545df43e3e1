"""Devices with data and holes, of few bytes and any limits."""

import random
from dataclasses import dataclass

from hypothesis import strategies as st

import aioblk
from aioblk.testing import MemoryDevice

UNIT = 512
UNITS = 96


@dataclass(frozen=True)
class Stretch:
    kind: str
    """data, zeroes that were written, or a hole."""
    units: int


@dataclass(frozen=True)
class Side:
    """How a device takes requests."""

    alignment: int
    max_transfer: int
    is_told: bool
    """Of memory, or it bounces."""

    def limits(self, *, can_grow: bool = False) -> aioblk.Limits:
        return aioblk.Limits(
            request_alignment=self.alignment,
            max_transfer=self.max_transfer,
            can_grow=can_grow,
            needs_mem_regions=self.is_told,
            max_mem_regions=4,
        )


stretches = st.lists(
    st.builds(Stretch, st.sampled_from(["data", "zeroes", "hole"]), st.integers(1, 40)), max_size=6
)
sides = st.builds(Side, st.sampled_from([1, 512, 4096]), st.sampled_from([0, 4096, 16384]), st.booleans())


def content_of(stretches: list[Stretch], seed: int = 1) -> bytes:
    chance = random.Random(seed)
    return b"".join(
        chance.randbytes(each.units * UNIT) if each.kind == "data" else bytes(each.units * UNIT)
        for each in stretches
    )


async def device_with(
    stretches: list[Stretch], side: Side, *, size: int | None = None, seed: int = 1, can_grow: bool = False
) -> MemoryDevice:
    """As long as they are, rounded up to whole blocks."""
    content = content_of(stretches, seed)
    blocks = -(-max(len(content), size or 0) // side.alignment)
    device = MemoryDevice(blocks * side.alignment, limits=side.limits(can_grow=can_grow))
    view = aioblk.ByteView(device)
    position = 0
    for each in stretches:
        length = each.units * UNIT
        if each.kind != "hole":
            await view.write(position, content[position : position + length])
        position += length
    return device
