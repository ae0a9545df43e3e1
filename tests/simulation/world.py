"""A user of aioblk and a disk that live through a simulated history, action by action."""

import asyncio
import errno
import functools
import gc
import mmap
import os
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import aioblk

from .asking import MOST_SECTORS, SLOT, Asker
from .borrowing import Borrowers
from .devices import device_on, new_disk
from .history import Action, History
from .library import Death, Driver, Simulator
from .loop import BEGIN, SimulatedLoop
from .operations import Operations
from .oracle import SECTOR, Oracle, Reading, Wrong
from .replaying import Replay
from .slots import Slot

__all__ = ["World"]

SIZE = 256 << 10  # of the disk, in bytes
REGION = 32 << 10
MOST_PENDING = 64
MOST_LOOKS = 8  # actions after which a replay is over
LONG = 10_000.0  # seconds after which nothing is under way any more
CALM = dict.fromkeys(
    (
        "late",
        "batch",
        "reorder",
        "fail",
        "transient",
        "broken",
        "spurious",
        "full",
        "map",
        "open",
        "die",
        "haunt",
        "zeroless",
        "resize",
        "props",
    ),
    0,
)


Work = Callable[[], Coroutine[Any, Any, None]]


@final
class World:
    """What there is at one moment of a history."""

    def __init__(self, history: History, simulator: Simulator, loop: SimulatedLoop, directory: Path) -> None:
        self._history = history
        self._simulator = simulator
        self._loop = loop
        self._directory = f"{directory}/"
        self.events: list[str] = []
        self.disk = new_disk(simulator, history.driver, directory, SIZE)
        self.disk.override(**history.properties)
        self.oracle = Oracle(history.sectors, repeats=bool(history.options.get("reconnect_for")))
        self.operations = Operations(self.oracle, self, self.tell)
        self._asker = Asker(history, self, self.operations)
        self._borrowers = Borrowers(self.operations)
        kinds = {action.kind for action in history.actions}
        self._may_stay_silent = history.options["lost_after"] is None and bool(
            kinds & {"silence", "break_down"}
            or ("power_failure" in kinds and history.driver is not Driver.VHOST_USER)
            or {"die", "broken"} & set(history.weather)
        )
        """Whether the device may answer nothing any more, and nobody was asked to notice."""
        self._lost_for_a_reason = "slow_thread" in history.loop
        if self._lost_for_a_reason:  # a call that takes too long has a living device given up
            simulator.configure(abandons=1)
        self._survived = 0  # deaths that nobody need notice
        self._deaths = simulator.counts["device dies"]
        self._device: aioblk.Device | None = None
        self._replay: tuple[int, Replay] | None = None
        """Of the last death, and how many reconnections there are when another backend has come."""
        self._looks = 0
        self._bound = True
        """Whether the device is attached to the loop, and nobody detaches or closes it."""
        self._calm = True
        self._serving = True
        """Whether a vhost-user backend runs."""
        self.queues: list[aioblk.Queue] = []
        self._closing: set[aioblk.Queue] = set()
        self._added = 0  # queues, to the device as it was opened
        self._regions: list[tuple[aioblk.MemoryRegion, list[Slot]]] = []
        self._former: list[Slot] = []
        """Of a region that has been left: what was made of it before lasts."""
        self.arena: aioblk.Arena | None = None
        self.view: aioblk.ByteView | None = None
        self._jobs: dict[asyncio.Task[None], str] = {}
        self._cancelled: set[asyncio.Task[None]] = set()
        self._begun: set[asyncio.Task[Any] | None] = set()
        self._has_left_jobs = False
        """Whether anybody was cancelled who waited for a job, which goes on by itself."""

    def tell(self, text: str) -> None:
        text = text.replace(self._directory, "")  # which has another name each time
        self.events.append(f"{self._loop.time() - BEGIN:.4f} {text}")

    # --- the whole ------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Raises Wrong, or whatever should not have been raised."""
        await self._open()
        self._change_weather(self._history.weather)
        for action in self._history.actions:
            users = (self, self._asker, self._borrowers)
            whose = next(user for user in users if hasattr(user, f"do_{action.kind}"))
            await getattr(whose, f"do_{action.kind}")(action.dice)
            await self._pause(action)
            self._require_right()
            self._look_at_replay()
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
        return self.may_be_lost and (self._history.options["lost_after"] is None or not self._serving)

    def _change_weather(self, weather: dict[str, int] | Any) -> None:
        self._calm = not weather
        self._simulator.configure(**CALM, floor=SIZE)
        if weather:
            self._simulator.configure(**weather)

    # --- what may be met ------------------------------------------------------------------------------------

    @property
    def may_be_lost(self) -> bool:
        """Whether anything has happened for which a device may be lost."""
        if not self._lost_for_a_reason:
            self._lost_for_a_reason = self._simulator.counts["device dies"] > self._deaths + self._survived
        return self._lost_for_a_reason

    @property
    def is_lost(self) -> bool:
        return self.device.lost is not None

    @property
    def bounces(self) -> bool:
        return self._history.driver not in (Driver.IO_URING, Driver.NVME_IO_URING)

    def may_refuse(self, error: aioblk.BlkioError, queue: aioblk.Queue | None) -> bool:
        if isinstance(error, aioblk.DeviceLostError):
            returning = any(name.startswith("reconnect") for name in self._jobs.values())
            return self.may_be_lost and (
                self.is_lost or returning or self._has_left_jobs or queue is not None
            )
        if isinstance(error, aioblk.DeviceClosedError):
            return not self._bound or (queue is not None and queue in self._closing)
        return isinstance(error, aioblk.UsageError) and not self._bound

    def may_fail(self, error: aioblk.BlkioError) -> bool:
        weather = self._history.weather
        if isinstance(error, aioblk.DeviceLostError):
            return self.may_be_lost
        if isinstance(error, aioblk.RegistrationError) and "max_mem_regions" in self._history.properties:
            return True
        if isinstance(error, aioblk.UsageError) and (
            self._has_left_jobs or self._history.view or self._added
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
            or self.may_be_lost
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

    # --- background jobs ------------------------------------------------------------------------------------

    def _start(self, name: str, work: Work) -> None:
        task = self._loop.create_task(self._do(name, work))
        self._jobs[task] = name
        task.add_done_callback(self._end_job)

    async def _do(self, name: str, work: Work) -> None:
        self.tell(f"{name} ...")
        self._begun.add(asyncio.current_task())
        try:
            await work()
        except aioblk.BlkioError as error:
            self.tell(f"{name}: {type(error).__name__}: {error}")
            if not self.may_fail(error) and not self.may_refuse(error, None):
                raise Wrong(f"{name} failed: {error!r}") from error
        else:
            self.tell(f"{name}: done")

    def _end_job(self, task: asyncio.Task[None]) -> None:
        name = self._jobs.pop(task)
        self._begun.discard(task)
        if task.cancelled():
            self.tell(f"{name}: cancelled")
            if task not in self._cancelled:
                self.operations.wrong = self.operations.wrong or Wrong(f"{name} was cancelled by nobody")
            self._cancelled.discard(task)  # in a circle that the collector of CPython 3.11 does not see
        elif task.exception() is not None:
            self.operations.wrong = self.operations.wrong or task.exception()

    async def do_cancel_job(self, dice: tuple[float, ...]) -> None:
        jobs = [task for task, name in self._jobs.items() if name != "close" and task in self._begun]
        if jobs:
            task = jobs[int(dice[0] * len(jobs))]
            self.tell(f"{self._jobs[task]}: cancel")
            self._cancelled.add(task)
            self._has_left_jobs = True
            task.cancel()

    async def _until_jobs_are_done(self) -> None:
        if self._jobs:
            await asyncio.wait(list(self._jobs), timeout=LONG / 10)
        if self._jobs and self._may_stay_silent and not self.device.lost:
            self._give_up("it does not answer")
            await asyncio.wait(list(self._jobs), timeout=LONG)
        if self._jobs:
            raise Wrong(f"never ended: {', '.join(self._jobs.values())}")

    async def _inline(self, name: str, work: Work) -> None:
        """As a job, and wait for it."""
        self._start(name, work)
        await self._until_jobs_are_done()

    # --- memory ---------------------------------------------------------------------------------------------

    def usable_slots(self) -> list[Slot]:
        registered = [slot for _, slots in self._regions for slot in slots]
        return [slot for slot in (*registered, *self._former) if slot.usable]

    async def do_enter_region(self, dice: tuple[float, ...]) -> None:
        entering = list(self._jobs.values()).count("enter region")
        if not self._bound or self.device.lost or len(self._regions) + entering >= 3:
            return
        self._start("enter region", functools.partial(self._enter, dice[0]))

    def _new_region(self, dice: float) -> aioblk.MemoryRegion:
        """Memory of the device's, or of the user's, which some devices cannot reach unless it is a file."""
        if dice < 0.7:
            return self.device.allocate(REGION)
        if dice < 0.8:
            return self.device.register(bytearray(REGION))
        with tempfile.TemporaryFile(dir="/dev/shm") as file:
            os.ftruncate(file.fileno(), REGION)
            return self.device.register(mmap.mmap(file.fileno(), REGION))  # its file is found

    async def _enter(self, dice: float) -> None:
        region = self._new_region(dice)
        await region.__aenter__()
        self._regions.append((region, [Slot(region[at : at + SLOT]) for at in range(0, REGION, SLOT)]))

    async def do_leave_region(self, dice: tuple[float, ...]) -> None:
        if self._regions and self._bound:
            region, slots = self._regions.pop(int(dice[0] * len(self._regions)))
            if dice[1] < 0.5:
                self._former = [Slot(memoryview(slot.view)) for slot in slots if slot.usable]
            self._start("leave region", region.aclose)

    async def _use_arena(self, arena: aioblk.Arena, dice: tuple[float, ...]) -> None:
        choice = dice[0]
        if not arena.attachments:
            await arena.attach(self.device)
        elif choice < 0.3:
            await arena.detach(self.device)
        elif choice < 0.7 and len(arena.blocks) < 3:
            await arena.add_block(REGION)
        elif arena.blocks:
            with suppress(aioblk.UsageError):  # buffers of it are in use
                await arena.remove_block(arena.blocks[0])

    async def _begin_arena(self) -> None:
        arena = aioblk.Arena(REGION, block_size=REGION, alignment=512)
        await arena.__aenter__()
        if self.arena is None:
            self.arena = self._borrowers.arena = arena
        else:
            await arena.aclose()

    async def do_arena(self, dice: tuple[float, ...]) -> None:
        if self.arena is None:
            await self._begin_arena()
        elif self._bound and not self.device.lost and "arena" not in self._jobs.values():
            self._start("arena", functools.partial(self._use_arena, self.arena, dice))

    # --- queues ---------------------------------------------------------------------------------------------

    async def do_bind_queue(self, dice: tuple[float, ...]) -> None:
        free = self._free_queues()
        if not free or not self._bound or self.device.lost:
            return
        poll, index = free[int(dice[0] * len(free))]
        try:
            self.queues.append(self.device.poll_queue(index) if poll else self.device.queue(index))
        except aioblk.BlkioError as error:
            self.tell(f"bind queue: {error}")
            may_be_gone = isinstance(error, aioblk.UsageError) and (self._has_left_jobs or not self.bounces)
            if not self.device.reconnecting and not self.may_fail(error) and not may_be_gone:
                raise
        else:
            queue = self.queues[-1]
            queue.spin = self._history.options.get("spin", 0)
            self.tell(f"{queue!r} is bound")

    def _free_queues(self) -> list[tuple[bool, int]]:
        """Whether it polls, and its index. The default queue is nobody's; what was added may be gone."""
        options = self._history.options
        there = [(False, index) for index in range(1, options["num_queues"] + self._added)]
        there += [(True, index) for index in range(options.get("num_poll_queues", 0))]
        taken = {(queue.poll, queue.index) for queue in (*self.queues, *self._closing)}
        return [each for each in there if each not in taken]

    async def do_add_queue(self, dice: tuple[float, ...]) -> None:
        if self._bound and not self.bounces and not self.device.lost and self._added < 2:
            self._added += 1
            self._start("add queue", self._add_queue)

    async def _add_queue(self) -> None:
        self.tell(f"it is queue {await self.device.add_queue()}")

    async def do_remove_queue(self, dice: tuple[float, ...]) -> None:
        free = [index for poll, index in self._free_queues() if not poll]
        if self._bound and not self.bounces and not self.device.lost and free:
            index = free[int(dice[0] * len(free))]
            self._start("remove queue", functools.partial(self._remove_queue, index))

    async def _remove_queue(self, index: int) -> None:
        with suppress(aioblk.UsageError):  # it is gone, or bound meanwhile
            await self.device.remove_queue(index)

    async def do_close_queue(self, dice: tuple[float, ...]) -> None:
        if self.queues:
            queue = self.queues[int(dice[0] * len(self.queues))]
            self._start("close queue", functools.partial(self._end_queue, queue))

    async def _end_queue(self, queue: aioblk.Queue) -> None:
        if queue not in self.queues:
            return  # somebody closes it, or has closed it, already
        self._closing.add(queue)
        self.queues.remove(queue)
        try:
            await queue.aclose()
        finally:
            self._closing.discard(queue)

    # --- life of the device ---------------------------------------------------------------------------------

    async def _open(self) -> None:
        for attempt in range(20):
            self._serve_again()
            options = {name: value for name, value in self._history.options.items() if name != "spin"}
            device = device_on(self.disk, **options)
            try:
                await device.open()
            except aioblk.BlkioError as error:
                self.tell(f"open: {error}")
                if not self.may_fail(error):
                    raise
                await asyncio.sleep(100)  # a slow thread may still be about to destroy the one before
                if attempt == 10:
                    self._change_weather({})
            else:
                self.tell("the device is open")
                self._device, self._bound, self._added = device, True, 0
                device.queue().spin = self._history.options.get("spin", 0)
                if self._history.view:
                    self.view = aioblk.ByteView(device)
                return
        raise Wrong("it can never be opened")

    async def do_detach(self, dice: tuple[float, ...]) -> None:
        if self._bound and not self.device.lost and not self._jobs:
            self._bound = False
            self._start("detach", self._let_go)

    async def _let_go(self) -> None:
        for queue in list(self.queues):
            await self._end_queue(queue)
        await self.device.detach()

    async def do_attach(self, dice: tuple[float, ...]) -> None:
        if not self._bound:
            await self._bind_again()

    async def _bind_again(self) -> None:
        await self._until_jobs_are_done()
        if self._bound:
            return
        for again in (True, False):
            try:
                await self.device.attach()
            except aioblk.UsageError:
                if again:  # whoever waited for it may have been cancelled, or detaching has failed
                    await self._inline("detach again", self._let_go)
            else:
                break
        self._bound = True

    async def do_close(self, dice: tuple[float, ...]) -> None:
        if not self._bound:
            return
        await self._until_jobs_are_done()
        self._bound = False
        if dice[0] < 0.5:
            await self._leave_all()
        await self._inline("close", self._end_device)
        await self._leave_all()
        await self._open()

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

    async def _leave_all(self) -> None:
        for queue in list(self.queues):
            await self._inline("close queue", functools.partial(self._end_queue, queue))
        while self._regions:
            region, _ = self._regions.pop()
            await self._inline("leave region", region.aclose)

    def _relieve(self) -> None:
        """A device that will never answer, and that nobody watches, is given up."""
        if self.may_be_lost and self._history.options["lost_after"] is None and not self.device.lost:
            self._give_up("it may never answer")

    def _give_up(self, why: str) -> None:
        self._lost_for_a_reason = True
        self._simulator.configure(abandons=1)
        self.device.abandon(why)

    async def do_abandon(self, dice: tuple[float, ...]) -> None:
        if self._bound:
            self.tell("abandon")
            self._give_up("the user has given it up")

    async def do_reconnect(self, dice: tuple[float, ...]) -> None:
        if self._bound and self.device.lost and "reconnect" not in self._jobs.values():
            for queue in list(self.queues):
                if dice[0] < 0.3:
                    await self._end_queue(queue)
            self._start("reconnect", self._come_back)

    async def _come_back(self) -> None:
        if self.device.lost:
            await self.device.reconnect()
            self.operations.end_lost()

    # --- the disk -------------------------------------------------------------------------------------------

    @property
    def _comes_back_surely(self) -> bool:
        """Whether the end of a backend's process is no reason for losing the device, if another one comes."""
        history = self._history
        return (history.options.get("reconnect_for") or 0) > 10 and not (history.loop or history.weather)

    def _die(self, death: Death) -> None:
        self.tell(f"the disk: {death.name}")
        self.disk.die(death, errno.EIO)

    async def do_kill(self, dice: tuple[float, ...]) -> None:
        if self._history.driver is not Driver.VHOST_USER:
            return
        deaths = self._simulator.counts["device dies"]
        if dice[2] < 0.7:
            await self._asker.ask_at_once(dice)
        self._begin_replay()
        self._die(Death.KILLED)
        self._serving = False
        if dice[0] < 0.7:
            self._loop.call_later(dice[1] * 4, self._serve_again)
            if self._comes_back_surely:
                self._survived += self._simulator.counts["device dies"] - deaths

    def _begin_replay(self) -> None:
        """The backend is about to die; what it has is to be made again at the next one."""
        if self._replay is None and self.view is None and not self.device.lost:
            pending = [
                asked
                for each in self.operations.pending
                for asked in each.asked
                if not (each.cancelled or each.by_deadline)
            ]
            self._replay = (
                self.device.reconnections + 1,
                Replay(self._simulator, pending, self.operations.left),
            )
            self._looks = 0

    def _look_at_replay(self) -> None:
        if self._replay is None:
            return
        turn, replay = self._replay
        self._looks += self.device.reconnections == turn
        if self.device.lost or self.device.reconnections > turn or self._looks == MOST_LOOKS:
            self._replay = None
        elif self._looks in (2, MOST_LOOKS - 1):
            replay.look(self.operations.cancelled)

    async def do_hang_up(self, dice: tuple[float, ...]) -> None:
        if self._history.driver is Driver.VHOST_USER:
            self._die(Death.HUNG_UP)

    async def do_silence(self, dice: tuple[float, ...]) -> None:
        self._die(Death.SILENT)

    async def do_break_down(self, dice: tuple[float, ...]) -> None:
        self._die(Death.BROKEN)

    async def do_serve(self, dice: tuple[float, ...]) -> None:
        self._serve_again()

    def _serve_again(self) -> None:
        """Another backend, where there may be none, or one that serves somebody who is gone."""
        if self._history.driver is Driver.VHOST_USER and (not self._serving or self.may_be_lost):
            self.tell("another backend listens")
            self.disk.restart()
        self._serving = True

    async def do_power_failure(self, dice: tuple[float, ...]) -> None:
        self.tell("the power fails")
        self.disk.power_failure()
        self.oracle.power_failure()
        if self._history.driver is not Driver.VHOST_USER:
            return
        self._serving = False
        if dice[0] < 0.7:
            self._loop.call_later(dice[1] * 4, self._serve_again)

    # --- the rest -------------------------------------------------------------------------------------------

    async def do_refresh_capacity(self, dice: tuple[float, ...]) -> None:
        if self._bound and not self.device.lost:
            self._start("refresh capacity", self._look_at_capacity)

    async def _look_at_capacity(self) -> None:
        size = await self.device.refresh_capacity()
        may_grow = self._history.weather.get("resize") or self._history.driver is Driver.IO_URING
        if size != SIZE and not may_grow:
            raise Wrong(f"the capacity is {SIZE}, and was told as {size}")

    async def do_truncate(self, dice: tuple[float, ...]) -> None:
        """Of a file: at least as long as what is used of it."""
        if self._bound and not self.device.lost and self._history.driver is Driver.IO_URING:
            size = SIZE + int(dice[0] * 3) * 512
            self._start("truncate", functools.partial(self.device.truncate, size))

    async def do_pass_time(self, dice: tuple[float, ...]) -> None:
        await asyncio.sleep(dice[0] ** 4 * 100)

    async def do_collect(self, dice: tuple[float, ...]) -> None:
        gc.collect()

    # --- the end --------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Have all of it end, and look at what is left."""
        self.tell("the end: calm")
        self._change_weather({})
        self._loop.no_thread = self._loop.slow_thread = 0
        self._serve_again()
        await self._bind_again()
        await self._until_all_is_done()
        await self._come_back_surely()
        await self._verify()
        last = self._history.actions[-1].dice[0] if self._history.actions else 0
        if last < 0.4:
            await self.do_power_failure((1.0,) * 6)
            self._serve_again()
            if self.device.lost is None:
                self._give_up("the power has failed")
            await self._until_all_is_done()
            await self._come_back_surely()
            await self._verify()
        await self._borrowers.finish()
        self._look_at_the_accounts()
        await self._leave_all()
        if self.arena is not None:
            await self.arena.aclose()
        if self.view is not None:
            await self.view.aclose()
        await self.device.aclose()
        await self._until_jobs_are_done()
        self.operations.watch.look()
        self._require_right()

    def _look_at_the_accounts(self) -> None:
        """Nothing is under way: each request has ended once, and what was lent is back."""
        gc.collect()  # views of the arena's memory keep it
        device = self.device
        counted = device.statistics()
        ended = counted.completed + counted.failed + counted.cancelled
        if counted.in_flight or counted.submitted != ended:
            raise Wrong(f"all requests are over, and the device counts otherwise: {counted}")
        pool = device.bounce_pool.statistics()
        if pool.in_use or pool.waiting:
            raise Wrong(f"nobody uses bounce memory, and the pool has it otherwise: {pool}")
        if self.arena is not None and not self.may_be_lost:  # what a lost device had is lent for good
            lent = self.arena.statistics()
            if lent.in_use:
                raise Wrong(f"nobody has memory of the arena, which has it otherwise: {lent}")

    async def _until_all_is_done(self) -> None:
        waiters: Any = [each.waiter for each in self.operations.pending]
        if waiters:
            await asyncio.wait(waiters, timeout=LONG / 10)
        if self.operations.pending:
            if not self._may_stay_silent:
                raise Wrong(f"never ended: {', '.join(each.name for each in self.operations.pending)}")
            self._give_up("it does not answer")
            waiters = [each.waiter for each in self.operations.pending]
            await asyncio.wait(waiters, timeout=LONG / 10)
        await self._until_jobs_are_done()
        await asyncio.sleep(1)
        self._require_right()
        if self.operations.pending:
            raise Wrong(f"never ended: {', '.join(each.name for each in self.operations.pending)}")

    async def _come_back_surely(self) -> None:
        self._serve_again()
        for _ in range(10):
            if self.device.lost:
                self.disk.resize(2 * SIZE)  # what comes back may not have less than it had
                await self._inline("reconnect at the end", self._come_back)
        if self.device.lost and self._history.weather.get("props"):
            await self._start_anew()  # it comes back as another one
        if self.device.lost:
            raise Wrong("the device does not come back")

    async def _start_anew(self) -> None:
        self._bound = False
        await self._leave_all()
        await self._inline("close", self._end_device)
        await self._open()
        self.operations.end_lost()

    async def _read_surely(self, first: int, count: int) -> tuple[Reading, bytes]:
        """From a device that may have died without having noticed, or that answers no more."""
        for _ in range(3):
            reading = self.oracle.begin_read(first, count)
            try:
                async with asyncio.timeout(LONG / 10):
                    source = self.view or self.device
                    return reading, await source.read(first * SECTOR, count * SECTOR)
            except (aioblk.BlkioError, TimeoutError):
                if not self.may_be_lost:
                    raise
                if not self.device.lost:
                    self._give_up("it does not answer")
                await self._come_back_surely()
        raise Wrong("the device comes back, and is lost again")

    async def _verify(self) -> None:
        """What the disk holds is what it may hold."""
        for first in range(0, self._history.sectors, MOST_SECTORS):
            count = min(MOST_SECTORS, self._history.sectors - first)
            reading, data = await self._read_surely(first, count)
            self.oracle.end_read(reading, data)
