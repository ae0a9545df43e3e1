"""Which request comes next: all tasks of a job take from one iterator, which is C from end to end."""

import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from operator import mod
from typing import Any, TypeAlias, final

from .plan import Plan

__all__ = ["Operation", "Order"]

Operation: TypeAlias = Callable[[int, Any], Awaitable[object]]
"""Called with an offset and the task's buffer."""

CHUNK = 4096  # requests that are thought of at a time
FEW = 1 << 18  # blocks, of which a list costs little: numbers of 32 bits hit each as often, to 1 in 10000


@final
class Order:
    """The requests of one job, without end, until it is stopped."""

    def __init__(self, plan: Plan, job: int, read: Operation, write: Operation, flush: Operation) -> None:
        """*write* is whatever changes the device: trimming, too."""
        self._plan = plan
        self._read, self._write, self._flush = read, write, flush
        self._random = random.Random(f"{plan.seed} {job}")
        self._blocks = plan.all if plan.random else plan.share(job) or plan.all
        self._few = list(self._blocks) if plan.random and len(self._blocks) <= FEW else None
        self._sequence = itertools.cycle(self._blocks) if len(self._blocks) < CHUNK else _around(self._blocks)
        self._written = 0
        self._current: list[Any] = []
        self._stopped = False
        self.requests: Iterator[tuple[Operation, int]] = itertools.chain.from_iterable(self._chunks())

    def stop(self) -> None:
        """No task gets another one."""
        self._stopped = True
        self._current.clear()  # which ends who iterates over it

    def _chunks(self) -> Iterator[Iterator[tuple[Operation, int]]]:
        while not self._stopped:
            offsets = self._next_offsets()
            if self._plan.fsync:
                self._current = pairs = list(self._with_flushes(offsets))
                yield iter(pairs)
            else:
                self._current = offsets
                yield zip(self._next_operations(), offsets, strict=False)

    def _next_offsets(self) -> list[int]:
        if self._few is not None:
            numbers = memoryview(self._random.randbytes(4 * CHUNK)).cast("I")
            return list(map(self._few.__getitem__, map(mod, numbers, itertools.repeat(len(self._few)))))
        if self._plan.random:
            return self._random.choices(self._blocks, k=CHUNK)
        return list(itertools.islice(self._sequence, CHUNK))

    def _next_operations(self) -> Iterator[Operation]:
        plan = self._plan
        if plan.kind == "rw":
            weights = (plan.reads, 100 - plan.reads)
            return iter(self._random.choices((self._read, self._write), weights, k=CHUNK))
        return itertools.repeat(self._write if plan.writes else self._read)

    def _with_flushes(self, offsets: list[int]) -> Iterator[tuple[Operation, int]]:
        for operation, offset in zip(self._next_operations(), offsets, strict=False):
            yield operation, offset
            if operation is self._write:
                self._written += 1
                if self._written % self._plan.fsync == 0:
                    yield self._flush, 0


def _around(offsets: range) -> Iterator[int]:
    """As itertools.cycle(), which would keep them all."""
    return itertools.chain.from_iterable(itertools.repeat(offsets))
