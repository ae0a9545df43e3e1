"""Queues of tasks, limits of what is in flight, and streams of messages."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import aioblk

from .scene import Ground, Scene, Scenery, at_once, operation


@operation("WaitQueue.wait")
async def wait(ground: Ground) -> AsyncIterator[Scene]:
    queue = aioblk.WaitQueue()
    loop = asyncio.get_running_loop()
    is_held = False

    def hold() -> None:
        nonlocal is_held
        is_held = True

    async def notified() -> None:
        if not is_held:
            loop.call_soon(queue.notify)
        await queue.wait()

    async def check() -> None:
        assert queue.statistics() == aioblk.WaitQueueStatistics(tasks_waiting=0, tasks_woken=0)

    yield Scene(notified, hold, queue.notify_all, check)


@operation("InFlight.enter")
async def enter(ground: Ground) -> AsyncIterator[Scene]:
    in_flight = aioblk.InFlight(requests=1)

    async def enter_and_leave() -> None:
        await in_flight.enter()
        in_flight.leave()

    async def check() -> None:
        assert not in_flight.requests
        at_once(in_flight.enter())  # who was given up holds nobody up
        in_flight.leave()

    yield Scene(enter_and_leave, lambda: at_once(in_flight.enter()), in_flight.leave, check)


@operation("InFlight.drain", closes=True)
async def drain(ground: Ground) -> AsyncIterator[Scene]:
    in_flight = aioblk.InFlight(requests=1)

    async def check() -> None:
        at_once(in_flight.drain())

    yield Scene(in_flight.drain, lambda: at_once(in_flight.enter()), in_flight.leave, check)


@operation("InFlightShare.enter")
async def enter_by_a_share(ground: Ground) -> AsyncIterator[Scene]:
    in_flight = aioblk.InFlight(requests=2, kept=0.5)
    with in_flight.share(requests=1) as share, in_flight.share() as other:

        async def enter_and_leave() -> None:
            await other.enter()
            other.leave()

        async def check() -> None:
            assert not in_flight.requests
            at_once(share.enter())
            at_once(other.enter())
            share.leave()
            other.leave()

        yield Scene(enter_and_leave, lambda: at_once(in_flight.enter()), in_flight.leave, check)


@operation("InFlightShare.drain", closes=True)
async def drain_a_share(ground: Ground) -> AsyncIterator[Scene]:
    with aioblk.InFlight(requests=1).share() as share:

        async def check() -> None:
            at_once(share.drain())

        yield Scene(share.drain, lambda: at_once(share.enter()), share.leave, check)


MESSAGE = bytes(range(8))

RECEIVING: dict[str, Callable[[aioblk.SocketStream], Awaitable[object]]] = {
    "read": lambda stream: stream.read(8),
    "unpack": lambda stream: stream.unpack(struct.Struct("8s")),
    "read_into": lambda stream: stream.read_into(bytearray(8)),
    "skip": lambda stream: stream.skip(8),
}


def _receiving(call: Callable[[aioblk.SocketStream], Awaitable[object]]) -> Scenery:
    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        ours, theirs = socket.socketpair()
        stream = aioblk.SocketStream(ours)
        theirs.send(MESSAGE[:3])
        sent = False

        def send() -> None:
            nonlocal sent
            if not sent:
                sent = True
                theirs.send(MESSAGE[3:])

        is_held = False

        def hold() -> None:
            nonlocal is_held
            is_held = True

        async def receive() -> None:
            if not is_held:
                send()
            await call(stream)

        async def check() -> None:
            send()
            theirs.send(b"end")
            rest = bytes(await stream.read(3))
            if rest != b"end":  # it was given up, and receives the same again
                assert rest == MESSAGE[:3]
                assert bytes(await stream.read(8)) == MESSAGE[3:] + b"end"

        yield Scene(receive, hold, send, check)
        stream.close()
        theirs.close()

    return scene


for name, receive in RECEIVING.items():
    operation(f"SocketStream.{name}")(_receiving(receive))
