"""TlsStream: a SocketStream within TLS."""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from functools import partial
from struct import Struct
from typing import Any, NoReturn, final

from .._native.buffers import BytesLike, as_memoryview
from .._sync.loops import running_loop
from ..errors import StreamBusyError, UsageError
from .socket_stream import BUFFER_SIZE, DisconnectedError, Pace, SocketStream

__all__ = ["TlsStream"]


MOST_SAID = 64 << 10


@final
class TlsStream:
    """A :class:`SocketStream` within TLS, with the same methods and the same rules::

        stream = aioblk.TlsStream(aioblk.SocketStream(connection), context, server_side=True)
        await stream.handshake()
        kind, offset, length = await stream.unpack(HEADER)

    What is received is decrypted straight to where it belongs; what is sent is encrypted by the call, and its
    memory in use until the peer has taken that. Encrypting and decrypting take the loop's time.

    The stream below has received nothing that was not read when this one is made, and is this one's from then
    on. Belongs to its event loop.
    """

    def __init__(
        self,
        stream: SocketStream,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None = None,
        least_rate: float = 4096,
    ) -> None:
        """*server_hostname* is the name by which a client knows the server; *least_rate* as that of
        :class:`SocketStream`, in bytes before they are encrypted.

        Raises:
            UsageError: the stream has received something already, which somebody may have put in before TLS.
        """
        if stream.has_more:
            raise UsageError("something has been received that TLS does not protect", operation="connect")
        self._stream = stream
        self._loop = running_loop("connect")
        self._from_peer, self._to_peer = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._from_peer, self._to_peer, server_side=server_side, server_hostname=server_hostname
        )
        self._buffer = memoryview(bytearray(BUFFER_SIZE))
        self._start: int = 0  # what of it has been received and not taken
        self._end: int = 0
        self._receiving = False
        self._is_over = False  # the peer has ended it
        self._said = 0  # bytes of TLS's own, alerts and new keys, that the peer has not taken
        self._taken: asyncio.Future[None] | None = None  # it has
        self._incoming = Pace(least_rate)

    @property
    def tls(self) -> ssl.SSLObject:
        """To ask for the version, the cipher, the peer's certificate."""
        return self._tls

    async def handshake(self) -> None:
        """Agree with the peer. Nothing is sent or received before.

        Raises:
            DisconnectedError: the peer is gone, or there is no agreement; the text says why.
        """
        self._refuse_elsewhere("receive")
        self._receiving = True
        try:
            while True:
                try:
                    self._tls.do_handshake()
                except ssl.SSLWantReadError:
                    await self._feed()
                else:
                    break
        except ssl.SSLError as error:
            self._fail(error)
        finally:
            self._receiving = False
            self._send_what_is_encrypted()  # be it an alert

    # --- receiving ------------------------------------------------------------------------------------------

    async def read(self, size: int) -> memoryview:
        """The next *size* bytes, 64 KiB at most. They are there until the next call."""
        self._refuse_elsewhere("receive")
        if self._receiving or not 0 <= size <= self._end - self._start:
            await self._receive_at_least(size)
        self._start += size
        return self._buffer[self._start - size : self._start]

    def read_nowait(self, size: int) -> memoryview | None:
        """What :meth:`read` gives, if so much has been received and decrypted already."""
        if self._receiving:
            self._refuse_a_second()
        if not 0 <= size <= self._end - self._start:
            return None
        self._start += size
        return self._buffer[self._start - size : self._start]

    async def unpack(self, layout: Struct) -> tuple[Any, ...]:
        """The next bytes, read as *layout* says."""
        self._refuse_elsewhere("receive")
        if self._receiving or self._end - self._start < layout.size:
            await self._receive_at_least(layout.size)
        self._start += layout.size
        return layout.unpack_from(self._buffer, self._start - layout.size)

    def unpack_nowait(self, layout: Struct) -> tuple[Any, ...] | None:
        """What :meth:`unpack` gives, if so much has been received and decrypted already."""
        if self._receiving:
            self._refuse_a_second()
        start, end = self._start, self._start + layout.size
        if end > self._end:
            return None
        self._start = end
        return layout.unpack_from(self._buffer, start)

    async def unpack_while(self, layout: Struct, take: Callable[..., bool]) -> tuple[Any, ...]:
        """Unpack again and again, for as long as ``take(*values)`` is true; see
        :meth:`SocketStream.unpack_while`."""
        while True:
            values = self.unpack_nowait(layout) or await self.unpack(layout)
            if not take(*values):
                return values

    async def read_into(self, buffer: BytesLike) -> None:
        """Fill the writable *buffer* with the next bytes.

        Cancelled, it has filled a part, which the next call receives again: the stream keeps a copy.
        """
        self._refuse_elsewhere("receive")
        if self._receiving:
            self._refuse_a_second()
        target = as_memoryview(buffer).cast("B")
        filled = min(len(target), self._end - self._start)
        target[:filled] = self._buffer[self._start : self._start + filled]
        self._start += filled
        if filled == len(target):
            return
        self._receiving = True
        self._incoming.begin(self._loop.time())
        try:
            while filled < len(target):
                filled += await self._receive(target[filled:])
        except BaseException:
            self._buffer = memoryview(bytearray(max(BUFFER_SIZE, filled)))
            self._buffer[:filled] = target[:filled]
            self._start, self._end = 0, filled
            raise
        finally:
            self._receiving = False
            self._incoming.end(self._loop.time())

    async def skip(self, size: int) -> None:
        """Receive *size* bytes and forget them."""
        while size:
            size -= len(await self.read(min(size, BUFFER_SIZE)))

    @property
    def received(self) -> int:
        """How many bytes have been received and decrypted that nobody has read."""
        return self._end - self._start

    @property
    def has_more(self) -> bool:
        """Whether something has been received already that nobody has read."""
        return self._start != self._end or self._tls.pending() > 0

    async def _receive_at_least(self, size: int) -> None:
        """Have *size* bytes in the stream's own buffer."""
        if self._receiving:
            self._refuse_a_second()
        if size < 0:
            raise ValueError(f"size must not be negative, as {size} is")
        if size > BUFFER_SIZE:
            raise ValueError(f"at most {BUFFER_SIZE} bytes can be read at once, not {size}; use read_into()")
        self._receiving = True
        try:
            left = bytes(self._buffer[self._start : self._end])
            if len(self._buffer) > BUFFER_SIZE > len(left):
                self._buffer = memoryview(bytearray(BUFFER_SIZE))
            self._buffer[: len(left)] = left
            self._start, self._end = 0, len(left)
            while self._end < size:
                if self._end:
                    self._incoming.begin(self._loop.time())
                self._end += await self._receive(self._buffer[self._end :])
        finally:
            self._receiving = False
            self._incoming.end(self._loop.time())

    async def _receive(self, target: memoryview) -> int:
        """Decrypt what there is, at least one byte. It is counted by whoever has called, in the same turn."""
        while True:
            if self._is_over:
                raise DisconnectedError("the peer has closed the connection")
            try:
                size = self._read(target)
            except ssl.SSLWantReadError:
                await self._feed()
            except ssl.SSLZeroReturnError:
                self._is_over = True
            except ssl.SSLError as error:
                self._fail(error)
            else:
                if size:
                    self._incoming.advance(size, self._loop.time())
                    return size
                self._is_over = True

    def _read(self, target: memoryview) -> int:
        size: object = self._tls.read(len(target), target)  # which gives bytes where it is given no buffer
        assert isinstance(size, int)
        return size

    async def _feed(self) -> None:
        """Receive what TLS needs to go on. A peer may ask it for answers, new keys, without end: it is heard
        again when it has taken those that there are."""
        self._send_what_is_encrypted()
        while self._said > MOST_SAID:
            self._taken = self._loop.create_future()
            await self._taken
        self._from_peer.write(await self._stream.read_some())

    # --- sending --------------------------------------------------------------------------------------------

    def send(
        self, *parts: BytesLike, on_sent: Callable[[], object] | None = None, more: bool = False
    ) -> None:
        """Send the parts, after everything else; see :meth:`SocketStream.send`."""
        self._refuse_elsewhere("send")  # before anything is encrypted, which has its order
        try:
            for part in parts:
                rest = as_memoryview(part).cast("B")
                while rest:
                    rest = rest[self._tls.write(rest) :]
        except ssl.SSLError as error:
            self.abort(_words(error))
        self._stream.send(self._to_peer.read(), on_sent=on_sent, more=more)

    def _send_what_is_encrypted(self) -> None:
        """What TLS itself has to say."""
        if size := self._to_peer.pending:
            self._said += size
            self._stream.send(self._to_peer.read(), on_sent=partial(self._take, size))

    def _take(self, size: int) -> None:
        self._said -= size
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None)

    # --- the end --------------------------------------------------------------------------------------------

    def stalled(self) -> float:
        """For how many seconds the peer has been behind; see :meth:`SocketStream.stalled`."""
        below = self._stream.stalled()
        return max(below, self._incoming.behind(self._loop.time()))

    def hung_up(self) -> bool:
        """Whether the peer is gone; see :meth:`SocketStream.hung_up`."""
        return self._is_over or self._stream.hung_up()

    def abort(self, why: str) -> None:
        """Have done with the peer; see :meth:`SocketStream.abort`."""
        self._stream.abort(why)

    def close(self) -> None:
        """Say goodbye if that can be said at once, and close the socket; idempotent. What has not been sent
        is dropped."""
        with contextlib.suppress(ssl.SSLError, ValueError, OSError):  # which the peer has not answered yet
            self._tls.unwrap()
        self._send_what_is_encrypted()
        self._stream.close()

    def _fail(self, error: ssl.SSLError) -> NoReturn:
        self._send_what_is_encrypted()
        why = _words(error)
        self._stream.abort(why)
        raise DisconnectedError(why) from None

    def _refuse_elsewhere(self, operation: str) -> None:
        if running_loop(operation) is not self._loop:
            raise UsageError("the stream belongs to another event loop", operation=operation)

    def _refuse_a_second(self) -> NoReturn:
        raise StreamBusyError("another task is receiving from the stream already", operation="receive")


def _words(error: ssl.SSLError) -> str:
    """As TLS has them: "tlsv13 alert certificate required"."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: the certificate is refused: {error.verify_message}"
    return f"TLS: {(error.reason or str(error)).lower().replace('_', ' ')}"
