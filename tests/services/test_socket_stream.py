"""SocketStream: bytes into and out of given memory, and peers that stall or vanish."""

import array
import asyncio
import gc
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable

import pytest

import aioblk
from aioblk import DisconnectedError, SocketStream, StreamBusyError, UsageError

HEAD = struct.Struct(">HI")
TIME_LIMIT = 20


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


async def until(happened: Callable[[], bool]) -> None:
    while not happened():  # noqa: ASYNC110
        await asyncio.sleep(0)  # the stream tells nobody: that is the point


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


async def test_what_has_not_been_received_is_not_there_at_once(ends: Ends) -> None:
    stream, theirs = ends
    assert stream.unpack_nowait(HEAD) is None
    assert stream.read_nowait(1) is None
    theirs.send(HEAD.pack(7, 5) + b"hello" + HEAD.pack(8, 0)[:3])
    assert await stream.unpack(HEAD) == (7, 5)
    assert stream.received == 8
    assert stream.read_nowait(9) is None
    assert stream.read_nowait(-1) is None
    data = stream.read_nowait(5)
    assert data is not None
    assert bytes(data) == b"hello"
    assert stream.unpack_nowait(HEAD) is None
    theirs.send(HEAD.pack(8, 0)[3:] + HEAD.pack(9, 1))
    assert await stream.unpack(HEAD) == (8, 0)
    assert stream.unpack_nowait(HEAD) == (9, 1)
    assert stream.received == 0


async def test_messages_are_taken_as_they_come_until_one_is_left(ends: Ends) -> None:
    stream, theirs = ends
    taken: list[tuple[int, bytes]] = []
    tasks: list[asyncio.Task[object] | None] = []

    def take(kind: int, size: int) -> bool:
        tasks.append(asyncio.current_task())
        if kind == 0 or stream.received < size:
            return False
        data = stream.read_nowait(size)
        assert data is not None
        taken.append((kind, bytes(data)))
        return True

    receiving = asyncio.create_task(stream.unpack_while(HEAD, take))
    sent = [(number, random.Random(number).randbytes(number)) for number in range(1, 300)]
    theirs.send(HEAD.pack(7, 2) + b"hi")
    await until(lambda: len(taken) == 1)
    assert tasks == [None]  # the task was not needed
    message = HEAD.pack(5, 3)
    theirs.send(message[:2])
    await asyncio.sleep(0)
    theirs.send(message[2:] + b"all" + HEAD.pack(6, 4) + b"hal")
    assert await receiving == (6, 4)  # whose data have not all come
    assert taken == [(7, b"hi"), (5, b"all")]
    theirs.send(b"f")
    assert bytes(await stream.read(4)) == b"half"
    del taken[:]
    writing = asyncio.create_task(send_in_pieces(theirs, [*sent, (0, b""), (1, b"")]))
    while (head := await stream.unpack_while(HEAD, take))[0]:
        taken.append((head[0], bytes(await stream.read(head[1]))))
    assert taken == sent
    assert await stream.unpack(HEAD) == (1, 0)
    await writing


async def send_in_pieces(theirs: socket.socket, messages: list[tuple[int, bytes]]) -> None:
    chance = random.Random(2)
    data = b"".join(HEAD.pack(kind, len(body)) + body for kind, body in messages)
    while data:
        size = chance.choice([1, 5, 6, 100, 2000])
        await asyncio.get_running_loop().sock_sendall(theirs, data[:size])
        data = data[size:]
        await asyncio.sleep(0)


async def test_whoever_is_cancelled_while_messages_are_taken_loses_none(ends: Ends) -> None:
    stream, theirs = ends
    taken: list[int] = []

    def take(kind: int, _size: int) -> bool:
        taken.append(kind)
        return True

    receiving = asyncio.create_task(stream.unpack_while(HEAD, take))
    theirs.send(HEAD.pack(1, 0) + HEAD.pack(2, 0)[:4])
    await until(lambda: bool(taken))
    with pytest.raises(StreamBusyError):
        stream.read_nowait(1)
    with pytest.raises(StreamBusyError):
        stream.unpack_nowait(HEAD)
    receiving.cancel()
    await asyncio.wait([receiving])
    theirs.send(HEAD.pack(2, 0)[4:])
    assert await stream.unpack(HEAD) == (2, 0)
    assert taken == [1]


async def test_who_fails_to_take_a_message_fails_who_receives(ends: Ends) -> None:
    stream, theirs = ends

    def take(kind: int, _size: int) -> bool:
        if kind == 1:
            stream.abort("enough")
            return True
        raise LookupError(kind)

    receiving = asyncio.create_task(stream.unpack_while(HEAD, take))
    await asyncio.sleep(0)
    theirs.send(HEAD.pack(3, 0))
    with pytest.raises(LookupError):
        await receiving
    receiving = asyncio.create_task(stream.unpack_while(HEAD, take))
    await asyncio.sleep(0)
    theirs.send(HEAD.pack(1, 0))
    with pytest.raises(DisconnectedError, match="enough"):
        await receiving


async def test_who_stops_within_a_message_that_would_be_taken_stalls() -> None:
    ours, theirs = socket.socketpair()
    stream = SocketStream(ours, least_rate=1e6)
    receiving = asyncio.create_task(stream.unpack_while(HEAD, lambda *_: True))
    theirs.send(HEAD.pack(1, 0))
    await until(lambda: not stream.received)
    await asyncio.sleep(0)
    assert stream.stalled() == 0
    theirs.send(HEAD.pack(2, 0)[:1])
    async with asyncio.timeout(TIME_LIMIT):
        await until(lambda: stream.stalled() > 0)
        theirs.send(HEAD.pack(2, 0)[1:])
        await until(lambda: stream.stalled() == 0)
    receiving.cancel()
    await asyncio.wait([receiving])
    stream.close()
    theirs.close()


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


# --- one task receives --------------------------------------------------------------------------------------


async def until_receiving(stream: SocketStream, size: int) -> "asyncio.Task[bytes]":
    """A task that waits for *size* bytes."""

    async def read() -> bytes:
        return bytes(await stream.read(size))

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    return task


async def test_a_second_task_that_receives_is_refused(ends: Ends) -> None:
    stream, theirs = ends
    theirs.send(b"ab")
    first = await until_receiving(stream, 5)
    for second in (stream.read(1), stream.unpack(HEAD), stream.read_into(bytearray(1)), stream.skip(1)):
        with pytest.raises(StreamBusyError, match="another task is receiving"):
            await second
    theirs.send(b"cde")
    async with asyncio.timeout(TIME_LIMIT):
        assert await first == b"abcde"
    large = bytearray(1 << 20)
    filling = asyncio.create_task(stream.read_into(large))
    await asyncio.sleep(0)
    for second in (stream.read(1), stream.read_into(bytearray(1))):
        with pytest.raises(StreamBusyError):
            await second
    async with asyncio.timeout(TIME_LIMIT):
        await asyncio.get_running_loop().sock_sendall(theirs, b"x" * (1 << 20) + b"yz")
        await filling
        assert large == b"x" * (1 << 20)
        assert bytes(await stream.read(2)) == b"yz"


async def test_whoever_was_receiving_makes_room_for_the_next(ends: Ends) -> None:
    """Cancelled, refused, or forgotten."""
    stream, theirs = ends
    first = await until_receiving(stream, 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(ValueError, match="read_into"):
        await stream.read(1 << 20)
    forgotten = stream.read(1)
    forgotten.send(None)
    del forgotten
    gc.collect()
    theirs.send(b"x")
    async with asyncio.timeout(TIME_LIMIT):
        assert bytes(await stream.read(1)) == b"x"


# --- cancellation loses nothing -----------------------------------------------------------------------------

SMALL, LARGE = 1000, 300_000
MESSAGES = 6


async def give_up(task: "asyncio.Task[bytes]", turns: int) -> bytes:
    """What the task received before it was cancelled in that turn of the loop; nothing if it did not."""
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return b""


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
async def test_a_message_survives_a_cancelled_receive_in_any_turn(
    family: socket.AddressFamily, size: int, turns: int
) -> None:
    """In the turn in which it arrives as well; whole, and in pieces, the last of which comes after all."""
    ours, theirs = connected(family)
    stream = SocketStream(ours)
    chance = random.Random(turns)
    sent = [HEAD.pack(number, size) + chance.randbytes(size) for number in range(MESSAGES)]
    stopped = asyncio.Event()

    async def receive() -> bytes:
        header = HEAD.size
        if not heads:
            heads.append(await stream.unpack(HEAD))
        if size == SMALL:
            data = bytes(await stream.read(heads[-1][1]))
        else:
            buffer = bytearray(heads[-1][1])
            await stream.read_into(buffer)
            data = bytes(buffer)
        assert header + len(data) == len(sent[0])
        return HEAD.pack(*heads.pop()) + data

    async def send() -> None:
        for message in sent:
            cut = chance.randrange(len(message))
            for piece in (message[:cut], message[cut:]):
                await asyncio.get_running_loop().sock_sendall(theirs, piece)
                await asyncio.sleep(0)
        await stopped.wait()

    heads: list[tuple[int, int]] = []
    received: list[bytes] = []
    async with asyncio.timeout(TIME_LIMIT):
        sending = asyncio.create_task(send())
        for _ in range(40):
            if message := await give_up(asyncio.create_task(receive()), turns):
                received.append(message)
            if len(received) == MESSAGES:
                break
        while len(received) < MESSAGES:
            received.append(await receive())
        assert received == sent
        assert not stream.has_more
        stopped.set()
        await sending
    stream.close()
    theirs.close()


def connected(family: socket.AddressFamily) -> tuple[socket.socket, socket.socket]:
    if family == socket.AF_UNIX:
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
    theirs.setblocking(False)
    return ours, theirs


async def test_an_idle_limit_around_unpack_loses_nothing(ends: Ends) -> None:
    stream, theirs = ends
    for byte in HEAD.pack(7, 77):
        theirs.send(bytes([byte]))
        if byte != 77:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.unpack(HEAD), 0.001)
    async with asyncio.timeout(TIME_LIMIT):
        assert await stream.unpack(HEAD) == (7, 77)


async def test_what_was_received_in_place_is_received_again(ends: Ends) -> None:
    """However much it was, and however it is received then; the caller's buffer is free."""
    stream, theirs = ends
    data = random.Random(3).randbytes(1 << 20)
    buffer = bytearray(len(data) + 10)
    filling = asyncio.create_task(stream.read_into(buffer))
    async with asyncio.timeout(TIME_LIMIT):
        await asyncio.get_running_loop().sock_sendall(theirs, data)
        await until(lambda: buffer[len(data) - 1] == data[-1])
        filling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await filling
        buffer[:] = bytes(len(buffer))
        assert await stream.unpack(struct.Struct("1000s")) == (data[:1000],)
        again = bytearray(500_000)
        await stream.read_into(again)
        assert again == data[1000:501_000]
        await stream.skip(100_000)
        theirs.send(b"the end")
        rest = bytearray(len(data) - 601_000 - 5)
        await stream.read_into(rest)
        assert rest == data[601_000:-5]
        assert bytes(await stream.read(12)) == data[-5:] + b"the end"


@pytest.mark.parametrize("half", [True, False])
async def test_what_had_arrived_outlives_the_peer_and_the_cancelled_task(ends: Ends, half: bool) -> None:
    stream, theirs = ends
    for turns in range(6):
        theirs.send(b"abcd")
        assert not await give_up(await until_receiving(stream, 25), turns)
    theirs.send(b"ef")
    if half:
        theirs.shutdown(socket.SHUT_WR)
    else:
        theirs.close()
    async with asyncio.timeout(TIME_LIMIT):
        assert bytes(await stream.read(25)) == b"abcd" * 6 + b"e"
        with pytest.raises(DisconnectedError, match="closed the connection"):
            await stream.read(2)
        assert bytes(await stream.read(1)) == b"f"


async def test_a_reset_peer_leaves_what_had_been_received() -> None:
    ours, theirs = connected(socket.AF_INET)
    stream = SocketStream(ours)
    theirs.send(b"hello")
    async with asyncio.timeout(TIME_LIMIT):
        receiving = await until_receiving(stream, 6)
        await until(lambda: stream.has_more)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        while not receiving.done():
            stream.stalled()  # uvloop does not notice by itself
            await asyncio.sleep(0.001)
        with pytest.raises(DisconnectedError, match="reset"):
            await receiving
        assert bytes(await stream.read(5)) == b"hello"
        with pytest.raises(DisconnectedError):
            await stream.read(1)
    stream.close()


# --- sending ------------------------------------------------------------------------------------------------


async def test_two_tasks_that_send_do_not_mix(ends: Ends) -> None:
    stream, theirs = ends
    size = 300_000

    async def send(letter: bytes) -> None:
        for _ in range(5):
            sent = asyncio.Event()
            stream.send(letter, letter * (size - 2), letter, on_sent=sent.set)
            await sent.wait()

    async with asyncio.timeout(TIME_LIMIT):
        tasks = [asyncio.create_task(send(letter)) for letter in (b"a", b"b")]
        data = await receive(theirs, 10 * size)
        await asyncio.gather(*tasks)
    messages = [data[start : start + size] for start in range(0, len(data), size)]
    assert sorted(messages) == [b"a" * size] * 5 + [b"b" * size] * 5


async def test_on_sent_may_send_and_close(ends: Ends) -> None:
    """Nothing is sent twice, whatever else has been sent in the same call."""
    stream, theirs = ends
    stream.send(b"1", on_sent=lambda: stream.send(b"4"), more=True)
    stream.send(b"2", on_sent=lambda: stream.send(b"5"), more=True)
    stream.send(b"3", on_sent=lambda: stream.send(b"6", on_sent=stream.close))
    async with asyncio.timeout(TIME_LIMIT):
        assert await receive(theirs, 1000) == b"123456"


async def test_an_on_sent_that_fails_holds_up_nobody(
    ends: Ends, loop_errors: list[dict[str, object]]
) -> None:
    stream, theirs = ends
    sent: list[int] = []
    stream.send(b"a", on_sent=lambda: 1 // 0, more=True)
    stream.send(b"b", on_sent=lambda: sent.append(1))
    async with asyncio.timeout(TIME_LIMIT):
        assert await receive(theirs, 2) == b"ab"
    assert sent == [1]
    (reported,) = loop_errors
    assert isinstance(reported["exception"], ZeroDivisionError)
    loop_errors.clear()


async def test_who_goes_on_sending_to_nobody_does_not_stop_the_loop(ends: Ends) -> None:
    stream, _theirs = ends
    stream.abort("enough")
    calls: list[int] = []

    def pump() -> None:
        calls.append(1)
        if len(calls) < 1000:
            stream.send(b"x", on_sent=pump)

    pump()
    assert len(calls) < 10
    async with asyncio.timeout(TIME_LIMIT):
        await until(lambda: len(calls) == 1000)


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
async def test_a_peer_that_only_listens_gets_its_answers(family: socket.AddressFamily) -> None:
    ours, theirs = connected(family)
    stream = SocketStream(ours)
    answer = bytes(4 << 20)
    theirs.send(b"?")
    theirs.shutdown(socket.SHUT_WR)
    assert bytes(await stream.read(1)) == b"?"
    sent = asyncio.Event()
    stream.send(answer, on_sent=sent.set)
    with pytest.raises(DisconnectedError, match="closed the connection"):
        await stream.read(1)
    async with asyncio.timeout(TIME_LIMIT):
        assert len(await receive(theirs, len(answer))) == len(answer)
        await sent.wait()
    stream.close()
    theirs.close()


async def test_another_thread_is_refused(ends: Ends) -> None:
    stream, _theirs = ends
    with pytest.raises(UsageError, match="no event loop is running here"):
        await asyncio.to_thread(stream.send, b"x")
    with pytest.raises(UsageError, match="another event loop"):
        await asyncio.to_thread(asyncio.run, stream.read(1))


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


async def until_stalled(stream: SocketStream, seconds: float = 0.0) -> None:
    async with asyncio.timeout(TIME_LIMIT):
        while not stream.stalled() > seconds:  # noqa: ASYNC110 (nothing happens: that is the point)
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


async def drip(theirs: socket.socket, moved: Callable[[], object]) -> None:
    while True:
        moved()
        await asyncio.sleep(0.001)


async def test_dripping_is_stalling(ends: Ends) -> None:
    """Any progress is not enough: neither when sending nor when taking, and not in messages of its own."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    stream = SocketStream(ours, least_rate=1e9)
    received = 0

    async def receive_always() -> None:
        nonlocal received
        while True:
            await stream.read_into(bytearray(3))
            received += 1

    receiving = asyncio.create_task(receive_always())
    dripping = asyncio.create_task(drip(theirs, lambda: theirs.send(b"x")))
    async with asyncio.timeout(TIME_LIMIT):
        while received <= 3:  # noqa: ASYNC110 (there is no event)
            await asyncio.sleep(0.001)
    await until_stalled(stream, 0.05)
    dripping.cancel()
    receiving.cancel()
    await asyncio.wait([dripping, receiving])
    assert stream.stalled() == 0

    stream.send(*[bytes(100)] * 300_000)
    dripping = asyncio.create_task(drip(theirs, lambda: theirs.recv(10_000)))
    await until_stalled(stream, 0.05)
    dripping.cancel()
    await asyncio.wait([dripping])
    stream.close()
    theirs.close()


async def test_who_keeps_to_the_least_rate_does_not_stall(ends: Ends) -> None:
    ours, theirs = socket.socketpair()
    stream = SocketStream(ours, least_rate=0.001)  # so that a byte pays for a quarter of an hour
    loop = asyncio.get_running_loop()
    receiving = asyncio.create_task(stream.unpack(HEAD))
    for number in range(HEAD.size - 1):
        before = loop.time()
        theirs.send(b"x")
        await asyncio.sleep(0.002)  # since when it has been behind, had it not moved
        assert stream.stalled() <= loop.time() - before, number
    theirs.send(b"x")
    await receiving
    with pytest.raises(ValueError, match="positive"):
        SocketStream(ours, least_rate=0)
    stream.close()
    theirs.close()


async def test_a_size_is_not_negative(ends: tuple[SocketStream, socket.socket]) -> None:
    """It would have given what had been read before, or never come to an end."""
    stream, peer = ends
    peer.send(b"hello world")
    assert bytes(await stream.read(5)) == b"hello"
    for call in (stream.read, stream.skip):
        with pytest.raises(ValueError, match="size must not be negative, as -3 is"):
            await call(-3)
    assert bytes(await stream.read(6)) == b" world"
