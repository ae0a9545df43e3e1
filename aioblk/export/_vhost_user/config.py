"""A device in virtio-blk's words: what it offers, and its configuration space."""

from typing import Final

from ..disk import Served
from . import protocol
from .protocol import Feature

ALWAYS: Final = (
    *(Feature.SEG_MAX, Feature.BLK_SIZE, Feature.FLUSH, Feature.TOPOLOGY),
    *(Feature.INDIRECT_DESC, Feature.EVENT_IDX, Feature.VERSION_1, Feature.PROTOCOL_FEATURES),
)


def features_of(device: Served, *, read_only: bool, queues: int) -> int:
    features = set(ALWAYS)
    if queues > 1:
        features.add(Feature.MQ)
    if 0 < device.limits.max_segment_len < 1 << 32:
        features.add(Feature.SIZE_MAX)
    features |= {Feature.RO} if read_only else {Feature.DISCARD, Feature.WRITE_ZEROES}
    return sum(1 << feature for feature in features)


def capacity_of(device: Served) -> int:
    """Whole sectors: what a file has beyond them, nobody can be told of."""
    return device.capacity // protocol.SECTOR * protocol.SECTOR


def space_of(device: Served, *, queues: int) -> bytes:
    """The configuration space."""
    limits, sector = device.limits, protocol.SECTOR
    block = max(limits.request_alignment, sector)
    optimal = limits.optimal_io_size or limits.optimal_io_alignment
    range_length = protocol.LONGEST_RANGE // sector
    return protocol.SPACE.pack(
        capacity_of(device) // sector,
        limits.max_segment_len if limits.max_segment_len < 1 << 32 else 0,
        min(protocol.SEGMENTS, limits.max_segments),
        block,
        *(_exponent(limits.optimal_io_alignment, block), 0),  # of the physical block
        min(max(limits.optimal_io_alignment // block, 1), 0xFFFF),
        min(optimal // block, 0xFFFFFFFF),
        *(0, queues),
        *(range_length, 1, max(limits.discard_alignment // sector, 1)),
        *(range_length, 1, 1),
    )


def _exponent(alignment: int, block: int) -> int:
    """Blocks in what is written without reading before, as a power of two."""
    blocks = alignment // block
    return blocks.bit_length() - 1 if blocks and not blocks & (blocks - 1) else 0
