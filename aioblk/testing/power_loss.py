"""PowerLoss: a device in memory that knows what a power failure may leave of it."""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple, final

from .._libblkio.limits import Limits
from ..errors import OptionError
from ._media import CHUNK
from .memory_device import MemoryDevice

__all__ = ["PowerLoss"]


@final
class _Change:
    """A write, or zeroing, and whether it is done."""

    __slots__ = ("is_done",)

    def __init__(self) -> None:
        self.is_done = False


class _Version(NamedTuple):
    """What a sector was given."""

    change: _Change
    data: bytes


@final
class PowerLoss(MemoryDevice):
    """A device whose power may fail at any moment::

        dev = PowerLoss(1 << 20)
        await dev.write(0, record)
        await dev.flush()
        await dev.write(4096, another)
        for seed in range(1000):
            check(dev.crash(seed))              # has the record, and any part of the other one

    It reads as a :class:`MemoryDevice` does. Beside that it remembers what each sector held when it was last
    durable, and all that it was given since. A change is durable when

    *   a flush has completed that began when the change was done, or
    *   it was made with ``fua``, and is done.

    After a crash each sector holds what it held when it was last durable, or anything that it was given
    since, whichever :meth:`crash` chooses for it alone: devices write back what they have cached in any
    order, and sectors are written whole. A change that is in flight may have reached any of its sectors.
    """

    def __init__(
        self,
        capacity: int,
        *,
        sector_size: int = 512,
        limits: Limits | None = None,
        content: bytes = b"",
    ) -> None:
        """As of a :class:`MemoryDevice`, whose *content* is durable; ``sector_size`` in bytes is what is
        never torn. A write that is not of whole sectors makes whole ones of what is there.

        Raises:
            OptionError: ``sector_size`` is not positive.
        """
        if sector_size < 1:
            raise OptionError(
                f"sector_size must be positive, not {sector_size}", driver="memory", operation="open"
            )
        super().__init__(capacity, limits=limits, content=content)
        self._sector = sector_size
        self._durable = self._media.copy()
        self._durable_capacity = self._capacity
        self._growth: list[tuple[_Change, int]] = []  # who needs it to be larger than that, and how large
        self._since: dict[int, list[_Version]] = {}  # by sector, in the order of the changes

    # --- what is remembered ---------------------------------------------------------------------------------

    def _store(
        self, offset: int, length: int, data: bytes | None, fua: bool
    ) -> Callable[[bool], object] | None:
        sectors = self._touched(offset, length) if data is None else self._sectors(offset, length)
        super()._store(offset, length, data, fua)
        change = _Change()
        if length and offset + length > self._durable_capacity:
            self._growth.append((change, offset + length))
        for sector in sectors:
            version = _Version(change, self._media.read(sector * self._sector, self._sector))
            self._since.setdefault(sector, []).append(version)

        def done(is_told: bool) -> None:
            change.is_done = True
            if fua and is_told:
                self._have_size_durable(offset + length)
                for sector in sectors:
                    self._have_durable(sector, {change})

        return done

    def _sectors(self, offset: int, length: int) -> range:
        return range(offset // self._sector, -(-(offset + length) // self._sector))

    def _touched(self, offset: int, length: int) -> list[int]:
        """Those that zeroing makes a difference to: of holes, nothing is remembered."""
        sectors = self._sectors(offset, length)
        fewer, others = (sectors, self._since) if len(sectors) < len(self._since) else (self._since, sectors)
        touched = {sector for sector in fewer if sector in others}
        for media in (self._media, self._durable):
            for chunk in media.chunks(offset, length):
                touched.update(sector for sector in self._sectors(chunk * CHUNK, CHUNK) if sector in sectors)
        return sorted(touched)

    def _start_flush(self) -> Callable[[bool], object] | None:
        covered = {
            version.change
            for versions in self._since.values()
            for version in versions
            if version.change.is_done
        }
        size = max((size for change, size in self._growth if change.is_done), default=0)

        def done(is_told: bool) -> None:
            if not is_told:  # nobody has seen it complete
                return
            self._have_size_durable(size)
            for sector in tuple(self._since):
                self._have_durable(sector, covered)

        return done

    def _have_size_durable(self, size: int) -> None:
        """It is at least so large from now on; what was in flight meanwhile may make it larger, or not."""
        self._durable_capacity = max(self._durable_capacity, size)
        while self._growth and self._growth[-1][1] <= self._durable_capacity:
            self._growth.pop()

    def _have_durable(self, sector: int, covered: set[_Change]) -> None:
        """The last of the changes is durable in the sector; what was before it can come back no more."""
        versions = self._since.get(sector, [])
        last = max(
            (place for place, version in enumerate(versions) if version.change in covered), default=None
        )
        if last is None:
            return
        self._durable.write(sector * self._sector, versions[last].data)
        del versions[: last + 1]
        if not versions:
            del self._since[sector]

    # --- looking --------------------------------------------------------------------------------------------

    @property
    def doubtful_sectors(self) -> int:
        """How many sectors may be one thing or another after a crash."""
        return len(self._since)

    def crash(self, seed: int | None = None) -> "PowerLoss":
        """Another device, with what a power failure at this moment may leave; by *seed*, which makes a choice
        that can be repeated. This one goes on: it may crash in as many ways as one likes."""
        chance = random.Random(seed)
        left = PowerLoss(0, sector_size=self._sector, limits=self._limits)
        left._capacity = self._capacity
        left._media = self._durable.copy()
        for sector, data in self._chosen(chance):
            left._media.write(sector * self._sector, data)
        if self._durable_capacity < self._capacity and chance.random() < 0.5:  # its growth was not durable
            sizes = {size for _, size in self._growth if self._durable_capacity < size < self._capacity}
            left._capacity = chance.choice([self._durable_capacity, *sorted(sizes)])
            left._media.zero(left._capacity, self._capacity - left._capacity)
        left._durable_capacity = left._capacity
        left._durable = left._media.copy()
        return left

    def _chosen(self, chance: random.Random) -> Iterator[tuple[int, bytes]]:
        """For each sector in doubt, what it holds, where that is not what was durable.

        How much of it all was written back is chosen first: of what is done alike for every sector, a crash
        that leaves nearly everything, or nearly nothing, would never come.
        """
        share = chance.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        for sector, versions in self._since.items():
            if chance.random() < share:
                yield sector, (versions[-1] if chance.random() < 0.5 else chance.choice(versions)).data
