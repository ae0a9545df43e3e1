"""What an export counts."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from errno import errorcode
from typing import final

from ._vhost_user.protocol import KINDS

__all__ = ["Counts", "VhostUserStatistics"]


@final
@dataclass(frozen=True, slots=True)
class VhostUserStatistics:
    """What :meth:`VhostUser.statistics` reports. No number falls but those of what is there now."""

    clients: int
    """Now: none or one."""
    clients_total: int
    """That have come so far."""
    in_flight: int
    """Requests of the client that is there."""
    requests: Mapping[str, int]
    """That were begun, by kind: ``read``, ``write``, ``flush``, ``discard``, ``write_zeroes``."""
    bytes: Mapping[str, int]
    """That those were about. Of a flush there are none."""
    errors: Mapping[str, int]
    """Requests that have failed, by the name of the errno."""
    answered: int
    """Requests that were answered without the disk: they were wrong, or asked for its name."""
    broken: int
    """Queues in which there was nonsense, and which were stopped therefore."""


@final
class Counts:
    """What has been counted so far, of all clients."""

    def __init__(self) -> None:
        self.clients: int = 0
        self.requests: dict[int, int] = dict.fromkeys(KINDS, 0)
        self.bytes: dict[int, int] = dict.fromkeys(KINDS, 0)
        self.errors: Counter[int] = Counter()
        self.answered: int = 0
        self.broken: int = 0

    def seen(self, *, clients: int, in_flight: int) -> VhostUserStatistics:
        return VhostUserStatistics(
            clients=clients,
            clients_total=self.clients,
            in_flight=in_flight,
            requests={KINDS[kind]: count for kind, count in self.requests.items()},
            bytes={KINDS[kind]: count for kind, count in self.bytes.items() if KINDS[kind] != "flush"},
            errors={errorcode.get(number, "EIO"): count for number, count in self.errors.items()},
            answered=self.answered,
            broken=self.broken,
        )

    def __str__(self) -> str:
        """In words."""
        said = f"{sum(self.requests.values())} requests"
        if failed := sum(self.errors.values()):
            said += f", {failed} failed"
        return said
