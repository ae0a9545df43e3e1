"""Types of the compiled request path. The C sources, and docs/architecture.md, say how it works."""

from asyncio import AbstractEventLoop
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from contextvars import Context
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, final, overload

from .buffers import BytesLike

_T_co = TypeVar("_T_co", covariant=True)

class Request(Coroutine[Any, Any, _T_co]):
    """A submitted request: awaitable like a Future, accepted where asyncio wants a coroutine.

    What went wrong with the I/O is raised by ``await``, or by result(); an error that nobody retrieves is
    reported to the loop's exception handler. Several tasks may await one request. Belongs to the thread of
    its queue.
    """

    _asyncio_future_blocking: bool
    @property
    def _loop(self) -> AbstractEventLoop: ...
    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def result(self) -> _T_co: ...
    def exception(self) -> BaseException | None: ...
    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel; False if it is done already. The device cannot be stopped: a request on the caller's own
        memory is done only when the device has finished with it, any other at once."""
    def add_done_callback(
        self, fn: Callable[[Any], object], /, *, context: Context | None = None
    ) -> None: ...
    def remove_done_callback(self, fn: Callable[[Any], object], /) -> int: ...
    def get_loop(self) -> AbstractEventLoop: ...
    def __await__(self) -> Generator[Any, None, _T_co]: ...
    def send(self, value: None, /) -> Any: ...
    def throw(self, typ: Any, val: Any = None, tb: TracebackType | None = None, /) -> Any: ...
    def close(self) -> None: ...

class DeviceCore:
    """What all queues of one device share: limits, mapped regions, and how errors are made."""

    def __init__(
        self,
        *,
        make_error: Callable[[str, int, str | None, int | None, int | None], BaseException],
        make_refusal: Callable[[str, str, int | None, int | None], BaseException],
        needs_regions: bool,
        read_only: bool,
        virtqueues: bool,
        request_alignment: int,
        buf_alignment: int,
        max_segments: int,
        max_segment_len: int,
        max_transfer: int,
        max_discard_len: int,
        max_write_zeroes_len: int,
        discard_alignment: int,
        discard_alignment_offset: int,
        discard_method: Literal[0, 1, 2],
        bounce_cap: int,
    ) -> None: ...
    def add_region(self, address: int, length: int, /) -> None: ...
    def retire_region(self, address: int, /) -> int:
        """No new request uses the region; returns how many in flight still do (on_region_idle tells when
        none)."""
    def remove_region(self, address: int, /) -> None: ...
    def map_turn(self) -> None:
        """Changing the memory map begins, or has ended; requests that it fails in between are made again."""
    def forget_given_up(self) -> None:
        """A lost device comes back, with all queues abandoned: nothing lands any more of what it had."""
    on_region_idle: Callable[[int], object] | None
    file_fd: int
    """A file that grows when it is written past its end; -1: there is none. Write-zeroes look at it."""
    @property
    def has_given_up(self) -> bool:
        """Whether a change whose request was cancelled may still land. What meets its range waits for it."""
    @property
    def unflushed(self) -> int | None:
        """Where the latest change is that no flush has covered since it was done; None: all are durable."""
    @property
    def region_count(self) -> int: ...

class QueueCore:
    """One blkioq bound to one loop and one thread."""

    def __init__(
        self, device: DeviceCore, blkioq: int, completion_fd: int, loop: AbstractEventLoop | None, depth: int
    ) -> None: ...
    # Bounce memory. QueueCore carves it up with an Allocator; a request that cannot be admitted at once
    # goes to on_bounce.
    def attach_bounce(self, address: int, length: int, granule: int, /) -> None: ...
    def detach_bounce(self) -> None: ...
    @property
    def bounce_size(self) -> int: ...
    @property
    def bounce_in_use(self) -> int: ...
    @property
    def bounce_peak(self) -> int:
        """The most bytes in use at once since attach_bounce."""
    @property
    def bounce_takes(self) -> int:
        """Bounce buffers handed out since attach_bounce."""
    waiting: int
    """Requests queued for bounce memory; while it is not 0 every bounced newcomer goes to on_bounce."""
    on_bounce: Callable[[Request[Any], int], object] | None
    """Called with (request, bytes its largest unadmitted part needs) while the caller is still submitting."""
    on_room: Callable[[], object] | None
    """Called after bounce memory was given back while waiting is not 0 (once per reaping, not per buffer)."""
    def admit(self, request: Request[Any], /) -> bool:
        """Give bounce memory to the request's parts, in order, and submit them; True when all are (or it is
        done)."""
    @property
    def admitting(self) -> bool:
        """Within admit(), which may run any code."""
    def refuse(self, request: Request[Any], error: BaseException, /) -> None:
        """Fail what of the request has not been admitted; it is over in the loop's next turn."""
    def fail(self, request: Request[Any], errno: int, message: str | None, /) -> None:
        """As refuse(), with an error for each item, as the device's make_error makes them."""

    on_discard: Callable[[Request[None], int, int], object] | None
    """Called with (request, offset, length) where discards are done outside libblkio; complete() ends it."""
    on_idle: Callable[[], object] | None
    """Called when nothing is in flight any more."""
    on_broken: Callable[[int], object] | None
    """Called with the errno of a failing do_io."""
    kicks: bool
    wakes_by_loop: bool
    """Whether tasks are woken by way of the loop, and never directly."""
    def watch(
        self,
        time: bool,
        on_begun: Callable[[int, str, int, int, int], object] | None,
        on_finished: Callable[[int, BaseException | None, bool], object] | None,
        origin_of: Callable[[], object] | None,
        /,
    ) -> None:
        """What is to be noted of requests from now on: how long they take; each as it begins (a number that
        is its own until it ends, operation, offset, length, as how many it counts) and ends (number, error,
        whether it was cancelled); and where it was made."""
    def operations(
        self,
    ) -> list[tuple[str, int, int, int, dict[int, int], tuple[int, int, int, dict[int, int]]]]:
        """Of each operation that was ever over: (name, completed, failed, bytes, {errno: failures}, (least,
        most, total, {bucket: requests})), the last in nanoseconds, and of requests that were timed."""
    rounds: bool
    spin_ns: int
    spins_by_itself: bool
    @property
    def spin_penalty(self) -> int: ...
    """How long a flush may wait actively for a completion, in nanoseconds."""
    @property
    def in_flight(self) -> int: ...
    def complete(self, request: Request[Any], errno: int, message: str | None, /) -> None:
        """The end of work that was done outside libblkio; errno 0: success."""
    def close(self, reason: Literal["closed", "lost"], /) -> None:
        """Refuse every new request."""
    def abandon(self, error: BaseException, /) -> int:
        """The device is lost: fail what is in flight, and never let go of its memory."""
    # Silence, suspension and return; docs/loss.md tells the story.
    def grow_older(self) -> tuple[int, str, int | None, int | None] | None:
        """A tick of the watch for silence. Returns the request that the device has left unanswered for most
        ticks: (ticks, operation, offset, length)."""
    def suspend(self) -> None:
        """Keep what is in flight and what is submitted from now on, and issue nothing."""
    def recall(self) -> None:
        """Of a suspended queue whose device is dead for certain: what it had is to be issued again, in the
        order of submission."""
    def resume(self, blkioq: int, completion_fd: int, depth: int, /) -> None:
        """Go on with another device, after recall() or abandon()."""
    def adopt(self) -> None:
        """The queue belongs to the calling thread from now on; its own has ended, or does not use it."""
    def abandon_bounce(self) -> None:
        """Forget bounce memory that abandoned requests use for good."""
    def wait(self, request: Request[Any] | None, seconds: float, /) -> bool:
        """Without a loop: block until the request is done, or anything has completed; < 0: for ever."""
    def dispose(self) -> None:
        """Let go of the blkioq; nothing may be in flight."""
    def statistics(self) -> dict[str, int]: ...
    def on_event(self) -> None: ...
    def flush(self) -> None: ...

class Submitter:
    """The request methods, shared by Device (its default queue), Queue and BlockingQueue.

    Offsets and lengths are bytes. A request is submitted when its method is called.
    """

    _core: QueueCore | None
    def _until_landed(self) -> Request[None]:
        """Done when no change may land any more that has been given up by now."""
    def _changes(self) -> list[tuple[int, int, Request[Any]]]:
        """Those in flight on the queue that were not given up, from where to where: one for each item."""
    def _report_zones(self, offset: int, zones: int, /) -> Request[bytes]: ...
    def _manage_zone(self, operation: str, offset: int = 0, /) -> Request[None]: ...
    def read(self, offset: int, length: int) -> Request[bytes]:
        """Read ``length`` bytes from ``offset``; awaiting gives them.

        A task that is cancelled does not wait for the device.

        Raises at the call, with nothing submitted:
            AlignmentError: ``offset`` or ``length`` is no multiple of ``limits.request_alignment``.
            OptionError: one of them is negative, or they exceed 63 bits.
            UsageError: another thread or event loop than the queue's, or after fork().
            DeviceClosedError, DeviceLostError: the device is closed, or gone.
        """
    def read_into(self, offset: int, buffer: BytesLike) -> Request[None]:
        """Fill the writable ``buffer`` from ``offset`` on.

        The buffer cannot be resized until the device has finished. A task that is cancelled waits for the
        device where it writes to the buffer itself, and does not where it goes by way of a bounce buffer.
        Raises as :meth:`read`; BufferError: the buffer is read-only or not contiguous.
        """
    def readv(self, offset: int, buffers: Sequence[BytesLike]) -> Request[None]:
        """Fill several writable buffers, one after the other, from ``offset`` on; as :meth:`read_into`.

        Only the length of all together has to be aligned.
        """
    def write(self, offset: int, data: BytesLike, *, fua: bool = False) -> Request[None]:
        """Write ``data`` at ``offset``; with ``fua`` it is on stable storage when the request is done.

        ``data`` must not change until then. A task that is cancelled waits for the device where that reads
        the buffer itself; how much of a cancelled write was written is not known. Raises as :meth:`read`;
        BlkioError with EBADF: the device is open for reading only.
        """
    def writev(self, offset: int, buffers: Sequence[BytesLike], *, fua: bool = False) -> Request[None]:
        """Write several buffers, one after the other, at ``offset``; as :meth:`write`.

        Only the length of all together has to be aligned.
        """
    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_unmap: bool = False,
        no_fallback: bool = False,
    ) -> Request[None]:
        """Make ``length`` bytes from ``offset`` read as zeroes; raises as :meth:`write`.

        Space may be given back unless ``no_unmap``. With ``no_fallback`` it fails with UnsupportedError
        where the device could only do it by writing zeroes out.
        """
    def discard(self, offset: int, length: int) -> Request[None]:
        """Give ``length`` bytes from ``offset`` back to the storage; what they read as then is unspecified.

        Raises as :meth:`write`, and AlignmentError for a range that breaks ``limits.discard_alignment``.
        """
    def flush(self) -> Request[None]:
        """Make what writes that are done have written durable. Writes in flight are not covered."""
    @overload
    def read_many(
        self, requests: Iterable[tuple[int, int]], *, return_exceptions: Literal[False] = False
    ) -> Request[list[bytes]]:
        """Read many (offset, length) pairs with one await; gives a list of bytes in the order of the pairs.

        Every pair is checked before the first is submitted, and refused as by :meth:`read`. The first error,
        in the order of the pairs, is raised when all are over; with ``return_exceptions`` errors and
        refusals are in the list instead.

        Pairs that lie side by side, one after the other, go to the device as one request of at most 128 KiB
        if it reaches their memory by itself; should that fail, each is made by itself, to know which fails.
        """
    @overload
    def read_many(
        self, requests: Iterable[tuple[int, int]], *, return_exceptions: bool
    ) -> Request[list[bytes | BaseException]]: ...
    def read_into_many(
        self, requests: Iterable[tuple[int, BytesLike]], *, return_exceptions: bool = False
    ) -> Request[Any]:
        """Fill the buffers of many (offset, buffer) pairs with one await; errors as by :meth:`read_many`.

        Gives None or, with ``return_exceptions``, a list with an exception or None for each pair.
        """
    def write_many(
        self, requests: Iterable[tuple[int, BytesLike]], *, fua: bool = False, return_exceptions: bool = False
    ) -> Request[Any]:
        """Write many (offset, buffer) pairs with one await, in no certain order; otherwise as
        :meth:`read_into_many`."""

_M = TypeVar("_M", bound=Callable[..., Any])

def Moved(method: _M, otherwise: _M, start: int, size: int, /) -> _M:  # noqa: N802
    """The method of a device, called with (offset, length or buffer, ...), the offset moved by *start*. What
    does not lie within *size* bytes, or is not of the plainest kind, is *otherwise*'s."""

_T = TypeVar("_T")

def move_pairs(pairs: tuple[tuple[int, _T], ...], start: int, size: int, /) -> list[tuple[int, _T]] | None:
    """The same of (offset, length or buffer) pairs. None: not all of them are known to lie within."""

def zero_runs(buffer: BytesLike, unit: int, /) -> list[tuple[int, int, bool]]:
    """All of a buffer as (start, end, whether it is zeroes), in order, told apart in units of so many bytes,
    a positive number. The last unit may be shorter."""

def differing_runs(one: BytesLike, other: BytesLike, unit: int, /) -> list[tuple[int, int]]:
    """What differs in two buffers, as far as both go, as (start, end) in order, in units as above."""

@final
class Allocator:
    """Carves [0, size) into buffers; its own records lie outside the memory it hands out."""

    def __init__(self, size: int, granule: int) -> None: ...
    def take(self, length: int, /) -> int | None:
        """The offset of a free range of at least length bytes; None only when largest_free is less."""
    def give(self, offset: int, /) -> None: ...
    @property
    def size(self) -> int: ...
    @property
    def granule(self) -> int: ...
    @property
    def in_use(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def largest_free(self) -> int: ...

@final
class Memory:
    """Memory that Views hand out. It is released only when it is closed and no view's export or request
    uses it."""

    def __init__(
        self,
        address: int,
        length: int,
        *,
        owner: object = None,
        readonly: bool = False,
        on_release: Callable[[], object] | None = None,
    ) -> None: ...
    @classmethod
    def from_buffer(cls, buffer: BytesLike, *, on_release: Callable[[], object] | None = None) -> Memory:
        """The buffer stays exported until the release, so its owner can neither resize nor free it."""
    def close(self) -> None:
        """From now on every view raises; on_release is called as soon as no export and no request is left."""
    def __len__(self) -> int: ...
    @property
    def address(self) -> int: ...
    @property
    def readonly(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
    @property
    def released(self) -> bool: ...
    @property
    def uses(self) -> int:
        """Exports and requests in flight that keep the memory."""

class View:
    """A range of a region or of an arena's buffer: what ``region[a:b]`` gives, and what both are themselves.

    It has the buffer protocol: requests, ``memoryview``, ``struct``, ``numpy.frombuffer`` and
    ``socket.recv_into`` take it as it is. Its items are bytes. Slicing with step 1 gives a view of a part;
    nothing is copied. Once the region is left, or the buffer released, any use raises ``ValueError``.
    """

    def __new__(cls, memory: Memory, start: int = 0, length: int | None = None) -> Self: ...
    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int, /) -> int: ...
    @overload
    def __getitem__(self, index: slice, /) -> View: ...
    def __setitem__(self, index: int | slice, value: Any, /) -> None: ...
    def __iter__(self) -> Iterator[int]: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __eq__(self, other: object, /) -> bool: ...
    def tobytes(self) -> bytes: ...
    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def readonly(self) -> bool: ...
    @property
    def memory(self) -> Memory: ...

# --- the device's side of virtio-blk ------------------------------------------------------------------------

class GuestMemory:
    """What a guest has lent: (memory, guest address, client's address) for each range; none overlap."""

    def __init__(self, ranges: Iterable[tuple[Memory, int, int]]) -> None: ...
    def __len__(self) -> int: ...

class GuestRequest:
    """What a guest asks of a disk. Offsets and lengths are in bytes, and within the disk."""

    @property
    def kind(self) -> int: ...
    @property
    def flags(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def buffers(self) -> tuple[View, ...]:
        """The guest's memory; none once it is finished."""

class Virtqueue:
    """A split virtqueue, as the device has it. Nothing that the guest says is believed.

    Raises:
        ValueError: it is not where it is said to be, or not of such a size.
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        descriptors: int,
        available: int,
        used: int,
        base: int,
        *,
        event_index: bool = False,
        tracked: View | None = None,
    ) -> None: ...
    def set_disk(self, capacity: int, read_only: bool, serial: bytes) -> None: ...
    def take(self, most: int, /) -> list[GuestRequest]: ...
    def finish(self, request: GuestRequest, status: int, /) -> None: ...
    def push(self) -> bool: ...
    def listen(self) -> bool: ...
    def move(self, memory: GuestMemory, /) -> None: ...
    @property
    def base(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def broken(self) -> str | None: ...
    @property
    def answered(self) -> int: ...
