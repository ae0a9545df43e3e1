"""A connection of uvicorn's, and what that leaves to whoever uses it."""

import asyncio
import logging

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_IN_VAIN = 64 << 10
"""Bytes that come to no header and no data: of a header that does not end, of trailers."""

log = logging.getLogger("gateway")


class Connection(HttpToolsProtocol):
    """Sends away who sends no whole header in time, or a long one, and whoever comes when there are too many.

    Requests have it as ``scope["connection"]``, to ask whether the client has gone, and to have it go. The
    server makes connections of a class, so it is the class that has the limits: derive one from this.
    """

    patience = 30.0
    most_connections = 1000

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.lost = asyncio.Event()
        self._in_vain = 0
        self._watch: asyncio.TimerHandle | None = None
        if len(self.connections) > self.most_connections:
            log.warning("%d connections are enough: another one is closed", self.most_connections)
            transport.abort()
        else:
            self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        self.lost.set()
        super().connection_lost(exc)

    @property
    def is_gone(self) -> bool:
        return self.lost.is_set() or self.transport.is_closing()

    async def abort(self) -> None:
        """Have the client see that its answer is not whole: what is not sent yet never will be."""
        self.transport.abort()
        await self.lost.wait()

    # --- how long a header may take -------------------------------------------------------------------------

    def _expect_request(self) -> None:
        self._expect_nothing()
        self._watch = self.loop.call_later(self.patience, self.transport.abort)

    def _expect_nothing(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["connection"] = self  # type: ignore[typeddict-unknown-key]

    def on_headers_complete(self) -> None:
        self._in_vain = 0
        self._expect_nothing()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and not self.is_gone:  # else the next request has begun already
            self._expect_request()

    # --- how long it may be ---------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._in_vain += len(data)
        super().data_received(data)
        if self._in_vain > MOST_IN_VAIN and not self.is_gone:
            log.warning("%s sends a header of more than %d bytes", self.client, MOST_IN_VAIN)
            self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\r\n")
            self.transport.close()

    def on_body(self, body: bytes) -> None:
        self._in_vain = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_vain = 0
        super().on_message_complete()
