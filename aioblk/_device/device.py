"""Device: the public face of a block device.

The driver classes add nothing but their options. The request methods themselves are compiled: see Submitter.
What there is while a device is open is its Life.
"""

import asyncio
import weakref
from collections.abc import AsyncGenerator
from typing import NoReturn, Self

from .._libblkio.limits import Limits
from .._libblkio.options import DriverOptions
from .._libblkio.properties import Properties
from .._libblkio.subject import Subject
from .._memory.bounce import BouncePool
from .._memory.regions import MemoryRegion
from .._native._core import Submitter
from .._native.buffers import BytesLike
from .._queues.blocking import BlockingQueue
from .._queues.queue import Queue, QueueStatistics
from .._sync.loops import running_loop
from .._sync.scopes import AsyncClosing, shielded_if_cancelled
from ..errors import DeviceLostError
from .events import DeviceEvent
from .extents import Extent
from .life import Life, Stage, Unopened
from .opening import open_device
from .session import Session, SessionProperties

__all__ = ["Device"]


class Device(AsyncClosing, Submitter):
    """A block device on the running event loop.

    Open it with ``async with``, or with :meth:`open` and :meth:`aclose`. Request methods submit when they
    are called and return an awaitable :class:`aioblk.Request`; offsets and lengths are bytes. What is wrong
    with the arguments is raised by the call, what goes wrong with the I/O by the ``await``.

    A device belongs to the loop and the thread that opened it. Any other use raises :class:`UsageError`.
    """

    def __init__(self, options: DriverOptions) -> None:
        self._options = options
        self._subject = Subject(options.driver, options.name)
        self._life: Life | Unopened = Unopened(self._subject, Stage.NEW)

    # --- life -----------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Connect and start the device. Blocking work is done in a thread of its own.

        Raises:
            BlkioError: libblkio or the system refused; ``errno``, ``message`` and ``filename`` say why.
            UsageError: the device has been opened before.

        If the task is cancelled, a connection that is made later all the same is given back at once.
        """
        stage = self._life.stage
        if stage is not Stage.NEW:
            raise self._subject.misuse("open", f"a device can be opened once; this one is {stage}")
        _ = running_loop("open", self._subject.driver, self._subject.filename)
        self._life = Unopened(self._subject, Stage.OPENING)
        try:
            self._life = await open_device(self._options, self._subject, weakref.ref(self))
        except BaseException:
            self._life = Unopened(self._subject, Stage.CLOSED)
            raise
        self._submit_to_default_queue()
        return self

    def _submit_to_default_queue(self) -> None:
        self._core = self._session("queue").queue._compiled  # pyright: ignore[reportPrivateUsage]

    async def detach(self) -> None:
        """Let go of the loop, once nothing is in flight: the device can then be attached to another one.

        Registered memory stays registered. Regions must not be entered or left in between. A task that is
        cancelled here does not wait any longer; detaching goes on without it, and may be awaited again.

        Raises:
            UsageError: other queues than the default one are bound, or this is another loop.
            DeviceLostError: the device is lost.
            DeviceClosedError: the device is closed.
        """
        detaching = self._life.start_detaching()
        self._core = None
        with shielded_if_cancelled():
            await asyncio.shield(detaching)

    async def attach(self) -> Self:
        """Bind a detached device to the running loop, in whatever thread.

        One that was lost meanwhile is lost still, to be reconnected or closed.
        """
        self._life.attach()
        if self.lost is None:
            self._submit_to_default_queue()
        return self

    async def aclose(self) -> None:
        """Refuse new requests, wait for those in flight, give everything back. Idempotent.

        Queues that are still bound are closed as well, each in its own loop or thread. One whose loop does
        not run any more, or whose thread does not wait for its requests, is given up: what it has in flight
        fails, and the memory of that is never released.

        Where requests are in flight while the device is being reconnected (``reconnect_for``), closing waits
        until they are through, or the device is lost. Of a lost device nothing is waited for, except, for a
        second at most, that libblkio lets go of it.

        A task that is cancelled here does not wait any longer; closing goes on without it.
        """
        running_loop("close", self._subject.driver, self._subject.filename)
        self._life = await self._life.aclose()

    async def __aenter__(self) -> Self:
        return await self.open()

    def __del__(self) -> None:
        # The interpreter may have taken the module's names away when it asks a device to end.
        end = getattr(getattr(self, "_life", None), "end_unclosed", None)
        if end is not None:
            end(self)

    def __repr__(self) -> str:
        where = self._options.before_connect.get("path", self._options.before_connect.get("fd"))
        now = "lost" if self.lost else "being reconnected" if self.reconnecting else self._life.stage
        state = self._life.stage if self.closed else now
        return f"<aioblk.{type(self).__name__} {where!r} {state}>"

    # --- loss -----------------------------------------------------------------------------------------------

    @property
    def lost(self) -> DeviceLostError | None:
        """Why the device is lost; None: it is not."""
        return self._life.lost

    def abandon(self, reason: str = "the device was given up") -> None:
        """Declare the device lost, because it does not answer and nothing else will tell.

        Everything in flight, on every queue, fails with :class:`DeviceLostError` whose ``__cause__`` says
        *reason*; new requests are refused; :meth:`aclose` does not wait for the device any more, also when it
        does so already. Memory that the device may still write to is never released; docs/loss.md says what
        that is for each driver. Does nothing when the device is lost or closed.

        Raises:
            UsageError: the device is not open, or the caller is not in the thread of its loop.
        """
        self._life.abandon(reason)

    @property
    def reconnecting(self) -> bool:
        """Whether another backend is being looked for in place of one that died; see ``reconnect_for``."""
        return self._life.reconnecting

    @property
    def losses(self) -> int:
        """How often it was lost. What no flush had covered is in doubt, be it back or not."""
        return self._life.losses

    @property
    def reconnections(self) -> int:
        """How often the device came back: by itself, or by :meth:`reconnect`."""
        return self._life.reconnections

    async def reconnect(self) -> None:
        """Open a lost device again, in place. Everything stays: queues, regions, arenas, pools.

        Nothing is in flight on a lost device: what was has failed, and is the caller's to repeat. The caller
        also sees to it that the old backend executes nothing any more; one that is only silent may, once it
        goes on, write over what has been written since. A region that requests of the lost device use for
        good is not mapped again: requests on it bounce.

        One attempt, as long as that takes; a device that cannot be reached, and a task that is cancelled,
        leave it lost, to be tried again.

        Raises:
            UsageError: the device is not lost, was opened by ``fd``, is used in another loop, or has blocking
                queues bound.
            DeviceLostError: what answers now has less capacity, or accepts less.
            BlkioError: it cannot be opened.
        """
        running_loop("reconnect", self._subject.driver, self._subject.filename)
        await self._life.opened("reconnect").loss.reconnect(self._submit_to_default_queue)

    # --- what the device is ---------------------------------------------------------------------------------

    @property
    def driver(self) -> str:
        """The name of libblkio's driver."""
        return self._options.driver

    @property
    def capacity(self) -> int:
        """The size in bytes.

        On io_uring it is the present one: files grow. The other drivers would have to ask somebody, so they
        tell what it was when the device was opened or :meth:`refresh_capacity` was last awaited.
        """
        return self._session("capacity").present_capacity()

    async def refresh_capacity(self) -> int:
        """Ask the device for its size in bytes, which :attr:`capacity` tells from then on.

        Raises:
            DeviceLostError: the device is gone.
            BlkioError: it does not answer.
        """
        running_loop("refresh_capacity", self._subject.driver, self._subject.filename)
        return await self._life.opened("refresh_capacity").ask_capacity()

    def events(self, *, capacity_every: float | None = None) -> AsyncGenerator[DeviceEvent]:
        """What happens to the device from now on, until it is closed::

            async for event in dev.events():
                match event:
                    case aioblk.DeviceLost(error):
                        ...

        ``capacity_every``: the device is asked for its size every so many seconds, since most do not tell of
        a change by themselves; None: what :meth:`refresh_capacity` and reconnecting find is told. The log
        ``aioblk.device`` has the same.

        Raises at the call:
            UsageError: the device belongs to another loop.
            OptionError: ``capacity_every`` is not positive.
        """
        session = self._session("events")
        session.require_own_loop("events")
        if capacity_every is not None and not capacity_every > 0:
            text = f"capacity_every must be positive, not {capacity_every}"
            raise self._subject.invalid("events", text)
        return session.events.listen(self.refresh_capacity, capacity_every)

    async def truncate(self, size: int) -> None:
        """Make a regular file *size* bytes long: what is beyond is gone, what is added reads as zeroes.

        Requests in flight are not waited for, but for those that were cancelled; what ends beyond the new end
        may make the file grow again. The call is made in a thread, so no filesystem stops the loop; if the
        task is cancelled, it is made all the same. :attr:`capacity` tells the size.

        Raises:
            UnsupportedError: the device is no regular file.
            OptionError: *size* is negative, or larger than files can be.
            BlkioError: it is open for reading only, or the filesystem refuses (``EFBIG``, ``EPERM``).
        """
        session = self._life.present("truncate").session
        session.require_own_loop("truncate")
        size = session.length_of_file(size)
        await self._until_landed()  # what was given up may make the file grow again
        await self._life.present("truncate").session.truncate(size)

    def extents(self, offset: int = 0, length: int | None = None) -> AsyncGenerator[Extent]:
        """What there is from ``offset`` on, up to the end or for ``length`` bytes, in order, without gaps::

            async for extent in dev.extents():
                if extent.kind is aioblk.ExtentKind.DATA:
                    data = await dev.read(extent.offset, extent.length)

        Regular files on io_uring tell their holes. All other devices cannot: they are one extent of data.
        What is written meanwhile may be missed. Looking is done in threads, so no filesystem stops the loop.

        Raises at the call:
            OptionError: the range is not one of the device.
        """
        return self._session("extents").extents(offset, length, lambda: self._session("extents").file())

    @property
    def read_only(self) -> bool:
        """Whether changes are refused, with ``EBADF``."""
        return self._session("read_only").read_only

    @property
    def limits(self) -> Limits:
        """What the device accepts; fixed while it is open."""
        return self._session("limits").limits

    @property
    def properties(self) -> Properties:
        """Every libblkio property of the driver, by its name: ``dev.properties["queue-size"]``.

        ``capacity`` among them is :attr:`capacity`. Nothing is asked of the device: looking never waits.
        """
        return Properties(SessionProperties(self._session("properties").handle, lambda: self.capacity))

    def statistics(self) -> QueueStatistics:
        """A snapshot of the counters of all queues that the device has had. They stay when it is closed.

        From any thread. How long requests take is among them where :attr:`measuring` is on.
        """
        return self._life.statistics()

    @property
    def measuring(self) -> bool:
        """Whether it is noted how long requests take: ``dev.statistics().read.latency``. Off at first.

        It can be switched at any time while the device is open, also when it is lost. It costs a request 1 %
        more instructions, and 2 % one that is alone, for two looks at the clock (``./run bench
        instructions``). A request counts if it was submitted, and is over, while it was on.

        Raises:
            UsageError: the device has not been opened yet.
            DeviceClosedError: it is closed.
        """
        return self._life.unclosed("measuring").session.sight.measuring

    @measuring.setter
    def measuring(self, measuring: bool) -> None:
        self._life.unclosed("measuring").session.measure(measuring)

    def add_instrument(self, instrument: object) -> None:
        """Have an object told of each request, and of what becomes of the device: see :class:`Instrument`.

        From now on, until the device is closed. Without one, nothing of it costs anything.

        Raises:
            OptionError: it has none of an instrument's methods.
        """
        session = self._life.unclosed("add_instrument").session
        session.instruments.add(instrument)
        session.apply_instruments()

    def remove_instrument(self, instrument: object) -> None:
        """It is told of nothing any more, not even of the end of what has begun.

        Raises:
            OptionError: it was not added, or has raised an exception and been removed for that.
        """
        session = self._life.unclosed("remove_instrument").session
        session.instruments.remove(instrument)
        session.apply_instruments()

    @property
    def closed(self) -> bool:
        """Whether the device is closed, or being closed."""
        return self._life.stage in (Stage.CLOSING, Stage.CLOSED)

    # --- memory ---------------------------------------------------------------------------------------------

    def register(
        self, buffer: BytesLike, *, fd: int | None = None, fd_offset: int = 0, required: bool = False
    ) -> MemoryRegion:
        """Register existing memory: ``async with dev.register(buffer) as region``. See MemoryRegion."""
        memory = self._life.unclosed("register").session.memory  # an arena may grow while it is detached
        region = memory.register(buffer, fd=fd, fd_offset=fd_offset, required=required)
        region.device = self
        return region

    def allocate(self, length: int) -> MemoryRegion:
        """New, zeroed memory for zero-copy requests: ``async with dev.allocate(n) as region``."""
        region = self._session("allocate").memory.allocate(length)
        region.device = self
        return region

    @property
    def bounce_pool(self) -> BouncePool:
        """The default queue's memory for requests whose own memory the device cannot reach."""
        return self._session("bounce_pool").queue.bounce_pool

    # --- queues ---------------------------------------------------------------------------------------------

    def queue(self, index: int | None = None) -> Queue:
        """Queue *index*, bound to the running loop until it is closed: ``async with dev.queue(1) as queue``.

        Threads with loops of their own thus share a device without locks. Without *index* it is the default
        queue, which serves the device's own request methods and belongs to the device's loop: queue 0, or
        poll queue 0 of a device that was opened with ``num_queues=0``.

        Raises:
            UsageError: there is no such queue, or it is bound to another loop.
        """
        return self._session("queue").lend(self, index)

    def poll_queue(self, index: int = 0) -> Queue:
        """Poll queue *index*, bound to the running loop, which never sleeps while it has requests in flight.

        io_uring's poll queues take reads and writes only, and need ``direct=True`` and a device that can be
        polled.
        """
        return self._session("queue").lend(self, index, poll=True)

    def blocking_queue(self, index: int = 0, *, poll: bool = False) -> BlockingQueue:
        """A queue for the calling thread, which has no event loop: ``with dev.blocking_queue(1) as queue``.

        Raises:
            UsageError: there is no such queue, or it is bound already.
        """
        return self._session("queue").lend_blocking(self, index, poll=poll)

    async def add_queue(self) -> int:
        """Add a queue to the started device and return its index.

        Raises:
            UnsupportedError: the driver cannot; its property ``can-add-queues`` says so.
        """
        return await self._life.present("add_queue").session.add_queue()

    async def remove_queue(self, index: int) -> None:
        """Remove a queue that is not bound. The default queue stays. Other queues keep their indices."""
        await self._life.present("remove_queue").session.remove_queue(index)

    # --- what all stand on ----------------------------------------------------------------------------------

    def _session(self, operation: str) -> Session:
        """Of an open device, be it lost."""
        return self._life.opened(operation).session

    def _refuse_unopened(self, operation: str) -> NoReturn:
        """There is no core to submit to."""
        self._life.present(operation)
        raise self._subject.misuse(operation, "the device has no queue")
