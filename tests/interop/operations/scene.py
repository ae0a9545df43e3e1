"""Scenes: objects that are open, and an operation of theirs, to be called, held up, and looked at afterwards.

Scenes are opened on a running loop. That may stop between their steps: they keep no scope and no deadline.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from typing import Any

import pytest

import aioblk
from aioblk.testing.storage_daemon import StorageDaemon

from ...support.devices import BLOCK, pattern
from ...support.gate import Gate, ThreadGate

KEPT = 8 * BLOCK
"""Where every device has a block of OLD that was acknowledged before."""
SIZE = 64 * BLOCK
LIMITS = aioblk.Limits(request_alignment=512)
OLD, NEW = pattern(BLOCK, 1), pattern(BLOCK, 2)


@dataclass
class Ground:
    """What scenes are made of."""

    folder: Path
    daemon: StorageDaemon
    """For one client at a time."""
    exported: Path
    """What it exports."""
    patch: pytest.MonkeyPatch

    @staticmethod
    def write_content(path: Path) -> None:
        """In place."""
        with path.open("r+b" if path.exists() else "wb") as file:
            file.write(content())
            file.truncate()

    def file(self) -> Path:
        path = self.folder / "disk.img"
        self.write_content(path)
        return path

    def hold_daemon(self) -> None:
        """It completes nothing."""
        self.daemon.pause()
        os.waitid(os.P_PID, self.daemon.pid, os.WSTOPPED | os.WNOWAIT)

    def release_daemon(self) -> None:
        self.daemon.resume()

    def threads(self) -> ThreadGate:
        return ThreadGate(self.patch)


class Wait(Enum):
    """What becomes of a task that is cancelled while it is held up."""

    LEFT = auto()
    """It goes on at once."""
    FINISHED = auto()
    """It goes on when what it waits for has ended."""
    NONE = auto()
    """Nothing holds it up: it ends by itself within a few turns of the loop."""


async def nothing() -> None:
    """Needs to hold afterwards."""


@dataclass
class Scene:
    call: Callable[[], Awaitable[object]]
    hold: Callable[[], object] = lambda: None
    release: Callable[[], object] = lambda: None
    check: Callable[[], Awaitable[None]] = nothing
    """What holds however the call has ended, once it was released."""
    ends: bool = True
    """Whether it ever does, if it is not cancelled."""
    is_held_up: Callable[[], bool] = lambda: True
    """Whether it has come to where it is held up, where that takes more than a few turns of the loop."""


Scenery = Callable[[Ground], AsyncIterator[Scene]]


@dataclass(frozen=True)
class Operation:
    name: str
    """What is called, as ``Class.method``, and a remark behind a comma."""
    wait: Wait
    scenery: Scenery
    closes: bool
    """It is carried through in a scope that has been cancelled before."""

    @property
    def covers(self) -> str:
        return self.name.partition(",")[0]

    @property
    def subject(self) -> str:
        """Whose it is."""
        return self.covers.partition(".")[0]

    @asynccontextmanager
    async def open(self, ground: Ground) -> AsyncIterator[Scene]:
        """On ground that is as new, and is left so."""
        try:
            with pytest.MonkeyPatch.context() as patch:
                Ground.write_content(ground.exported)
                async with asynccontextmanager(self.scenery)(replace(ground, patch=patch)) as scene:
                    yield scene
        except BaseException as error:
            error.add_note(f"in the scene of {self.name}")
            raise


OPERATIONS: dict[str, Operation] = {}
"""All of them, once the modules beside this one have been imported."""


def operation(name: str, wait: Wait = Wait.LEFT, *, closes: bool = False) -> Callable[[Scenery], Scenery]:
    """Have the scene in the table."""

    def add(scenery: Scenery) -> Scenery:
        assert name not in OPERATIONS, name
        OPERATIONS[name] = Operation(name, wait, scenery, closes)
        return scenery

    return add


# --- what scenes have in common -----------------------------------------------------------------------------


def content() -> bytes:
    data = bytearray(SIZE)
    data[:BLOCK] = data[KEPT : KEPT + BLOCK] = OLD
    return bytes(data)


def gate() -> Gate:
    return Gate(SIZE, limits=LIMITS, content=content())


async def check_content(device: Any) -> None:
    """What was acknowledged is there, and what was being changed is not torn."""
    assert await device.read(KEPT, BLOCK) == OLD
    assert await device.read(0, BLOCK) in (OLD, NEW, bytes(BLOCK))


def check_memory(memory: bytearray) -> None:
    """BufferError: something uses it still."""
    memory.append(0)


async def first(stream: Any) -> object:
    async with contextlib.aclosing(stream):
        return await anext(stream)


async def leave(manager: Any) -> None:
    await manager.__aexit__(None, None, None)


def at_once(work: Coroutine[Any, Any, object]) -> None:
    """Await what does not suspend."""
    with pytest.raises(StopIteration):
        work.send(None)
