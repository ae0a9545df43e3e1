"""A user of aioblk and a disk that live through a simulated history, action by action."""

import asyncio
import errno
import functools
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import aioblk

from .accounts import Accounts
from .asking import MOST_SECTORS, Asker
from .borrowing import Borrowers
from .devices import device_on
from .fate import SIZE, Fate
from .history import OF_QUEUES, RINGS, Action, History
from .holdings import Holdings
from .jobs import LONG, Jobs
from .library import Driver, Simulator
from .loop import BEGIN, SimulatedLoop
from .operations import Operations
from .oracle import SECTOR, Reading, Wrong
from .replaying import Replays

__all__ = ["World"]

MOST_PENDING = 64


@final
class World:
    """What there is at one moment of a history."""

    def __init__(
        self,
        history: History,
        simulator: Simulator,
        loop: SimulatedLoop,
        directory: Path,
        tell_also: Callable[[str], None] | None = None,
    ) -> None:
        self._history = history
        self._loop = loop
        self._directory = f"{directory}/"
        self.events: list[str] = []
        self._tell_also = tell_also
        self.fate = Fate(history, simulator, loop, directory, self.tell)
        self.oracle = self.fate.oracle
        self.operations = Operations(self.oracle, self, self.tell)
        self._jobs = Jobs(self, self.tell, self.operations.fail)
        self._borrowers = Borrowers(self.operations)
        self._holdings = Holdings(history, self, self._jobs, self._borrowers, self.tell)
        self._asker = Asker(history, self, self._holdings, self.operations)
        self._replays = Replays(simulator)
        self._users = (self, self._asker, self._borrowers, self._holdings, self._jobs, self.fate)
        self._device: aioblk.Device | None = None
        self._accounts: Accounts | None = None
        self.is_bound = True
        """Whether the device is attached to the loop, and nobody detaches or closes it."""
        self.view: aioblk.ByteView | None = None

    def tell(self, text: str) -> None:
        text = text.replace(self._directory, "")  # which has another name each time
        event = f"{self._loop.time() - BEGIN:.4f} {text}"
        self.events.append(event)
        if self._tell_also is not None:
            self._tell_also(event)

    # --- the whole ------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Raises Wrong, or whatever should not have been raised."""
        await self._open()
        self.fate.change_weather(self._history.weather)
        for action in self._history.actions:
            whose = next(user for user in self._users if hasattr(user, f"do_{action.kind}"))
            await getattr(whose, f"do_{action.kind}")(action.dice)
            await self._pause(action)
            self._require_right()
            self._look_at_replays()
        await self._finish()

    def _require_right(self) -> None:
        if self.operations.wrong is not None:
            raise self.operations.wrong

    async def _pause(self, action: Action) -> None:
        how = action.dice[-1]
        if how > 0.97:
            await asyncio.sleep((how - 0.97) * 10)
        elif how > 0.5:
            for _ in range(int((how - 0.5) * 8)):
                await asyncio.sleep(0)
        while len(self.operations.pending) > MOST_PENDING and not self._is_stuck():  # noqa: ASYNC110
            await asyncio.sleep(0.5)

    def _is_stuck(self) -> bool:
        """Whether the device answers nothing, and nobody will notice."""
        return self.fate.may_lose and (
            self._history.options["lost_after"] is None or not self.fate.is_serving
        )

    # --- what may be met ------------------------------------------------------------------------------------

    @property
    def may_be_lost(self) -> bool:
        """Whether anything has happened for which a device may be lost."""
        return self.fate.may_lose

    @property
    def is_lost(self) -> bool:
        return self.device.lost is not None

    @property
    def is_free(self) -> bool:
        return self.is_bound and not self.is_lost

    @property
    def bounces(self) -> bool:
        return self._history.driver not in (Driver.IO_URING, Driver.NVME_IO_URING)

    def may_refuse(self, error: aioblk.BlkioError, queue: aioblk.Queue | None) -> bool:
        if isinstance(error, aioblk.DeviceLostError):
            returning = any(name.startswith("reconnect") for name in self._jobs.names)
            return self.fate.may_lose and (
                self.is_lost or returning or self._jobs.were_left or queue is not None
            )
        if isinstance(error, aioblk.DeviceClosedError):
            return not self.is_bound or (queue is not None and queue in self._holdings.closing)
        return isinstance(error, aioblk.UsageError) and not self.is_bound

    def may_fail(self, error: aioblk.BlkioError) -> bool:
        weather = self._history.weather
        if isinstance(error, aioblk.DeviceLostError):
            return self.fate.may_lose
        no_bounce_memory = error.message is not None and error.message.startswith("there is no bounce memory")
        no_region = isinstance(error, aioblk.RegistrationError) or no_bounce_memory
        if no_region and "max_mem_regions" in self._history.properties:
            return True
        if isinstance(error, aioblk.UsageError) and (
            self._jobs.were_left or self._history.view or self._holdings.added
        ):
            return True  # what was left alone goes on by itself, and may be in the way; a view submits later
        if isinstance(error, aioblk.DeviceClosedError) and self._history.view:
            return True  # a view submits later
        if isinstance(error, aioblk.UsageError | aioblk.OptionError | aioblk.AlignmentError):
            return False
        return bool(
            weather.get("fail")
            or weather.get("map")
            or weather.get("open")
            or self._history.loop.get("no_thread")
            or (error.errno == errno.EBUSY and self._history.loop.get("slow_thread"))
            or self.fate.may_lose
        )

    def may_fail_itself(self, error: aioblk.BlkioError) -> bool:
        is_gone = error.errno == errno.ENODEV and not isinstance(error, aioblk.DeviceLostError)
        if is_gone and not self._history.weather.get("fail"):
            return False  # who waits for another backend does not hear of it
        return self.may_fail(error)

    def may_be_told(self, context: dict[str, Any]) -> bool:
        """Whether the loop's exception handler may be told of this."""
        error = context.get("exception")
        return (
            context["message"].endswith("failed to follow an arena")
            and isinstance(error, aioblk.BlkioError)
            and self.may_fail(error)
        )

    @property
    def device(self) -> aioblk.Device:
        assert self._device is not None
        return self._device

    # --- life of the device ---------------------------------------------------------------------------------

    async def _open(self) -> None:
        for attempt in range(20):
            self.fate.serve_again()
            options = {name: value for name, value in self._history.options.items() if name not in OF_QUEUES}
            device = device_on(self.fate.disk, **options)
            try:
                await device.open()
            except aioblk.BlkioError as error:
                self.tell(f"open: {error}")
                if not self.may_fail(error):
                    raise
                await asyncio.sleep(100)  # a slow thread may still be about to destroy the one before
                if attempt == 10:
                    self.fate.change_weather({})
            else:
                self.tell("the device is open")
                self._device, self.is_bound, self._holdings.added = device, True, 0
                self._watch(device)
                self._holdings.set_pace(device.queue())
                if self._history.view:
                    self.view = aioblk.ByteView(device)
                return
        raise Wrong("it can never be opened")

    async def do_detach(self, dice: tuple[float, ...]) -> None:
        if self.is_free and not self._jobs.names:
            self.is_bound = False
            self._jobs.start("detach", self._let_go)

    async def _let_go(self) -> None:
        for queue in list(self._holdings.queues):
            await self._holdings.end_queue(queue)
        await self.device.detach()

    async def do_attach(self, dice: tuple[float, ...]) -> None:
        if not self.is_bound:
            await self._bind_again()

    async def _bind_again(self) -> None:
        await self._jobs.until_done()
        if self.is_bound:
            return
        for again in (True, False):
            try:
                await self.device.attach()
            except aioblk.UsageError:
                if again:  # whoever waited for it may have been cancelled, or detaching has failed
                    await self._jobs.do_now("detach again", self._let_go)
            else:
                break
        with suppress(aioblk.DeviceLostError):
            self._holdings.set_pace(self.device.queue())
        self.is_bound = True

    async def do_close(self, dice: tuple[float, ...]) -> None:
        if not self.is_bound:
            return
        await self._jobs.until_done()
        self.is_bound = False
        if dice[0] < 0.5:
            await self._holdings.leave_all()
        await self._jobs.do_now("close", self._end_device)
        await self._holdings.leave_all()
        if not self.is_lost:
            self.operations.given_up.clear()  # closing has waited for all of them
        await self._open()
        self._leave_lost()

    async def _end_device(self) -> None:
        self._relieve()
        try:
            await self.device.aclose()
        except aioblk.BlkioError as error:
            if error.errno != errno.EAGAIN:  # no thread: it can be tried again
                raise
            self._loop.no_thread = 0
            await self.device.aclose()
        if self.view is not None:
            await self.view.aclose()

    def _relieve(self) -> None:
        """A device that will never answer, and that nobody watches, is given up."""
        if self.fate.may_lose and self._history.options["lost_after"] is None and not self.device.lost:
            self._give_up("it may never answer")

    def _give_up(self, why: str) -> None:
        self.fate.allow_giving_up()
        self.device.abandon(why)

    def relieve(self) -> bool:
        if not self.fate.may_stay_silent or self.is_lost:
            return False
        self._give_up("it does not answer")
        return True

    async def do_abandon(self, dice: tuple[float, ...]) -> None:
        if not self.is_bound:
            return
        if dice[2] < 0.5 and not self.is_lost:  # what it has then, and was cancelled, is its memory for good
            await self._asker.ask_at_once(dice)
            for operation in list(self.operations.pending)[::2]:
                self.operations.cancel(operation)
        self.tell("abandon")
        self._give_up("the user has given it up")

    async def do_reconnect(self, dice: tuple[float, ...]) -> None:
        if self.is_bound and self.device.lost and "reconnect" not in self._jobs.names:
            for queue in list(self._holdings.queues):
                if dice[0] < 0.3:
                    await self._holdings.end_queue(queue)
            self._jobs.start("reconnect", self._come_back)

    async def _come_back(self) -> None:
        if self.device.lost:
            had = 0 if self._history.driver is Driver.IO_URING else self.device.capacity  # files may be cut
            await self.device.reconnect()
            if self.device.capacity < had:
                raise Wrong(f"it had {had} bytes, and came back with {self.device.capacity}")
            self._leave_lost()

    def _leave_lost(self) -> None:
        # A file and a namespace are open to all, and the kernel goes on with what a ring has submitted.
        self.operations.leave_lost(goes_on=self._history.driver in RINGS)

    async def do_kill(self, dice: tuple[float, ...]) -> None:
        if self._history.driver is not Driver.VHOST_USER:
            return
        if dice[2] < 0.7:
            await self._asker.ask_at_once(dice)
        if self.view is None and not self.is_lost:
            pending = [
                asked
                for each in self.operations.pending
                for asked in each.asked
                if not (each.cancelled or each.by_deadline)
            ]
            self._replays.begin(self.device.reconnections, pending, self.operations.left)
        self.fate.kill(dice)

    def _look_at_replays(self) -> None:
        self._replays.look(
            self.device.reconnections, is_lost=self.is_lost, cancelled=self.operations.cancelled
        )

    # --- the rest -------------------------------------------------------------------------------------------

    async def do_refresh_capacity(self, dice: tuple[float, ...]) -> None:
        if self.is_free:
            self._jobs.start("refresh capacity", self._look_at_capacity)

    async def _look_at_capacity(self) -> None:
        size = await self.device.refresh_capacity()
        may_grow = self._history.weather.get("resize") or self._history.driver is Driver.IO_URING
        if size != SIZE and not may_grow:
            raise Wrong(f"the capacity is {SIZE}, and was told as {size}")

    async def do_truncate(self, dice: tuple[float, ...]) -> None:
        """Of a file: at least as long as what is used of it."""
        if self.is_free and self._history.driver is Driver.IO_URING:
            size = SIZE + int(dice[0] * 3) * 512
            self._jobs.start("truncate", functools.partial(self.device.truncate, size))

    async def do_pass_time(self, dice: tuple[float, ...]) -> None:
        await asyncio.sleep(dice[0] ** 4 * 100)

    async def do_collect(self, dice: tuple[float, ...]) -> None:
        gc.collect()

    def _watch(self, device: aioblk.Device) -> None:
        """In some histories, or for a part of them, somebody looks on."""
        self._accounts = None
        if self._history.seed % 4 == 0:
            self._accounts = Accounts()
            device.add_instrument(self._accounts)
        device.measuring = self._history.seed % 7 < 2

    # --- the end --------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Have all of it end, and look at what is left."""
        self.tell("the end: calm")
        self.fate.change_weather({})
        self._loop.no_thread = self._loop.slow_thread = 0
        self.fate.serve_again()
        await self._bind_again()
        await self._until_all_is_done()
        await self._come_back_surely()
        await self._verify()
        await self._go_slowly()
        last = self._history.actions[-1].dice[0] if self._history.actions else 0
        if last < 0.4:
            self.fate.fail_power((1.0,) * 6)
            self.fate.serve_again()
            if self.device.lost is None:
                self._give_up("the power has failed")
            await self._until_all_is_done()
            await self._come_back_surely()
            await self._verify()
        await self._borrowers.finish()
        self._look_at_the_accounts()
        await self._holdings.leave_all()
        await self._borrowers.close_arena()
        if self.view is not None:
            await self.view.aclose()
        self.operations.watch.look()
        if not (
            self.fate.may_lose or "no_thread" in self._history.loop
        ):  # or it is kept until the device ends
            self._holdings.require_memory_back()
        await self.device.aclose()
        await self._jobs.until_done()
        self._require_right()

    def _look_at_the_accounts(self) -> None:
        """Nothing is under way: each request has ended once, and what was lent is back."""
        gc.collect()  # views of the arena's memory keep it
        device = self.device
        counted = device.statistics()
        ended = counted.completed + counted.failed + counted.cancelled
        if counted.in_flight or counted.submitted != ended:
            raise Wrong(f"all requests are over, and the device counts otherwise: {counted}")
        if self._accounts is not None:
            self._accounts.close(counted)
        pool = device.bounce_pool.statistics()
        if pool.in_use or pool.waiting:
            raise Wrong(f"nobody uses bounce memory, and the pool has it otherwise: {pool}")
        if (
            self._holdings.arena is not None and not self.fate.may_lose
        ):  # what a lost device had is lent for good
            lent = self._holdings.arena.statistics()
            if lent.in_use:
                raise Wrong(f"nobody has memory of the arena, which has it otherwise: {lent}")

    async def _until_all_is_done(self) -> None:
        waiters: Any = [each.waiter for each in self.operations.pending]
        if waiters:
            await asyncio.wait(waiters, timeout=LONG / 10)
        if self.operations.pending:
            if not self.fate.may_stay_silent:
                raise Wrong(f"never ended: {', '.join(each.name for each in self.operations.pending)}")
            self._give_up("it does not answer")
            waiters = [each.waiter for each in self.operations.pending]
            await asyncio.wait(waiters, timeout=LONG / 10)
        await self._jobs.until_done()
        await asyncio.sleep(1)
        self._require_right()
        if self.operations.pending:
            raise Wrong(f"never ended: {', '.join(each.name for each in self.operations.pending)}")

    async def _come_back_surely(self) -> None:
        self.fate.serve_again()
        for attempt in range(10):
            if self.device.lost:
                if attempt > 5:
                    await asyncio.sleep(100)  # a slow thread may still be about to give the device back
                self.fate.disk.resize(2 * SIZE)  # what comes back may not have less than it had
                await self._jobs.do_now("reconnect at the end", self._come_back)
        if self.device.lost and self._history.weather.get("props"):
            await self._start_anew()  # it comes back as another one
        if self.device.lost:
            raise Wrong("the device does not come back")

    async def _start_anew(self) -> None:
        self.is_bound = False
        await self._holdings.leave_all()
        await self._jobs.do_now("close", self._end_device)
        await self._open()
        self._leave_lost()

    async def _read_surely(self, first: int, count: int) -> tuple[Reading, bytes]:
        """From a device that may have died without having noticed, or that answers no more."""
        for _ in range(3):
            reading = self.oracle.begin_read(first, count)
            try:
                async with asyncio.timeout(LONG / 10):
                    source = self.view or self.device
                    return reading, await source.read(first * SECTOR, count * SECTOR)
            except (aioblk.BlkioError, TimeoutError):
                if not self.fate.may_lose:
                    raise
                if not self.device.lost:
                    self._give_up("it does not answer")
                await self._come_back_surely()
        raise Wrong("the device comes back, and is lost again")

    async def _go_slowly(self) -> None:
        """A device that does a part of what it has now and then is slow, and not silent."""
        limit = self._history.options["lost_after"]
        if limit is None or self.fate.may_lose:
            return  # another backend may be about to come
        self._loop.busy = 0
        count = self._history.sectors
        reading = self.oracle.begin_read(0, count)
        with self.fate.holding():
            data = asyncio.ensure_future(self.device.read(0, count * SECTOR))
            while not data.done():
                await asyncio.wait([data], timeout=0.9 * limit)
                self.fate.do_one()
        self.oracle.end_read(reading, await data)

    async def _verify(self) -> None:
        """What the disk holds is what it may hold."""
        for first in range(0, self._history.sectors, MOST_SECTORS):
            count = min(MOST_SECTORS, self._history.sectors - first)
            reading, data = await self._read_surely(first, count)
            self.oracle.end_read(reading, data)
