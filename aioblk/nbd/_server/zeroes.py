"""Zeroes among what was read: clients that take replies in chunks are told of them in place of getting them.

They are found in the data, not asked for: a device that knows where its holes are would have to be asked in
a thread, for longer than it takes to look at the data, and what it says may be out of date before they are
read. So it is true whoever else writes, whatever the device is, and data that do not begin with zeroes cost
a comparison of their first bytes for each block.
"""

from collections.abc import Iterator

from ..._native._core import View

BLOCK = 64 << 10  # shorter ranges are not worth a chunk; nor is a read that has no whole one worth a look

_ZEROES = bytes(BLOCK)


def stretches(data: View, offset: int) -> Iterator[tuple[int, int, bool]]:
    """The data of a place, from where to where, and whether they are all zeroes; in order, as long as can be.

    They meet at multiples of a block of the device's, and none is empty.
    """
    size = len(data)
    begin = end = 0
    was_zero = False
    stop = min(size, BLOCK - offset % BLOCK)
    while end < size:
        is_zero = _ZEROES.startswith(data[end:stop])
        if is_zero != was_zero:
            if end > begin:
                yield begin, end, was_zero
            begin, was_zero = end, is_zero
        end, stop = stop, min(size, stop + BLOCK)
    yield begin, end, was_zero
