"""SocketStream: bytes into and out of given memory, and peers that stall or vanish."""

import array
import asyncio
import gc
import random
import socket
import struct
from collections.abc import AsyncIterator

import pytest

import aioblk
from aioblk import DisconnectedError, SocketStream

HEAD = struct.Struct(">HI")


@pytest.fixture
async def ends() -> AsyncIterator[tuple[SocketStream, socket.socket]]:
    """A stream, and its peer's socket, which does not block."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    stream = SocketStream(ours)
    yield stream, theirs
    stream.close()
    theirs.close()


Ends = tuple[SocketStream, socket.socket]


async def receive(theirs: socket.socket, size: int) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < size and (piece := await loop.sock_recv(theirs, size - len(data))):
        data += piece
    return data


# --- receiving ----------------------------------------------------------------------------------------------


async def test_messages_and_their_data(ends: Ends) -> None:
    stream, theirs = ends
    theirs.send(HEAD.pack(7, 5) + b"hello" + HEAD.pack(8, 0) + b"rest")
    assert await stream.unpack(HEAD) == (7, 5)
    assert stream.has_more
    buffer = bytearray(5)
    await stream.read_into(buffer)
    assert buffer == b"hello"
    assert await stream.unpack(HEAD) == (8, 0)
    await stream.skip(2)
    assert bytes(await stream.read(2)) == b"st"
    assert not stream.has_more
    with pytest.raises(ValueError, match="read_into"):
        await stream.read(1 << 20)


async def test_large_data_arrive_in_place_and_however_they_are_cut(ends: Ends) -> None:
    stream, theirs = ends
    chance = random.Random(1)
    data = chance.randbytes(3 << 20)

    async def send() -> None:
        position = 0
        while position < len(data):
            piece = data[position : position + chance.choice([1, 100, 5000, 300_000])]
            await asyncio.get_running_loop().sock_sendall(theirs, piece)
            position += len(piece)

    sending = asyncio.create_task(send())
    async with aioblk.Arena(4 << 20) as arena:
        assert bytes(await stream.read(11)) == data[:11]
        with await arena.acquire((2 << 20) - 11) as buffer:
            await stream.read_into(buffer)
            assert buffer.tobytes() == data[11 : 2 << 20]
        await stream.skip((1 << 20) - 8)
        words = array.array("I", [0, 0])
        await stream.read_into(words)
        assert words.tobytes() == data[-8:]
    await sending


async def test_what_nobody_reads_stays_with_the_sender(ends: Ends) -> None:
    stream, theirs = ends
    theirs.send(b"x")
    await stream.skip(1)
    with pytest.raises(BlockingIOError):  # noqa: PT012
        while True:
            theirs.send(bytes(1 << 16))
            await asyncio.sleep(0)


# --- sending ------------------------------------------------------------------------------------------------


async def test_memory_is_free_when_it_has_been_sent(ends: Ends) -> None:
    stream, theirs = ends
    async with aioblk.Arena(8 << 20) as arena:
        buffers = [await arena.acquire(4 << 20) for _ in range(2)]
        for buffer in buffers:
            stream.send(b"head", buffer, on_sent=buffer.release)
        assert arena.statistics().in_use == 8 << 20  # more than a socket holds
        assert len(await receive(theirs, 4 + (4 << 20))) == 4 + (4 << 20)
        (await asyncio.wait_for(arena.acquire(4 << 20), 10)).release()
        await receive(theirs, 4 + (4 << 20))
        assert arena.statistics().in_use == 0


async def test_what_is_sent_together_keeps_its_order(ends: Ends) -> None:
    stream, theirs = ends
    log: list[str] = []
    stream.send(b"a", b"b", on_sent=lambda: log.append("b"), more=True)
    stream.send(array.array("H", [0x6363]), b"", more=True)
    stream.send(on_sent=lambda: log.append("nothing"))
    assert log == []
    assert await receive(theirs, 4) == b"abcc"
    assert log == ["b", "nothing"]


# --- the end ------------------------------------------------------------------------------------------------


async def test_the_peers_end_is_an_error_for_who_receives(ends: Ends) -> None:
    stream, theirs = ends
    theirs.send(b"abc")
    theirs.close()
    assert bytes(await stream.read(2)) == b"ab"
    for _ in range(2):
        with pytest.raises(DisconnectedError, match="closed the connection"):
            await stream.read(2)


async def test_a_vanished_peer_gives_memory_back(ends: Ends) -> None:
    stream, theirs = ends
    sent: list[int] = []
    stream.send(bytes(16 << 20), on_sent=lambda: sent.append(1))
    assert sent == []
    receiving = asyncio.create_task(stream.read(1))
    await asyncio.sleep(0)
    theirs.close()
    with pytest.raises(DisconnectedError):
        await receiving
    assert sent == [1]
    stream.send(b"x", on_sent=lambda: sent.append(2))
    assert sent == [1, 2]


async def test_nothing_keeps_memory_that_was_given_back(ends: Ends) -> None:
    """No slice of it that was received into, and no traceback of who was receiving."""
    stream, theirs = ends
    async with aioblk.Arena(1 << 20) as arena:
        buffer = await arena.acquire(1 << 20)
        filling = asyncio.create_task(stream.read_into(buffer))
        await asyncio.get_running_loop().sock_sendall(theirs, bytes(1 << 20))
        await filling
        buffer.release()
        assert arena.statistics().in_use == 0
        buffer = await arena.acquire(1 << 20)
        filling = asyncio.create_task(stream.read_into(buffer))
        theirs.send(b"x")
        await asyncio.sleep(0.001)
        theirs.close()
        with pytest.raises(DisconnectedError):
            await filling
        del filling
        gc.disable()
        try:
            buffer.release()
            with pytest.raises(DisconnectedError):
                await stream.read(1)
            await asyncio.sleep(0)  # until here, asyncio keeps the task that has woken this one
            assert arena.statistics().in_use == 0
        finally:
            gc.enable()


async def test_aborting_ends_both_directions(ends: Ends) -> None:
    stream, _theirs = ends
    sent: list[int] = []
    stream.send(bytes(16 << 20), on_sent=lambda: sent.append(1))
    receiving = asyncio.create_task(stream.read(1))
    await asyncio.sleep(0)
    stream.abort("enough")
    stream.abort("more than enough")
    with pytest.raises(DisconnectedError, match=r"^enough"):
        await receiving
    assert sent == [1]
    stream.close()
    with pytest.raises(DisconnectedError, match=r"^enough"):
        await stream.read(1)


async def until_stalled(stream: SocketStream) -> None:
    while not stream.stalled():  # noqa: ASYNC110 (nothing happens: that is the point)
        await asyncio.sleep(0.001)


async def test_who_is_in_the_middle_of_something_stalls(ends: Ends) -> None:
    stream, theirs = ends
    receiving = asyncio.create_task(stream.unpack(HEAD))
    await asyncio.sleep(0.001)
    assert stream.stalled() == 0
    theirs.send(b"x")
    await until_stalled(stream)
    theirs.send(bytes(5))
    await receiving
    assert stream.stalled() == 0
    stream.send(bytes(16 << 20))
    await until_stalled(stream)
    await receive(theirs, 16 << 20)
    assert stream.stalled() == 0
