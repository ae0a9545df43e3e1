"""Limits that suit several devices at once."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from .._libblkio.limits import Limits
from ..errors import OptionError

__all__ = ["combined_limits"]


def combined_limits(name: str, all_limits: Sequence[Limits]) -> Limits:
    """What all of them accept. What is made of several devices does not grow.

    OptionError: there is nothing that all can discard.
    """
    first = all_limits[0]
    offsets = {limits.discard_alignment_offset for limits in all_limits}
    if len(offsets) > 1:
        raise OptionError(
            "what can be discarded begins at a different place on each device"
            f" (discard-alignment-offset {', '.join(map(str, sorted(offsets)))}); make slices that agree",
            driver=name,
            operation="open",
        )
    return replace(
        first,
        request_alignment=_multiple(limits.request_alignment for limits in all_limits),
        optimal_io_alignment=_multiple(limits.optimal_io_alignment for limits in all_limits),
        optimal_io_size=_multiple(limits.optimal_io_size for limits in all_limits),
        can_grow=False,
        flush_needed=any(limits.flush_needed for limits in all_limits),
        buf_alignment=_multiple(limits.buf_alignment for limits in all_limits),
        optimal_buf_alignment=_multiple(limits.optimal_buf_alignment for limits in all_limits),
        max_segments=min(limits.max_segments for limits in all_limits),
        max_segment_len=_least(limits.max_segment_len for limits in all_limits),
        max_transfer=_least(limits.max_transfer for limits in all_limits),
        supports_fua_natively=all(limits.supports_fua_natively for limits in all_limits),
        max_write_zeroes_len=_least(limits.max_write_zeroes_len for limits in all_limits),
        max_discard_len=_least(limits.max_discard_len for limits in all_limits),
        discard_alignment=_multiple(limits.discard_alignment for limits in all_limits),
        needs_mem_regions=any(limits.needs_mem_regions for limits in all_limits),
        needs_mem_region_fd=any(limits.needs_mem_region_fd for limits in all_limits),
        may_pin_mem_regions=any(limits.may_pin_mem_regions for limits in all_limits),
        mem_region_alignment=_multiple(limits.mem_region_alignment for limits in all_limits),
        max_mem_regions=_least(limits.max_mem_regions for limits in all_limits),
    )


def _multiple(values: Iterable[int]) -> int:
    """The least common one, where 0 is no rule at all."""
    return math.lcm(*known) if (known := [value for value in values if value]) else 0


def _least(values: Iterable[int]) -> int:
    """Where 0 is no limit at all."""
    return min((value for value in values if value), default=0)
