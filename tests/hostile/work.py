"""Requests of several tasks on a device whose backend is hostile, and a look at all that came of them."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aioblk

from .backend import DISK
from .deeds import Plan
from .memory import Guarded

__all__ = ["play"]

LOST_AFTER = 0.4  # seconds
RECONNECT_FOR = 1.0
CONNECTING = 1.0
ENDING = 10.0  # seconds that it may all take when nothing hangs, on a busy machine
TASKS, OPERATIONS = 3, 14
BLOCK = 4096

Begin = Callable[[], "aioblk.Request[Any]"]


async def play(plan: Plan, path: Path) -> str:
    """The end of it: how, and why."""
    device = aioblk.VirtioBlkVhostUser(
        path,
        lost_after=LOST_AFTER,
        reconnect_for=RECONNECT_FOR if plan.reconnects else None,
        queue_size=plan.queue_size,
        bounce_pool_size=plan.bounce_pool_size,
    )
    try:
        async with asyncio.timeout(CONNECTING):
            await device.open()
    except TimeoutError:
        return "fine: connecting was given up"
    except aioblk.BlkioError as error:
        return f"error: {error}"
    work = Work(device, plan)
    try:
        async with asyncio.timeout(ENDING):
            await work.run()
            await device.aclose()
    except TimeoutError:
        return f"HANGS: {device!r}, {device.statistics()}"
    if device.statistics().in_flight:
        return f"WRONG: {device.statistics().in_flight} requests in flight after closing"
    if work.wrong:
        return f"WRONG: {work.wrong[0]}"
    if device.lost is not None:
        return f"lost: {device.lost}"
    if work.errors:
        return f"error: {work.errors[0]}"
    return "fine"


class Work:
    """Requests of several tasks, each on blocks of its own, and what the blocks may hold by now."""

    def __init__(self, device: aioblk.VirtioBlkVhostUser, plan: Plan) -> None:
        self.device = device
        self.verifies = plan.is_honest
        self.chance = random.Random(plan.key)
        self.private = Guarded(TASKS * 8 * BLOCK, shared=False)
        self.lent = Guarded(TASKS * 8 * BLOCK, shared=True)
        self.blocks = [{0} for _ in range(DISK // BLOCK)]
        self.errors: list[BaseException] = []
        self.wrong: list[str] = []
        self.tags = 0

    async def run(self) -> None:
        tasks = []
        try:
            async with self.device.register(self.lent.bytes, fd=self.lent.fd) as region:
                tasks = [
                    asyncio.create_task(self._worker(number, memoryview(region))) for number in range(TASKS)
                ]
                await asyncio.gather(*tasks)
        except aioblk.BlkioError as error:
            self.errors.append(error)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for memory in (self.private, self.lent):
            if not memory.is_intact:
                self.wrong.append("MEMORY was written that was not lent")

    async def _worker(self, number: int, region: memoryview) -> None:
        own = len(self.blocks) // TASKS
        for _ in range(OPERATIONS):
            length = self.chance.choice((1, 1, 2, 8))
            first = number * own + self.chance.randrange(own - length)
            memory = self.chance.choice((self.private.bytes, region))
            view = memory[number * 8 * BLOCK :][: length * BLOCK]
            try:
                await self._operation(first, length, view)
            except aioblk.DeviceLostError as error:
                self.errors.append(error)
                return
            except aioblk.BlkioError as error:
                self.errors.append(error)

    async def _operation(self, first: int, length: int, view: memoryview) -> None:
        device, offset, size = self.device, first * BLOCK, length * BLOCK
        match self.chance.choice(
            (
                "read",
                "read_into",
                "read_many",
                "write",
                "write",
                "writev",
                "zeroes",
                "discard",
                "flush",
                "capacity",
            )
        ):
            case "read":
                self._check(first, length, await self._cancelled_maybe(device.read(offset, size)))
            case "read_into":
                view[:] = bytes(size)
                if await self._cancelled_maybe(device.read_into(offset, view), True):
                    self._check(first, length, bytes(view))
                else:
                    view[:] = b"\xee" * size
                    await device.flush()  # the device has been asked something since
                    if self.verifies and bytes(view) != b"\xee" * size:
                        self.wrong.append("MEMORY was written after the request had been cancelled")
            case "read_many":
                [data] = await device.read_many([(offset, size)])
                self._check(first, length, data)
            case "write":
                await self._write(first, length, lambda: device.write(offset, view), view)
            case "writev":
                await self._write(
                    first, length, lambda: device.writev(offset, [view[:BLOCK], view[BLOCK:]]), view
                )
            case "zeroes":
                await self._change(first, length, 0, lambda: device.write_zeroes(offset, size))
            case "discard":
                await self._change(first, length, 0, lambda: device.discard(offset, size))
            case "flush":
                await device.flush()
            case _:
                await device.refresh_capacity()

    async def _write(self, first: int, length: int, begin: Begin, view: memoryview) -> None:
        self.tags += 1
        view[:] = self.tags.to_bytes(8, "little") * (len(view) // 8)
        await self._change(first, length, self.tags, begin)

    async def _change(self, first: int, length: int, tag: int, begin: Begin) -> None:
        for block in self.blocks[first : first + length]:
            block.add(tag)
        if await self._cancelled_maybe(begin(), True):
            self.blocks[first : first + length] = [{tag} for _ in range(length)]

    async def _cancelled_maybe(self, request: "aioblk.Request[Any]", done: object = None) -> object:
        """What it gives, or *done* if that is something; None if it was cancelled."""
        if self.chance.random() < 0.15:
            asyncio.get_running_loop().call_later(self.chance.random() / 100, request.cancel)
        try:
            result = await request
        except asyncio.CancelledError:
            current = asyncio.current_task()
            assert current is not None
            if current.cancelling():
                raise
            return None
        return result if done is None else done

    def _check(self, first: int, length: int, data: object) -> None:
        if not isinstance(data, bytes) or not self.verifies:
            return
        for number in range(length):
            block = data[number * BLOCK : (number + 1) * BLOCK]
            tag = int.from_bytes(block[:8], "little")
            if tag not in self.blocks[first + number] or block != block[:8] * (BLOCK // 8):
                self.wrong.append(
                    f"block {first + number} holds {tag:#x}, not one of {self.blocks[first + number]}"
                )
