"""Block devices whose requests are made in Python: layers, and devices for tests."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest
from typing_extensions import Buffer

import aioblk
from aioblk.testing import Fault, Faulty, MemoryDevice, PowerLoss, Recorder

from ...support.devices import BLOCK
from ...support.gate import Gate
from .scene import (
    LIMITS,
    NEW,
    SIZE,
    Ground,
    Scene,
    Scenery,
    Wait,
    check_content,
    check_memory,
    content,
    first,
    gate,
    leave,
    operation,
)

# --- requests -----------------------------------------------------------------------------------------------

Requests = dict[str, Callable[[Any, Buffer], Awaitable[object]]]

PRIVATE: Requests = {
    "read": lambda device, memory: device.read(0, BLOCK),
    "read_many": lambda device, memory: device.read_many([(0, BLOCK), (BLOCK, BLOCK)]),
    "write_zeroes": lambda device, memory: device.write_zeroes(0, BLOCK),
    "discard": lambda device, memory: device.discard(0, BLOCK),
    "flush": lambda device, memory: device.flush(),
}
"""They are left at once, whoever executes them."""
IN_PLACE: Requests = {
    "read_into": lambda device, memory: device.read_into(0, memory),
    "readv": lambda device, memory: device.readv(0, [memory]),
    "read_into_many": lambda device, memory: device.read_into_many([(0, memory)]),
    "write": lambda device, memory: device.write(0, memory),
    "writev": lambda device, memory: device.writev(0, [memory]),
    "write_many": lambda device, memory: device.write_many([(0, memory)]),
}
"""They use the caller's memory."""
REQUESTS: Requests = PRIVATE | IN_PLACE
CHANGES = ("write", "writev", "write_many", "write_zeroes", "discard")

Made = Callable[[], tuple[aioblk.BlockDevice, list[Gate]]]
"""Makes a device, and gives with it those below that can be held."""


def _over(layer: Callable[[Gate], aioblk.BlockDevice]) -> Made:
    def make() -> tuple[aioblk.BlockDevice, list[Gate]]:
        below = gate()
        return layer(below), [below]

    return make


def _mirror() -> tuple[aioblk.Mirror, list[Gate]]:
    gates = [gate(), gate()]
    return aioblk.Mirror(*gates, granularity=BLOCK), gates


def _copy_on_write() -> tuple[aioblk.CopyOnWrite, list[Gate]]:
    gates = [gate(), Gate(SIZE, limits=LIMITS)]
    return aioblk.CopyOnWrite(*gates), gates


def _full_throttle(gate: Gate) -> aioblk.Throttle[Gate]:
    """Nobody's turn comes any more, after one."""
    throttle = aioblk.Throttle(gate, aioblk.ThrottleGroup(total=aioblk.Rate(operations=1e-6)))
    _ = throttle.discard(BLOCK, 0)
    return throttle


def _stalled(gate: Gate) -> Faulty[Gate]:
    return Faulty(gate, Fault(delay=3600.0))


def _power_loss() -> tuple[PowerLoss, list[Gate]]:
    return PowerLoss(SIZE, limits=LIMITS, content=content()), []


def _memory_device() -> tuple[MemoryDevice, list[Gate]]:
    return MemoryDevice(SIZE, limits=LIMITS, content=content()), []


MADE: dict[str, Made] = {
    "Layer": _over(aioblk.Layer),
    "Slice": _over(aioblk.Slice),
    "Tracked": _over(aioblk.Tracked),
    "ByteView": _over(lambda gate: cast(aioblk.BlockDevice, aioblk.ByteView(gate))),
    "Throttle": _over(lambda gate: aioblk.Throttle(gate, aioblk.ThrottleGroup())),
    "Faulty": _over(Faulty),
    "Recorder": _over(Recorder),
    "Mirror": _mirror,
    "CopyOnWrite": _copy_on_write,
    "MemoryDevice": _memory_device,
    "PowerLoss": _power_loss,
}
"""Devices that make requests in Python."""


def _request_of_made(kind: str, make: Made, request: str, *, ends: bool = True) -> Scenery:
    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        device, gates = make()
        memory = bytearray(NEW)

        async def check() -> None:
            await device.aclose()  # the layer's last changes are done
            check_memory(memory)
            for below in gates:
                assert not below.statistics().in_flight
            for below in gates[:1]:
                await check_content(below)

        def hold() -> None:
            for below in gates:
                below.hold()

        def release() -> None:
            for below in gates:
                below.release()

        yield Scene(lambda: REQUESTS[request](device, memory), hold, release, check, ends)
        await device.aclose()
        for below in gates:
            await below.aclose()

    return scene


CARRIED_THROUGH = {("Mirror", request) for request in (*CHANGES, "flush")}
"""Every leg gets them, whoever is cancelled."""

for kind, make in MADE.items():
    for request in REQUESTS:
        waits = request in IN_PLACE or (kind, request) in CARRIED_THROUGH
        wait = Wait.FINISHED if waits else Wait.LEFT
        if kind in ("MemoryDevice", "PowerLoss"):
            wait = Wait.NONE
        operation(f"{kind}.{request}", wait=wait)(_request_of_made(kind, make, request))

for request in REQUESTS:
    operation(f"Faulty.{request}, stalled")(_request_of_made("Faulty", _over(_stalled), request, ends=False))
for request in [name for name in REQUESTS if name != "flush"]:  # which always pass
    operation(f"Throttle.{request}, its turn")(
        _request_of_made("Throttle", _over(_full_throttle), request, ends=False)
    )


# --- life of those ------------------------------------------------------------------------------------------


def _closing_of_made(make: Made, how: Callable[[Any], Awaitable[object]]) -> Scenery:
    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        device, gates = make()

        def hold() -> None:
            for below in gates:
                below.hold()
            _ = device.write(0, NEW)

        def release() -> None:
            for below in gates:
                below.release()

        async def check() -> None:
            await device.aclose()
            with pytest.raises(aioblk.DeviceClosedError):
                device.read(0, BLOCK)
            for below in gates[:1]:
                await check_content(below)

        yield Scene(lambda: how(device), hold, release, check)
        await device.aclose()
        for below in gates:
            await below.aclose()

    return scene


def _entering_of_made(
    make: Made,
) -> Scenery:
    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        device, gates = make()
        yield Scene(lambda: cast(Any, device).__aenter__(), check=lambda: check_content(device))
        await device.aclose()
        for below in gates:
            await below.aclose()

    return scene


def _extents_of_made(
    make: Made,
) -> Scenery:
    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        device, gates = make()
        yield Scene(lambda: first(cast(Any, device).extents()), check=lambda: check_content(device))
        await device.aclose()
        for below in gates:
            await below.aclose()

    return scene


for kind, make in MADE.items():
    held = kind not in ("MemoryDevice", "PowerLoss")
    operation(f"{kind}.aclose", wait=Wait.LEFT if held else Wait.NONE, closes=True)(
        _closing_of_made(make, lambda device: device.aclose())
    )
    operation(f"{kind}.__aexit__", wait=Wait.FINISHED if held else Wait.NONE, closes=True)(
        _closing_of_made(make, leave)
    )
    operation(f"{kind}.__aenter__", wait=Wait.NONE)(_entering_of_made(make))
    operation(f"{kind}.extents", wait=Wait.NONE)(_extents_of_made(make))
