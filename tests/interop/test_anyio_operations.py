"""Every operation in cancelled scopes of anyio, which cancel in every turn of the loop until they are left.

Run by anyio's own plugin, on both loops. The table is in operations/.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager

import anyio
import anyio.lowlevel
import pytest
from anyio._backends import _asyncio as backend

import aioblk
import aioblk.export

from .operations import OPERATIONS, Ground, Operation, Scene, Wait
from .public import awaited, defined_by

TURNS = 60  # of the loop; so often is a task cancelled that goes on waiting, or more
SOME = 20  # a few steps take so many, where nothing is held up
FEW = 8
PATIENCE = 60  # seconds

ASYNCIO, UVLOOP = ("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})


@pytest.fixture(params=[ASYNCIO, UVLOOP], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return request.param


SUBJECTS = list(dict.fromkeys(operation.subject for operation in OPERATIONS.values()))
THAT_WAIT = [
    subject
    for subject in SUBJECTS
    if any(one.subject == subject and one.wait is not Wait.NONE for one in OPERATIONS.values())
]


def of(subject: str) -> list[Operation]:
    return [operation for operation in OPERATIONS.values() if operation.subject == subject]


def that_wait(subject: str) -> list[Operation]:
    return [operation for operation in of(subject) if operation.wait is not Wait.NONE]


class Deliveries:
    """How often scopes have tried to cancel what is in them: in each turn in which something is."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        deliver = backend.CancelScope._deliver_cancellation

        def counted(scope: backend.CancelScope, origin: backend.CancelScope) -> bool:
            self.count += scope is origin
            return deliver(scope, origin)

        patch.setattr(backend.CancelScope, "_deliver_cancellation", counted)


@pytest.fixture
def deliveries(monkeypatch: pytest.MonkeyPatch) -> Deliveries:
    return Deliveries(monkeypatch)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until_held_up(scene: Scene) -> None:
    await turns(FEW)
    with anyio.fail_after(PATIENCE):
        while not scene.is_held_up():
            await turns(1)


async def no_task_is_left(before: set[asyncio.Task[object]]) -> None:
    """What goes on by itself ends by itself."""
    with anyio.fail_after(PATIENCE):
        while left := asyncio.all_tasks() - before:
            await asyncio.wait(left)


# --- called in a scope that has been cancelled --------------------------------------------------------------


def cancelled() -> anyio.CancelScope:
    scope = anyio.CancelScope()
    scope.cancel()
    return scope


SCOPES: dict[str, Callable[[], AbstractContextManager[anyio.CancelScope]]] = {
    "cancelled": cancelled,
    "move_on_after": lambda: anyio.move_on_after(0),
    "fail_after": lambda: anyio.fail_after(0),
}


@pytest.mark.anyio
@pytest.mark.parametrize("subject", SUBJECTS)
async def test_in_a_scope_that_is_cancelled(subject: str, ground: Ground, deliveries: Deliveries) -> None:
    before = asyncio.all_tasks()
    for operation in of(subject):
        for kind, open_scope in SCOPES.items():
            async with operation.open(ground) as scene:
                deliveries.count = 0
                carried_through = False
                late = pytest.raises(TimeoutError) if kind == "fail_after" else contextlib.nullcontext()
                with late, open_scope() as entered:
                    await scene.call()
                    carried_through = True
                    await anyio.sleep_forever()
                assert entered.cancelled_caught
                assert deliveries.count <= SOME
                assert carried_through or not operation.closes
                await scene.check()
            await no_task_is_left(before)


# --- cancelled while it waits -------------------------------------------------------------------------------


class Waiter:
    """A task that waits in a scope of its own."""

    def __init__(self, scene: Scene) -> None:
        self.scope = anyio.CancelScope()
        self.was_cancelled = True
        """Whether the call has ended that way."""
        self.task = asyncio.create_task(self._run(scene.call))

    async def _run(self, call: Callable[[], Awaitable[object]]) -> None:
        with self.scope:
            await call()
            self.was_cancelled = False
            await anyio.sleep_forever()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert anyio.current_effective_deadline() > 0


HOW: dict[str, Callable[[anyio.CancelScope], None]] = {
    "cancelled": lambda scope: scope.cancel(),
    "expired": lambda scope: setattr(scope, "deadline", anyio.current_time()),
}


@pytest.mark.anyio
@pytest.mark.parametrize("subject", THAT_WAIT)
async def test_while_it_waits(subject: str, ground: Ground, deliveries: Deliveries) -> None:
    before = asyncio.all_tasks()
    for operation in that_wait(subject):
        for end in HOW.values():
            async with operation.open(ground) as scene:
                deliveries.count = 0
                scene.hold()
                waiter = Waiter(scene)
                try:
                    await until_held_up(scene)
                    assert not waiter.task.done(), "nothing holds it up"
                    end(waiter.scope)
                    await turns(TURNS)
                    assert waiter.task.done() == (operation.wait is Wait.LEFT)
                    assert deliveries.count <= FEW
                finally:
                    scene.release()
                async with asyncio.timeout(PATIENCE):
                    await waiter.task
                assert waiter.scope.cancelled_caught
                assert waiter.was_cancelled == (operation.wait is Wait.LEFT or not operation.closes)
                await scene.check()
            await no_task_is_left(before)


@pytest.mark.anyio
@pytest.mark.parametrize("subject", THAT_WAIT)
async def test_what_asyncio_cancels_ends_as_well(subject: str, ground: Ground) -> None:
    """In the same way, with one exception: whoever leaves an ``async with`` is cancelled there."""
    before = asyncio.all_tasks()
    for operation in that_wait(subject):
        async with operation.open(ground) as scene:
            scene.hold()
            task = asyncio.ensure_future(_await(scene.call))
            try:
                await until_held_up(scene)
                assert not task.done()
                task.cancel()
                await turns(TURNS)
                assert task.done() == (operation.wait is Wait.LEFT or operation.closes)
            finally:
                scene.release()
            with pytest.raises(asyncio.CancelledError):
                async with asyncio.timeout(PATIENCE):
                    await task
            await scene.check()
        await no_task_is_left(before)


async def _await(call: Callable[[], Awaitable[object]]) -> None:
    await call()


# --- the table is complete ----------------------------------------------------------------------------------

ABSTRACT = {
    aioblk.export.Disk,
    aioblk.BlockDevice,
    aioblk.Openable,
    aioblk.KnowsExtents,
    aioblk.MapsMemory,
    aioblk.ArenaListener,
}
"""There is nothing in them to call."""
WITHOUT_A_LOOP = {aioblk.BlockingQueue}
"""Its requests are waited for by its own wait()."""


def test_every_public_operation_is_in_the_table() -> None:
    covered = {operation.covers for operation in OPERATIONS.values()}
    missing = []
    for kind, name in awaited():
        if kind is None:
            missing += [name] * (name not in covered)
        elif kind not in ABSTRACT | WITHOUT_A_LOOP:
            names = {f"{kind.__name__}.{name}"}
            if issubclass(kind, aioblk.Device):  # drivers add nothing but options
                assert issubclass(aioblk.Device, defined_by(kind, name))
                names.add(f"Device.{name}")
            if not names & covered:
                missing.append(f"{kind.__name__}.{name}")
    assert not missing


def test_every_name_of_the_table_is_public() -> None:
    public = {name if kind is None else f"{kind.__name__}.{name}" for kind, name in awaited()}
    assert {operation.covers for operation in OPERATIONS.values()} <= public
