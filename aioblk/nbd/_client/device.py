"""Nbd: a block device of what a server of the network exports."""

import asyncio
import errno
import os
import ssl
import threading
import warnings
from collections.abc import AsyncGenerator, Awaitable, Iterable, Sequence
from functools import partial
from typing import Any, NoReturn, Self, final

from typing_extensions import Buffer

from ..._device.events import DeviceEvent, Events
from ..._device.extents import Extent, ExtentKind
from ..._device.instruments import Instruments
from ..._libblkio.limits import Limits
from ..._libblkio.options import Checks
from ..._libblkio.subject import Subject
from ..._native.buffers import flat
from ..._queues.statistics import QueueStatistics
from ..._sync.loops import running_loop
from ..._sync.scopes import AsyncClosing
from ...errors import BlkioError, DeviceLostError, UsageError, request_error
from ...layers._asked import Asked, end_of_stretch
from ...layers.block_device import BlockDevice
from .. import protocol
from .block_status import BlockStatus, first_stretches
from .commands import Command, NewBytes, Views
from .export import Export
from .handshake import BASE_ALLOCATION, Dial, text_of
from .life import UNFLUSHED, Life, State, Terms, Unflushed, close_all, dial_in_time, log
from .requests import NbdRequest
from .tls import StrPath, tls_context
from .uri import DRIVER, NbdUri

__all__ = ["Nbd"]

DEFAULT_CONNECT_TIMEOUT = 30.0
DEAD_AFTER = 30.0  # seconds, where lost_after says nothing else
ZEROES_AT_ONCE = 1 << 20  # bytes, where they have to be written
MOST_PARTS = 1 << 20
LONGEST_CONTEXT = 4096  # bytes of a name
MOST_STATUS = 4096  # stretches that are looked at together

ERRORS = frozenset(
    {
        protocol.EPERM,
        protocol.EIO,
        protocol.ENOMEM,
        protocol.EINVAL,
        protocol.ENOSPC,
        protocol.EOVERFLOW,
        protocol.ENOTSUP,
        protocol.ESHUTDOWN,
    }
)
"""What the protocol knows of. Anything else is EINVAL, it says."""


@final
class Nbd(AsyncClosing, BlockDevice):
    """What an NBD server exports, as a block device of this program::

        async with aioblk.Nbd("nbd://host/disk") as dev:
            data = await dev.read(0, 4096)

    Any number of requests are in flight together. Data are received where they belong and sent from where
    they are, without a copy but for what comes along with the first of them.

    **Cancellation.** A request whose awaiting is cancelled is done at once: its buffer is not touched again.
    A change that the server may have been sent may still be made; what begins later on the same range comes
    after it.

    **Loss.** A connection that breaks, a server that answers no more (``lost_after``) or breaks the protocol
    lose the device: what is in flight fails with :class:`DeviceLostError`, and new requests are refused.
    With ``reconnect_for`` a connection that breaks is made again first, and what was in flight is sent again.
    docs/nbd-client.md says which guarantee there is then.

    :param uri: ``nbd://host:port/export``, ``nbd+unix:///export?socket=PATH``, and with TLS ``nbds://`` and
        ``nbds+unix://``.
    :param read_only: Refuse every writing request. What the server exports for reading only is in any case.
    :param connections: At most so many, 1 to 64, where the server says that they see each other's changes;
        else one. The commands go to the one that has the fewest.
    :param depth: Commands in flight on each connection, 1 to 65536; others wait for their turn.
    :param contexts: Metadata contexts beside ``base:allocation`` that :meth:`block_status` is to tell of, as
        ``qemu:dirty-bitmap:NAME``.
    :param tls: A context for TLS of one's own.
    :param tls_certificates: A directory with ca-cert.pem, and client-cert.pem and client-key.pem if the
        server wants to know who comes; None: whom the system trusts is trusted.
    :param tls_psk: A file with lines NAME:KEY, of which the URI says which name: nbds://NAME@host. Needs
        Python 3.13.
    :param connect_timeout: Seconds, from 0.1 to 86400, that opening may take; then it fails with
        ``ETIMEDOUT``. None: as long as the server likes.
    :param lost_after: Seconds, from 0.1 to 86400. A server that answers nothing for so long, and at most a
        quarter longer, while it has commands, loses the device, and so does one that drips. None: never, but
        a machine that the network does not reach any more is noticed within half a minute.
    :param reconnect_for: Seconds, from 0.1 to 86400. When a connection breaks, connect again for so long, and
        send again what was in flight. The server must do no more of what it had been sent. None: the device
        is lost at once.
    :param unflushed: With ``reconnect_for``, what becomes of the device when changes had been answered, and
        not flushed: nobody knows whether they have outlived the server. ``"lose"``: it is lost. ``"report"``:
        it goes on, and the next flush fails. ``"trust"``: they have, as where the server writes to a file
        without a cache of its own, and its machine goes on.
    :raises OptionError: An option has an impossible value; the message names it.
    """

    def __init__(
        self,
        uri: str,
        *,
        read_only: bool = False,
        connections: int = 1,
        depth: int = 64,
        contexts: Sequence[str] = (),
        tls: ssl.SSLContext | None = None,
        tls_certificates: StrPath | None = None,
        tls_psk: StrPath | None = None,
        connect_timeout: float | None = DEFAULT_CONNECT_TIMEOUT,
        lost_after: float | None = None,
        reconnect_for: float | None = None,
        unflushed: Unflushed = "lose",
    ) -> None:
        check = Checks(DRIVER)
        self._uri = NbdUri.parse(uri)
        self._subject = Subject(DRIVER, uri)
        self._wants_read_only = check.flag("read_only", read_only)
        if unflushed not in UNFLUSHED:
            raise check.error(f"unflushed must be {', '.join(UNFLUSHED)}, not {unflushed!r}")
        if isinstance(contexts, str):
            raise check.error(f"contexts must be a sequence of names, not one, as {contexts!r} is")
        for context in contexts:
            if not is_context(context):
                raise check.error(
                    f"a metadata context is namespace:name, 4096 bytes at most, not {context!r:.100}"
                )
        self._terms = Terms(
            check.integer("connections", connections, at_least=1, at_most=64),
            check.integer("depth", depth, at_least=1, at_most=65536),
            check.seconds("connect_timeout", connect_timeout),
            check.seconds("lost_after", lost_after),
            check.seconds("reconnect_for", reconnect_for),
            unflushed,
        )
        self._dial = Dial(
            self._uri,
            tls_context(self._uri, tls, tls_certificates, tls_psk),
            tuple(dict.fromkeys(name for name in contexts if name != BASE_ALLOCATION)),
            DEAD_AFTER if lost_after is None else lost_after / 2,
        )
        self._life: Life | None = None
        self._is_opening = self._has_failed = False
        # What every request looks at: while they are not what they should be, the slow path says why.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._capacity = -1
        self._mask = self._payload = 0

    # --- life -----------------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Connect to the server; ``async with`` does the same. Whatever fails leaves nothing open.

        Raises:
            UsageError: it was opened before.
            BlkioError: there is no server, or no such export (``ENOENT``), or it takes too long.
        """
        if self._life is not None or self._is_opening or self._has_failed:
            raise self._subject.misuse("open", "a device can be opened once")
        loop = running_loop("open", DRIVER, self._uri.text)
        self._is_opening = True
        try:
            dialled = await dial_in_time(self._dial, self._terms, None, self._subject)
            try:
                self._begin(loop, dialled)
            except BaseException:
                close_all(dialled)
                raise
        except BaseException:
            self._has_failed = True
            raise
        finally:
            self._is_opening = False
        return self

    def _begin(self, loop: asyncio.AbstractEventLoop, dialled: list[Any]) -> None:
        self._process = os.getpid()
        export: Export = dialled[0][1]
        self._export = export
        self._limits = limits_of(export)
        read_only = self._read_only = self._wants_read_only or export.has(protocol.READ_ONLY)
        # Nothing that the loop knows of leads to this object: it must be found if nobody closes it.
        self._asked = Asked(
            DRIVER, self._limits, lambda: export.size, lambda: read_only, filename=self._uri.text
        )
        events = self._events = Events(self._subject, Instruments(self._subject), log)
        make_error = partial(request_failed, self._uri.text)
        self._life = Life(self._subject, self._terms, self._dial, dialled, events, make_error)
        self._dispatch = self._life.dispatch
        self._is_simple = export.has(protocol.SEND_FUA)
        self._payload = export.payload
        self._loop = loop
        self._thread = threading.get_ident()
        self._capacity = export.size
        self._mask = export.alignment - 1

    async def __aenter__(self) -> Self:
        return await self.open()

    async def aclose(self) -> None:
        """Refuse new requests, wait for those in flight, and take leave of the server; idempotent.

        What was not flushed is not flushed by it. Of a lost device nothing is waited for; what a server
        without ``lost_after`` does not answer is, until :meth:`abandon`. A task that is cancelled here does
        not wait any longer; closing goes on without it. When the loop that it was opened in is closed, the
        connections are dropped at once, from any loop.

        Raises:
            UsageError: it is being opened, or another loop is running here.
        """
        running_loop("close", DRIVER, self._uri.text)
        life = self._life
        if life is None:
            if self._is_opening:
                raise self._subject.misuse("close", "the device is being opened; cancel that instead")
            self._has_failed = True
            return
        assert self._loop is not None
        if self._loop.is_closed():
            life.drop()
            return
        self._require_own_loop("close")
        self._capacity = -1
        await life.aclose()

    @property
    def closed(self) -> bool:
        """Whether the device is closed, or being closed."""
        return self._has_failed if self._life is None else self._life.closing

    def __del__(self) -> None:
        life = getattr(self, "_life", None)
        if life is not None and self._process != os.getpid():
            life.drop()  # the loop's selector is the parent's, too
        elif life is not None and not life.closing:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
            life.forget()

    def __repr__(self) -> str:
        if self._life is None:
            state = "being opened" if self._is_opening else "closed" if self._has_failed else "new"
        elif self._life.closing:
            state = "closed" if self._life.state is State.CLOSED else "being closed"
        else:
            state = str(self._life.state)
        return f"<aioblk.Nbd {self._uri.text!r} {state}>"

    # --- loss -----------------------------------------------------------------------------------------------

    @property
    def lost(self) -> DeviceLostError | None:
        """Why the device is lost; None: it is not."""
        return None if self._life is None else self._life.lost

    @property
    def reconnecting(self) -> bool:
        """Whether the server is looked for again; see ``reconnect_for``."""
        return self._life is not None and self._life.state is State.RECOVERING

    @property
    def losses(self) -> int:
        """How often it was lost. What no flush had covered is in doubt, be it back or not."""
        return 0 if self._life is None else self._life.losses

    @property
    def reconnections(self) -> int:
        """How often the device came back: by itself, or by :meth:`reconnect`."""
        return 0 if self._life is None else self._life.reconnections

    def abandon(self, reason: str = "the device was given up") -> None:
        """Declare the device lost, because the server does not answer and nothing else will tell.

        Everything in flight fails with :class:`DeviceLostError`, whose ``__cause__`` says *reason*. Does
        nothing when the device is lost or closed.

        Raises:
            UsageError: the device is not open, or the caller is not in the thread of its loop, nor in its
                process.
        """
        life = self._open_life("abandon")
        if self._process != os.getpid():
            raise self._subject.misuse(
                "abandon",
                "the device was opened before fork(); only the parent can use it, open it anew here",
            )
        if self._thread != threading.get_ident():
            raise self._subject.misuse(
                "abandon", "the device belongs to another thread; call_soon_threadsafe() helps"
            )
        life.abandon(reason)

    async def reconnect(self) -> None:
        """Connect a lost device again. Nothing is in flight on it: what was has failed, and is the caller's
        to repeat, as is all that was not flushed.

        One attempt, as long as that takes (``connect_timeout``). Tasks that call it for the same loss
        have the device back together; who calls it answers for what was not flushed when it was lost.

        Raises:
            UsageError: the device is not lost.
            DeviceLostError: what answers is another export; or the device was back meanwhile, and was lost
                once more, which is another loss than the one that this call was for.
            BlkioError: nobody answers.
        """
        life = self._open_life("reconnect")
        self._require_own_loop("reconnect")
        if life.closing:
            raise self._subject.closed("reconnect")
        if life.state is not State.LOST:
            raise self._subject.misuse("reconnect", "the device is not lost")
        await life.reconnect()

    def events(self) -> AsyncGenerator[DeviceEvent]:
        """What happens to the device from now on, until it is closed, as of a :class:`Device`. The log
        ``aioblk.nbd`` has the same."""
        self._open_life("events")
        self._require_own_loop("events")
        return self._events.listen(_nothing, None)

    # --- what it is -----------------------------------------------------------------------------------------

    @property
    def driver(self) -> str:
        """``"nbd"``, as in errors."""
        return DRIVER

    @property
    def uri(self) -> str:
        """What it was opened by."""
        return self._uri.text

    @property
    def export(self) -> str:
        """The export's name."""
        return self._uri.export

    @property
    def limits(self) -> Limits:
        self._open_life("limits")
        return self._limits

    @property
    def capacity(self) -> int:
        """The size in bytes, which never changes."""
        self._open_life("capacity")
        return self._export.size

    @property
    def read_only(self) -> bool:
        self._open_life("read_only")
        return self._read_only

    @property
    def connections(self) -> int:
        """How many there are at present."""
        return len(self._dispatch.connections) if self._life is not None else 0

    @property
    def contexts(self) -> tuple[str, ...]:
        """The metadata contexts that :meth:`block_status` can tell of."""
        self._open_life("contexts")
        return tuple(self._export.contexts)

    def statistics(self) -> QueueStatistics:
        return QueueStatistics.none() if self._life is None else self._dispatch.statistics()

    # --- requests -------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> Awaitable[bytes]:
        if not (
            type(offset) is int
            and type(length) is int
            and offset >= 0
            and 0 < length <= self._payload
            and offset + length <= self._capacity
            and not (offset | length) & self._mask
            and asyncio._get_running_loop() is self._loop
            and self._life is not None
            and self._life.lost is None
        ):
            return self._slow_read(offset, length, None)
        value = NewBytes(length)
        return self._dispatch.request(
            "read", offset, length, value, ((protocol.READ, 0, offset, length, value),)
        )

    def readv(self, offset: int, buffers: Sequence[Buffer]) -> Awaitable[None]:
        return self._slow_read(offset, 0, tuple(buffers))

    def writev(self, offset: int, buffers: Sequence[Buffer], *, fua: bool = False) -> Awaitable[None]:
        self._refuse_if_gone("write")
        offset, length = self._asked.to_write(offset, buffers := tuple(buffers))
        if refused := self._beyond("write", offset, length):
            return refused
        flags, flush_after = self._through(fua)
        views = Views([view for buffer in buffers if (view := flat(buffer))])
        parts = [
            (protocol.WRITE, flags, offset + start, size, views.stretch(start, size))
            for start, size in self._divide("write", offset, length, self._payload)
        ]
        return self._dispatch.request("write", offset, length, None, parts, flush_after)

    def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_unmap: bool = False,
        no_fallback: bool = False,
    ) -> Awaitable[None]:
        """Where the server cannot do it, zeroes are sent. With ``no_fallback`` it fails with UnsupportedError
        there, and where the server does not tell whether it would be fast."""
        self._refuse_if_gone("write_zeroes")
        offset, length = self._asked.to_change("write_zeroes", offset, length)
        if refused := self._beyond("write_zeroes", offset, length):
            return refused
        flags, flush_after = self._through(fua)
        export = self._export
        if no_fallback and not (
            export.has(protocol.SEND_FAST_ZERO) and export.has(protocol.SEND_WRITE_ZEROES)
        ):
            message = "the server does not tell whether it would write zeroes out"
            return self._unsupported("write_zeroes", message, offset, length)
        if export.has(protocol.SEND_WRITE_ZEROES):
            flags |= (protocol.NO_HOLE if no_unmap else 0) | (protocol.FAST_ZERO if no_fallback else 0)
            parts: list[tuple[int, int, int, int, Any]] = [
                (protocol.WRITE_ZEROES, flags, offset + start, size, None)
                for start, size in self._divide("write_zeroes", offset, length, self._most_effect)
            ]
        else:
            most = min(self._payload, max(ZEROES_AT_ONCE, export.alignment))
            zeroes = memoryview(bytes(min(most, length)))
            parts = [
                (protocol.WRITE, flags, offset + start, size, [zeroes[:size]])
                for start, size in self._divide("write_zeroes", offset, length, most)
            ]
        return self._dispatch.request("write_zeroes", offset, length, None, parts, flush_after)

    def discard(self, offset: int, length: int) -> Awaitable[None]:
        """UnsupportedError, by the await: the server cannot."""
        self._refuse_if_gone("discard")
        offset, length = self._asked.to_discard(offset, length)
        if refused := self._beyond("discard", offset, length):
            return refused
        if not self._export.has(protocol.SEND_TRIM):
            return self._unsupported("discard", "the server cannot discard", offset, length)
        parts = [
            (protocol.TRIM, 0, offset + start, size, None)
            for start, size in self._divide("discard", offset, length, self._most_effect)
        ]
        return self._dispatch.request("discard", offset, length, None, parts)

    def flush(self) -> Awaitable[None]:
        """Make what changes that are done have written durable, on whichever connection they went.

        Does nothing where the server has no such command: then it keeps nothing back, or nobody can know.
        """
        self._refuse_if_gone("flush")
        self._asked.to_flush()
        self._require_own_loop("flush")
        assert self._life is not None
        if (doubt := self._life.take_doubt()) is not None:
            return self._dispatch.failed("flush", doubt)
        parts = [(protocol.FLUSH, 0, 0, 0, None)] if self._export.has(protocol.SEND_FLUSH) else []
        return self._dispatch.request("flush", None, 0, None, parts)

    # --- how they are made ----------------------------------------------------------------------------------

    def _slow_read(self, offset: int, length: int, buffers: tuple[Buffer, ...] | None) -> Awaitable[Any]:
        """A read of any kind: into buffers, long, or of what is refused."""
        self._refuse_if_gone("read")
        if buffers is None:
            offset, length = self._asked.to_read(offset, length)
        else:
            offset, length = self._asked.to_fill(offset, buffers)
        if refused := self._beyond("read", offset, length):
            return refused
        if buffers is None:
            if not length:
                return self._dispatch.request("read", offset, 0, b"", ())
            value = NewBytes(length)
            parts: list[tuple[int, int, int, int, Any]] = [
                (protocol.READ, 0, offset + start, size, value.part(start))
                for start, size in self._divide("read", offset, length, self._payload)
            ]
            return self._dispatch.request("read", offset, length, value, parts)
        views = Views([view for buffer in buffers if (view := flat(buffer))])
        parts = [
            (protocol.READ, 0, offset + start, size, views.part(start))
            for start, size in self._divide("read", offset, length, self._payload)
        ]
        return self._dispatch.request("read", offset, length, None, parts)

    def _divide(self, operation: str, offset: int, length: int, most: int) -> Iterable[tuple[int, int]]:
        """Starts and lengths of what the server takes at a time."""
        if length > most * MOST_PARTS:
            raise self._subject.invalid(
                operation,
                f"the server takes {most} bytes at a time: over a million commands; divide it",
                offset,
                length,
            )
        return ((start, min(most, length - start)) for start in range(0, length, most))

    @property
    def _most_effect(self) -> int:
        return self._export.effect

    def _through(self, fua: bool) -> tuple[int, bool]:
        """The flags for a change that is to be durable, and whether a flush has to come after it."""
        if not fua:
            return 0, False
        if self._is_simple:
            return protocol.FUA, False
        return 0, self._export.has(protocol.SEND_FLUSH)

    def _beyond(self, operation: str, offset: int, length: int) -> "asyncio.Future[Any] | None":
        self._require_own_loop(operation)
        error = self._asked.beyond_the_end(operation, offset, length)
        return None if error is None else self._dispatch.failed(operation, error)

    def _unsupported(self, operation: str, message: str, offset: int, length: int) -> "asyncio.Future[Any]":
        error = request_error(
            DRIVER, operation, errno.ENOTSUP, message, offset, length, filename=self._uri.text
        )
        return self._dispatch.failed(operation, error)

    # --- block status ---------------------------------------------------------------------------------------

    def extents(self, offset: int = 0, length: int | None = None) -> AsyncGenerator[Extent]:
        """Where there are holes, if the server tells (``base:allocation``); else all is data."""
        self._refuse_if_gone("extents")
        self._require_own_loop("extents")
        end = end_of_stretch(DRIVER, self._export.size, offset, length)
        return self._extents(offset, end)

    async def _extents(self, offset: int, end: int) -> AsyncGenerator[Extent]:
        if BASE_ALLOCATION not in self._export.contexts:
            if offset < end:
                yield Extent(offset, end - offset)
            return
        async for start, length, flags in self._status(BASE_ALLOCATION, offset, end):
            kind = ExtentKind.HOLE if flags & protocol.STATE_ZERO else ExtentKind.DATA
            yield Extent(start, length, kind)

    def block_status(
        self, context: str, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[BlockStatus]:
        """What a metadata context says of the blocks from ``offset`` on, in order and without gaps::

            async with aioblk.Nbd(uri, contexts=["qemu:dirty-bitmap:backup"]) as dev:
                async for part in dev.block_status("qemu:dirty-bitmap:backup"):
                    if part.flags & 1:          # it has changed
                        await save(part.offset, await dev.read(part.offset, part.length))

        What is written meanwhile may be missed.

        Raises at the call:
            OptionError: the range is not of the device, or the context was not asked for when it was opened.
        """
        self._refuse_if_gone("block_status")
        self._require_own_loop("block_status")
        if context not in self._export.contexts:
            there_are = ", ".join(self._export.contexts) or "none"
            raise self._subject.invalid(
                "block_status",
                f"the metadata context {context!r} was not agreed on with the server; there are {there_are}."
                " Name it among the contexts that the device is opened with",
            )
        end = end_of_stretch(DRIVER, self._export.size, offset, length, "block_status")
        return self._status(context, offset, end)

    async def _status(self, context: str, offset: int, end: int) -> AsyncGenerator[BlockStatus]:
        block = self._export.alignment
        while offset < end:
            at = offset - offset % block
            length = min(end - at, self._most_effect)
            found = await self._ask(at, length + -length % block)
            for part in first_stretches(self._export, self._uri.text, found[context], at, end, MOST_STATUS):
                if part.end > offset:
                    yield BlockStatus(offset, part.end - offset, part.flags)
                    offset = part.end

    def _ask(self, offset: int, length: int) -> Awaitable[dict[str, bytes]]:
        self._refuse_if_gone("block_status")
        return self._dispatch.ask(offset, length, self._export.contexts)

    # --- what is refused ------------------------------------------------------------------------------------

    def _open_life(self, operation: str) -> Life:
        """Of a device that was opened, be it closed by now."""
        if self._life is None:
            self._refuse_unopened(operation)
        return self._life

    def _refuse_unopened(self, operation: str) -> NoReturn:
        if self._has_failed:
            raise self._subject.closed(operation)
        raise self._subject.misuse(
            operation, "the device is not open; use it within 'async with', or call open() first"
        )

    def _refuse_if_gone(self, operation: str) -> None:
        life = self._open_life(operation)
        if life.closing:
            raise self._subject.closed(operation)
        if life.lost is not None:
            raise life.lost_error(operation)

    def _require_own_loop(self, operation: str) -> None:
        if running_loop(operation, DRIVER, self._uri.text) is not self._loop:
            raise UsageError(
                "the device belongs to another event loop, which is not the one running here",
                driver=DRIVER,
                operation=operation,
                filename=self._uri.text,
            )


def request_failed(where: str, request: NbdRequest[Any], command: Command | None) -> BlkioError:
    """The error that the server has answered a command with; of none, that there is no memory."""
    number, message = errno.ENOMEM, "there is no memory for what is read: read less at a time"
    if command is not None:
        number = command.error if command.error in ERRORS else errno.EINVAL
        said = text_of(command.words)
        message = f"the server says: {said}" if said else ""
    return request_error(
        DRIVER,
        request.operation,
        number,
        message or None,
        request.offset,
        None if request.offset is None else request.length,
        filename=where,
    )


def is_context(name: object) -> bool:
    """Whether it can be the name of a metadata context."""
    try:
        return isinstance(name, str) and ":" in name and len(name.encode()) <= LONGEST_CONTEXT
    except UnicodeEncodeError:
        return False


async def _nothing() -> None:
    """There is no size to be asked for."""


def limits_of(export: Export) -> Limits:
    """What a device that a server exports accepts."""
    alignment, effect = export.alignment, export.effect
    return Limits(
        request_alignment=alignment,
        optimal_io_alignment=max(export.preferred_block or 4096, alignment),
        max_transfer=export.payload,
        supports_fua_natively=export.has(protocol.SEND_FUA),
        flush_needed=export.has(protocol.SEND_FLUSH),
        max_write_zeroes_len=effect,
        max_discard_len=effect,
        discard_alignment=alignment,
    )
