"""Memory of requests in a simulated history, and a watch over what nobody may write to any more."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, final

from .oracle import Wrong

__all__ = ["SLOT", "Slot", "Watch"]

SLOT = 4 << 10  # bytes, of the longest request
FEW = 64


@final
class Slot:
    """A range of registered memory, for one request at a time."""

    def __init__(self, view: Any, release: Callable[[], object] = lambda: None) -> None:
        self.view = view
        self.length = len(view)
        self.release = release
        self.usable = True

    def put(self, data: bytes) -> None:
        memoryview(self.view)[: len(data)] = data


@final
class Watch:
    """Memory whose requests are over: what it holds must stay."""

    def __init__(self) -> None:
        self._kept: list[tuple[Any, bytes, str]] = []

    def keep(self, memory: Any, whose: str) -> None:
        """From now on."""
        with suppress(ValueError):  # its region has been left
            self._kept.append((memory, bytes(memory), whose))
        if len(self._kept) > FEW:
            self._look(*self._kept.pop(0))

    def forget(self, memory: Any) -> None:
        """It is used again, or is nobody's."""
        for index, (kept, before, whose) in enumerate(self._kept):
            if kept is memory:
                del self._kept[index]
                self._look(kept, before, whose)
                return

    def look(self) -> None:
        """Raises Wrong: something was written to."""
        for kept in self._all():
            self._look(*kept)

    def _all(self) -> Iterator[tuple[Any, bytes, str]]:
        kept, self._kept = self._kept, []
        yield from kept

    def _look(self, memory: Any, before: bytes, whose: str) -> None:
        try:
            now = bytes(memory)
        except ValueError:
            return
        if now != before:
            at = next(index for index in range(len(now)) if now[index] != before[index])
            raise Wrong(f"memory of {whose} was written to after its end, at byte {at}")
