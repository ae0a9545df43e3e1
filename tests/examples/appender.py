"""Processes that append to a log until they are killed. Run by test_log_store.py.

The first process only forks: each line of its input, a driver, a path and the path of a socket, makes a child
that appends to the log there, and tells the socket whatever it was told is durable. So a life costs
milliseconds, and hundreds can be ended.
"""

import asyncio
import hashlib
import os
import random
import signal
import socket
import sys

from log_store import LogStore

import aioblk

APPENDERS = 16


def content(life: str, appender: int, turn: int) -> bytes:
    """A record that shows whether it is whole, of anything from a few bytes to several blocks."""
    name = f"{life} {appender} {turn} ".encode()
    chance = random.Random(name)
    body = chance.randbytes(chance.choice([0, 10, 300, 4096, 20_000]))
    return name + hashlib.sha256(name + body).hexdigest().encode() + b" " + body


def is_whole(record: bytes) -> bool:
    life, appender, turn, digest, body = record.split(b" ", 4)
    name = b" ".join((life, appender, turn, b""))
    return hashlib.sha256(name + body).hexdigest().encode() == digest


async def live(driver: str, path: str, told: socket.socket) -> None:
    life = str(os.getpid())
    async with aioblk.open(driver, path=path) as device, LogStore(device) as log:
        told.send(f"open {life}\n".encode())

        async def append(appender: int) -> None:
            turn = 0
            while True:
                number = await log.append(content(life, appender, turn))
                told.send(f"{number} {appender} {turn}\n".encode())
                turn += 1

        await asyncio.gather(*map(append, range(APPENDERS)))


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        driver, path, listener = line.split()
        if os.fork() == 0:
            told = socket.socket(socket.AF_UNIX)
            told.connect(listener)
            asyncio.run(live(driver, path, told))


if __name__ == "__main__":
    main()
