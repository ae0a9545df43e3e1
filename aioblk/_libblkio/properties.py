"""Every property of libblkio in one table, and a mapping that reads them.

An instance of libblkio is created, then connected, then started. A property can be read from some state on
and, if at all, written in exactly one; the table says which. libblkio 1.5 answers some early reads with
placeholders. The table follows the manual, so that what can be read is also true.
"""

import enum
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, Protocol, TypeAlias, cast, final

from ..errors import OptionError, PropertyError

PropertyValue: TypeAlias = bool | int | str
Kind: TypeAlias = Literal["bool", "int", "uint64", "str"]

INT_MAX = 2**31 - 1
UINT64_MAX = 2**64 - 1


class State(enum.IntEnum):
    """Where a libblkio instance is in its life; it only ever moves forward."""

    CREATED = 0
    CONNECTED = 1
    STARTED = 2
    DESTROYED = 3

    def __str__(self) -> str:
        return self.name.lower()


IO_URING = "io_uring"
NVME_IO_URING = "nvme-io_uring"
VHOST_USER = "virtio-blk-vhost-user"
VHOST_VDPA = "virtio-blk-vhost-vdpa"
VFIO_PCI = "virtio-blk-vfio-pci"

RINGS = frozenset({IO_URING, NVME_IO_URING})
VIRTIO = frozenset({VHOST_USER, VHOST_VDPA, VFIO_PCI})
DRIVERS = RINGS | VIRTIO


@final
class Property(NamedTuple):
    """One property: its name and type in libblkio, who has it, when it can be read and written."""

    name: str
    kind: Kind
    doc: str
    readable_from: State = State.CONNECTED
    writable_in: State | None = None
    drivers: frozenset[str] = DRIVERS

    def check(self, driver: str, value: object) -> PropertyValue:
        """*value* if it has the property's type and range, else OptionError that says what is expected."""
        match self.kind:
            case "bool":
                if isinstance(value, bool):
                    return value
                expected = "True or False"
            case "str":
                if isinstance(value, str) and "\0" not in value and is_utf8(value):
                    return value
                expected = "a string of UTF-8 without null characters"
            case "int" | "uint64":
                low, high = (-INT_MAX - 1, INT_MAX) if self.kind == "int" else (0, UINT64_MAX)
                if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
                    return value
                expected = f"an integer from {low} to {high}"
        raise OptionError(f"{self.name} must be {expected}, not {value!r}", driver=driver, operation="set")


def is_utf8(text: str) -> bool:
    """Whether libblkio can take the text; of file names it takes no others, though the kernel would."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _setting(name: str, kind: Kind, state: State, doc: str, *, drivers: frozenset[str] = DRIVERS) -> Property:
    """A property that can be written in *state* and read from then on."""
    return Property(name, kind, doc, readable_from=state, writable_in=state, drivers=drivers)


def _zone_fact(name: str, kind: Kind, doc: str) -> Property:
    return Property(name, kind, doc, drivers=frozenset({NVME_IO_URING}))


_CREATED, _CONNECTED = State.CREATED, State.CONNECTED

PROPERTIES: Mapping[str, Property] = {
    entry.name: entry
    for entry in (
        # What the instance is
        Property("driver", "str", "Name of the driver.", readable_from=_CREATED),
        Property(
            "can-add-queues", "bool", "Whether queues can be added once started.", readable_from=_CREATED
        ),
        # Where the device is
        _setting("path", "str", _CREATED, "File, device node, socket or sysfs directory of the device."),
        _setting(
            "fd",
            "int",
            _CREATED,
            "Open file descriptor of the device; after connecting by path, the one that libblkio opened.",
            drivers=RINGS | {VHOST_VDPA},
        ),
        _setting("read-only", "bool", _CREATED, "Whether only reads and flushes are accepted."),
        _setting(
            "direct",
            "bool",
            _CREATED,
            "Whether the page cache is bypassed (O_DIRECT).",
            drivers=frozenset({IO_URING}),
        ),
        # Queues
        _setting("num-queues", "int", _CONNECTED, "Number of queues."),
        _setting("num-poll-queues", "int", _CONNECTED, "Number of poll queues."),
        _setting("num-entries", "int", _CONNECTED, "Entries of each queue's io_uring.", drivers=RINGS),
        _setting("queue-size", "int", _CONNECTED, "Descriptors of each virtqueue.", drivers=VIRTIO),
        Property("max-queue-size", "int", "Largest queue-size libblkio accepts.", drivers=VIRTIO),
        Property("max-queues", "int", "Most queues there can be, poll queues included."),
        Property("supports-poll-queues", "bool", "Whether the device can have poll queues."),
        # The device, and requests of every kind
        Property("capacity", "uint64", "Size of the device in bytes, at the time of reading."),
        Property("request-alignment", "int", "Offset and length of a request are multiples of it, in bytes."),
        Property("optimal-io-alignment", "int", "Alignment of offset and length that is fastest, in bytes."),
        Property("optimal-io-size", "int", "Request length that is fastest, in bytes; 0: unspecified."),
        Property("flush-needed", "bool", "Whether completed writes need a flush to be persistent."),
        # Reads and writes
        Property("buf-alignment", "int", "Address and length of a buffer are multiples of it, in bytes."),
        Property("optimal-buf-alignment", "int", "Alignment of buffers that is fastest, in bytes."),
        Property(
            "can-grow", "bool", "Whether writes past the end grow the device and reads there give zeroes."
        ),
        Property("max-segments", "int", "Most buffers of one request."),
        Property("max-segment-len", "int", "Largest length of one buffer in bytes; 0: unlimited."),
        Property("max-transfer", "int", "Largest read or write in bytes; 0: unlimited."),
        Property("supports-fua-natively", "bool", "Whether FUA writes need no flush behind the scenes."),
        # Write-zeroes and discards
        Property("max-write-zeroes-len", "uint64", "Largest write-zeroes in bytes; 0: unlimited."),
        Property("max-discard-len", "uint64", "Largest discard in bytes; 0: unlimited."),
        Property("discard-alignment", "int", "Start (less the offset) and length of discards, in bytes."),
        Property("discard-alignment-offset", "int", "First byte that can be discarded."),
        # Memory regions
        Property("needs-mem-regions", "bool", "Whether buffers must lie in mapped memory regions."),
        Property("needs-mem-region-fd", "bool", "Whether memory regions must have a file descriptor."),
        Property("may-pin-mem-regions", "bool", "Whether mapping may pin the pages of the region."),
        Property("mem-region-alignment", "uint64", "Address and length of regions are multiples, in bytes."),
        Property("max-mem-regions", "uint64", "Most regions that can be mapped at a time."),
        # Zones
        _zone_fact("zoned", "int", "0: no zones, 1: host-aware, 2: host-managed (sequential writes only)."),
        _zone_fact("max-active-zones", "int", "Most zones open or closed (partly written) at a time."),
        _zone_fact("max-open-zones", "int", "Most zones open at a time."),
        _zone_fact("zone-size", "uint64", "Distance from one zone to the next in bytes."),
        _zone_fact("nr-zones", "uint64", "Number of zones."),
        _zone_fact("append-support", "bool", "Whether the device has zone appends (libblkio offers none)."),
        _zone_fact("zone-append-max-bytes", "uint64", "Largest zone append in bytes."),
    )
}


def lookup(driver: str, name: str) -> Property:
    """The entry of the table; PropertyError, with the nearest names, if the driver has none of that name."""
    entry = PROPERTIES.get(name)
    if entry is not None and driver in entry.drivers:
        return entry
    names = [known.name for known in PROPERTIES.values() if driver in known.drivers]
    if entry is not None:
        hint = f"only {', '.join(sorted(entry.drivers))} has it"
    else:
        import difflib

        near = difflib.get_close_matches(name, names)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
    raise PropertyError(f"no property {name!r}; {hint}", driver=driver, operation="get")


class PropertySource(Protocol):
    """What has properties: a Blkio."""

    @property
    def driver(self) -> str: ...
    @property
    def state(self) -> State: ...
    def get(self, name: str, /) -> PropertyValue: ...


@final
class Properties(Mapping[str, PropertyValue]):
    """A device's libblkio properties under libblkio's names: ``properties["queue-size"]``.

    The values are those of the started device; only ``capacity`` changes. Iteration gives the properties that
    can be read now.
    A look-up of any other raises :class:`PropertyError`, which is also a KeyError.
    """

    def __init__(self, source: PropertySource) -> None:
        self._source = source

    def __getitem__(self, name: str) -> PropertyValue:
        return self._source.get(name)

    def __iter__(self) -> Iterator[str]:
        for name in PROPERTIES:
            if name in self:
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<Properties {dict(self)!r}>"


def usable_mem_regions(source: PropertySource) -> int:
    """How many regions can really be mapped at a time.

    The memory of libblkio's virtqueues is a region too, and max-mem-regions counts it. A vhost-user backend
    that is sent one too many drops the connection, and libblkio hears of it only with the next call.
    """
    own = 1 if source.driver in VIRTIO else 0
    return cast(int, source.get("max-mem-regions")) - own
