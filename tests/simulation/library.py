"""simblkio: libblkio's interface over simulated disks, for processes that have it preloaded.

Its sources are in simblkio/; docs/simulation.md says what it does. preloaded() gives the environment of a
process that is to have it, and Simulator speaks to the one of this process.
"""

import ctypes
import enum
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from aioblk._sync.threads import NAME, dismiss

from ..support.compiled import blkio_cflags, shared_library

__all__ = [
    "VIRTIO",
    "Death",
    "Disk",
    "Driver",
    "Place",
    "SimulatedRequest",
    "Simulator",
    "is_preloaded",
    "preloaded",
]

SOURCES = Path(__file__).with_name("simblkio")
SECTOR = 512
PATIENCE = 20  # seconds


class Driver(enum.IntEnum):
    IO_URING = 0
    VHOST_USER = 1
    VHOST_VDPA = 2
    VFIO_PCI = 3
    NVME_IO_URING = 4


VIRTIO = (Driver.VHOST_USER, Driver.VHOST_VDPA, Driver.VFIO_PCI)


class Death(enum.IntEnum):
    """How a device dies."""

    SILENT = 1
    """It takes requests, and answers none."""
    HUNG_UP = 2
    """Of vhost-user: the backend has closed the connection, and may still write to memory."""
    KILLED = 3
    """Of vhost-user: the backend's process has ended."""
    BROKEN = 4
    """do_io fails."""


class Place(enum.IntEnum):
    """Where a request is."""

    SUBMITTED = 0
    AT_DEVICE = 1
    DONE = 2


OPERATIONS = ("read", "write", "write_zeroes", "discard", "flush", "zone")


class _Request(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("id", "start", "length")),
        *(
            (name, ctypes.c_int32)
            for name in ("disk", "instance", "queue", "polls", "operation", "place", "segments")
        ),
        ("flags", ctypes.c_uint32),
    ]


@final
@dataclass(frozen=True)
class SimulatedRequest:
    """A request in flight, as libblkio was given it."""

    id: int
    operation: str
    start: int
    length: int
    flags: int
    segments: int
    place: Place
    disk: int
    instance: int
    queue: int
    polls: bool

    @property
    def queue_name(self) -> str:
        """As the trace has it: poll queues have numbers of their own."""
        return f"{'p' if self.polls else 'q'}{self.queue}"


def _library() -> Path:
    sources = tuple(sorted(SOURCES.glob("*.[ch]")))
    flags = ("-std=gnu11", "-fvisibility=hidden", "-pthread", *blkio_cflags())
    return shared_library("simblkio", sources, flags)


def preloaded(**configuration: int) -> dict[str, str]:
    """The environment of a process that shall have the simulator, configured as by Simulator.configure()."""
    return os.environ | {
        "LD_PRELOAD": f"{os.environ.get('LD_PRELOAD', '')} {_library()}".strip(),
        "SIMBLKIO": " ".join(f"{name}={value}" for name, value in configuration.items()),
    }


def is_preloaded() -> bool:
    """Whether this process has it."""
    return "simblkio-" in Path("/proc/self/maps").read_text()


@final
class Disk:
    """A simulated disk. What becomes of it may be said from any thread."""

    def __init__(self, simulator: "Simulator", number: int, driver: Driver, path: Path) -> None:
        self.number = number
        self.driver = driver
        self.path = path
        self._simulator = simulator

    def override(self, **properties: int) -> None:
        """Have other properties (max_segments=4) when it is connected to next."""
        for name, value in properties.items():
            self._simulator.call(
                "override", self.number, name.replace("_", "-").encode(), str(value).encode()
            )

    def die(self, death: Death, errno: int = 5) -> None:
        """Whoever uses it has a dead device; with BROKEN, do_io fails with *errno*."""
        self._simulator.call("die", self.number, int(death), errno)

    def restart(self) -> None:
        """Another backend listens, with the same contents; the one that did is killed if it was not."""
        self._simulator.call("serve", self.number)

    def resize(self, size: int) -> None:
        """Another capacity, in bytes, from now on."""
        self._simulator.call("resize", self.number, ctypes.c_uint64(size))

    def power_failure(self) -> None:
        """Whoever uses it has a dead device, and what was not made sure of may be lost."""
        self._simulator.call("power_failure", self.number)

    def content(self, offset: int, length: int) -> bytes:
        """What a read would give now."""
        data = ctypes.create_string_buffer(length)
        self._simulator.call("read", self.number, ctypes.c_uint64(offset), data, ctypes.c_size_t(length))
        return data.raw

    def outcomes(self, sector: int) -> set[bytes]:
        """What a sector may hold after a power failure now."""
        found = set()
        data = ctypes.create_string_buffer(SECTOR)
        for index in range(self._simulator.call("outcomes", self.number, ctypes.c_uint64(sector))):
            self._simulator.call("outcome", self.number, ctypes.c_uint64(sector), index, data)
            found.add(data.raw)
        return found


@final
class Simulator:
    """The one of this process, which preloaded() has set up."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(_library()))
        for name in ("event_name", "violation"):
            getattr(self._library, f"simblkio_{name}").restype = ctypes.c_char_p
        for name in ("event_count", "trace_hash"):
            getattr(self._library, f"simblkio_{name}").restype = ctypes.c_uint64
        self._library.simblkio_trace.restype = ctypes.c_size_t
        self._library.simblkio_haunt.restype = ctypes.c_int64

    def call(self, name: str, *arguments: Any) -> int:
        """One of its functions; OSError: what it refuses."""
        result: int = getattr(self._library, f"simblkio_{name}")(*arguments)
        if result < 0:
            raise OSError(-result, f"simblkio_{name}{arguments}: {os.strerror(-result)}")
        return result

    # --- how it behaves -------------------------------------------------------------------------------------

    def configure(self, **configuration: int) -> None:
        """Of the numbers in control.c's KEYS: seed, hold, late, ... Chances are per mille."""
        text = " ".join(f"{name}={value}" for name, value in configuration.items())
        self.call("configure", text.encode())

    def reset(self) -> None:
        """Begin anew. No device may be open; threads may be about to destroy one that was."""
        dismiss()
        for thread in threading.enumerate():
            if thread.name == NAME:
                thread.join(PATIENCE)
        living = self.call("reset")
        assert living == 0, f"{living} instances of libblkio were not destroyed"

    def disk(self, driver: Driver, path: Path, size: int = 1 << 20) -> Disk:
        """A new disk that can be opened at *path*; of io_uring, the one that a file there has become."""
        number = self.call("disk", int(driver), os.fsencode(path), ctypes.c_uint64(size))
        if driver is Driver.VHOST_USER:
            self.call("serve", number)
        return Disk(self, number, driver, path)

    # --- what happens now -----------------------------------------------------------------------------------

    def requests(self) -> list[SimulatedRequest]:
        """All that are in flight, the latest instance's first, and then in the order of their submission."""
        room = (_Request * 4096)()
        return [
            SimulatedRequest(
                id=each.id,
                operation=OPERATIONS[each.operation],
                start=each.start,
                length=each.length,
                flags=each.flags,
                segments=each.segments,
                place=Place(each.place),
                disk=each.disk,
                instance=each.instance,
                queue=each.queue,
                polls=bool(each.polls),
            )
            for each in room[: self.call("requests", room, len(room))]
        ]

    def complete(self, request: SimulatedRequest | None = None, *, errno: int = 0) -> int:
        """Carry out one that the device has, or all, and signal that; with *errno* it fails. How many."""
        return self.call("complete", ctypes.c_uint64(request.id if request else 0), -errno)

    def signal(self) -> None:
        """An event for nothing, on every queue."""
        self._library.simblkio_signal()

    def fail(self, call: str, errno: int, times: int = 1) -> None:
        """Have the next calls of a kind fail: see simblkio_fail() in control.c."""
        self.call("fail", call.encode(), errno, times)

    @contextmanager
    def blocking(self, call: str) -> Iterator[None]:
        """Calls of a kind wait until the block is left: see simblkio_block() in control.c."""
        self.call("block", call.encode(), 1)
        try:
            yield
        finally:
            self.call("block", call.encode(), 0)

    def blocked(self, call: str) -> int:
        """How many are waiting."""
        return self.call("blocked", call.encode())

    def die_at(self, calls: int, death: Death, errno: int = 5) -> None:
        """The device that is called dies within the *calls*-th call from now on."""
        self._library.simblkio_die_at(ctypes.c_long(calls), int(death), errno)

    def clock(self, seconds: float | None) -> None:
        """Have time.monotonic(), and aioblk's clock, begin at *seconds*, above 0, and pass by a microsecond
        with each reading, and by what somebody sleeps; None: the machine's clock, as after reset().

        It is so in all threads. A time-out of a lock is measured by the machine's clock all the same: it
        comes at once where that is ahead of the virtual one, and late where it is behind."""
        if seconds is not None and seconds <= 0:
            raise ValueError(f"the time begins above 0, and not at {seconds}")
        self._library.simblkio_clock(ctypes.c_uint64(0 if seconds is None else max(round(seconds * 1e9), 1)))

    def patience(self, seconds: int) -> None:
        """End the process with the last events, and by SIGABRT, unless another patience is asked for in so
        many seconds of the machine's clock; 0: never."""
        self._library.simblkio_patience(seconds)

    def tell_of_crashes(self) -> None:
        """Have this process, where it crashes, tell the last events before anything else, once."""
        self._library.simblkio_tell_of_crashes()

    def haunt(self) -> int:
        """Devices that were given up write to the memory of reads that they had. How many bytes."""
        return self.call("haunt")

    # --- what has happened ----------------------------------------------------------------------------------

    @property
    def violations(self) -> list[str]:
        """What the caller has done wrong, while configured with record=1."""
        count = self.call("violations")
        return [self._library.simblkio_violation(index).decode() for index in range(count)]

    def forgive(self) -> list[str]:
        """Forget the violations; what they were."""
        forgiven = self.violations
        self._library.simblkio_forgive()
        return forgiven

    @property
    def counts(self) -> dict[str, int]:
        """How often each kind of event has occurred."""
        kinds = range(self.call("event_kinds"))
        return {
            self._library.simblkio_event_name(kind).decode(): self._library.simblkio_event_count(kind)
            for kind in kinds
        }

    @property
    def trace(self) -> list[str]:
        """The last events."""
        text = ctypes.create_string_buffer(1 << 20)
        length = self._library.simblkio_trace(text, ctypes.c_size_t(len(text)))
        return text.raw[:length].decode().splitlines()

    @property
    def trace_hash(self) -> int:
        """Of all that has happened: the same for the same seed and the same calls."""
        return int(self._library.simblkio_trace_hash())
