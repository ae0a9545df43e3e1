"""The handshake: a client asks what there is and what it may do, and ends by choosing the export."""

import asyncio
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias, final

from ...services.socket_stream import DisconnectedError, SocketStream
from ...services.tls_stream import TlsStream
from .. import protocol
from ..protocol import U16, U32
from .contexts import Context, asked_for
from .dialects import Dialect, Extended, Simple, Structured
from .export import ServedExport
from .exports import Exports

LONGEST_OPTION = 16 << 10  # names have at most 4096 bytes; nobody needs more
MOST_OPTIONS = 256  # beside those about single exports, of which
MOST_OPTIONS_OF_EACH = 8  # are had: who lists them all may ask for the sizes and contexts of each
LONGEST_TEXT = 4096  # of a refusal
REFUSED = 1 << 31  # of all kinds of replies that refuse

Stream: TypeAlias = SocketStream | TlsStream


@final
@dataclass(slots=True)
class Session:
    """What client and server have agreed on."""

    stream: Stream
    export: ServedExport
    dialect: Dialect
    contexts: dict[int, Context]
    """Those that the client has chosen, by the number that it was told."""


class _InvalidOptionError(Exception):
    """The data of an option are not what they should be."""


@final
@dataclass(frozen=True, slots=True)
class Terms:
    """What one client may do in the handshake."""

    exports: Exports
    admit: Callable[[ServedExport], str | None]
    """Let the client use the export, or say why not."""
    start_tls: Callable[[], Coroutine[Any, Any, TlsStream]] | None = None
    """Go on within TLS. None: there is none."""
    tls_required: bool = False
    """Nothing else is answered before."""


async def greet(stream: SocketStream, terms: Terms) -> Session | None:
    """Shake hands. None: the client only asked. Raises DisconnectedError, for nonsense as well."""
    flags = protocol.FIXED_NEWSTYLE | protocol.NO_ZEROES
    stream.send(protocol.GREETING.pack(protocol.NBDMAGIC, protocol.IHAVEOPT, flags))
    (client_flags,) = await stream.unpack(U32)
    if client_flags & ~flags or not client_flags & protocol.FIXED_NEWSTYLE:
        raise DisconnectedError(f"the client wants an unknown handshake, {client_flags:#x}")
    no_zeroes = bool(client_flags & protocol.NO_ZEROES)
    return await _Handshake(stream, terms, no_zeroes=no_zeroes).run()


@final
class _Handshake:
    def __init__(self, stream: SocketStream, terms: Terms, *, no_zeroes: bool) -> None:
        self._stream: Stream = stream
        self._terms = terms
        self._exports = terms.exports
        self._admit = terms.admit
        self._no_zeroes = no_zeroes
        self._within_tls = False
        self._dialect: Dialect = Simple()
        self._contexts: dict[int, Context] = {}
        self._contexts_of: ServedExport | None = None  # of which they were chosen
        self._untaken = 0  # replies
        self._taken: asyncio.Future[None] | None = None  # all of them are

    async def run(self) -> Session | None:
        options = 0
        while options < MOST_OPTIONS + MOST_OPTIONS_OF_EACH * len(self._exports):
            options += 1
            await self._until_taken()
            magic, option, length = await self._stream.unpack(protocol.OPTION)
            if magic != protocol.IHAVEOPT:
                raise DisconnectedError("the client sends options without their magic number")
            if length > LONGEST_OPTION:
                await self._stream.skip(length)
                self._reply(option, protocol.REP_ERR_TOO_BIG, b"the option is too long")
                continue
            data = bytes(await self._stream.read(length))
            if option == protocol.OPT_ABORT:
                self._reply(option, protocol.REP_ACK)
                return None
            if option == protocol.OPT_STARTTLS:
                await self._start_tls(data)
                continue
            is_refused = self._terms.tls_required and not self._within_tls
            if option == protocol.OPT_EXPORT_NAME:  # the old way, without any way to refuse
                if is_refused:
                    raise DisconnectedError("the client has chosen an export without TLS")
                return self._choose_unconditionally(data)
            if is_refused:
                self._reply(option, protocol.REP_ERR_TLS_REQD, b"TLS is needed here: use STARTTLS first")
                continue
            try:
                if (session := self._answer(option, data)) is not None:
                    return session
            except (_InvalidOptionError, struct.error, UnicodeDecodeError) as error:
                self._reply(option, protocol.REP_ERR_INVALID, str(error).encode())
        raise DisconnectedError("the client haggles without end")

    def _answer(self, option: int, data: bytes) -> Session | None:
        """Answer an option; a session when the client has chosen an export and transmission begins."""
        match option:
            case protocol.OPT_LIST:
                self._expect_no(data)
                for export in self._exports:
                    name = export.name.encode()
                    self._reply(option, protocol.REP_SERVER, U32.pack(len(name)) + name)
                self._reply(option, protocol.REP_ACK)
            case protocol.OPT_INFO | protocol.OPT_GO:
                chosen = self._inform(option, data)
                if chosen is not None and option == protocol.OPT_GO:
                    return self._begin(chosen)
            case protocol.OPT_STRUCTURED_REPLY:
                self._expect_no(data)
                if isinstance(self._dialect, Extended):  # which has them already, and there is no way back
                    self._reply(option, protocol.REP_ERR_EXT_HEADER_REQD, b"extended headers were agreed on")
                else:
                    self._dialect = Structured()
                    self._reply(option, protocol.REP_ACK)
            case protocol.OPT_EXTENDED_HEADERS:
                self._expect_no(data)
                self._dialect = Extended()
                self._reply(option, protocol.REP_ACK)
            case protocol.OPT_LIST_META_CONTEXT | protocol.OPT_SET_META_CONTEXT:
                self._offer_contexts(option, data)
            case _:
                self._reply(option, protocol.REP_ERR_UNSUP)
        return None

    # --- options --------------------------------------------------------------------------------------------

    async def _start_tls(self, data: bytes) -> None:
        """What was agreed upon before is forgotten; what was received before, nobody may have answered within
        TLS: somebody else may have said it."""
        option = protocol.OPT_STARTTLS
        if self._terms.start_tls is None:
            self._reply(option, protocol.REP_ERR_UNSUP)
        elif data or self._within_tls:
            why = b"the option has no data" if data else b"this is TLS already"
            self._reply(option, protocol.REP_ERR_INVALID, why)
        elif self._stream.has_more:
            raise DisconnectedError("the client goes on before TLS has begun")
        else:
            self._reply(option, protocol.REP_ACK)
            self._stream = await self._terms.start_tls()
            self._within_tls = True
            self._dialect = Simple()
            self._contexts, self._contexts_of = {}, None

    def _choose_unconditionally(self, data: bytes) -> Session:
        name = data.decode(errors="replace")
        if isinstance(self._dialect, Extended):
            raise DisconnectedError("the client chooses an export as if there were no extended headers")
        if (export := self._exports.find(name)) is None:
            raise DisconnectedError(f"the client wants an unknown export, {name!r}")
        if refusal := self._admit(export):
            raise DisconnectedError(refusal)
        zeroes = b"" if self._no_zeroes else bytes(124)
        self._stream.send(protocol.EXPORT.pack(export.size, self._flags(export)) + zeroes)
        return self._begin(export)

    def _begin(self, export: ServedExport) -> Session:
        """Metadata contexts that were chosen for another export are none of this one."""
        contexts = self._contexts if self._contexts_of is export else {}
        return Session(self._stream, export, self._dialect, contexts)

    def _inform(self, option: int, data: bytes) -> ServedExport | None:
        """Answer INFO and GO; the export, if there is one and the client may have it."""
        name, rest = self._split_name(data)
        (count,) = U16.unpack_from(rest)
        if len(rest) != U16.size * (count + 1):
            raise _InvalidOptionError("the number of information requests is wrong")
        if (export := self._exports.find(name)) is None:
            self._reply(option, protocol.REP_ERR_UNKNOWN, f"there is no export {name!r}".encode())
            return None
        if option == protocol.OPT_GO and (refusal := self._admit(export)):
            self._reply(option, protocol.REP_ERR_POLICY, refusal.encode())
            return None
        wanted = {U16.unpack_from(rest, U16.size * (i + 1))[0] for i in range(count)}
        for kind, value in (
            (protocol.INFO_NAME, export.name),
            (protocol.INFO_DESCRIPTION, export.description),
        ):
            if kind in wanted:
                self._reply(option, protocol.REP_INFO, U16.pack(kind) + value.encode())
        sizes = export.minimum_block, export.preferred_block, export.largest_payload
        self._reply(option, protocol.REP_INFO, protocol.BLOCK_SIZES.pack(protocol.INFO_BLOCK_SIZE, *sizes))
        size_and_flags = protocol.EXPORT.pack(export.size, self._flags(export))
        self._reply(option, protocol.REP_INFO, U16.pack(protocol.INFO_EXPORT) + size_and_flags)
        self._reply(option, protocol.REP_ACK)
        return export

    def _offer_contexts(self, option: int, data: bytes) -> None:
        """Answer the options about metadata contexts."""
        choosing = option == protocol.OPT_SET_META_CONTEXT
        if choosing:
            self._contexts, self._contexts_of = {}, None
        if not self._dialect.has_chunks:
            raise _InvalidOptionError("metadata contexts need structured replies or extended headers")
        name, rest = self._split_name(data)
        (count,) = U32.unpack_from(rest)
        rest = rest[U32.size :]
        queries: set[bytes] = set()
        for _ in range(count):
            query, rest = self._split(rest)
            queries.add(query)
        if rest:
            raise _InvalidOptionError("there is something after the last query")
        if (export := self._exports.find(name)) is None:
            self._reply(option, protocol.REP_ERR_UNKNOWN, f"there is no export {name!r}".encode())
            return
        found = asked_for(export.contexts(), queries, to_list=not choosing)
        if choosing:
            self._contexts, self._contexts_of = dict(enumerate(found, 1)), export
        for number, context in enumerate(found, 1):
            self._reply(option, protocol.REP_META_CONTEXT, U32.pack(number if choosing else 0) + context.name)
        self._reply(option, protocol.REP_ACK)

    def _flags(self, export: ServedExport) -> int:
        flags = export.transmission_flags
        if self._dialect.has_chunks:
            flags |= protocol.SEND_DF
        if self._dialect.has_payloads and self._contexts and self._contexts_of is export:
            flags |= protocol.BLOCK_STATUS_PAYLOAD
        return flags

    # --- layout ---------------------------------------------------------------------------------------------

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        if kind & REFUSED and len(data) > LONGEST_TEXT:
            data = data[:LONGEST_TEXT].decode(errors="ignore").encode()
        head = protocol.OPTION_REPLY.pack(protocol.OPTION_REPLY_MAGIC, option, kind, len(data))
        self._untaken += 1
        self._stream.send(head + data, on_sent=self._take)

    def _take(self) -> None:
        self._untaken -= 1
        if self._taken is not None and not self._untaken and not self._taken.done():
            self._taken.set_result(None)

    async def _until_taken(self) -> None:
        """Answer no more before the client has taken what there is: answers are longer than questions."""
        while self._untaken:
            self._taken = asyncio.get_running_loop().create_future()
            await self._taken

    def _expect_no(self, data: bytes) -> None:
        if data:
            raise _InvalidOptionError("the option has no data")

    def _split(self, data: bytes) -> tuple[bytes, bytes]:
        """A string with its length before it, and what comes after."""
        (length,) = U32.unpack_from(data)
        rest = data[U32.size :]
        if length > len(rest):
            raise _InvalidOptionError("a string is longer than the option")
        return rest[:length], rest[length:]

    def _split_name(self, data: bytes) -> tuple[str, bytes]:
        name, rest = self._split(data)
        return name.decode(), rest
