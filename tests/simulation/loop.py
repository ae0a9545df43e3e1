"""An event loop whose every choice comes from a seed: the order of what is ready, time, worker threads.

What asyncio leaves open is chosen here, and nothing else: in which turn a descriptor is found to be ready,
which of several tasks goes first, when a callback from another thread arrives, how long a thread takes. What
it promises is kept: callbacks that are no tasks run in the order in which call_soon() was given them, and
those from other threads in theirs.

Time is virtual. It passes where nobody has anything to do, at once; where nobody ever will, Stuck is raised.
"""

import asyncio
import contextlib
import errno
import selectors
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextvars import Context
from dataclasses import dataclass
from random import Random
from typing import Any, cast, final

import aioblk
from aioblk._sync import blocking

__all__ = ["BEGIN", "SimulatedLoop", "Stuck", "simulated_threads"]

BEGIN = 1000.0  # seconds, when time begins
MOST_TURNS = 400_000  # no history takes as many
MOST_SECONDS = 1e6
RESTLESS = 300  # turns


class Stuck(BaseException):
    """Nothing can happen any more, or it goes round in circles. No Exception: nobody may catch it."""


@final
@dataclass(frozen=True, slots=True)
class _Step:
    """What a worker thread is to do, from a moment on."""

    when: float
    function: Callable[[], object]


@final
class SimulatedLoop(asyncio.SelectorEventLoop):
    """One thread in which loop, worker threads and time have their turns as the seed says."""

    def __init__(self, seed: int, *, no_thread: int = 0, slow_thread: int = 0, busy: int = 0) -> None:
        """Per mille: a thread is not to be had; it takes seconds; the program keeps the loop for a second."""
        self._random = Random(seed)
        self._now = BEGIN
        self.no_thread = no_thread
        self.slow_thread = slow_thread
        self.busy = busy
        self.turns = 0
        self._restless = 0  # turns since the loop slept
        self.on_time: Callable[[float], object] | None = None
        """Told of each moment, before anything happens at it."""
        self._steps: list[_Step] = []
        self._arriving: deque[asyncio.Handle] = deque()
        super().__init__(_Selector(self))
        self._callbacks: deque[asyncio.Handle] = cast(Any, self)._ready

    # --- time -----------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def _pass(self, until: float) -> None:
        self._now = max(self._now, until)
        if self.on_time is not None:
            self.on_time(self._now)

    # --- worker threads -------------------------------------------------------------------------------------

    def start_thread(self, function: Callable[[], object]) -> None:
        """In place of a thread that calls *function*: it is called at some time, between two turns."""
        if self._happens(self.no_thread):
            raise aioblk.BlkioError("it needs a thread, and the seed gives none", errno=errno.EAGAIN)
        seconds = 0.0
        if self._happens(self.slow_thread):
            seconds = self._random.choice((0.001, 0.1, 1.5, 20.0, 80.0)) * self._random.random()
        self._steps.append(_Step(self._now + seconds, function))

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        cast(Any, self)._check_closed()
        handle = asyncio.Handle(callback, args, self, context)
        self._arriving.append(handle)
        return handle

    # --- a turn ---------------------------------------------------------------------------------------------

    def take_turn(self, events: list[Any], timeout: float | None) -> list[Any]:
        """What is found ready, after *timeout* seconds at most; None: however long it takes."""
        self.turns += 1
        if self.turns > MOST_TURNS:
            raise Stuck(f"{MOST_TURNS} turns, and it is not over")
        at_once = timeout is not None and timeout <= 0
        self._pass(self._now + self._a_moment())
        found = self._some(events) if events else events
        busy = at_once or bool(found)
        if self._steps:
            busy |= self._run_a_thread(surely=not (busy or self._arriving))
        if self._arriving:
            busy |= self._let_arrive(surely=not busy)
        if not busy and events:
            found = events
        elif not busy:
            self._sleep(timeout)
        if len(self._callbacks) > 1 and self._random.random() < 0.5:
            self._mix()
        return found

    def _a_moment(self) -> float:
        """What a turn takes; longer where nobody has slept for long, as with queues that are polled."""
        self._restless += 1
        if self._happens(self.busy):
            return 1.0
        return self._random.random() * (1e-4 if self._restless < RESTLESS else 0.1)

    def _happens(self, permille: int) -> bool:
        return permille > 0 and self._random.random() * 1000 < permille

    def _some(self, events: list[Any]) -> list[Any]:
        """The others are still ready in the next turn."""
        if len(events) > 1:
            self._random.shuffle(events)
        if self._random.random() < 0.2:
            return events[: self._random.randrange(len(events))]
        return events

    def _run_a_thread(self, *, surely: bool) -> bool:
        due = [step for step in self._steps if step.when <= self._now]
        if not due or not (surely or self._random.random() < 0.5):
            return False
        step = self._random.choice(due)
        self._steps.remove(step)
        self._run(step)
        return True

    def _run(self, step: _Step) -> None:
        running = asyncio._get_running_loop()
        asyncio._set_running_loop(None)  # a thread has none
        try:
            step.function()
        finally:
            asyncio._set_running_loop(running)

    def _let_arrive(self, *, surely: bool) -> bool:
        if not (surely or self._random.random() < 0.7):
            return False
        for _ in range(self._random.randint(1, len(self._arriving))):
            self._callbacks.append(self._arriving.popleft())
        return True

    def _sleep(self, timeout: float | None) -> None:
        """Until the next moment at which anything can happen."""
        self._restless = 0
        moments = [step.when for step in self._steps]
        if timeout is not None:
            moments.append(self._now + timeout)
        if not moments:
            raise Stuck("nothing can happen any more, and somebody waits")
        if min(moments) > BEGIN + MOST_SECONDS:
            raise Stuck(f"{MOST_SECONDS:g} seconds have passed, and it is not over")
        self._pass(min(moments))

    def _mix(self) -> None:
        """Let tasks go in any order; what is no task keeps its own."""
        callbacks = self._callbacks
        tasks = [handle for handle in callbacks if _is_of_task(handle)]
        others = [handle for handle in callbacks if not _is_of_task(handle)]
        self._random.shuffle(tasks)
        callbacks.clear()
        while tasks or others:
            place = self._random.randrange(len(tasks) + len(others))
            callbacks.append(tasks.pop() if place < len(tasks) else others.pop(0))

    def end_threads(self) -> None:
        """Run those that are left: their time does not matter to anybody any more."""
        while self._steps:
            self._run(self._steps.pop(0))


def _is_of_task(handle: asyncio.Handle) -> bool:
    callback = cast(Any, handle)._callback
    return isinstance(getattr(callback, "__self__", None), asyncio.Task)


class _Selector(selectors.BaseSelector):
    """The system's, which never waits: the loop decides what is found, and when."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self._system = selectors.DefaultSelector()
        self._since: dict[
            int, int
        ] = {}  # descriptors, by when they were registered: numbers differ from run to run
        self._registrations = 0

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = self._system.register(fileobj, events, data)
        self._registrations += 1
        self._since[key.fd] = self._registrations
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._system.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._system.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = self._system.select(0)
        if len(events) > 1:
            events.sort(key=lambda event: self._since[event[0].fd])
        return self._loop.take_turn(events, timeout)

    def close(self) -> None:
        self._system.close()

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._system.get_key(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._system.get_map()


@contextlib.contextmanager
def simulated_threads(loop: SimulatedLoop) -> Iterator[None]:
    """aioblk's worker threads are the loop's steps until the block is left."""
    starting = blocking._start_thread  # pyright: ignore[reportPrivateUsage]
    blocking._start_thread = loop.start_thread  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        blocking._start_thread = starting  # pyright: ignore[reportPrivateUsage]
