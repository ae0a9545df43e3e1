"""Whether what a dead backend had is made again at the next one in the order in which it was asked for."""

import re
from dataclasses import dataclass
from typing import final

from .library import Place, Simulator
from .oracle import SECTOR, Wrong

__all__ = ["Asked", "Replay", "Replays"]

MOST_LOOKS = 8  # after which a replay is over
SUBMITTED = re.compile(r"\d+ i(\d+) ([qp]\d+) submit #\d+ (\w+) (\d+)\+(\d+) ")

_Request = tuple[str, str, int, int]  # queue, operation, start, length


@final
@dataclass(frozen=True, slots=True)
class Asked:
    """A range that the user has asked something of, in sectors, and when that was."""

    number: int
    first: int
    count: int

    def meets(self, start: int, length: int) -> bool:
        return start < (self.first + self.count) * SECTOR and self.first * SECTOR < start + length


@final
class Replay:
    """Of one death, to be made just before it."""

    def __init__(self, simulator: Simulator, pending: list[Asked], others: list[Asked]) -> None:
        """*others*: whose requests the device may have too, though they need not be made again."""
        self._simulator = simulator
        requests = simulator.requests()
        self._instance = max((request.instance for request in requests), default=0)
        had = [
            (request.queue_name, request.operation, request.start, request.length)
            for request in requests
            if request.instance == self._instance and request.place is not Place.DONE
        ]
        self._numbers: dict[_Request, int] = {}
        """When each was asked for; of those that cannot be taken for another."""
        for request in had:
            whose = {asked.number for asked in (*pending, *others) if asked.meets(*request[2:])}
            if len(whose) == 1 and had.count(request) == 1:
                self._numbers[request] = whose.pop()
        may_be_left_out = {asked.number for asked in others}
        self._numbers = {
            request: number for request, number in self._numbers.items() if number not in may_be_left_out
        }

    def look(self, cancelled: set[int]) -> None:
        """Raises Wrong: they came in another order. What was cancelled need not come; the new comes later."""
        left = {request: number for request, number in self._numbers.items() if number not in cancelled}
        order: dict[str, int] = {}  # of each queue, the latest
        for line in self._simulator.trace:
            match = SUBMITTED.match(line)
            if match is None or int(match[1]) <= self._instance:
                continue
            request = match[2], match[3], int(match[4]), int(match[5])
            number = left.pop(request, None)
            if number is None:
                continue
            if number < order.get(request[0], 0):
                raise Wrong(
                    f"{request[1]} of {request[3]} bytes at {request[2]} is made again too late: {line}"
                )
            order[request[0]] = number


@final
class Replays:
    """Of one history: one at a time is looked at."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._replay: tuple[int, Replay] | None = None
        """Of the last death, and how many reconnections there are when another backend has come."""
        self._looks = 0

    def begin(self, reconnections: int, pending: list[Asked], others: list[Asked]) -> None:
        """The backend is about to die; what it has is to be made again at the next one."""
        if self._replay is None:
            self._replay = reconnections + 1, Replay(self._simulator, pending, others)
            self._looks = 0

    def look(self, reconnections: int, *, is_lost: bool, cancelled: set[int]) -> None:
        """Now and then. Raises Wrong: something is made again too late."""
        if self._replay is None:
            return
        turn, replay = self._replay
        self._looks += reconnections == turn
        if is_lost or reconnections > turn or self._looks == MOST_LOOKS:
            self._replay = None
        elif self._looks in (2, MOST_LOOKS - 1):
            replay.look(cancelled)
