"""Command: what a client has asked for, and how far that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from .contexts import Context


@final
@dataclass(slots=True)
class Inquiry:
    """Whom a block status asks, and the reply that says what they have said."""

    contexts: Sequence[tuple[int, Context]]
    """By number."""
    reply: bytes = b""


@final
class Command:
    """One that is being served. Offsets and lengths are in bytes.

    It is made for every read and write: what most have no use for is the class's until it is set.
    """

    parts: int = 1
    """Those not done: each piece, and the task that receives until it is through with the command."""
    flush: bool = False
    """What has been written is yet to be made durable."""
    inquiry: Inquiry | None = None
    """What a block status asks for."""
    error: BaseException | None = None
    """The first that a part has met."""
    at: int | None = None
    """Where it did, or what goes step by step is, if that is known."""

    def __init__(self, kind: int, flags: int, cookie: int, offset: int, length: int, payload: int) -> None:
        self.kind = kind
        self.flags = flags
        self.cookie = cookie
        self.offset = offset
        self.length = length
        self.payload = payload
        """How many bytes follow it."""
        self.unanswered = length
        """How many bytes of a read no reply has begun to answer."""
