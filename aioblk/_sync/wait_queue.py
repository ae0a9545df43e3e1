"""A fair queue of waiting tasks in which a task can keep its place at the head."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, final

from .loops import running_loop

__all__ = ["WaitQueue", "WaitQueueStatistics"]


@dataclass(frozen=True, slots=True)
class WaitQueueStatistics:
    """What :meth:`WaitQueue.statistics` reports."""

    tasks_waiting: int
    """Tasks that nobody has woken yet."""
    tasks_woken: int
    """Tasks that have been woken and have not run since."""


class _Waiter(asyncio.Future[None]):
    """Leaves the queue in the very moment it is cancelled, long before its task gets to run."""

    queue: "OrderedDict[_Waiter, None]"

    def cancel(self, msg: Any | None = None) -> bool:
        self.queue.pop(self, None)
        return super().cancel(msg)


@final
class WaitQueue:
    """Tasks waiting in the order of their arrival, with requeueing at the head.

    The queue knows nothing of what is waited for. It is the half of a lock, a semaphore or an allocator that
    decides whose turn it is, for resources of which different tasks need different amounts::

        async def take(amount):
            try:
                if queue or free < amount:       # somebody came first, or too little is left
                    await queue.wait()
                    while free < amount:         # woken, but it does not suffice yet
                        await queue.wait(front=True)
                free -= amount
            finally:
                queue.notify_head()              # what is left may suit the next one, even if we gave up

        def give(amount):
            free += amount
            queue.notify_head()

    Three properties make that fair:

    *   A task that was woken in vain waits again **at the head** and is the next one to be woken.
    *   A task that was woken but has not run yet **still counts** in ``len(queue)`` and ``bool(queue)``. A
        newcomer that finds the queue true waits; nobody barges in between a wake-up and its effect.
    *   A wake-up is **never lost**: a task that is cancelled after it was woken hands the wake-up to the next
        one.

    The order is strict as long as one task is woken at a time and wakes the next one when it is through,
    which is what :meth:`notify_head` is for. Of several that were woken together, a later one may succeed
    where the first one did not and goes back to the head.

    How it compares:

    ======================  ====================  ============================  ============================
    ..                      WaitQueue             asyncio.Condition             trio.lowlevel.ParkingLot
    ======================  ====================  ============================  ============================
    order                   FIFO                  FIFO                          FIFO
    wait again at the head  ``wait(front=True)``  no: joins the back            no: joins the back
    woken, not run yet      counted               not visible                   not counted
    woken, then cancelled   wake-up passed on     passed on; lost before 3.13   the wake-up wins
    needs a lock            no                    yes, taken again after waits  no
    wakes                   ``notify(n)``         ``notify(n)``                 ``unpark(count=n)``
    ======================  ====================  ============================  ============================

    Belongs to the event loop of its first ``wait``; not safe to use from several threads.
    """

    __slots__ = ("_loop", "_waiting", "_woken")

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: OrderedDict[_Waiter, None] = OrderedDict()
        self._woken = 0

    def __len__(self) -> int:
        """How many tasks are ahead of a newcomer: those waiting and those woken that have not run yet."""
        return len(self._waiting) + self._woken

    async def wait(self, front: bool = False) -> None:
        """Wait for a wake-up by :meth:`notify`, behind everybody or, with ``front``, ahead of everybody.

        Always suspends the task. On cancellation the task leaves the queue; a wake-up that it had been given
        already goes to the next task.

        Raises:
            RuntimeError: the queue is in use on another event loop.
        """
        waiter = _Waiter(loop=self._bind())
        waiter.queue = self._waiting
        self._waiting[waiter] = None
        if front:
            self._waiting.move_to_end(waiter, last=False)
        try:
            await waiter
        except BaseException:
            self._waiting.pop(waiter, None)
            if waiter.done() and not waiter.cancelled():
                self._woken -= 1
                self.notify()
            raise
        self._woken -= 1

    def notify(self, n: int = 1) -> int:
        """Wake the first ``n`` waiting tasks, or all when there are fewer; returns how many. Never blocks."""
        woken = min(n, len(self._waiting))
        for _ in range(woken):
            waiter, _none = self._waiting.popitem(last=False)
            waiter.set_result(None)
            self._woken += 1
        return max(woken, 0)

    def notify_head(self) -> bool:
        """Wake the first task, unless one that was woken has not run yet; returns whether it did.

        That one is expected to look at what there is now, and to call this method when it is through.
        """
        return self._woken == 0 and self.notify() == 1

    def notify_all(self) -> int:
        """Wake every task that waits now; returns how many."""
        return self.notify(len(self._waiting))

    def statistics(self) -> WaitQueueStatistics:
        """The state of the queue in this moment."""
        return WaitQueueStatistics(tasks_waiting=len(self._waiting), tasks_woken=self._woken)

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__} waiting={len(self._waiting)} woken={self._woken}>"

    def _bind(self) -> asyncio.AbstractEventLoop:
        loop = running_loop("wait")
        if self._loop is not loop:
            if self._loop is not None and len(self):
                raise RuntimeError(f"{self!r} is in use on another event loop")
            self._loop = loop
        return loop
