"""Answers that are sent while they are read: of bytes, and of where there are holes."""

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from http import HTTPStatus
from typing import Self

from starlette.types import Receive, Scope, Send

import aioblk

from .clients import Client
from .connection import Connection
from .problems import RETRY_AFTER, ProblemError
from .ranges import Part
from .transfers import View, read
from .versions import Versions

EXTENTS_AT_ONCE = 1000

log = logging.getLogger("gateway")


class Content:
    """What an answer consists of: parts of the device, each behind some text, and text at the end."""

    def __init__(
        self,
        status: HTTPStatus,
        headers: Mapping[str, str],
        content_type: str,
        parts: list[tuple[bytes, Part]],
        end: bytes = b"",
    ) -> None:
        self.status = status
        self.parts = parts
        self.end = end
        length = sum(len(text) + part.length for text, part in parts) + len(end)
        self.headers = {**headers, "Content-Type": content_type, "Content-Length": str(length)}

    @classmethod
    def of_ranges(
        cls, headers: Mapping[str, str], content_type: str, ranges: list[Part], whole: Part
    ) -> Self:
        """Ranges of a part; several are divided as mail is."""

        def name(part: Part) -> str:
            return f"bytes {part.offset}-{part.end - 1}/{whole.length}"

        if len(ranges) == 1:
            headers = {**headers, "Content-Range": name(ranges[0])}
            parts = [(b"", ranges[0].moved(whole.offset))]
            return cls(HTTPStatus.PARTIAL_CONTENT, headers, content_type, parts)
        boundary = secrets.token_hex(16)
        above = f"\r\n--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: "
        parts = [(f"{above}{name(part)}\r\n\r\n".encode(), part.moved(whole.offset)) for part in ranges]
        kind = f"multipart/byteranges; boundary={boundary}"
        return cls(HTTPStatus.PARTIAL_CONTENT, headers, kind, parts, f"\r\n--{boundary}--\r\n".encode())


class Answer:
    """An ASGI application that sends what is found piece by piece. When that fails before anything was sent,
    the error is the answer; later on, the connection is broken off, so that nobody takes it for whole."""

    def __init__(self, status: HTTPStatus, headers: Mapping[str, str], patience: float) -> None:
        self._status = status
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        self._patience = patience

    def find(self) -> AsyncGenerator[bytes]:
        """To be overridden."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: Connection = scope["connection"]
        async with aclosing(self.find()) as pieces:
            try:
                piece = await anext(pieces, None)
            except OvertakenError as reason:
                detail = f"{reason}; ask again"
                raise ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers=RETRY_AFTER) from None
            try:
                await self._send(
                    send, {"type": "http.response.start", "status": self._status, "headers": self._headers}
                )
                while piece is not None and not connection.is_gone:
                    await self._send(send, {"type": "http.response.body", "body": piece, "more_body": True})
                    piece = await anext(pieces, None)
                await self._send(send, {"type": "http.response.body"})
            except (OvertakenError, TimeoutError) as reason:
                log.warning("%s is cut short: %s", connection.client, str(reason) or "it takes too little")
                await connection.abort()
            except aioblk.BlkioError as error:
                log.error("%s is cut short: %s", connection.client, error)
                await connection.abort()

    async def _send(self, send: Send, message: dict[str, object]) -> None:
        """TimeoutError: what came before has not been taken in time."""
        async with asyncio.timeout(self._patience):
            await send(message)


class OvertakenError(Exception):
    """What was to be sent is not what the entity tag says any more."""


class Download(Answer):
    """Bytes of the device, all of the version that the entity tag names."""

    def __init__(
        self,
        content: Content,
        view: View,
        client: Client,
        versions: Versions,
        since: int | None,
        patience: float,
    ) -> None:
        """*since* is the latest change that the answer may know of; None for any."""
        super().__init__(content.status, content.headers, patience)
        self._content = content
        self._view = view
        self._client = client
        self._versions = versions
        self._since = since

    async def find(self) -> AsyncGenerator[bytes]:
        for text, part in self._content.parts:
            if text:
                yield text
            async with aclosing(read(self._view, self._client, part)) as pieces:
                async for piece, data in pieces:
                    if self._since is not None and self._versions.has_changed(piece, self._since):
                        raise OvertakenError(
                            f"a change of bytes {piece.offset} to {piece.end} has overtaken it"
                        )
                    yield data
        if self._content.end:
            yield self._content.end


class Map(Answer):
    """Where there is data, and where there are holes, as oVirt's imageio tells it."""

    def __init__(self, device: aioblk.BlockDevice, part: Part, patience: float) -> None:
        headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
        super().__init__(HTTPStatus.OK, headers, patience)
        self._device = device
        self._part = part

    async def find(self) -> AsyncGenerator[bytes]:
        text = "["
        told = 0
        async with aclosing(self._extents()) as extents:
            async for extent in extents:
                text += "" if not told else ",\n"
                is_hole = extent.kind is aioblk.ExtentKind.HOLE
                text += json.dumps(
                    {"start": extent.offset, "length": extent.length, "zero": is_hole, "hole": False}
                )
                told += 1
                if told % EXTENTS_AT_ONCE == 0:
                    yield text.encode()
                    text = ""
        yield f"{text}]\n".encode()

    async def _extents(self) -> AsyncGenerator[aioblk.Extent]:
        if not self._part.length:
            return
        if not isinstance(self._device, aioblk.KnowsExtents):
            yield aioblk.Extent(*self._part)
            return
        async with aclosing(self._device.extents(*self._part)) as extents:
            async for extent in extents:
                yield extent
