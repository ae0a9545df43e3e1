"""What a server counts."""

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from errno import errorcode
from typing import final

from .. import protocol

COMMANDS = ("read", "write", "disconnect", "flush", "trim", "cache", "write_zeroes", "block_status")
"""The protocol's, by their numbers."""
COUNTED = tuple(number for number in range(len(COMMANDS)) if number != protocol.DISC)


@final
class Counts:
    """Of one client; and of all that an export has had."""

    __slots__ = ("bytes", "commands", "errors")

    def __init__(self) -> None:
        self.commands = [0] * len(COMMANDS)
        self.bytes = [0] * len(COMMANDS)
        self.errors: Counter[int] = Counter()

    def add(self, other: "Counts") -> None:
        for number in COUNTED:
            self.commands[number] += other.commands[number]
            self.bytes[number] += other.bytes[number]
        self.errors.update(dict(other.errors))

    def __str__(self) -> str:
        """In words."""
        said = f"{sum(self.commands)} commands, {self.bytes[protocol.READ]} bytes read"
        said += f", {self.bytes[protocol.WRITE]} written"
        if failed := sum(self.errors.values()):
            said += f", {failed} failed"
        return said


@final
@dataclass(frozen=True, slots=True)
class ExportStatistics:
    """Of one export, since it was added."""

    clients: int
    """That have it now."""
    clients_total: int
    """That have had it."""
    commands: Mapping[str, int]
    """By kind: ``read``, ``write``, ``flush``, ``trim``, ``cache``, ``write_zeroes``, ``block_status``."""
    bytes: Mapping[str, int]
    """That those were about. Of a flush there are none."""
    errors: Mapping[str, int]
    """Commands that have failed or were refused, by the name of the errno that the client was told."""


@final
@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """What :meth:`Server.statistics` reports. No number falls but those of what is there now."""

    connections: int
    """Now, those that shake hands included."""
    connections_total: int
    """Accepted so far."""
    clients: int
    """That have chosen an export, now."""
    refused: Mapping[str, int]
    """Who was not let in, by reason: ``address``, ``user`` (which the policy does not name), ``full``,
    ``lost`` (the device is)."""
    handshakes_failed: Mapping[str, int]
    """Who did not get as far as an export, by reason: ``protocol`` (nonsense, or gone), ``tls``, ``late``,
    ``crowded`` (who came first makes room)."""
    sent_away: Mapping[str, int]
    """Clients, by reason: ``stalled``, ``idle``, ``removed``, ``lost``, ``end``."""
    exports: Mapping[str, ExportStatistics]
    """Of each export, by its name."""


@final
class ExportCounts:
    """What has been counted of an export."""

    def __init__(self) -> None:
        self.clients: dict[Counts, None] = {}
        """Of those that have it."""
        self._clients_total = 0
        self._former = Counts()
        self._lock = threading.Lock()  # whoever looks may be in another thread

    def begin(self) -> Counts:
        """A client has chosen it."""
        counts = Counts()
        with self._lock:
            self.clients[counts] = None
            self._clients_total += 1
        return counts

    def end(self, counts: Counts) -> None:
        with self._lock:
            if counts in self.clients:
                del self.clients[counts]
                self._former.add(counts)

    def seen(self) -> ExportStatistics:
        whole = Counts()
        with self._lock:
            for counts in (self._former, *self.clients):
                whole.add(counts)
        return ExportStatistics(
            clients=len(self.clients),
            clients_total=self._clients_total,
            commands={COMMANDS[number]: whole.commands[number] for number in COUNTED},
            bytes={COMMANDS[number]: whole.bytes[number] for number in COUNTED if number != protocol.FLUSH},
            errors={errorcode.get(number, "EIO"): count for number, count in whole.errors.items()},
        )
