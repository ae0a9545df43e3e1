"""Bytes between a device and a client, piece by piece, in memory that is bounded and shared out."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, suppress
from http import HTTPStatus
from typing import Any, TypeAlias

from starlette.requests import ClientDisconnect

import aioblk

from .clients import PIECE, Client
from .problems import ProblemError
from .ranges import Part

View: TypeAlias = aioblk.ByteView[aioblk.BlockDevice]

DONE_AT_ONCE = 128 << 20
"""Of what takes no data: what the device may be busy with for a client that has gone."""


class Transfer:
    """A request of the device that is under way, and the memory that it uses."""

    def __init__(self, piece: Part, buffer: aioblk.ArenaBuffer, request: "asyncio.Future[None]") -> None:
        self.piece = piece
        self.buffer = buffer
        self.request = request

    def end(self) -> None:
        """Give up what is under way. The memory is used again when the device uses it no more."""
        self.request.cancel()
        self.buffer.release()


async def begin(
    client: Client,
    piece: Part,
    buffer: aioblk.ArenaBuffer,
    method: Callable[[int, aioblk.ArenaBuffer], Awaitable[None]],
) -> Transfer:
    """When the client has a place among what is in flight. If that fails, the memory is released."""
    with ExitStack() as undo:
        undo.callback(buffer.release)
        await client.places.enter(piece.length)
        undo.callback(client.places.leave, piece.length)
        request = asyncio.ensure_future(method(piece.offset, buffer))
        undo.pop_all()
    request.add_done_callback(lambda _: client.places.leave(piece.length))
    return Transfer(piece, buffer, request)


# --- to the client ------------------------------------------------------------------------------------------


async def read(view: View, client: Client, part: Part) -> AsyncGenerator[tuple[Part, bytes]]:
    """The pieces of a part.

    Each is copied, since nobody can tell when a web server has sent what it was given; so who does not take
    what was sent to him holds no memory of the arena. While the server sends a piece, the next one is read.
    """
    for piece in part.pieces(PIECE):
        transfer = await begin(client, piece, await client.memory.acquire(piece.length), view.read_into)
        try:
            await transfer.request
            data = bytes(transfer.buffer)
        finally:
            transfer.end()
        yield piece, data


# --- from the client ----------------------------------------------------------------------------------------


class Body:
    """What a client sends. It is received as it is needed, so that the rest stays in its socket."""

    def __init__(self, chunks: AsyncIterator[bytes], patience: float) -> None:
        """Each piece has *patience* seconds to come."""
        self._chunks = chunks
        self._patience = patience
        self._rest = memoryview(b"")
        self._ended = False

    async def has_more(self) -> bool:
        """Whether there is something. Memory for it is taken when there is, and not for who is silent."""
        await self._receive(self._patience)
        return len(self._rest) > 0

    async def fill(self, buffer: aioblk.ArenaBuffer) -> int:
        """How many bytes there were, which is as many as it has but at the end."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._patience
        target, filled = memoryview(buffer), 0
        while filled < len(target):
            await self._receive(deadline - clock())
            if not self._rest:
                break
            length = min(len(self._rest), len(target) - filled)
            target[filled : filled + length] = self._rest[:length]
            self._rest = self._rest[length:]
            filled += length
        target.release()
        return filled

    async def _receive(self, seconds: float) -> None:
        """Have some bytes, unless this is the end."""
        try:
            async with asyncio.timeout(max(seconds, 0)):
                while not self._rest and not self._ended:
                    self._rest = memoryview(await anext(self._chunks, b""))
                    self._ended = not self._rest
        except TimeoutError:
            detail = f"{PIECE} bytes are to come within {self._patience:g} seconds"
            raise ProblemError(HTTPStatus.REQUEST_TIMEOUT, detail, headers={"Connection": "close"}) from None


class Upload:
    """A body on its way to the device: one piece is written while the next one is received."""

    def __init__(self, view: View, client: Client, part: Part) -> None:
        self._view = view
        self._client = client
        self._part = part
        self._under_way: Transfer | None = None
        self.written = 0
        """So many bytes of the part, from its beginning. More may have been, where the device failed."""

    async def run(self, body: Body) -> None:
        """Write what comes, up to the end of the part. However it ends, nothing is under way then."""
        try:
            for piece in self._part.pieces(PIECE):
                if not await body.has_more():
                    break
                buffer = await self._client.memory.acquire(piece.length)
                with ExitStack() as undo:
                    undo.callback(buffer.release)
                    filled = await body.fill(buffer)
                    await self._finish()
                    undo.pop_all()
                await self._begin(Part(piece.offset, filled), buffer)
            await self._finish()
        except Exception:
            with suppress(aioblk.BlkioError):  # the first one is told
                await self._finish()
            raise
        finally:
            if transfer := self._under_way:
                transfer.request.cancel()
                await asyncio.wait([transfer.request])
                transfer.end()

    async def _begin(self, piece: Part, buffer: aioblk.ArenaBuffer) -> None:
        def write(offset: int, buffer: aioblk.ArenaBuffer) -> Awaitable[None]:
            return self._view.write(offset, buffer[: piece.length])

        self._under_way = await begin(self._client, piece, buffer, write)

    async def _finish(self) -> None:
        if transfer := self._under_way:
            await transfer.request
            self._under_way = None
            transfer.end()
            self.written += transfer.piece.length


# --- without data -------------------------------------------------------------------------------------------


async def do_stepwise(
    client: Client, part: Part, method: Callable[[int, int], Awaitable[Any]], is_gone: Callable[[], bool]
) -> None:
    """Have it done step by step, for as long as somebody waits for it.

    Raises:
        ClientDisconnect: nobody does.
    """
    for step in part.pieces(DONE_AT_ONCE):
        if is_gone():
            raise ClientDisconnect
        await client.places.enter()
        try:
            await method(step.offset, step.length)
        finally:
            client.places.leave()
