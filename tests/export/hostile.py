"""Clients and guests that do anything, by seed: to an export in this process, which the sanitizers may watch.

python -m tests.export.hostile [--minutes 15]    one seed after the other
python -m tests.export.hostile --seed 17         one again
"""

import argparse
import asyncio
import contextlib
import faulthandler
import logging
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from aioblk.export import VhostUser
from aioblk.testing import Fault, Faulty, MemoryDevice

from ..support.guest import INDIRECT, NEXT, RANGE, SECTOR, WRITABLE, Guest, Piece
from ..support.vhost_user_client import (
    ADD_MEM_REG,
    ADDRESSES,
    GET_INFLIGHT_FD,
    GET_QUEUE_NUM,
    GET_VRING_BASE,
    INFLIGHT,
    REGION,
    REM_MEM_REG,
    SET_BACKEND_REQ_FD,
    SET_INFLIGHT_FD,
    SET_MEM_TABLE,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    SET_VRING_CALL,
    SET_VRING_ENABLE,
    SET_VRING_ERR,
    SET_VRING_KICK,
    SET_VRING_NUM,
    TWO,
    U64,
    VERSION,
    WANTS_REPLY,
    Client,
)

CAPACITY = 1 << 20
PATIENCE = 30.0  # seconds, for one seed
STEPS = 40
SCRIBBLES = 4  # at a time
KINDS = [0, 1, 4, 8, 11, 13, 99]
NUMBERS = [0, 1, 15, 16, 17, 511, 512, 4096, 65535, 65536, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


class Play:
    """One client's session, and what it has done."""

    def __init__(self, chance: random.Random, client: Client) -> None:
        self._chance = chance
        self._client = client
        self.done: Counter[str] = Counter()
        self._region: tuple[bytes, int] | None = None
        self._scribbling = True

    async def run(self) -> None:
        chance, client = self._chance, self._client
        scribbler = threading.Thread(target=self._scribble) if chance.random() < 0.3 else None
        try:
            if chance.random() < 0.2:
                await self._keep_account()
            if chance.random() < 0.8:
                await client.set_up()
            if scribbler is not None:
                scribbler.start()
            for _ in range(chance.randrange(STEPS)):
                await self._step()
        except Exception as error:  # it has been sent away, as a rule
            self.done[f"ended by {type(error).__name__}"] += 1
        finally:
            self._scribbling = False
            if scribbler is not None and scribbler.is_alive():
                scribbler.join()
            if self._region is not None:
                os.close(self._region[1])

    async def _keep_account(self) -> None:
        client, guest = self._client, self._client.guests[0]
        client.send(GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, len(client.guests), guest.queue))
        _, body, [region] = await client.receive()
        self._region = body, region
        if self._chance.random() < 0.5:
            os.pwrite(region, self._chance.randbytes(64), self._chance.choice([0, 8, 16, 32]))
        client.send(SET_INFLIGHT_FD, body, [region])

    def _scribble(self) -> None:
        """Change the memory while it is looked at."""
        chance = random.Random(self._chance.random())
        while self._scribbling:
            for guest in self._client.guests:
                for _ in range(SCRIBBLES):
                    with contextlib.suppress(ValueError):
                        self._damage(guest, chance)
            time.sleep(0)

    async def _step(self) -> None:
        chance, client = self._chance, self._client
        number = chance.randrange(len(client.guests))
        guest = client.guests[number]
        match chance.randrange(16):
            case often if often > 5:
                self.done["requests"] += 1
                kind = chance.choice(KINDS)
                data = RANGE.pack(chance.choice(NUMBERS) % 2**64, chance.choice(NUMBERS) % 2**32, 0)
                data = data if kind in (11, 13) else bytes(chance.choice([0, 100, SECTOR, 8 * SECTOR]))
                length = 0 if data else chance.choice([0, 20, SECTOR, 8 * SECTOR])
                indirect, cuts = chance.random() < 0.3, chance.randrange(1, 4)
                with contextlib.suppress(IndexError):  # all descriptors are in use
                    guest.ask(kind, chance.randrange(4096), data, length=length, indirect=indirect, cuts=cuts)
                client.kick(number)
            case 0:
                self.done["chains"] += 1
                places = [guest.guest, guest.guest + guest.size - 8, *NUMBERS]
                pieces = [
                    Piece(chance.choice(places), chance.choice(NUMBERS) % 2**32, chance.random() < 0.5)
                    for _ in range(chance.randrange(1, 5))
                ]
                guest.offer(guest.chain(pieces))
            case 1:
                self.done["damages"] += 1
                self._damage(guest, chance)
            case 2:
                self.done["offers"] += 1
                guest.offer(chance.randrange(guest.queue + 2))
            case 3:
                self.done["messages"] += 1
                self._say_anything(number, guest)
            case 4:
                self.done["changes"] += 1
                self._change(number, guest)
            case _:
                guest.finished()
        await asyncio.sleep(0)

    @staticmethod
    def _damage(guest: Guest, chance: random.Random) -> None:
        match chance.randrange(4):
            case 0:
                place = chance.randrange(guest.size - 64)
                guest.memory[place : place + 16] = chance.randbytes(16)
            case 1:
                place = chance.randrange(guest.used + 6 + 8 * guest.queue - 2)
                guest.memory[place : place + 2] = chance.randbytes(2)
            case _:
                flags = chance.choice([0, NEXT, WRITABLE, NEXT | WRITABLE, INDIRECT])
                address = guest.guest + chance.choice([0, 8, 64, guest.size - 16])
                length = chance.choice(NUMBERS) % 2**32
                index = chance.randrange(guest.queue)
                guest.set_descriptor(index, address, length, flags, chance.randrange(guest.queue + 2))

    def _say_anything(self, number: int, guest: Guest) -> None:
        chance, client = self._chance, self._client
        descriptors = [guest.fd, *client.kicks, *client.calls, client.socket.fileno(), 0]
        numbers = b"".join(U64.pack(chance.choice(NUMBERS)) for _ in range(chance.randrange(8)))
        body = chance.choice([b"", bytes(8), TWO.pack(number, chance.choice(NUMBERS) % 2**32), numbers])
        client.send(
            chance.randrange(42),
            body,
            [chance.choice(descriptors) for _ in range(chance.choice([0, 0, 1, 1, 2]))],
            VERSION | chance.choice([0, WANTS_REPLY]),
        )

    def _change(self, number: int, guest: Guest) -> None:
        """What is well-formed, and comes at any time."""
        chance, client = self._chance, self._client
        near = guest.guest + chance.choice(NUMBERS[:8])
        region = REGION.pack(
            near % 2**64, chance.choice([4096, guest.size]), guest.user, chance.choice([0, 4096])
        )
        rings = [guest.user + chance.choice(NUMBERS[:8]) for _ in range(3)]
        kind, body, fds = chance.choice(
            [
                (REM_MEM_REG, client.region(guest), []),
                (ADD_MEM_REG, client.region(guest), [guest.fd]),
                (ADD_MEM_REG, region, [guest.fd]),
                (SET_MEM_TABLE, TWO.pack(1, 0) + region[8:], [guest.fd]),
                (SET_VRING_ENABLE, TWO.pack(number, chance.randrange(2)), []),
                (GET_VRING_BASE, TWO.pack(number, 0), []),
                (SET_VRING_NUM, TWO.pack(number, chance.choice([8, 16, 32768])), []),
                (SET_VRING_BASE, TWO.pack(number, chance.randrange(1 << 16)), []),
                (SET_VRING_ADDR, ADDRESSES.pack(number, 0, *rings, 0), []),
                (SET_VRING_KICK, U64.pack(number), [client.kicks[number]]),
                (SET_VRING_CALL, U64.pack(number), [client.calls[number]]),
                (SET_VRING_ERR, U64.pack(number), [client.errors[number]]),
                (SET_BACKEND_REQ_FD, b"", [client.socket.fileno()]),
                (SET_INFLIGHT_FD, INFLIGHT.pack(4096, 0, 2, 16), [guest.fd]),
            ]
        )
        client.send(kind, body, fds)


async def play(seed: int, place: Path) -> Counter[str]:
    """One seed: several clients, one after the other; then one that is well-behaved, and is served."""
    chance = random.Random(seed)
    done: Counter[str] = Counter()
    faulty = Faulty(
        MemoryDevice(CAPACITY),
        Fault(probability=0.1, error=5),
        Fault(probability=0.2, delay=0.0005),
        seed=seed,
    )
    async with asyncio.timeout(PATIENCE), VhostUser(faulty, place, queues=2) as export:
        for _ in range(chance.randrange(1, 4)):
            event = chance.random() < 0.5
            guests = [Guest(size=1 << 16, guest=(number + 1) << 32, event=event) for number in range(2)]
            async with Client(place, *guests) as client:
                playing = Play(chance, client)
                await playing.run()
                done += playing.done
            for guest in guests:
                guest.close()
        async with Client(place) as client:
            assert await client.number(GET_QUEUE_NUM) == 2
        done["queues that broke"] += export.statistics().broken
        done["begun"] += sum(export.statistics().requests.values())
    return done


def main() -> int:
    parser = argparse.ArgumentParser("./run campaign hostile-client")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, help="the first one, and without --minutes the only one")
    chosen = parser.parse_args()
    logging.getLogger("aioblk.export").setLevel(logging.CRITICAL)
    first = random.randrange(1 << 30) if chosen.seed is None else chosen.seed
    only = chosen.seed is not None and "--minutes" not in sys.argv
    end, seed, done = time.monotonic() + 60 * chosen.minutes, first, Counter[str]()
    print(f"from seed {first} on", flush=True)
    with tempfile.TemporaryDirectory(prefix="aioblk-") as directory:
        while True:
            faulthandler.dump_traceback_later(4 * PATIENCE, exit=True)
            try:
                done += asyncio.run(play(seed, Path(directory, "blk.sock")))
            except BaseException:
                print(f"--- --seed {seed}", flush=True)
                raise
            seed += 1
            if only or time.monotonic() > end:
                break
    faulthandler.cancel_dump_traceback_later()
    width = max(map(len, done), default=0)
    print("\n".join(f"{name:{width}} {count:9}" for name, count in sorted(done.items())))
    print(f"{seed - first} seeds, findings: none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
