"""Devices under anyio, whose cancelled scopes cancel again and again until the task has left them.

What may be left, is left; what has to wait, waits without being asked in every turn of the loop whether it
would rather not.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

import aioblk
from aioblk.layers._edits import Edits
from aioblk.nbd import Export, Server, protocol
from aioblk.testing.storage_daemon import StorageDaemon

from ..support.devices import BLOCK, LATENCY, held, pattern
from ..support.gate import Gate
from ..support.scripts import run_script

MANY = 200  # turns of the loop; so often is a task cancelled that cannot leave
FEW = 4

Operation = Callable[[aioblk.Device, aioblk.MemoryRegion], Awaitable[object]]


async def turns(count: int = MANY) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Waiter:
    """A task that awaits something in a scope of its own."""

    def __init__(self, work: Callable[[], Awaitable[object]]) -> None:
        self.scope = anyio.CancelScope()
        self.cancelled = 0
        """How often, until it was through."""
        self.entered = asyncio.Event()
        self.task = asyncio.create_task(self._run(work))

    async def _run(self, work: Callable[[], Awaitable[object]]) -> None:
        task = asyncio.current_task()
        assert task is not None
        with self.scope:
            self.entered.set()
            try:
                await work()
            finally:
                self.cancelled = task.cancelling()
        assert task.cancelling() == 0
        assert anyio.current_effective_deadline() > 0

    async def end(self) -> None:
        async with asyncio.timeout(60):
            await self.task
        assert self.scope.cancelled_caught
        assert self.cancelled <= FEW


# --- requests on the caller's memory -----------------------------------------------------------------------


WAITING: dict[str, Operation] = {
    "read_into": lambda device, region: device.read_into(0, region),
    "writev": lambda device, region: device.writev(0, [region[:512], region[512:]]),
    "split read_into": lambda device, region: device.read_into(0, region),
    "read_into_many": lambda device, region: device.read_into_many([(0, region[:512]), (0, region[512:])]),
    "begun before": lambda device, region: _await(device.read_into(0, region)),
    "ByteView": lambda device, region: aioblk.ByteView(device).write(0, region),
}


async def _await(request: Awaitable[object]) -> None:
    await request


@pytest.mark.parametrize("operation", WAITING)
async def test_a_request_waits_for_the_device_in_peace(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon, operation: str
) -> None:
    async with slow_device.allocate(4 << 20 if "split" in operation else BLOCK) as region:
        with held(slow_daemon):
            waiter = Waiter(lambda: WAITING[operation](slow_device, region))
            await turns(FEW)
            waiter.scope.cancel()
            await turns()
            assert not waiter.task.done()
        await waiter.end()
        assert not slow_device.statistics().in_flight


async def test_a_change_of_parts_of_blocks_waits_for_the_device_in_peace(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def edges(edits: Edits, span: object) -> list[bytes]:
        return [bytes(512)]  # and the device is about to write

    monkeypatch.setattr(Edits, "_read_edges", edges)
    view = aioblk.ByteView(slow_device)

    async def change() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(view.write, 1, region[:1])
            await view.write(513, region[1:2])

    async with slow_device.allocate(BLOCK) as region:
        with held(slow_daemon):
            waiter = Waiter(change)
            await turns(FEW)
            assert slow_device.statistics().in_flight == 2
            waiter.scope.cancel()
            await turns()
            assert not waiter.task.done()
        await waiter.end()
        assert not slow_device.statistics().in_flight


async def test_a_request_on_private_memory_is_left_at_once(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    with held(slow_daemon):
        waiter = Waiter(lambda: slow_device.read(0, BLOCK))
        await turns(FEW)
        waiter.scope.cancel()
        await waiter.end()
        assert slow_device.statistics().in_flight == 1


async def test_requests_of_a_task_group(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    async with slow_device.allocate(8 * BLOCK) as region:

        async def run() -> None:
            async with anyio.create_task_group() as group:
                for start in range(0, len(region), BLOCK):
                    group.start_soon(slow_device.read_into, start, region[start : start + BLOCK])
                group.start_soon(slow_device.read, 0, BLOCK)

        with held(slow_daemon):
            waiter = Waiter(run)
            await turns(FEW)
            assert slow_device.statistics().in_flight == 9
            waiter.scope.cancel()
            await turns()
            assert not waiter.task.done()
        await waiter.end()


async def test_one_request_in_several_scopes(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    async with slow_device.allocate(BLOCK) as region:
        with held(slow_daemon):
            request = slow_device.read_into(0, region)
            waiters = [Waiter(lambda: _await(request)) for _ in range(3)]
            outside = asyncio.create_task(_await(request))
            await turns(FEW)
            for waiter in waiters[:2]:
                waiter.scope.cancel()
            await turns()
            waiters[2].scope.cancel()
            await turns()
            assert not any(waiter.task.done() for waiter in waiters)
            assert not outside.done()
        for waiter in waiters:
            await waiter.end()
        with pytest.raises(asyncio.CancelledError):
            await outside


async def test_a_request_that_a_cancelled_scope_begins(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    async with slow_device.allocate(BLOCK) as region:

        async def clean_up() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                await slow_device.write(0, region)

        with held(slow_daemon):
            waiter = Waiter(clean_up)
            await turns(FEW)
            waiter.scope.cancel()
            await turns()
            assert not waiter.task.done()
        await waiter.end()


@contextlib.contextmanager
def _held_until_cancelled(daemon: StorageDaemon, scope: anyio.CancelScope) -> Iterator[None]:
    """It answers when the scope's deadline has passed, however late the loop is, and not before."""
    loop = asyncio.get_running_loop()

    def look() -> None:
        if scope.cancel_called:
            holding.close()
        else:
            loop.call_soon(look)

    with contextlib.ExitStack() as holding:
        holding.enter_context(held(daemon))
        look()
        yield


async def test_deadlines_and_nested_scopes(slow_device: aioblk.Device, slow_daemon: StorageDaemon) -> None:
    async with slow_device.allocate(BLOCK) as region:
        with (
            pytest.raises(TimeoutError),
            anyio.fail_after(LATENCY / 4) as scope,
            _held_until_cancelled(slow_daemon, scope),
        ):
            await slow_device.read_into(0, region)
        with anyio.move_on_after(60) as outer:
            with anyio.move_on_after(LATENCY / 4) as inner, _held_until_cancelled(slow_daemon, inner):
                await slow_device.read_into(0, region)
            assert inner.cancelled_caught
            with anyio.move_on_after(0, shield=True) as inner:
                await slow_device.read_into(0, region)
            assert inner.cancelled_caught
            await slow_device.read_into(0, region)
        assert not outer.cancelled_caught


async def test_the_scope_goes_on_cancelling_what_comes_after(slow_device: aioblk.Device) -> None:
    async with slow_device.allocate(BLOCK) as region:
        with anyio.CancelScope() as scope:
            scope.cancel()
            for _ in range(2):
                with pytest.raises(asyncio.CancelledError):
                    await slow_device.read_into(0, region)
            with pytest.raises(asyncio.CancelledError):
                await anyio.sleep_forever()
        await slow_device.read_into(0, region)


async def test_who_is_shielded_by_the_caller_is_not_cancelled(slow_device: aioblk.Device) -> None:
    async with slow_device.allocate(BLOCK) as region:
        with anyio.CancelScope() as scope:
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await slow_device.write(0, region)
                assert await slow_device.read(0, BLOCK) == bytes(BLOCK)


async def test_a_task_that_is_cancelled_beside_its_scope(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    async with slow_device.allocate(BLOCK) as region:
        with held(slow_daemon):
            waiter = Waiter(lambda: slow_device.read_into(0, region))
            await turns(FEW)
            waiter.scope.cancel()
            await turns()
            waiter.task.cancel()
            await turns()
            assert not waiter.task.done()
        with pytest.raises(asyncio.CancelledError):
            await waiter.task


async def test_without_a_scope_cancelling_is_what_it_was(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    async with slow_device.allocate(BLOCK) as region:
        region[:] = pattern(BLOCK)
        with held(slow_daemon):
            task = asyncio.create_task(_await(slow_device.read_into(0, region)))
            await turns(FEW)
            task.cancel("enough")
            await turns()
            assert not task.done()
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await task


# --- draining and closing ----------------------------------------------------------------------------------


async def drain(device: aioblk.Device) -> None:
    await device.queue().drain()


async def leave(manager: "AbstractAsyncContextManager[object]") -> None:
    await manager.__aexit__(None, None, None)


CLOSING: dict[str, Callable[[aioblk.Device], Awaitable[object]]] = {
    "Queue.drain": drain,
    "Queue.aclose": lambda device: device.queue().aclose(),
    "Device.detach": lambda device: device.detach(),
    "Device.aclose": lambda device: device.aclose(),
    "async with Queue": lambda device: leave(device.queue()),
    "async with Device": leave,
    "anyio.aclose_forcefully": lambda device: anyio.aclose_forcefully(cast(Any, device)),
}


@pytest.mark.parametrize("closing", CLOSING)
async def test_in_a_cancelled_scope_closing_waits_for_what_is_in_flight(
    slow_daemon: StorageDaemon, closing: str
) -> None:
    device = aioblk.VirtioBlkVhostUser(slow_daemon.socket)
    await device.open()
    with held(slow_daemon):
        request = device.write_zeroes(0, BLOCK)

        async def clean_up() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                await CLOSING[closing](device)
                assert request.done()

        waiter = Waiter(clean_up)
        await turns(FEW)
        waiter.scope.cancel()
        await turns()
        assert not waiter.task.done()
    await waiter.end()
    if closing == "Device.detach":
        await device.attach()
    await device.aclose()


async def test_in_a_cancelled_scope_leaving_gives_everything_back(slow_daemon: StorageDaemon) -> None:
    """Closed means given back: the daemon takes the next client at once."""

    async def serve() -> None:
        async with aioblk.VirtioBlkVhostUser(slow_daemon.socket) as device, aioblk.Arena(1 << 20) as arena:
            await arena.attach(device)
            async with device.allocate(BLOCK) as region:
                with arena.allocate(BLOCK) as buffer:
                    device.write(0, buffer)
                    await device.read_into(0, region)
                    await anyio.sleep_forever()

    waiter = Waiter(serve)
    await waiter.entered.wait()
    waiter.scope.cancel()
    await waiter.end()
    async with asyncio.timeout(60), aioblk.VirtioBlkVhostUser(slow_daemon.socket) as device:
        await device.read(0, BLOCK)


async def test_a_region_is_left_when_it_is_unmapped(
    slow_device: aioblk.Device, slow_daemon: StorageDaemon
) -> None:
    region = slow_device.allocate(BLOCK)
    entered = asyncio.Event()

    async def use() -> None:
        async with region:
            entered.set()
            await anyio.sleep_forever()

    waiter = Waiter(use)
    await entered.wait()
    with held(slow_daemon):
        slow_device.write(0, region)
        await turns(FEW)
        waiter.scope.cancel()
        await turns()
        assert not waiter.task.done()
    await waiter.end()


async def test_in_a_cancelled_scope_draining_of_limits_waits() -> None:
    in_flight = aioblk.InFlight(requests=1, bytes=1)
    await in_flight.enter()

    async def clean_up() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            await in_flight.drain()

    waiter = Waiter(clean_up)
    await turns(FEW)
    waiter.scope.cancel()
    await turns()
    assert not waiter.task.done()
    in_flight.leave()
    await waiter.end()


async def test_a_server_in_a_cancelled_scope_answers_what_is_in_flight(tmp_path: Path) -> None:
    device = Gate(16 * BLOCK, content=pattern(BLOCK, 1))
    name = protocol.OPTION.pack(protocol.IHAVEOPT, protocol.OPT_EXPORT_NAME, 0)
    command = protocol.COMMAND.pack(protocol.COMMAND_MAGIC, 0, protocol.READ, 7, 0, BLOCK)
    answer = protocol.SIMPLE_REPLY.pack(protocol.SIMPLE_REPLY_MAGIC, 0, 7) + pattern(BLOCK, 1)
    async with Server([Export(device)]) as server:
        server.listen_at_path(tmp_path / "nbd.sock")
        device.hold()
        waiter = Waiter(server.serve)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "nbd.sock"))
            client.send(protocol.U32.pack(3) + name + command)
            async with asyncio.timeout(60):
                while not device.statistics().in_flight:
                    await turns(1)
            waiter.scope.cancel()
            await turns()
            assert not waiter.task.done()
            device.release()
            await waiter.end()
            with client.makefile("rb") as received:  # up to the end
                assert received.read().endswith(answer)


async def test_a_deadline_around_closing_counts_and_closing_goes_on(slow_daemon: StorageDaemon) -> None:
    device = aioblk.VirtioBlkVhostUser(slow_daemon.socket)
    await device.open()
    with held(slow_daemon):
        request = device.write_zeroes(0, BLOCK)
        for close in (device.queue().drain, device.aclose):
            with anyio.move_on_after(LATENCY) as scope:
                await close()
            assert scope.cancelled_caught
        assert device.closed
        assert not request.done()
    await device.aclose()
    assert request.done()


async def test_opening_that_is_given_up_leaves_nothing(slow_daemon: StorageDaemon) -> None:
    async with aioblk.VirtioBlkVhostUser(slow_daemon.socket):
        second = aioblk.VirtioBlkVhostUser(slow_daemon.socket)
        with anyio.move_on_after(LATENCY) as scope:
            await second.open()
        assert scope.cancelled_caught
        assert second.closed


# --- who uses no anyio -------------------------------------------------------------------------------------


async def test_without_anyio_nothing_of_it_is_loaded(slow_daemon: StorageDaemon) -> None:
    run_script(
        """
        import asyncio, sys, aioblk

        async def main():
            async with aioblk.VirtioBlkVhostUser(sys.argv[1]) as device:
                async with device.allocate(4096) as region:
                    task = asyncio.create_task(device.read_into(0, region))
                    await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])
                    assert task.cancelled()

        asyncio.run(main())
        assert "anyio._backends._asyncio" not in sys.modules
        """,
        str(slow_daemon.socket),
    )
