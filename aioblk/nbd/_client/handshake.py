"""The options that are haggled about: from a connected socket to an export.

Servers of all ages are met, the oldest of them without a word of what they can. What a server may make us
receive is bounded, and the time for all of it is the caller's to bound.
"""

import asyncio
import errno
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import final

from ...errors import BlkioError, OptionError, request_error
from .. import protocol
from ..protocol import U16, U32
from .channel import Channel, PlainChannel, TlsChannel, connect
from .export import Export, Headers
from .uri import DRIVER, NbdUri

__all__ = ["Dial", "ExportInfo", "greet", "list_exports_of"]

LONGEST_REPLY = 64 << 10  # bytes of one reply to an option
MOST_REPLIES = 1024  # to one option, but for lists
MOST_EXPORTS = 65536  # of a list
REPLIES_IN_A_ROW = 64
MOST_BYTES = 16 << 20  # of all replies to one option
LONGEST_TEXT = 4096
MOST_SAID = 500  # characters of a server's words, in an error
QUADS = Struct(">QQ")
GREETING = "while it greets"
UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})  # X509_V_ERR: who has signed it is not among the trusted
BASE_ALLOCATION = protocol.BASE_ALLOCATION.decode()

REFUSALS = {
    protocol.REP_ERR_UNSUP: (errno.ENOTSUP, "the server does not know the option"),
    protocol.REP_ERR_POLICY: (errno.EACCES, "the server does not allow it"),
    protocol.REP_ERR_INVALID: (errno.EINVAL, "the server takes the request for wrong"),
    protocol.REP_ERR_PLATFORM: (errno.ENOTSUP, "the server cannot do it where it runs"),
    protocol.REP_ERR_TLS_REQD: (errno.EACCES, "the server wants TLS: use nbds:// or nbds+unix://"),
    protocol.REP_ERR_UNKNOWN: (errno.ENOENT, "the server has no such export"),
    protocol.REP_ERR_SHUTDOWN: (errno.ESHUTDOWN, "the server is shutting down"),
    protocol.REP_ERR_BLOCK_SIZE_REQD: (errno.EINVAL, "the server wants its block sizes to be asked for"),
    protocol.REP_ERR_TOO_BIG: (errno.E2BIG, "the request is too long for the server"),
    protocol.REP_ERR_EXT_HEADER_REQD: (errno.ENOTSUP, "the server wants extended headers, and refuses them"),
}


@final
@dataclass(frozen=True, slots=True)
class Dial:
    """How a connection to an export is made: as often as one is needed."""

    uri: NbdUri
    tls: ssl.SSLContext | None
    contexts: tuple[str, ...]
    """What is to be asked of blocks, beside base:allocation."""
    dead_after: float

    async def __call__(self) -> tuple[Channel, Export]:
        """BlkioError: there is nobody, or not what was asked for."""
        options = await greet(self.uri, self.tls, self.dead_after)
        try:
            return options.channel, await _choose(options, self.uri, self.contexts)
        except BaseException:
            options.channel.close()
            raise


@final
@dataclass(frozen=True, slots=True)
class _OptionReply:
    kind: int
    data: bytes

    @property
    def is_error(self) -> bool:
        return self.kind >= 0x80000000


@final
class _Options:
    """A connection on which options are haggled about."""

    def __init__(self, channel: Channel, uri: NbdUri, *, fixed: bool, no_zeroes: bool) -> None:
        self.channel = channel
        self.fixed = fixed
        """Whether anything but the oldest option may be asked for."""
        self.no_zeroes = no_zeroes
        self._uri = uri

    async def send(self, option: int, data: bytes = b"") -> None:
        await self.channel.send_all(protocol.OPTION.pack(protocol.IHAVEOPT, option, len(data)) + data)

    async def ask(self, option: int, data: bytes = b"", most: int = MOST_REPLIES) -> list[_OptionReply]:
        """Its replies, the last of which acknowledges or refuses."""
        await self.send(option, data)
        replies: list[_OptionReply] = []
        size = 0
        while not replies or (replies[-1].kind != protocol.REP_ACK and not replies[-1].is_error):
            if len(replies) > most:
                raise self.violation(f"there are more than {most} replies to option {option}")
            replies.append(await self._reply(option))
            size += len(replies[-1].data)
            if not len(replies) % REPLIES_IN_A_ROW:
                await asyncio.sleep(0)  # they may all have come, and be many
            if size > MOST_BYTES:
                raise self.violation(f"the replies to option {option} have more than {MOST_BYTES} bytes")
        return replies

    async def _reply(self, option: int) -> _OptionReply:
        header = await self.channel.receive(protocol.OPTION_REPLY.size)
        magic, answered, kind, length = protocol.OPTION_REPLY.unpack(header)
        if magic != protocol.OPTION_REPLY_MAGIC:
            raise self.violation(f"a reply to an option begins with {magic:#x}")
        if answered != option:
            raise self.violation(f"option {option} is answered as if it were {answered}")
        if length > LONGEST_REPLY:
            raise self.violation(f"a reply to option {option} has {length} bytes")
        return _OptionReply(kind, await self.channel.receive(length))

    def refusal(self, reply: _OptionReply, what: str) -> BlkioError:
        number, words = REFUSALS.get(reply.kind, (errno.EPROTO, f"the server refuses with {reply.kind:#x}"))
        said = text_of(reply.data)
        return error_of(self._uri, number, f"{what}: {words}" + (f"; it says: {said}" if said else ""))

    def violation(self, what: str) -> BlkioError:
        return violation_of(self._uri, what)


def text_of(data: bytes) -> str:
    """A server's words, fit to be shown."""
    text = data[:LONGEST_TEXT].decode(errors="replace")
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()[:MOST_SAID]


def error_of(uri: NbdUri, number: int, message: str) -> BlkioError:
    return request_error(DRIVER, "open", number, message, filename=uri.text)


def violation_of(uri: NbdUri, what: str) -> BlkioError:
    return error_of(uri, errno.EPROTO, f"the server breaks the protocol: {what}")


# --- greeting -----------------------------------------------------------------------------------------------


async def greet(uri: NbdUri, tls: ssl.SSLContext | None, dead_after: float) -> _Options:
    """Connect, and come to where options are asked for."""
    try:
        connection = await connect(uri.address, dead_after)
    except OSError as error:
        number = error.errno or errno.EIO
        words = error.message if isinstance(error, BlkioError) else error.strerror
        why = "" if words == os.strerror(number) else f": {words}"
        raise error_of(uri, number, f"cannot connect to {uri.server}{why}") from None
    channel: Channel = PlainChannel(connection)
    try:
        options = await _greeting(channel, uri)
        if tls is not None:
            options.channel = channel = await _start_tls(options, uri, tls)
        return options
    except BaseException as error:
        channel.close()
        if isinstance(error, (EOFError, OSError)) and not isinstance(error, BlkioError):
            raise gone(uri, error, GREETING) from None
        raise


def gone(uri: NbdUri, error: BaseException, when: str) -> BlkioError:
    if isinstance(error, EOFError):
        return error_of(uri, errno.ECONNRESET, f"the server closes the connection {when}{_maybe(when)}")
    number = getattr(error, "errno", None) or errno.EIO
    what = str(getattr(error, "strerror", None) or error)
    if what == os.strerror(number):
        what = "the connection breaks"
    elif "CERTIFICATE_REQUIRED" in what:
        what = (
            f"the server wants a certificate: tls_certificates is a directory with client-cert.pem ({what})"
        )
    return error_of(uri, number, f"{what} {when}")


def _maybe(when: str) -> str:
    return "; it may not let in this machine or user" if when == GREETING else ""


async def _greeting(channel: Channel, uri: NbdUri) -> _Options:
    """Of servers that speak the newstyle, fixed or not; the flags that both sides have are agreed on."""
    magic, style = QUADS.unpack(await channel.receive(QUADS.size))
    if magic != protocol.NBDMAGIC:
        raise violation_of(uri, f"it greets with {magic:#018x}; there is another service at {uri.server}")
    if style == protocol.OLDSTYLE:
        raise error_of(
            uri, errno.ENOTSUP, "the server speaks the protocol of before 2011, without export names"
        )
    if style != protocol.IHAVEOPT:
        raise violation_of(uri, f"it greets with {style:#018x}")
    (offered,) = U16.unpack(await channel.receive(U16.size))
    agreed = offered & (protocol.FIXED_NEWSTYLE | protocol.NO_ZEROES)
    await channel.send_all(U32.pack(agreed))
    return _Options(
        channel,
        uri,
        fixed=bool(agreed & protocol.FIXED_NEWSTYLE),
        no_zeroes=bool(agreed & protocol.NO_ZEROES),
    )


async def _start_tls(options: _Options, uri: NbdUri, context: ssl.SSLContext) -> Channel:
    if not options.fixed:
        raise error_of(uri, errno.ENOTSUP, "the server is too old for TLS")
    *_, last = await options.ask(protocol.OPT_STARTTLS)
    if last.is_error:
        raise options.refusal(last, "TLS is wanted")
    host = uri.tls_hostname or (uri.address[0] if isinstance(uri.address, tuple) else None)
    try:
        channel = TlsChannel(options.channel.socket, context, host)
    except ValueError as error:  # which leaves out what OpenSSL says of it
        raise OptionError(
            f"{host!r} is no name that a certificate could have: {error}",
            driver=DRIVER,
            operation="open",
            filename=uri.text,
        ) from None
    try:
        await channel.shake_hands()
    except ssl.SSLCertVerificationError as error:
        is_unknown = error.verify_code in UNKNOWN_AUTHORITY
        remedy = "; tls_certificates is a directory with a ca-cert.pem to trust" if is_unknown else ""
        raise error_of(
            uri, errno.EACCES, f"the server's certificate is not trusted: {error.verify_message}{remedy}"
        ) from None
    except (ssl.SSLError, EOFError) as error:
        why = error.reason if isinstance(error, ssl.SSLError) else None
        raise error_of(
            uri, errno.EACCES, f"TLS comes to nothing: {why or 'the server closes the connection'}"
        ) from None
    except OSError as error:
        raise error_of(uri, error.errno or errno.EIO, f"TLS comes to nothing: {error.strerror}") from None
    return channel


# --- choosing an export -------------------------------------------------------------------------------------


def counted(text: str) -> bytes:
    data = text.encode()
    return U32.pack(len(data)) + data


async def _choose(options: _Options, uri: NbdUri, contexts: tuple[str, ...]) -> Export:
    try:
        return await _haggle(options, uri, contexts)
    except (EOFError, OSError) as error:
        if isinstance(error, BlkioError):
            raise
        if isinstance(error, EOFError) and not options.fixed:
            raise error_of(uri, errno.ENOENT, f"the server has no export {uri.export!r}, it seems") from None
        raise gone(uri, error, f"while the export {uri.export!r} is asked for") from None


async def _haggle(options: _Options, uri: NbdUri, contexts: tuple[str, ...]) -> Export:
    if not options.fixed:
        if contexts:
            raise _without_contexts(uri, contexts)
        return await _by_name(options, uri)
    headers = await _agree_on_headers(options)
    granted: dict[str, int] = {}
    if headers is not Headers.SIMPLE:
        granted = await _agree_on_contexts(options, uri, (BASE_ALLOCATION, *contexts))
    elif contexts:
        raise _without_contexts(uri, contexts)
    request = counted(uri.export) + U16.pack(1) + U16.pack(protocol.INFO_BLOCK_SIZE)
    replies = await options.ask(protocol.OPT_GO, request)
    last = replies[-1]
    if last.kind == protocol.REP_ERR_UNSUP and headers is not Headers.EXTENDED:
        return await _by_name(options, uri, headers, granted)
    if last.is_error:
        raise options.refusal(last, f"the export {uri.export!r} is asked for")
    return _export_of(options, uri, replies[:-1], headers, granted)


def _without_contexts(uri: NbdUri, contexts: Sequence[str]) -> BlkioError:
    return error_of(
        uri, errno.ENOTSUP, f"the server cannot be asked for {', '.join(contexts)}, nor for any other context"
    )


async def _agree_on_headers(options: _Options) -> Headers:
    for option, headers in (
        (protocol.OPT_EXTENDED_HEADERS, Headers.EXTENDED),
        (protocol.OPT_STRUCTURED_REPLY, Headers.STRUCTURED),
    ):
        *_, last = await options.ask(option)
        if last.kind == protocol.REP_ACK:
            return headers
        if last.kind == protocol.REP_ERR_TLS_REQD:
            raise options.refusal(last, "options are asked for")
    return Headers.SIMPLE


async def _agree_on_contexts(options: _Options, uri: NbdUri, contexts: tuple[str, ...]) -> dict[str, int]:
    """Those that are granted, base:allocation if it can be, and all others or an error."""
    wanted = counted(uri.export) + U32.pack(len(contexts)) + b"".join(map(counted, contexts))
    *replies, last = await options.ask(protocol.OPT_SET_META_CONTEXT, wanted)
    if last.is_error and len(contexts) > 1:
        raise options.refusal(last, f"{', '.join(contexts[1:])} is asked for")
    granted: dict[str, int] = {}
    for reply in replies if not last.is_error else ():
        if reply.kind != protocol.REP_META_CONTEXT or len(reply.data) < 4:
            raise options.violation("a metadata context is granted in no form that there is")
        name = reply.data[4:].decode(errors="replace")
        if name not in contexts or name in granted:
            raise options.violation(
                f"the metadata context {name[:MOST_SAID]!r} is granted, which nobody asked for"
            )
        granted[name] = U32.unpack_from(reply.data)[0]
    if len(set(granted.values())) != len(granted):
        raise options.violation("two metadata contexts have the same number")
    if missing := [name for name in contexts[1:] if name not in granted]:
        there_are = await _list_contexts(options, uri)
        raise error_of(
            uri,
            errno.ENOTSUP,
            f"the export {uri.export!r} has no metadata context {', '.join(missing)};"
            f" it has {', '.join(there_are) or 'none'}",
        )
    return granted


async def _list_contexts(options: _Options, uri: NbdUri) -> list[str]:
    *replies, last = await options.ask(protocol.OPT_LIST_META_CONTEXT, counted(uri.export) + U32.pack(0))
    if last.is_error:
        return []
    return [text_of(reply.data[4:]) for reply in replies if reply.kind == protocol.REP_META_CONTEXT]


def _export_of(
    options: _Options,
    uri: NbdUri,
    replies: Sequence[_OptionReply],
    headers: Headers,
    contexts: dict[str, int],
) -> Export:
    found: tuple[int, int] | None = None
    blocks = [0, 0, 0]
    for reply in replies:
        kind = U16.unpack_from(reply.data)[0] if len(reply.data) >= 2 else None
        if reply.kind != protocol.REP_INFO or kind is None:
            raise options.violation(f"the export is described by a reply of kind {reply.kind}")
        if kind == protocol.INFO_EXPORT:
            if len(reply.data) != 2 + protocol.EXPORT.size:
                raise options.violation(f"an export's size and flags have {len(reply.data)} bytes")
            found = protocol.EXPORT.unpack_from(reply.data, 2)
        elif kind == protocol.INFO_BLOCK_SIZE:
            if len(reply.data) != protocol.BLOCK_SIZES.size:
                raise options.violation(f"block sizes have {len(reply.data)} bytes")
            _, *blocks = protocol.BLOCK_SIZES.unpack(reply.data)
    if found is None:
        raise options.violation("the server does not tell the export's size")
    least, preferred, most = blocks
    size, flags = found
    return checked(options, Export(uri.export, size, flags, headers, least, preferred, most, contexts))


def checked(options: _Options, export: Export) -> Export:
    """BlkioError: nobody can keep such rules."""
    least, preferred, most = export.minimum_block, export.preferred_block, export.maximum_payload
    if least or preferred or most:
        if not 1 <= least <= 65536 or least & (least - 1):
            raise options.violation(f"the minimum block size is {least}, not a power of two up to 65536")
        if preferred & (preferred - 1) or preferred < max(least, 512) or preferred > 32 << 20:
            raise options.violation(
                f"the preferred block size is {preferred}, not a power of two from {max(least, 512)} on"
            )
        if most < least:
            raise options.violation(f"the maximum payload is {most}, less than a block of {least}")
    if not 0 <= export.size < 1 << 63:
        raise options.violation(f"the export has {export.size} bytes")
    if export.size % export.alignment:
        raise options.violation(
            f"the export has {export.size} bytes, which are no whole number of blocks of {export.alignment}"
        )
    return export


async def _by_name(
    options: _Options,
    uri: NbdUri,
    headers: Headers = Headers.SIMPLE,
    contexts: dict[str, int] | None = None,
) -> Export:
    """The oldest option: it has no reply but the export itself, or the end of the connection."""
    options.fixed = False
    await options.send(protocol.OPT_EXPORT_NAME, uri.export.encode())
    size, flags = protocol.EXPORT.unpack(await options.channel.receive(protocol.EXPORT.size))
    if not options.no_zeroes:
        await options.channel.receive(protocol.EXPORT_NAME_ZEROES)
    return checked(options, Export(uri.export, size, flags, headers, contexts=contexts or {}))


# --- what there is ------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class ExportInfo:
    """An export, as its server lists it."""

    name: str
    """By which it is asked for."""
    description: str = ""
    """For people."""


async def list_exports_of(options: _Options, uri: NbdUri) -> list[ExportInfo]:
    """BlkioError: the server does not tell."""
    try:
        if not options.fixed:
            raise error_of(uri, errno.ENOTSUP, "the server is too old to list what it exports")
        *replies, last = await options.ask(protocol.OPT_LIST, most=MOST_EXPORTS)
        if last.is_error:
            raise options.refusal(last, "a list of exports is asked for")
        exports = [_listed(options, reply) for reply in replies]
        await options.send(protocol.OPT_ABORT)
        return exports
    except (EOFError, OSError) as error:
        if isinstance(error, BlkioError):
            raise
        raise gone(uri, error, "while it lists its exports") from None


def _listed(options: _Options, reply: _OptionReply) -> ExportInfo:
    length = U32.unpack_from(reply.data)[0] if len(reply.data) >= 4 else None
    if reply.kind != protocol.REP_SERVER or length is None or length > len(reply.data) - 4:
        raise options.violation("an export is listed in no form that there is")
    name = reply.data[4 : 4 + length]
    return ExportInfo(name.decode(errors="replace"), text_of(reply.data[4 + length :]))
