"""What a server exports, as it was agreed on with it."""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import final

from .. import protocol

__all__ = ["Export", "Headers"]

DEFAULT_BLOCK = 512  # where a server does not say: all take this
DEFAULT_PREFERRED = 4096
LARGEST_PAYLOAD = 32 << 20  # which all take, says the protocol; what is larger only keeps others waiting
LARGEST_EFFECT = 1 << 30  # of commands without data, in 32 bits
LARGEST_EXTENDED_EFFECT = 1 << 46


class Headers(IntEnum):
    """How commands and replies begin."""

    SIMPLE = 0
    STRUCTURED = 1
    EXTENDED = 2


@final
@dataclass(frozen=True, slots=True)
class Export:
    """Its size and rules. Lengths are in bytes."""

    name: str
    size: int
    flags: int
    headers: Headers = Headers.SIMPLE
    minimum_block: int = 0
    """0: the server does not say."""
    preferred_block: int = 0
    maximum_payload: int = 0
    contexts: dict[str, int] = field(default_factory=dict[str, int])
    """What can be asked of its blocks, and the number that each goes by."""

    def has(self, flag: int) -> bool:
        return bool(self.flags & flag)

    @property
    def alignment(self) -> int:
        """Of offsets and lengths."""
        if self.minimum_block:
            return self.minimum_block
        return 1 if self.size % DEFAULT_BLOCK else DEFAULT_BLOCK

    @property
    def payload(self) -> int:
        """The most data of one command."""
        most = min(self.maximum_payload or LARGEST_PAYLOAD, LARGEST_PAYLOAD)
        return most - most % self.alignment

    @property
    def effect(self) -> int:
        """The most that a command without data is for."""
        return LARGEST_EXTENDED_EFFECT if self.headers is Headers.EXTENDED else LARGEST_EFFECT

    def same_as(self, other: "Export") -> str | None:
        """None: another connection may take the place of one to *other*; else what differs."""
        for what, ours, theirs in (
            ("size", self.size, other.size),
            ("flags", hex(self.flags), hex(other.flags)),
            ("headers", self.headers.name.lower(), other.headers.name.lower()),
            ("minimum block size", self.minimum_block, other.minimum_block),
            ("preferred block size", self.preferred_block, other.preferred_block),
            ("maximum payload", self.maximum_payload, other.maximum_payload),
            ("metadata contexts", sorted(self.contexts), sorted(other.contexts)),
        ):
            if ours != theirs:
                return f"its {what} is {ours} now, and was {theirs}"
        return None

    @property
    def multi_conn(self) -> bool:
        return self.has(protocol.CAN_MULTI_CONN)
