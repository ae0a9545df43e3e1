"""What somebody wants to know of a device's requests, beyond their outcome."""

from collections.abc import Callable
from dataclasses import dataclass
from traceback import StackSummary
from typing import final

from .._native._core import QueueCore

__all__ = ["Sight"]


@final
@dataclass(slots=True)
class Sight:
    """For all queues of a device, those included that are bound later. What is not wanted costs nothing."""

    measuring: bool = False
    """How long requests take."""
    on_begun: Callable[[int, str, int, int, int], object] | None = None
    """Told of each, in the queue's thread: a number that is its own while it is in flight, operation, offset,
    length, and as how many requests it counts."""
    on_finished: Callable[[int, BaseException | None, bool], object] | None = None
    """And of its end, once, by that number: its error, and whether it was cancelled."""

    def apply_to(self, core: QueueCore, origin_of: Callable[[], StackSummary] | None = None) -> None:
        """In the queue's thread: from now on. *origin_of* says where a request is made, as it is made."""
        core.watch(self.measuring, self.on_begun, self.on_finished, origin_of)
