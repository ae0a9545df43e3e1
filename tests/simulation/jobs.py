"""What the user of a simulated history does beside its requests: in tasks, which may be cancelled."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, final

import aioblk

from .oracle import Wrong

__all__ = ["LONG", "Jobs", "Judge"]

LONG = 10_000.0  # seconds after which nothing is under way any more

Work = Callable[[], Coroutine[Any, Any, None]]


class Judge(Protocol):
    """Who knows what a job may meet, and what helps one that does not end."""

    def may_fail(self, error: aioblk.BlkioError) -> bool: ...
    def may_refuse(self, error: aioblk.BlkioError, queue: aioblk.Queue | None) -> bool: ...
    def relieve(self) -> bool:
        """Give up a device that may answer nothing any more. False: there is no reason to."""
        ...


@final
class Jobs:
    """Those of one history."""

    def __init__(
        self, judge: Judge, tell: Callable[[str], None], fail: Callable[[BaseException], None]
    ) -> None:
        self._judge = judge
        self._tell = tell
        self._fail = fail
        self._names: dict[asyncio.Task[None], str] = {}
        self._begun: set[asyncio.Task[Any] | None] = set()
        self._cancelled: set[asyncio.Task[None]] = set()
        self.were_left = False
        """Whether anybody was cancelled who waited for one, which goes on by itself."""

    @property
    def names(self) -> list[str]:
        """Of those under way."""
        return list(self._names.values())

    def start(self, name: str, work: Work) -> None:
        task = asyncio.get_running_loop().create_task(self._do(name, work))
        self._names[task] = name
        task.add_done_callback(self._end)

    async def _do(self, name: str, work: Work) -> None:
        self._tell(f"{name} ...")
        self._begun.add(asyncio.current_task())
        try:
            await work()
        except aioblk.BlkioError as error:
            self._tell(f"{name}: {type(error).__name__}: {error}")
            if not self._judge.may_fail(error) and not self._judge.may_refuse(error, None):
                raise Wrong(f"{name} failed: {error!r}") from error
        else:
            self._tell(f"{name}: done")

    def _end(self, task: asyncio.Task[None]) -> None:
        name = self._names.pop(task)
        self._begun.discard(task)
        if task.cancelled():
            self._tell(f"{name}: cancelled")
            if task not in self._cancelled:
                self._fail(Wrong(f"{name} was cancelled by nobody"))
            self._cancelled.discard(task)  # in a circle that the collector of CPython 3.11 does not see
        elif (error := task.exception()) is not None:
            self._fail(error)

    async def do_cancel_job(self, dice: tuple[float, ...]) -> None:
        jobs = [task for task, name in self._names.items() if name != "close" and task in self._begun]
        if jobs:
            task = jobs[int(dice[0] * len(jobs))]
            self._tell(f"{self._names[task]}: cancel")
            self._cancelled.add(task)
            self.were_left = True
            task.cancel()

    async def until_done(self) -> None:
        if self._names:
            await asyncio.wait(list(self._names), timeout=LONG / 10)
        if self._names and self._judge.relieve():
            await asyncio.wait(list(self._names), timeout=LONG)
        if self._names:
            raise Wrong(f"never ended: {', '.join(self.names)}")

    async def do_now(self, name: str, work: Work) -> None:
        """As a job, and wait for it and all others."""
        self.start(name, work)
        await self.until_done()
