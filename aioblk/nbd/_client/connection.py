"""One connection in use: commands go out, replies come in, any number at a time."""

import asyncio
import contextlib
import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import cast, final

from typing_extensions import Buffer

from .. import protocol
from .channel import Channel
from .commands import Command
from .export import Export, Headers
from .replies import Receiver, ViolationError

__all__ = ["Connection"]

MOST_BUFFERS = 512  # of one sendmsg(); the kernel takes 1024
MOST_AT_ONCE = 4 << 20  # bytes of one sendmsg(): it takes a lock for as long
COOKIES = itertools.count(1)  # of all connections: a reply to one of another is to be noticed


@final
class Connection:
    """Belongs to the running loop. It never waits: what the kernel does not take is sent when it does."""

    __slots__ = (
        *("_batch", "_channel", "_flush_scheduled", "_header", "_is_extended", "_left", "_loop", "_magic"),
        *("_outgoing", "_parts", "_receiver", "_writing", "answered_tick", "answers", "export", "in_flight"),
        *("_tell_answered", "_tell_broken", "over", "sent", "tick"),
    )

    def __init__(
        self,
        channel: Channel,
        export: Export,
        loop: asyncio.AbstractEventLoop,
        answered: Callable[[Command], object],
        broken: Callable[["Connection", str, bool], object],
    ) -> None:
        """Of a channel on which the export was agreed on; it is the connection's from now on.

        *answered* is called with a command whose reply is complete: with an error, or with all that it asked
        for. *broken* is called when the connection is over, with why, and whether that is the server's fault;
        what is in flight is still there then.
        """
        self._channel = channel
        self._loop = loop
        self._tell_answered = answered
        self._tell_broken = broken
        self.export = export
        self.over: str | None = None
        """Why it is over."""
        self.in_flight: dict[int, Command] = {}
        """Commands whose replies are not complete, the one that was given to the connection first first."""
        self.tick = 0
        """The time, as the watch for silence has it."""
        self.answered_tick = 0
        """The latest at which a command was sent that has been answered."""
        self.answers = 0
        """How many have been."""
        self.sent = 0
        """How many bytes the kernel has taken."""
        self._receiver = Receiver(channel, export, self.in_flight, self._answered, self.end)
        self._is_extended = export.headers is Headers.EXTENDED
        self._header = protocol.EXTENDED_COMMAND if self._is_extended else protocol.COMMAND
        self._magic = protocol.EXTENDED_COMMAND_MAGIC if self._is_extended else protocol.COMMAND_MAGIC
        self._outgoing: OrderedDict[Command, None] = OrderedDict()  # any of which can be taken back
        # What the kernel is to take next, whose it is, and how many bytes that are.
        self._parts: list[Buffer] = []
        self._batch: set[Command] = set()
        self._left = 0
        self._flush_scheduled = False
        self._writing = False  # the kernel takes no more at present
        loop.add_reader(channel.socket, self._on_readable)

    # --- out ------------------------------------------------------------------------------------------------

    def send(self, command: Command) -> None:
        """Send it: at once if it is alone, else with others of this turn of the loop."""
        command.connection = self
        command.tick = self.tick
        command.cookie = cookie = next(COOKIES)
        is_alone = not self.in_flight
        self.in_flight[cookie] = command
        self._outgoing[command] = None
        if self._flush_scheduled or self._writing:
            return
        if is_alone:
            self._flush()
        else:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Hand to the kernel what it takes now, and the rest as soon as it can take it."""
        self._flush_scheduled = False
        channel = self._channel
        try:
            while self.over is None:
                if not self._parts:
                    if self._outgoing:
                        self._take_batch()
                    elif not channel.unsent:
                        break
                sent = channel.send(self._parts[:MOST_BUFFERS])
                self.sent += sent
                self._left -= sent
                if not self._left:
                    self._parts = []
                    self._batch.clear()
                elif sent:
                    self._parts = _behind(self._parts, sent)
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(channel.socket, self._flush)
            return
        except OSError as error:
            self.end(error.strerror or "sending failed", False)
            return
        if self._writing and self.over is None:
            self._writing = False
            self._loop.remove_writer(channel.socket)

    def _take_batch(self) -> None:
        """Begin with some of what is to be sent."""
        parts, batch, outgoing, pack = self._parts, self._batch, self._outgoing, self._header.pack
        magic, total = self._magic, 0
        while outgoing and total < MOST_AT_ONCE and len(parts) < MOST_BUFFERS:
            command, _ = outgoing.popitem(last=False)
            kind, flags, length = command.kind, command.flags, command.length
            batch.add(command)
            command.is_sent = True
            total += self._header.size
            if kind == protocol.WRITE:
                if self._is_extended:
                    flags |= protocol.PAYLOAD_LEN
                parts.append(pack(magic, flags, kind, command.cookie, command.offset, length))
                parts += cast("list[memoryview]", command.views)
                total += length
            else:
                if kind == protocol.READ:
                    self._receiver.expect(length)
                parts.append(pack(magic, flags, kind, command.cookie, command.offset, length))
        self._left = total

    def give_up(self, command: Command) -> bool:
        """Nobody wants its reply, nor may its memory be used any more. False: nothing of it was sent.

        What the kernel has been given of a write it has copied. Where it took only a part, or none yet of
        what was put together for it, the rest is copied here, and sent.
        """
        self._receiver.let_go(command)
        if not command.is_sent:
            del self._outgoing[command]
            del self.in_flight[command.cookie]
            return False
        if command in self._batch and command.kind == protocol.WRITE:
            self._copy_batch()
        return True

    def _copy_batch(self) -> None:
        """Nobody's memory is needed any more for what the kernel is to take next."""
        self._parts = [b"".join(self._parts)]
        self._batch.clear()

    # --- in -------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        if self._receiver.on_readable() and self.over is None:
            self._loop.call_soon(self.look)
        if self._channel.unsent and self.over is None and not self._writing:
            self._flush()

    def look(self) -> None:
        """Take what has come, if the loop has not had the time to say so."""
        if self.over is None:
            self._on_readable()

    def _answered(self, command: Command) -> None:
        if not command.is_sent:
            raise ViolationError("a command is answered that was not sent")
        if self._batch and command in self._batch and command.kind == protocol.WRITE:
            # It was answered before all of it was sent, and its memory is its owner's again.
            self._copy_batch()
        if command.tick > self.answered_tick:
            self.answered_tick = command.tick
        self.answers += 1
        command.connection = None
        self._tell_answered(command)

    @property
    def moved(self) -> int:
        """How many bytes have gone either way."""
        return self.sent + self._receiver.moved

    @property
    def is_of_network(self) -> bool:
        return self._channel.is_of_network

    def is_unheard_for(self, seconds: float) -> bool:
        """Whether the kernel repeats what it has sent, and has heard nothing for so long."""
        return self._channel.is_unheard_for(seconds)

    # --- the end --------------------------------------------------------------------------------------------

    def end(self, why: str, is_fault: bool = False) -> None:
        """Have done with the server, which is told nothing; idempotent. Whoever has it is told."""
        if self.over is None:
            self._let_go(why)
            self._tell_broken(self, why, is_fault)

    def close(self) -> None:
        """Take leave of the server. Nothing is in flight."""
        if self.over is None:
            if not self._writing:
                with contextlib.suppress(OSError):  # then it finds out by itself
                    self._channel.send(
                        [self._header.pack(self._magic, 0, protocol.DISC, next(COOKIES), 0, 0)]
                    )
            self._let_go("the device is closed")

    def drop(self) -> None:
        """Without the loop, which is closed."""
        self.over = self.over or "the device was forgotten"
        self._channel.socket.close()

    def _let_go(self, why: str) -> None:
        self.over = why
        self._loop.remove_reader(self._channel.socket)
        if self._writing:
            self._loop.remove_writer(self._channel.socket)
        self._channel.close()
        self._receiver.close()
        self._outgoing.clear()
        self._parts, self._left = [], 0
        self._batch.clear()


def _behind(parts: list[Buffer], sent: int) -> list[Buffer]:
    """What of the parts lies behind so many bytes."""
    for number, part in enumerate(parts):
        view = memoryview(part).cast("B")
        if sent < len(view):
            return [view[sent:], *parts[number + 1 :]]
        sent -= len(view)
    return []
