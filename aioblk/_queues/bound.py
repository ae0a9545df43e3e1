"""The queues of a device that loops and threads have bound, and how closing the device ends them."""

# What only this module does with queues and their pools is theirs, but not for users to see.
# pyright: reportPrivateUsage=false

import asyncio
import contextlib
import functools
import operator
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar, final

from .._libblkio.mem_region import MemRegion
from .._libblkio.subject import Subject
from .._sync.tasks import start_steadfast_task
from ..errors import BlkioError, DeviceLostError, UsageError
from .blocking import BlockingQueue
from .queue import Queue, QueueContext
from .statistics import QueueStatistics

__all__ = ["BoundQueues"]

Q = TypeVar("Q", Queue, BlockingQueue)

_MOMENT = 0.005  # seconds
_LOOK_AGAIN = 0.1  # seconds; how often to see whether another queue's loop or thread still lives
_PATIENCE = 1.0  # seconds that a thread may keep requests in flight without waiting for them


@final
class BoundQueues:
    """At most one queue object for each queue of the device. Binding and freeing happens in any thread."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.default: Queue | None = None
        """The one that serves the device's own request methods: nobody else closes it."""
        self._queues: dict[tuple[bool, int], Queue | BlockingQueue] = {}  # by (poll, index)
        self._awaited: dict[Queue | BlockingQueue, asyncio.Future[None]] = {}
        self._lock = threading.RLock()
        self._ended = QueueStatistics.none()  # of those that are closed
        self._binding = 0  # blocking queues whose memory is being mapped
        self._suspended = False
        self._closed = False
        self._lost: BlkioError | None = None

    def __iter__(self) -> Iterator[Queue | BlockingQueue]:
        return iter(list(self._queues.values()))

    def statistics(self) -> QueueStatistics:
        """The sum of all that there have been."""
        with self._lock:
            each = [queue.statistics() for queue in self]
            return functools.reduce(operator.add, each, self._ended)

    def apply_sight(self) -> None:
        """Somebody wants to know more of requests, or less."""
        for queue in self:
            queue._apply_sight()

    # --- binding --------------------------------------------------------------------------------------------

    def find_or_bind(self, context: QueueContext, index: int, *, poll: bool) -> Queue:
        """The queue, which belongs to the running loop already or does so from now on.

        Raises:
            DeviceLostError: the device is lost; it has queues again when it has come back.
            DeviceClosedError: it is closed, or being so.
        """
        with self._lock:
            self._refuse_if_gone()
            bound = self._queues.get((poll, index))
            if bound is None:
                queue = self._keep(Queue(context, index, poll=poll))
                if self._suspended:
                    queue._suspend()
                return queue
        if not isinstance(bound, Queue) or not bound._is_bound_here():
            raise self._taken(bound, "bound elsewhere; close it there first")
        if bound._closing is not None:
            raise self._taken(bound, "being closed; await its aclose() first")
        return bound

    def bind_blocking(self, context: QueueContext, index: int, *, poll: bool) -> BlockingQueue:
        """The queue for the calling thread. Raises as :meth:`find_or_bind` does."""
        with self._lock:
            self._refuse_blocking(index, poll)
            self._binding += 1
        try:
            return self._bind_blocking(context, index, poll)
        finally:
            with self._lock:
                self._binding -= 1

    def _bind_blocking(self, context: QueueContext, index: int, poll: bool) -> BlockingQueue:
        # Mapping its memory may take as long as the backend pleases, so nobody is kept waiting for the lock.
        try:
            queue = BlockingQueue(context, index, poll=poll)
        except BlkioError as error:
            with self._lock:
                self._refuse_if_gone(error)
                self._refuse_while_suspended()
                raise
        try:
            with self._lock:
                self._refuse_blocking(index, poll)
                return self._keep(queue)
        except DeviceLostError as error:
            queue._give_up(error)
            raise
        except BaseException:
            queue._dispose()
            raise

    async def until_none_is_binding(self) -> None:
        """Threads that are about to bind blocking queues use the handle, and hold the queues: wait."""
        while self._binding:  # noqa: ASYNC110 (threads without a loop)
            await asyncio.sleep(_MOMENT)

    def refuse(self) -> None:
        """The device is being closed: nothing is bound any more."""
        with self._lock:
            self._closed = True

    def exclusively(self, act: Callable[[], object]) -> None:
        """Call it while nobody binds a queue. It must not wait."""
        with self._lock:
            act()

    def _refuse_blocking(self, index: int, poll: bool) -> None:
        self._refuse_if_gone()
        self._refuse_while_suspended()
        bound = self._queues.get((poll, index))
        if bound is not None:
            raise self._taken(bound, "in use; close it first")

    def _taken(self, bound: Queue | BlockingQueue, text: str) -> UsageError:
        if bound is self.default:
            option = "num_poll_queues" if bound.poll else "num_queues"
            text = f"the default queue, which the device's own loop uses; take another one ({option})"
        return self._subject.misuse("queue", f"{bound!r} is {text}")

    def _refuse_while_suspended(self) -> None:
        if self._suspended:
            text = "the device is being reconnected, which blocking queues do not take part in"
            raise self._subject.misuse("queue", text)

    def _refuse_if_gone(self, cause: BlkioError | None = None) -> None:
        if self._lost is not None:
            raise self._subject.lost("queue", self._lost.message) from self._lost
        if self._closed:
            raise self._subject.closed("queue") from cause

    @property
    def blocking(self) -> list[BlockingQueue]:
        """Those of threads without a loop."""
        return [queue for queue in self if isinstance(queue, BlockingQueue)]

    @property
    def in_flight(self) -> int:
        """Requests that are not finished, cancelled ones included."""
        return sum(queue.in_flight for queue in self if isinstance(queue, Queue))

    def bounce_regions(self) -> set[MemRegion]:
        """What the queues' bounce pools have mapped."""
        pools = [queue.bounce_pool for queue in self if isinstance(queue, Queue)]
        return {pool._region for pool in pools if pool._region is not None}

    @property
    def are_idle_here(self) -> bool:
        """Whether all belong to this thread, and have nothing in flight."""
        return all(queue._is_bound_here() and not queue.in_flight for queue in self)

    def dispose(self) -> None:
        """Let go of all; they are idle here."""
        for queue in self:
            queue._dispose()

    def is_bound(self, index: int, *, poll: bool = False) -> bool:
        return (poll, index) in self._queues

    def forget(self, queue: Queue | BlockingQueue) -> None:
        """The queue has been closed, in whatever thread."""
        with self._lock:
            if self._queues.get((queue.poll, queue.index)) is queue:
                self._ended += queue.statistics()
                del self._queues[queue.poll, queue.index]
        awaited = self._awaited.get(queue)
        if awaited is not None:
            with contextlib.suppress(RuntimeError):  # the loop that waited is closed
                awaited.get_loop().call_soon_threadsafe(_wake, awaited)

    def _keep(self, queue: Q) -> Q:
        self._queues[queue.poll, queue.index] = queue
        queue._apply_sight()  # once more: somebody may have wanted to know something else since it was made
        return queue

    # --- loss -----------------------------------------------------------------------------------------------

    def note_loss(self, error: BlkioError) -> None:
        """The device is lost: a thread whose call fails from now on knows why."""
        with self._lock:
            self._suspended = False
            self._lost = error

    def abandon(self, error: BlkioError) -> None:
        """The device is lost: give up what its queues have in flight."""
        self.note_loss(error)
        for queue in self:
            queue._abandon(error)

    # --- coming back ----------------------------------------------------------------------------------------

    def note_death(self) -> None:
        """The backend is gone, and another is to take its place: no thread binds a queue from now on."""
        with self._lock:
            self._suspended = True

    async def suspend(self) -> None:
        """Let every queue, on its own loop, keep what it has and issue nothing."""
        await self.until_none_is_binding()
        await self._on_each(Queue._suspend)

    async def recall(self) -> None:
        """The device is dead: what it had is to be issued again."""
        await self._on_each(Queue._recall)

    async def resume(self) -> None:
        """Another device is there."""
        with self._lock:
            self._suspended = False
        await self._on_each(Queue._resume)

    async def until_abandoned(self) -> None:
        """Wait until every queue, on its own loop, knows of the loss and touches libblkio no more."""
        await self.until_none_is_binding()
        await self._on_each(lambda _queue: None)  # each loop comes to it after abandon()

    def reopen(self) -> Coroutine[Any, Any, None]:
        """Another device is there, after a loss: queues can be bound from this moment on, and those that were
        go on once what is returned has been awaited. It may be lost again meanwhile."""
        with self._lock:
            self._lost = None
        return self._on_each(Queue._reopen)

    async def _on_each(self, act: Callable[[Queue], None]) -> None:
        for queue in self:
            if isinstance(queue, Queue):
                await self._on_loop_of(queue, act)

    async def _on_loop_of(self, queue: Queue, act: Callable[[Queue], None]) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def there() -> None:
            try:
                if self._lost is None:  # meanwhile
                    act(queue)
            finally:
                loop.call_soon_threadsafe(_wake, done)

        with contextlib.suppress(RuntimeError):  # that loop is closed
            queue.loop.call_soon_threadsafe(there)
        while not done.done():
            await asyncio.wait([done], timeout=_LOOK_AGAIN)
            if not done.done() and queue.loop is not loop and not queue.loop.is_running():
                queue._give_up(self._given_up("its event loop does not run any more"))
                return

    # --- the end --------------------------------------------------------------------------------------------

    async def close_others(self, own: Queue | None) -> None:
        """Close every queue but *own*, each where it belongs, and wait until it has been drained.

        A queue that nobody can drain any more, because its loop does not run or its thread has ended, is
        given up: the memory of what it has in flight is never released. All at once, since one of them may
        have given up what requests of another wait for.
        """
        others = [queue for queue in self if queue is not own]
        loop = asyncio.get_running_loop()
        for queue in others:
            self._awaited[queue] = loop.create_future()
        closing = [start_steadfast_task(loop, self._close_other(queue)) for queue in others]
        if closing:
            await asyncio.wait(closing)
        while closing:
            closing.pop(0).result()  # not from the list: an error would keep this frame, and the frame it

    async def _close_other(self, queue: Queue | BlockingQueue) -> None:
        if isinstance(queue, Queue):
            await self._close_queue(queue)
        else:
            await self._close_blocking(queue)
        del self._awaited[queue]

    async def _close_queue(self, queue: Queue) -> None:
        queue._close_soon()
        while self._is_bound_still(queue):
            if queue.loop is not asyncio.get_running_loop() and not queue.loop.is_running():
                queue._give_up(self._given_up("its event loop does not run any more"))
                return
            await self._wait_for(queue)

    async def _close_blocking(self, queue: BlockingQueue) -> None:
        queue._refuse()
        loop = asyncio.get_running_loop()
        patience = loop.time() + _PATIENCE
        while self._is_bound_still(queue):
            if queue._is_waiting:
                patience = loop.time() + _PATIENCE
            elif (not queue._has_thread or not queue.in_flight or loop.time() > patience) and queue._give_up(
                self._given_up("its thread does not wait for its requests any more")
            ):
                return
            await self._wait_for(queue)

    def _is_bound_still(self, queue: Queue | BlockingQueue) -> bool:
        return self._queues.get((queue.poll, queue.index)) is queue

    async def _wait_for(self, queue: Queue | BlockingQueue) -> None:
        await asyncio.wait([self._awaited[queue]], timeout=_LOOK_AGAIN)

    def _given_up(self, why: str) -> DeviceLostError:
        return self._subject.lost(None, f"the device was closed, and the queue with it: {why}")


def _wake(awaited: asyncio.Future[None]) -> None:
    if not awaited.done():
        awaited.set_result(None)
