"""Which changes a byte view waits for, and for how long it keeps them."""

import asyncio
import gc
import weakref
from types import SimpleNamespace
from typing import Any, cast

import aioblk
from aioblk.layers._begun import Begun
from aioblk.layers._edits import Edits

BLOCK = 512


def edits() -> Edits:
    limits = SimpleNamespace(request_alignment=BLOCK, can_grow=False)
    return Edits(cast(aioblk.BlockDevice, SimpleNamespace(limits=limits)))


async def test_a_change_that_nobody_else_keeps_is_waited_for() -> None:
    """A device of one's own may tell of its end to whoever still waits, and keep nobody waiting."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    end = weakref.ref(future)
    changes = edits()
    changes.remember(0, BLOCK, Begun(future))
    del future
    gc.collect()
    finishing = asyncio.ensure_future(changes.finish())
    await asyncio.sleep(0)
    found = end()
    assert found is not None
    assert not finishing.done()
    found.set_result(None)
    del found
    await finishing
    del finishing
    await asyncio.sleep(0)
    gc.collect()
    assert end() is None


async def test_a_change_may_be_one_that_cannot_be_referred_to_weakly() -> None:
    class Slotted:
        __slots__ = ("_asyncio_future_blocking", "future")

        def __init__(self) -> None:
            self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(self) -> bool:
            return self.future.done()

        def add_done_callback(self, function: Any) -> None:
            self.future.add_done_callback(function)

    slotted = Slotted()
    changes = edits()
    changes.remember(0, BLOCK, Begun(cast(Any, slotted)))
    finishing = asyncio.ensure_future(changes.finish())
    await asyncio.sleep(0)
    assert not finishing.done()
    slotted.future.set_result(None)
    await finishing
