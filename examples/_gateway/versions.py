"""Validators that never lie, for a device that changes: which version of a part it is that somebody reads."""

import secrets
from array import array

from .ranges import Part

MOST_UNITS = 1 << 16
LEAST_UNIT = 1 << 20


class Change:
    """A change under way, from before it begins until nothing of it can land any more."""

    def __init__(self, part: Part, number: int) -> None:
        self.part = part
        self.number = number


class Versions:
    """Numbers for all changes, and for each unit of the device the last one that it had.

    A change has a number when it begins, and another when it ends; between the two its part has no version at
    all: who reads it may get the bytes before, those after, or some of each. Whoever has read a part that had
    the same version before and after has read just that version.

    That holds for changes that come by way of this gateway. With *shared* others make some, and nothing has a
    version.
    """

    def __init__(self, capacity: int, *, shared: bool = False) -> None:
        self._shared = shared
        self._run = secrets.token_hex(6)  # what happened before, nobody knows
        self._unit = LEAST_UNIT
        while self._unit * MOST_UNITS < capacity:
            self._unit *= 2
        self._last = array("Q", bytes(8 * (capacity // self._unit + 1)))
        self._under_way: set[Change] = set()
        self.latest = 0

    def of(self, part: Part) -> int | None:
        """The number of the last change of a part; None while it has no version."""
        if self._shared or any(_overlap(change.part, part) for change in self._under_way):
            return None
        return max(self._last[self._units(part)], default=0)

    def tag(self, part: Part) -> str | None:
        """The same as a strong entity tag of the part."""
        version = self.of(part)
        return None if version is None else f'"{self._run}-{part.offset:x}-{part.length:x}-{version:x}"'

    def has_changed(self, part: Part, since: int) -> bool:
        """Whether anything of it has begun to change since ``latest`` was that."""
        return max(self._last[self._units(part)], default=0) > since

    def begin(self, part: Part) -> Change:
        """To be called before the device is asked for anything of the change."""
        change = Change(part, self._mark(part))
        self._under_way.add(change)
        return change

    def end(self, change: Change, whole: Part) -> str | None:
        """When nothing of the change can land any more. The new tag of *whole*, of which the change was a
        part, unless something else of it has changed meanwhile: who made this change does not know that."""
        alone = not self.has_changed(whole, change.number)
        self._under_way.discard(change)
        self._mark(change.part)
        return self.tag(whole) if alone else None

    def _mark(self, part: Part) -> int:
        self.latest += 1
        units = self._units(part)
        self._last[units] = array("Q", [self.latest]) * (units.stop - units.start)
        return self.latest

    def _units(self, part: Part) -> slice:
        first, last = part.offset // self._unit, max(part.offset, part.end - 1) // self._unit
        return slice(min(first, len(self._last) - 1), min(last + 1, len(self._last)))


def _overlap(one: Part, other: Part) -> bool:
    return one.offset < other.end and other.offset < one.end
