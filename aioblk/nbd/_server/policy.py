"""What clients are granted, and who is let in."""

import math
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from types import NoneType
from typing import Literal, SupportsIndex, final

from ...errors import OptionError
from ...layers.throttle import Rate

GRANULE = 4096  # bytes, what the smallest buffer takes
LEAST_MEMORY = 1 << 20
LONGEST_WAIT = 1e6  # seconds, what timers of all kinds can do


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the clients of a :class:`Server` are granted.

    Raises:
        OptionError: a value is out of range.
    """

    clients: int = 100
    """At a time; others are refused. As many again may be shaking hands."""
    requests: int = 128
    """In flight at a time, of one client that is alone. One in eight of them each client has for itself, at
    least one; the others, at least one, are for all, in turns."""
    memory: int = 64 << 20
    """Bytes for the data of all clients. Half of them are shared out evenly among as many as there may be,
    and nobody else gets those; the rest is for all, in turns."""
    rate: Rate | None = None
    """Of each client; what is beyond it waits."""
    patience: float = 30.0
    """Seconds for the whole handshake; for which a client may be behind the least rate; of silence until a
    peer in the network is taken for dead."""
    least_rate: int = 4096
    """Bytes per second that a client sends or takes when it is in the middle of something."""
    idle: float | None = None
    """Seconds after which a client that has asked for nothing is sent away. None: it may stay."""
    networks: tuple[IPv4Network | IPv6Network, ...] | None = None
    """From where TCP connections are taken. None: from anywhere."""
    users: frozenset[int] | None = None
    """See ``groups``."""
    groups: frozenset[int] | None = None
    """Whose connections are taken at Unix sockets, by the numbers of the process that has connected: it is
    enough to be one of the users, or to have one of the groups as its own. None, both: everybody's."""
    when_lost: Literal["end", "reconnect"] = "end"
    """When a device is lost, its clients are sent away: whatever they have not made durable is in doubt, and
    none of them could tell from a flush that comes later. Then the server ends with :class:`DeviceLostError`,
    or opens the device again as soon as it can be, and refuses clients until then. See to it in this case
    that what was behind it does nothing any more."""
    drain: float = 10.0
    """Seconds in which, in the end, what is in flight is finished and answered. Who has not taken its answers
    then is cut off."""

    def __post_init__(self) -> None:
        _refuse_unless_number("clients", self.clients, whole=True)
        for name, least in (
            *(("clients", 1), ("requests", 1), ("least_rate", 1), ("patience", 0.0), ("drain", 0.0)),
            ("memory", max(LEAST_MEMORY, 2 * GRANULE * self.clients)),
            *([] if self.idle is None else [("idle", 0.0)]),
        ):
            value: float = getattr(self, name)
            _refuse_unless_number(name, value, whole=isinstance(least, int))
            if not value >= least:  # nor is it nan
                raise OptionError(
                    f"{name} must be at least {_plain(least)}, not {_plain(value)}", driver="nbd"
                )
            if isinstance(least, float) and (value > LONGEST_WAIT or math.isinf(value)):
                raise OptionError(
                    f"{name} must be at most {LONGEST_WAIT:g} seconds, not {_plain(value)}", driver="nbd"
                )
        if not isinstance(self.rate, (Rate, NoneType)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise OptionError(
                f"rate must be a Rate, or None, not {self.rate!r}: aioblk.Rate(bytes=10 << 20), for example",
                driver="nbd",
            )
        if self.when_lost not in ("end", "reconnect"):
            raise OptionError(f"when_lost is 'end' or 'reconnect', not {self.when_lost!r}", driver="nbd")

    @property
    def own_requests(self) -> int:
        """What each client has for itself."""
        return max(1, self.requests // 8)

    @property
    def own_memory(self) -> int:
        """Bytes that each client has for itself: a page at least."""
        return max(GRANULE, self.memory // 2 // self.clients // GRANULE * GRANULE)


def _refuse_unless_number(name: str, value: object, *, whole: bool) -> None:
    if not isinstance(value, SupportsIndex if whole else (float, SupportsIndex)):
        kind = "a whole number" if whole else "a number of seconds"
        raise OptionError(f"{name} must be {kind}, not {value!r}", driver="nbd")


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"
