"""Blkio: one instance of libblkio, with its states, properties, memory regions and queues.

Everything here is synchronous, and some of it blocks: ``connect()`` waits for a vhost-user backend that
serves another client. Threads may share an instance; their calls take turns. libblkio itself does not see to
that: reading the capacity while another thread maps memory mixes up the two answers of a vhost-user backend.

A call may thus wait for as long as a backend is stopped. What an event loop asks must not: the facts about a
started device and the addresses of its queues are looked up once, when it is started, and kept here.
"""

from __future__ import annotations

import errno as errnos
import fcntl
import os
import stat
import sys
import warnings
from bisect import bisect_left, insort
from collections.abc import Callable, Container, Generator
from contextlib import contextmanager, suppress
from functools import partial, wraps
from threading import Lock, RLock
from types import TracebackType
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar, cast, final

from .._native._blkio import ffi, lib
from ..errors import (
    AlignmentError,
    BlkioError,
    OptionError,
    PropertyError,
    RegistrationError,
    UsageError,
    request_error,
)
from .descriptor import size_of
from .hints import hint, shortage
from .loans import Loans
from .mem_region import MemRegion, address_of, allocate, free, to_struct
from .properties import (
    IO_URING,
    PROPERTIES,
    RINGS,
    UINT64_MAX,
    VHOST_VDPA,
    Property,
    PropertyValue,
    State,
    lookup,
    usable_mem_regions,
)
from .rings import Ring, close_some, find_new, note_end, release_files, wait_for_the_kernel
from .subject import Subject

if TYPE_CHECKING:  # cffi's own types; they have no names at run time
    from .._native._blkio import Cell, Pointer

P = ParamSpec("P")
T = TypeVar("T")

VHOST_VDPA_GET_VRING_NUM = 0x8002AF76  # linux/vhost.h


class _Slot:
    """One queue of a started instance."""

    __slots__ = ("address", "completion_fd", "taken")

    def __init__(self, address: int, completion_fd: int) -> None:
        self.address = address  # of the struct blkioq
        self.completion_fd = completion_fd  # libblkio's own; -1: a poll queue has none
        self.taken = False  # whoever has the address may be using it


def _in_turn(method: Callable[Concatenate[Blkio, P], T]) -> Callable[Concatenate[Blkio, P], T]:
    """Let a call of *method* wait until no other thread is calling the same instance."""

    @wraps(method)
    def call(self: Blkio, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:  # pyright: ignore[reportPrivateUsage]
            return method(self, *args, **kwargs)

    return call


@final
class Blkio:
    """One ``struct blkio``.

    created --connect()--> connected --start()--> started --destroy()--> destroyed, which is possible
    anywhere. ``connect()``, ``start()`` and ``destroy()`` do nothing when they have been done. After a
    failed connect or start the state is what it was, and the only sensible next step is ``destroy()``.
    """

    def __init__(self, driver: str) -> None:
        self._driver = driver
        self._state = State.DESTROYED  # until there is something to destroy
        self._pid = os.getpid()
        self._lock = RLock()
        self._fd = -1  # a duplicate of the caller's descriptor, until libblkio takes it
        self.filename: str | None = None
        """The device's, for errors. Who opens it by descriptor may know it."""
        self._mapped: list[MemRegion] = []  # sorted by address
        self._allocated: dict[MemRegion, MemRegion] = {}  # in order, each by itself
        self._given_up: list[MemRegion] = []  # to be given back by whoever may block next
        self._facts: dict[str, PropertyValue] = {}  # once started: what cannot change any more
        self._slots: dict[tuple[bool, int], _Slot] = {}  # once started, by (poll, index)
        self._rings: frozenset[Ring] | None = None  # None: it is not certain which are ours
        self._last_removal = float("-inf")  # of a queue, and with it of a ring, on the monotonic clock
        self._slots_turn = Lock()  # of `_slots`; never held across a call to libblkio
        self.loans: Loans = Loans()
        """Which of its regions another instance may be told of just now."""
        self.on_map_turn: Callable[[], object] | None = None
        """Called before and after each change of the memory map, by the thread that makes it."""
        self._cell: Cell[Pointer] = ffi.new("struct blkio **")
        self._check(lib.blkio_create(driver.encode(), self._cell), "create")
        self._state = State.CREATED

    # --- life -----------------------------------------------------------------------------------------------

    @property
    def driver(self) -> str:
        return self._driver

    @property
    def state(self) -> State:
        return self._state

    @property
    def pid(self) -> int:
        """The process that made the instance; its forked children may not use it."""
        return self._pid

    @_in_turn
    def connect(self) -> None:
        """Connect to the device that the properties name. May block for as long as the backend pleases."""
        if self._state is State.CREATED:
            self.filename = path = cast(str, self.get("path")) or None
            if (path is None) == (self._fd < 0):
                raise OptionError("set one of path and fd", driver=self._driver, operation="connect")
            if path is not None and self._driver == VHOST_VDPA:
                self._open(path)
            self._fd = -1  # libblkio's from now on: it closes the descriptor even when it cannot connect
            self._check(lib.blkio_connect(self._cell[0]), "connect")
            self._state = State.CONNECTED
        elif self._state is not State.CONNECTED:
            raise self._wrong_state("connect", "a device can be connected once, before it is started")

    @_in_turn
    def start(self) -> None:
        """Start the connected device: queues exist from now on, and memory regions can be mapped."""
        if self._state is State.CONNECTED:
            if self._driver == VHOST_VDPA:
                self._require_short_queues()
            self._start()
            self._state = State.STARTED
            self._facts = dict(self._find_facts())
            for poll, name in ((False, "num-queues"), (True, "num-poll-queues")):
                for index in range(cast(int, self._facts[name])):
                    self._slots[poll, index] = self._find_slot(poll, index)
        elif self._state is not State.STARTED:
            raise self._wrong_state("start", "a device can be started once it is connected")

    def _require_short_queues(self) -> None:
        """Some vDPA devices accept longer queues than they have, and never answer. libblkio asks none."""
        answer = bytearray(2)
        fcntl.ioctl(cast(int, self.get("fd")), VHOST_VDPA_GET_VRING_NUM, answer)
        size, longest = cast(int, self.get("queue-size")), int.from_bytes(answer, sys.byteorder)
        if size > longest:
            raise OptionError(
                f"queue-size is {size}, but the device's queues have {longest} descriptors at most",
                driver=self._driver,
                operation="start",
            )

    def _start(self) -> None:
        def start() -> None:
            self._check(lib.blkio_start(self._cell[0]), "start")

        if self._driver in RINGS:
            queues = cast(int, self.get("num-queues")) + cast(int, self.get("num-poll-queues"))
            _none, self._rings = find_new(start, queues)
        else:
            start()

    def _find_facts(self) -> Generator[tuple[str, PropertyValue]]:
        for entry in PROPERTIES.values():
            if self._driver in entry.drivers and entry.name != "capacity":
                with suppress(PropertyError):  # this libblkio does not have it
                    yield entry.name, self._get(entry)

    def destroy(self, *, in_use: bool = False) -> None:
        """Disconnect and give everything back, mapped and allocated regions included.

        Afterwards, the file is free for others, unless it is *in_use*: by requests of a lost device, for
        which the kernel does not wait, nor do we.

        The caller has drained the queues: the device may still use the buffers of requests in flight. While
        somebody has taken a queue and not given it back, the instance is leaked, with a warning: better than
        to pull it away from under them. A forked child only forgets the instance, since the device is its
        parent's to stop.
        """
        if os.getpid() != self._pid:
            self._state = State.DESTROYED  # without the lock, which a thread of the parent may have held
            self._close_fd()
            return
        with self._lock:
            if self._state is State.DESTROYED:
                return
            started = self._state is State.STARTED
            self._state = State.DESTROYED
            with self._slots_turn:
                taken = [index for (_poll, index), slot in self._slots.items() if slot.taken]
                self._slots.clear()
            if taken:
                warnings.warn(
                    f"{self!r} is leaked, since queues of it are in use: {taken}",
                    ResourceWarning,
                    stacklevel=2,
                )
                return
            self._mapped.clear()
            has_rings = started and self._driver in RINGS
            given_back = has_rings and not in_use and release_files(self._rings)
            lib.blkio_destroy(self._cell)
            if has_rings:
                end = note_end()
                if not in_use:
                    wait_for_the_kernel(self._last_removal if given_back else end)
            while self._allocated:
                self._free(self._allocated.popitem()[1])
            self._close_fd()

    @_in_turn
    def free_all_but(self, regions: Container[MemRegion]) -> None:
        """Free what was allocated and is not mapped, *regions* excepted: the device that knew it is gone."""
        for region in [region for region in self._allocated if region not in regions]:
            if not self._is_mapped(region):
                self._allocated.pop(region, None)
                self._free(region)

    def exchange(self, other: Blkio) -> None:
        """Exchange the libblkio instances of two handles of one driver: each goes on with the other's.

        What was allocated stays with the handle that allocated it, what is mapped goes with the instance.
        Nobody may use a queue of either. A handle that was destroyed in the meantime stays so.
        """
        with self._lock:
            if self._state is State.DESTROYED:
                return
            self._state, other._state = other._state, self._state
            self._fd, other._fd = other._fd, self._fd
            self.filename, other.filename = other.filename, self.filename
            self._mapped, other._mapped = other._mapped, self._mapped
            self._facts, other._facts = other._facts, self._facts
            self._rings, other._rings = other._rings, self._rings
            with self._slots_turn, other._slots_turn:
                self._slots, other._slots = other._slots, self._slots
            self._cell, other._cell = other._cell, self._cell

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.destroy()

    def __del__(self) -> None:
        if self._state is State.DESTROYED or os.getpid() != self._pid:
            return
        warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        # A started device may have requests in flight on memory that is about to go: better to leak.
        if self._state is not State.STARTED:
            self.destroy()

    def __repr__(self) -> str:
        return f"<Blkio {self._driver} {self._state}>"

    # --- properties -----------------------------------------------------------------------------------------

    def get(self, name: str) -> PropertyValue:
        """The value of a property; PropertyError if the driver does not have it or it cannot be read yet.

        Of a started device only ``capacity`` is asked for, and may block; the others are facts.
        """
        entry = lookup(self._driver, name)
        facts = self._facts  # which another thread may exchange meanwhile
        if self._state is State.STARTED and name in facts:
            return facts[name]
        return self._ask(entry)

    @_in_turn
    def _ask(self, entry: Property) -> PropertyValue:
        name = entry.name
        if not entry.readable_from <= self._state < State.DESTROYED:
            raise PropertyError(
                f"{name} can be read once the device is {entry.readable_from}; this device is {self._state}",
                errno=errnos.ENODEV,
                driver=self._driver,
                operation="get",
            )
        try:
            return self._get(entry)
        except BlkioError as error:
            if error.errno != errnos.ENOENT:
                raise
            raise PropertyError(
                f"this version of libblkio does not have {name}", driver=self._driver, operation="get"
            ) from None

    def _get(self, entry: Property) -> PropertyValue:
        name, operation = entry.name.encode(), f"get {entry.name}"
        if entry.name == "capacity" and self._driver == IO_URING:
            try:
                return size_of(cast(int, self.get("fd")))
            except OSError as error:
                raise self._failure(operation, error.errno or errnos.EIO, None) from None
        match entry.kind:
            case "bool":
                flag = ffi.new("bool *")
                self._check(lib.blkio_get_bool(self._cell[0], name, flag), operation)
                return flag[0]
            case "int":
                number = ffi.new("int *")
                self._check(lib.blkio_get_int(self._cell[0], name, number), operation)
                return number[0]
            case "uint64":
                number = ffi.new("uint64_t *")
                self._check(lib.blkio_get_uint64(self._cell[0], name, number), operation)
                return number[0]
            case "str":
                text = ffi.new("char **")
                self._check(lib.blkio_get_str(self._cell[0], name, text), operation)
                try:
                    return ffi.string(text[0]).decode()
                finally:
                    lib.free(text[0])

    @_in_turn
    def set(self, name: str, value: PropertyValue) -> None:
        """Set a property; OptionError for a wrong type or range, UsageError if it cannot be set (now).

        A file descriptor (``fd``) is duplicated: libblkio takes the duplicate, the caller's remains the
        caller's.
        """
        entry = lookup(self._driver, name)
        value = entry.check(self._driver, value)
        if entry.writable_in is None:
            raise self._refusal(f"set {name}", f"{name} is read-only", errnos.EACCES)
        if entry.writable_in is not self._state:
            when = "before connect" if entry.writable_in is State.CREATED else "between connect and start"
            raise self._wrong_state(f"set {name}", f"{name} can be set {when}")
        if name == "fd":
            value = self._duplicate(cast(int, value))
        self._set(entry, value)

    def _set(self, entry: Property, value: PropertyValue) -> None:
        name, instance = entry.name.encode(), self._cell[0]
        match value:
            case bool():
                result = lib.blkio_set_bool(instance, name, value)
            case int() if entry.kind == "uint64":
                result = lib.blkio_set_uint64(instance, name, value)
            case int():
                result = lib.blkio_set_int(instance, name, value)
            case str():
                result = lib.blkio_set_str(instance, name, value.encode())
        self._check(result, f"set {entry.name} to {value!r}")

    def _duplicate(self, fd: int) -> int:
        try:
            duplicate = os.dup(fd)
        except OSError as error:
            raise OptionError(
                f"fd {fd}: {error.strerror}", errno=error.errno, driver=self._driver, operation="set fd"
            ) from None
        self._close_fd()
        self._fd = duplicate
        return duplicate

    def _open(self, path: str) -> None:
        """Give libblkio a descriptor in place of *path*; about a path it says EIO, whatever is wrong."""
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # the driver's ioctls need write access
        except OSError as error:
            raise self._failure("connect", error.errno or errnos.EIO, None) from None
        self._set(lookup(self._driver, "path"), "")
        self._set(lookup(self._driver, "fd"), self._fd)

    def _close_fd(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @_in_turn
    def truncate(self, size: int) -> None:
        """Make the regular file behind a started io_uring device *size* bytes long. May block."""
        self._require_started("truncate")
        try:
            os.ftruncate(cast(int, self.get("fd")), size)
        except OSError as error:
            raise self._failure("truncate", error.errno or errnos.EIO, None) from None

    # --- memory regions -------------------------------------------------------------------------------------

    @property
    def mapped_regions(self) -> tuple[MemRegion, ...]:
        """The regions that are mapped, by address. Waits for nobody."""
        return tuple(self._mapped)

    @_in_turn
    def alloc_mem_region(self, length: int) -> MemRegion:
        """Allocate memory that suits the device; *length* is a multiple of mem-region-alignment, in bytes.

        The region is not mapped yet. It is the caller's until ``free_mem_region()``, ``destroy()`` or
        ``abandon_mem_region()``. libblkio's own allocation would go with the instance, which a device that
        is reconnected outlives, and memory that a lost device still writes to must.
        """
        self._require_started("alloc_mem_region")
        self._give_back_given_up()
        self._require_alignment("alloc_mem_region", "length", length)
        try:
            region = allocate(length)
        except OSError as error:
            raise request_error(
                self._driver,
                "alloc_mem_region",
                error.errno or errnos.ENOMEM,
                f"{length} bytes of memory with a file behind it cannot be had{shortage(error.errno)}",
            ) from error
        self._allocated[region] = region
        return region

    @_in_turn
    def free_mem_region(self, region: MemRegion) -> None:
        """Give back a region of ``alloc_mem_region()`` that is not mapped (any more)."""
        self._require_started("free_mem_region")
        if region not in self._allocated:
            raise self._refusal(
                "free_mem_region", f"{region} was not allocated by this device", errnos.ENOENT
            )
        if self._is_mapped(region):
            raise self._refusal("free_mem_region", f"{region} is mapped; unmap it first")
        del self._allocated[region]
        self._free(region)

    @_in_turn
    def give_back_mem_region(self, region: MemRegion) -> None:
        """Unmap it and free it, if that has not been done: with the instance that knew it, for one.

        Its address may be another region's by now, with the very same values: that one stays.
        """
        if self._allocated.get(region) is not region:
            return
        if self._is_mapped(region):
            self.unmap_mem_region(region)
        self.free_mem_region(region)

    def give_back_later(self, region: MemRegion) -> None:
        """As soon as somebody maps or allocates another one: he may block. Does not block itself."""
        self._given_up.append(region)

    def _give_back_given_up(self) -> None:
        while self._given_up:
            with suppress(BlkioError):
                self.give_back_mem_region(self._given_up.pop())

    def _free(self, region: MemRegion) -> None:
        self.loans.once_given_back(region, partial(free, region))

    @property
    def subject(self) -> Subject:
        """What is said to be lost, or full."""
        return Subject(self._driver, self.filename)

    def abandon_mem_region(self, region: MemRegion) -> None:
        """Never free a region of ``alloc_mem_region()``: a lost device may write to it. Waits for nobody."""
        self._allocated.pop(region, None)

    @_in_turn
    def map_mem_region(self, region: MemRegion) -> None:
        """Make a region usable by requests on every queue.

        libblkio and its backends take much on trust here, and some of what they believe kills them. Hence
        AlignmentError for an address or length that is not a positive multiple of mem-region-alignment, and
        RegistrationError for a region that overlaps another, lacks a descriptor that the device needs,
        reaches past the end of its file, or is one more than the device takes. The caller may close the
        descriptor afterwards.
        """
        self._require_started("map_mem_region")
        self._give_back_given_up()
        self._require_alignment("map_mem_region", "address", region.address)
        self._require_alignment("map_mem_region", "length", region.length)
        self._require_room(region)
        self._require_file(region)
        with self._map_turn():
            result = lib.blkio_map_mem_region(self._cell[0], to_struct(region))
        if result < 0:
            raise self._cannot_map(_error_text(), -result)
        insort(self._mapped, region)

    @_in_turn
    def unmap_mem_region(self, region: MemRegion) -> None:
        """Undo ``map_mem_region()`` of the very same description. No request in flight may use the region."""
        self._require_started("unmap_mem_region")
        if not self._is_mapped(region):
            raise self._refusal("unmap_mem_region", f"{region} is not mapped", errnos.ENOENT)
        with self._map_turn():
            lib.blkio_unmap_mem_region(self._cell[0], to_struct(region))
        self._mapped.remove(region)

    @contextmanager
    def _map_turn(self) -> Generator[None]:
        turn = self.on_map_turn or (lambda: None)
        turn()
        try:
            yield
        finally:
            turn()

    def _is_mapped(self, region: MemRegion) -> bool:
        at = bisect_left(self._mapped, region)
        return at < len(self._mapped) and self._mapped[at] == region

    def _require_alignment(self, operation: str, what: str, value: int) -> None:
        alignment = cast(int, self.get("mem-region-alignment"))
        if value <= 0 or value % alignment or value > UINT64_MAX:
            raise AlignmentError(
                f"{what} {value} is not a positive multiple of {alignment} (mem-region-alignment)",
                driver=self._driver,
                operation=operation,
            )

    def _require_room(self, region: MemRegion) -> None:
        most = usable_mem_regions(self)
        if len(self._mapped) >= most:
            raise self._cannot_map(f"{most} regions are mapped; the device takes no more", errnos.ENOSPC)
        if region.end > UINT64_MAX:
            raise self._cannot_map(f"{region} reaches past the end of the address space", errnos.EFAULT)
        at = bisect_left(self._mapped, (region.address,))
        for other in self._mapped[max(at - 1, 0) : at + 1]:
            if region.address < other.end and other.address < region.end:
                raise self._cannot_map(f"{region} overlaps {other}", errnos.EEXIST)

    def _require_file(self, region: MemRegion) -> None:
        if region.fd < 0:
            if self.get("needs-mem-region-fd"):
                raise self._cannot_map(
                    "the device needs memory with a file descriptor (memfd)", errnos.EINVAL
                )
            return
        try:
            file = os.fstat(region.fd)
        except OSError as error:
            raise self._cannot_map(f"fd {region.fd}: {error.strerror}", errnos.EBADF) from None
        if region.fd_offset < 0:
            raise self._cannot_map(f"fd_offset {region.fd_offset} is negative", errnos.EINVAL)
        if stat.S_ISREG(file.st_mode) and region.fd_offset + region.length > file.st_size:
            # The backend would die of SIGBUS when it touches the part that has no file behind it.
            raise self._cannot_map(f"{region} ends past its file's end, {file.st_size}", errnos.EINVAL)

    # --- queues ---------------------------------------------------------------------------------------------

    def take_queue(self, index: int, *, poll: bool = False) -> tuple[int, int]:
        """The address of a queue's ``struct blkioq``, and its completion descriptor, which is libblkio's own.

        A poll queue has none: -1. Nobody else gets the queue, and it is not removed, until
        :meth:`give_queue`. Waits for nobody.

        Raises:
            UsageError: ENOENT, there is no such queue; EBUSY, it is taken.
        """
        with self._slots_turn:
            slot = self._slots.get((poll, index))
            if slot is None:
                self._require_started("queue")
                raise self._no_queue(index, poll)
            if slot.taken:
                raise self._refusal("queue", f"{_kind(poll)} {index} is in use; close it first")
            slot.taken = True
        return slot.address, slot.completion_fd

    def give_queue(self, index: int, *, poll: bool = False) -> None:
        """Undo :meth:`take_queue`; idempotent. Nothing uses the address any more."""
        with self._slots_turn:
            slot = self._slots.get((poll, index))
            if slot is not None:
                slot.taken = False

    @staticmethod
    def enable_completion_fd(address: int) -> None:
        """Have the completions of a queue signalled; before the first submission, or it stays silent."""
        lib.blkioq_set_completion_fd_enabled(ffi.cast("struct blkioq *", address), True)

    @property
    def queue_count(self) -> int:
        """One more than the highest index of a queue, without poll queues. Waits for nobody."""
        with self._slots_turn:
            return max((index + 1 for poll, index in self._slots if not poll), default=0)

    def add_queue(self) -> int:
        """Add a queue to the started device and return its index; UnsupportedError without can-add-queues."""
        return self._add_queue(poll=False)

    def add_poll_queue(self) -> int:
        """Add a poll queue; otherwise as :meth:`add_queue`."""
        return self._add_queue(poll=True)

    @_in_turn
    def _add_queue(self, *, poll: bool) -> int:
        operation = "add_poll_queue" if poll else "add_queue"
        self._require_started(operation)
        add = lib.blkio_add_poll_queue if poll else lib.blkio_add_queue

        def make() -> int:
            return self._check(add(self._cell[0]), operation)

        if self._driver in RINGS:
            index, new = find_new(make, 1)
            self._rings = None if self._rings is None or new is None else self._rings | new
        else:
            index = make()
        slot = self._find_slot(poll, index)
        with self._slots_turn:
            self._slots[poll, index] = slot
        return index

    def remove_queue(self, index: int) -> None:
        """Remove queue *index*. The other queues keep their indices.

        Raises:
            UsageError: ENOENT, there is no such queue; EBUSY, it is taken.
        """
        self._remove_queue(index, poll=False)

    def remove_poll_queue(self, index: int) -> None:
        """Remove poll queue *index*; otherwise as :meth:`remove_queue`."""
        self._remove_queue(index, poll=True)

    @_in_turn
    def _remove_queue(self, index: int, *, poll: bool) -> None:
        self._require_started("remove_queue")
        self.take_queue(index, poll=poll)  # from here on nobody can bind it
        remove = lib.blkio_remove_poll_queue if poll else lib.blkio_remove_queue
        try:
            self._rings, given_back = close_some(
                self._rings, lambda: self._check(remove(self._cell[0], index), "remove_queue")
            )
        except BlkioError:
            self.give_queue(index, poll=poll)
            raise
        if self._driver in RINGS:
            ended = note_end()
            self._last_removal = self._last_removal if given_back else ended
        with self._slots_turn:
            del self._slots[poll, index]

    def _find_slot(self, poll: bool, index: int) -> _Slot:
        if poll:
            return _Slot(address_of(lib.blkio_get_poll_queue(self._cell[0], index)), -1)
        queue = lib.blkio_get_queue(self._cell[0], index)
        return _Slot(address_of(queue), lib.blkioq_get_completion_fd(queue))

    # --- refusals -------------------------------------------------------------------------------------------

    def _check(self, result: int, operation: str) -> int:
        """*result* of the call to libblkio that this thread has just made, unless it is an error."""
        if result < 0:
            raise self._failure(operation, -result, _error_text())
        return result

    def _failure(self, operation: str, errno: int, message: str | None) -> BlkioError:
        filename = self.filename if operation in ("connect", "start") else None
        error = request_error(self._driver, operation, errno, message, filename=filename)
        if reason := hint(self._driver, operation, errno):
            error.message = f"{error.message}; {reason}" if error.message else reason
        return error

    def _require_started(self, operation: str) -> None:
        if self._state is not State.STARTED:
            raise self._wrong_state(operation, "this needs a started device")

    def _wrong_state(self, operation: str, rule: str) -> UsageError:
        number = errnos.ENODEV if self._state is State.CREATED else errnos.EBUSY
        return self._refusal(operation, f"{rule}; this device is {self._state}", number)

    def _no_queue(self, index: int, poll: bool) -> UsageError:
        there_are = sum(kind == poll for kind, _index in self._slots) or "none"
        option = "num_poll_queues" if poll else "num_queues"
        text = f"there is no {_kind(poll)} {index}; the device has {there_are} ({option})"
        return self._refusal("queue", text, errnos.ENOENT)

    def _refusal(self, operation: str, message: str, errno: int = errnos.EBUSY) -> UsageError:
        return UsageError(
            message, errno=errno, driver=self._driver, operation=operation, filename=self.filename
        )

    def _cannot_map(self, message: str, errno: int) -> RegistrationError:
        return RegistrationError(
            message, errno=errno, driver=self._driver, operation="map_mem_region", filename=self.filename
        )


def _error_text() -> str:
    """libblkio's explanation of the calling thread's last failure."""
    return ffi.string(lib.blkio_get_error_msg()).decode(errors="replace")


def _kind(poll: bool) -> str:
    return "poll queue" if poll else "queue"
