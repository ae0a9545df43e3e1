"""Mirrors of legs that fail, or wait, when a test says so."""

import asyncio
from collections.abc import Awaitable

from typing_extensions import Buffer

import aioblk
from aioblk.testing import Fault, Faulty, MemoryDevice

from .model import BLOCK, SPACE

LIMITS = aioblk.Limits(request_alignment=BLOCK)


GRANULARITY = 2 * BLOCK


NEW = b"n" * BLOCK


def faulty(*faults: Fault, capacity: int = SPACE) -> Faulty:
    return Faulty(MemoryDevice(capacity, limits=LIMITS), *faults)


def mirror_of(*devices: aioblk.BlockDevice, stale: tuple[aioblk.BlockDevice, ...] = ()) -> aioblk.Mirror:
    return aioblk.Mirror(*devices, stale=stale, granularity=GRANULARITY)


def states(mirror: aioblk.Mirror) -> list[aioblk.LegState]:
    return [leg.state for leg in mirror.legs]


IN_SYNC, DROPPED, RESILVERING = aioblk.LegState.IN_SYNC, aioblk.LegState.DROPPED, aioblk.LegState.RESILVERING


class Held(aioblk.Layer[aioblk.BlockDevice]):
    """Its writes and flushes end when a test says so."""

    def __init__(self, device: aioblk.BlockDevice) -> None:
        super().__init__(device)
        self.held: list[asyncio.Future[None]] = []
        self.is_holding = False

    def _hold(self) -> "asyncio.Future[None]":
        self.held.append(asyncio.get_running_loop().create_future())
        return self.held[-1]

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> Awaitable[None]:
        return self._hold() if self.is_holding else super().write(offset, data, fua=fua)

    def flush(self) -> Awaitable[None]:
        return self._hold() if self.is_holding else super().flush()


class HeldReads(aioblk.Layer[Faulty]):
    """Its reads end when a test says so."""

    def __init__(self, device: Faulty) -> None:
        super().__init__(device)
        self.held: list[asyncio.Future[bytes]] = []
        self.is_holding = False

    def read(self, offset: int, length: int) -> Awaitable[bytes]:
        if not self.is_holding:
            return super().read(offset, length)
        self.held.append(asyncio.get_running_loop().create_future())
        return self.held[-1]


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
