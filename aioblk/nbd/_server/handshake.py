"""The handshake: a client asks what there is and what it may do, and ends by choosing the export."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, final

from ...services.socket_stream import DisconnectedError, SocketStream
from .. import protocol
from ..protocol import U16, U32
from .export import Export

LONGEST_OPTION = 16 << 10  # names have at most 4096 bytes; nobody needs more
MOST_OPTIONS = 256


@final
@dataclass(slots=True)
class Session:
    """What client and server have agreed on."""

    structured_replies: bool = False
    base_allocation: bool = False


class _InvalidOptionError(Exception):
    """The data of an option are not what they should be."""


Admit: TypeAlias = Callable[[], str | None]
"""Let a client use the export, or say why not."""


async def greet(stream: SocketStream, export: Export, admit: Admit) -> Session | None:
    """Shake hands. None: the client only asked. Raises DisconnectedError, for nonsense as well."""
    flags = protocol.FIXED_NEWSTYLE | protocol.NO_ZEROES
    stream.send(protocol.GREETING.pack(protocol.NBDMAGIC, protocol.IHAVEOPT, flags))
    (client_flags,) = await stream.unpack(U32)
    if client_flags & ~flags or not client_flags & protocol.FIXED_NEWSTYLE:
        raise DisconnectedError(f"the client wants an unknown handshake, {client_flags:#x}")
    no_zeroes = bool(client_flags & protocol.NO_ZEROES)
    return await _Handshake(stream, export, admit, no_zeroes=no_zeroes).run()


@final
class _Handshake:
    def __init__(self, stream: SocketStream, export: Export, admit: Admit, *, no_zeroes: bool) -> None:
        self._stream = stream
        self._export = export
        self._admit = admit
        self._no_zeroes = no_zeroes
        self._session = Session()

    async def run(self) -> Session | None:
        for _ in range(MOST_OPTIONS):
            magic, option, length = await self._stream.unpack(protocol.OPTION)
            if magic != protocol.IHAVEOPT:
                raise DisconnectedError("the client sends options without their magic number")
            if length > LONGEST_OPTION:
                await self._stream.skip(length)
                self._reply(option, protocol.REP_ERR_TOO_BIG, b"the option is too long")
                continue
            data = bytes(await self._stream.read(length))
            if option == protocol.OPT_EXPORT_NAME:  # the old way, without any way to refuse
                return self._choose_unconditionally(data)
            if option == protocol.OPT_ABORT:
                self._reply(option, protocol.REP_ACK)
                return None
            try:
                if self._answer(option, data):
                    return self._session
            except (_InvalidOptionError, struct.error, UnicodeDecodeError) as error:
                self._reply(option, protocol.REP_ERR_INVALID, str(error).encode())
        raise DisconnectedError("the client haggles without end")

    def _answer(self, option: int, data: bytes) -> bool:
        """Answer an option; True when the client has chosen the export and transmission begins."""
        match option:
            case protocol.OPT_LIST:
                self._expect_no(data)
                name = self._export.name.encode()
                self._reply(option, protocol.REP_SERVER, U32.pack(len(name)) + name)
                self._reply(option, protocol.REP_ACK)
            case protocol.OPT_INFO | protocol.OPT_GO:
                return self._inform(option, data) and option == protocol.OPT_GO
            case protocol.OPT_STRUCTURED_REPLY:
                self._expect_no(data)
                self._session.structured_replies = True
                self._reply(option, protocol.REP_ACK)
            case protocol.OPT_LIST_META_CONTEXT | protocol.OPT_SET_META_CONTEXT:
                self._offer_contexts(option, data)
            case _:
                self._reply(option, protocol.REP_ERR_UNSUP)
        return False

    # --- options --------------------------------------------------------------------------------------------

    def _choose_unconditionally(self, name: bytes) -> Session:
        if name.decode(errors="replace") != self._export.name:
            raise DisconnectedError(f"the client wants an unknown export, {name!r}")
        if refusal := self._admit():
            raise DisconnectedError(refusal)
        zeroes = b"" if self._no_zeroes else bytes(124)
        self._stream.send(protocol.EXPORT.pack(self._export.size, self._flags()) + zeroes)
        return self._session

    def _inform(self, option: int, data: bytes) -> bool:
        """Answer INFO and GO; whether the export exists."""
        name, rest = self._split_name(data)
        (count,) = U16.unpack_from(rest)
        if len(rest) != U16.size * (count + 1):
            raise _InvalidOptionError("the number of information requests is wrong")
        if name != self._export.name:
            self._reply(option, protocol.REP_ERR_UNKNOWN, f"there is no export {name!r}".encode())
            return False
        if option == protocol.OPT_GO and (refusal := self._admit()):
            self._reply(option, protocol.REP_ERR_POLICY, refusal.encode())
            return False
        wanted = {U16.unpack_from(rest, U16.size * (i + 1))[0] for i in range(count)}
        for kind, value in (
            (protocol.INFO_NAME, self._export.name),
            (protocol.INFO_DESCRIPTION, self._export.description),
        ):
            if kind in wanted:
                self._reply(option, protocol.REP_INFO, U16.pack(kind) + value.encode())
        sizes = self._export.minimum_block, self._export.preferred_block, self._export.largest_payload
        self._reply(option, protocol.REP_INFO, protocol.BLOCK_SIZES.pack(protocol.INFO_BLOCK_SIZE, *sizes))
        export = protocol.EXPORT.pack(self._export.size, self._flags())
        self._reply(option, protocol.REP_INFO, U16.pack(protocol.INFO_EXPORT) + export)
        self._reply(option, protocol.REP_ACK)
        return True

    def _offer_contexts(self, option: int, data: bytes) -> None:
        """Answer the options about metadata contexts, of which there is one: base:allocation."""
        choosing = option == protocol.OPT_SET_META_CONTEXT
        if choosing:
            self._session.base_allocation = False
        if not self._session.structured_replies:
            raise _InvalidOptionError("metadata contexts need structured replies")
        name, rest = self._split_name(data)
        (count,) = U32.unpack_from(rest)
        rest = rest[U32.size :]
        queries: set[bytes] = set()
        for _ in range(count):
            query, rest = self._split(rest)
            queries.add(query)
        if rest:
            raise _InvalidOptionError("there is something after the last query")
        if name != self._export.name:
            self._reply(option, protocol.REP_ERR_UNKNOWN)
            return
        all_of_it = not choosing and (not count or b"base:" in queries)
        if all_of_it or protocol.BASE_ALLOCATION in queries:
            if choosing:
                self._session.base_allocation = True
            number = U32.pack(protocol.BASE_ALLOCATION_ID if choosing else 0)
            self._reply(option, protocol.REP_META_CONTEXT, number + protocol.BASE_ALLOCATION)
        self._reply(option, protocol.REP_ACK)

    def _flags(self) -> int:
        only_structured = protocol.SEND_DF if self._session.structured_replies else 0
        return self._export.transmission_flags | only_structured

    # --- layout ---------------------------------------------------------------------------------------------

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        head = protocol.OPTION_REPLY.pack(protocol.OPTION_REPLY_MAGIC, option, kind, len(data))
        self._stream.send(head + data)

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
