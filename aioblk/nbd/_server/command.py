"""Command: what a client has asked for, and how far that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from .contexts import Context, States


@final
@dataclass(slots=True)
class Command:
    """One that is being served. Offsets and lengths are in bytes."""

    kind: int
    flags: int
    cookie: int
    offset: int
    length: int
    payload: int
    """How many bytes follow it."""
    unanswered: int
    """How many bytes of a read no reply has begun to answer."""
    parts: int = 1
    """Those not done: each piece, and the task that receives until it is through with the command."""
    reached: int | None = None
    """Where what goes step by step is."""
    flush: bool = False
    """What has been written is yet to be made durable."""
    contexts: Sequence[tuple[int, Context]] = ()
    """What a block status is asked of, by number."""
    states: Sequence[States] | None = None
    """And what they have said."""
    error: BaseException | None = None
    """The first that a part has met."""
    error_offset: int | None = None
    """Where it did, if that is known."""
