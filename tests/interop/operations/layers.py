"""What layers do beside requests: copying, streams, zones, partitions."""

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import aioblk
from aioblk.layers.zones import _ZONE
from aioblk.testing import Faulty, Recorder

from ...support.devices import BLOCK
from ...support.gate import Gate
from .scene import (
    KEPT,
    LIMITS,
    NEW,
    OLD,
    SIZE,
    Ground,
    Scene,
    Scenery,
    Wait,
    check_content,
    gate,
    leave,
    operation,
)

# --- copying ------------------------------------------------------------------------------------------------


@operation("Mirror.resilver")
async def resilver(ground: Ground) -> AsyncIterator[Scene]:
    source, copy = gate(), Gate(SIZE, limits=LIMITS)
    mirror = aioblk.Mirror(source, stale=[copy], granularity=BLOCK)
    stale = mirror.legs[1]

    async def resilver() -> None:
        if stale.state is aioblk.LegState.DROPPED:
            await mirror.resilver(stale)

    async def check() -> None:
        await resilver()
        assert stale.state is aioblk.LegState.IN_SYNC
        assert copy.content() == source.content()

    yield Scene(resilver, source.hold, source.release, check)
    await mirror.aclose()


@operation("Mirror.resilver, writing", Wait.FINISHED)
async def resilver_writing(ground: Ground) -> AsyncIterator[Scene]:
    """Nothing may write to the leg any more when its bytes are free for others."""
    source, copy = gate(), Gate(SIZE, limits=LIMITS)
    mirror = aioblk.Mirror(source, stale=[copy], granularity=BLOCK)
    stale = mirror.legs[1]

    async def check() -> None:
        if stale.state is aioblk.LegState.DROPPED:
            await mirror.resilver(stale)
        assert copy.content() == source.content()

    yield Scene(lambda: mirror.resilver(stale), copy.hold, copy.release, check)
    await mirror.aclose()


@operation("CopyOnWrite.commit")
async def commit(ground: Ground) -> AsyncIterator[Scene]:
    base, overlay = gate(), Gate(SIZE, limits=LIMITS)
    layer = aioblk.CopyOnWrite(base, overlay)
    await layer.write(0, NEW)

    async def check() -> None:
        await layer.commit()
        assert not layer.changed
        assert await base.read(0, BLOCK) == NEW
        await check_content(base)

    yield Scene(layer.commit, overlay.hold, overlay.release, check)
    await layer.aclose()


@operation("CopyOnWrite.commit, writing", Wait.FINISHED)
async def commit_writing(ground: Ground) -> AsyncIterator[Scene]:
    base, overlay = gate(), Gate(SIZE, limits=LIMITS)
    layer = aioblk.CopyOnWrite(base, overlay)
    await layer.write(0, NEW)

    async def check() -> None:
        await layer.commit()
        assert await base.read(0, BLOCK) == NEW
        await check_content(base)

    yield Scene(layer.commit, base.hold, base.release, check)
    await layer.aclose()


# --- streams ------------------------------------------------------------------------------------------------


def _entering(make: Callable[[aioblk.BlockDevice], aioblk.Reader | aioblk.Writer]) -> Scenery:
    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        device = gate()
        stream = make(device)

        async def check() -> None:
            await stream.aclose()
            await check_content(device)

        yield Scene(stream.__aenter__, check=check)
        await stream.aclose()

    return scene


operation("Reader.__aenter__", Wait.NONE)(_entering(lambda device: aioblk.Reader(device, chunk=BLOCK)))
operation("Writer.__aenter__", Wait.NONE)(_entering(lambda device: aioblk.Writer(device, chunk=BLOCK)))


@operation("Reader.__anext__")
async def read_next(ground: Ground) -> AsyncIterator[Scene]:
    device = gate()
    reader = aioblk.Reader(device, chunk=BLOCK)
    await reader.__aenter__()

    def hold() -> None:
        device.hold()
        reader.seek(KEPT)

    async def check() -> None:
        reader.seek(KEPT)
        assert bytes(await anext(reader)) == OLD

    yield Scene(reader.__anext__, hold, device.release, check)
    await reader.aclose()


def _closing_a_reader(how: Callable[[Any], Awaitable[object]]) -> Scenery:
    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        device = gate()
        reader = aioblk.Reader(device, chunk=BLOCK)
        await reader.__aenter__()

        def hold() -> None:
            device.hold()
            reader.seek(KEPT)

        async def check() -> None:
            await reader.aclose()
            assert not device.statistics().in_flight

        yield Scene(lambda: how(reader), hold, device.release, check)
        await reader.aclose()

    return scene


operation("Reader.aclose", closes=True)(_closing_a_reader(lambda reader: reader.aclose()))
operation("Reader.__aexit__", Wait.FINISHED, closes=True)(_closing_a_reader(leave))


def _writing(call: Callable[[aioblk.Writer], Awaitable[object]], chunk: int) -> Scenery:
    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        device = gate()
        writer = aioblk.Writer(device, chunk=chunk, depth=1)
        await writer.__aenter__()

        async def check() -> None:
            await writer.flush()
            assert writer.written == writer.offset
            assert device.content().startswith((NEW * 3)[: writer.written])
            await check_content(device)

        yield Scene(lambda: call(writer), device.hold, device.release, check)
        await writer.aclose()

    return scene


async def _write_and_flush(writer: aioblk.Writer) -> None:
    if not writer.offset:
        await writer.write(NEW)
    await writer.flush()


operation("Writer.write")(_writing(lambda writer: writer.write(NEW * 3), BLOCK))
operation("Writer.flush")(_writing(_write_and_flush, 2 * BLOCK))


def _closing_a_writer(how: Callable[[Any], Awaitable[object]]) -> Scenery:
    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        device = gate()
        writer = aioblk.Writer(device, chunk=BLOCK)
        await writer.__aenter__()
        await writer.write(NEW[:512])

        async def check() -> None:
            await writer.aclose()
            assert await device.read(0, 512) == NEW[:512]
            assert not device.statistics().in_flight

        yield Scene(lambda: how(writer), device.hold, device.release, check)
        await writer.aclose()

    return scene


operation("Writer.aclose", closes=True)(_closing_a_writer(lambda writer: writer.aclose()))
operation("Writer.__aexit__", Wait.FINISHED, closes=True)(_closing_a_writer(leave))

# --- zones --------------------------------------------------------------------------------------------------

ZONE, COUNT = 16 * BLOCK, 4


class ZonedGate(Gate):
    """Has zones as NVMe drives do, all of them empty."""

    driver = "memory"

    def __init__(self) -> None:
        super().__init__(COUNT * ZONE, limits=LIMITS)
        self.properties = {"zoned": 1, "zone-size": ZONE, "nr-zones": COUNT}

    def _report_zones(self, offset: int, zones: int) -> Awaitable[bytes]:
        starts = [offset + number * ZONE for number in range(zones)]
        kind, state = aioblk.ZoneType.SEQUENTIAL_REQUIRED.value, aioblk.ZoneState.EMPTY.value
        answer = b"".join(_ZONE.pack(start, ZONE, ZONE, start, kind, state, 0) for start in starts)
        return cast(Awaitable[bytes], self._request("read", answer))

    def _manage_zone(self, command: str, offset: int = 0) -> Awaitable[None]:
        return cast(Awaitable[None], self._request("flush", None))


async def _report(zones: aioblk.Zones) -> None:
    assert len([zone async for zone in zones.report()]) == COUNT


ZONES: dict[str, Callable[[aioblk.Zones], Awaitable[object]]] = {
    "report": _report,
    "zone_at": lambda zones: zones.zone_at(ZONE),
    "open": lambda zones: zones.open(ZONE),
    "close": lambda zones: zones.close(ZONE),
    "finish": lambda zones: zones.finish(ZONE),
    "reset": lambda zones: zones.reset(ZONE),
    "open_all": lambda zones: zones.open_all(),
    "close_all": lambda zones: zones.close_all(),
    "finish_all": lambda zones: zones.finish_all(),
    "reset_all": lambda zones: zones.reset_all(),
}


def _zones(call: Callable[[aioblk.Zones], Awaitable[object]]) -> Scenery:
    async def scene(ground: Ground) -> AsyncIterator[Scene]:
        device = ZonedGate()
        zones = aioblk.Zones(cast(aioblk.Device, device))

        async def check() -> None:
            assert (await zones.zone_at(ZONE)).start == ZONE

        yield Scene(lambda: call(zones), device.hold, device.release, check)

    return scene


for name, call in ZONES.items():
    operation(f"Zones.{name}")(_zones(call))


@operation("SequentialWriter.append", Wait.FINISHED)
async def append(ground: Ground) -> AsyncIterator[Scene]:
    device = ZonedGate()
    writer = aioblk.Zones(cast(aioblk.Device, device)).writer()
    await writer.append(OLD)  # it knows where

    async def check() -> None:
        assert await device.read(0, BLOCK) == OLD
        [extent] = await writer.append(NEW)
        assert await device.read(extent.offset, extent.length) == NEW

    yield Scene(lambda: writer.append(NEW), device.hold, device.release, check)


# --- others -------------------------------------------------------------------------------------------------


@operation("partitions")
async def partitions(ground: Ground) -> AsyncIterator[Scene]:
    table = bytearray(SIZE)
    table[446:462] = struct.pack("<B3xB3xII", 0, 0x83, 8, 16)
    table[510:512] = b"\x55\xaa"
    device = Gate(SIZE, limits=LIMITS, content=bytes(table))

    async def check() -> None:
        [partition] = await aioblk.partitions(device)
        assert partition.offset == 8 * 512

    yield Scene(lambda: aioblk.partitions(device), device.hold, device.release, check)


@operation("signatures")
async def signatures(ground: Ground) -> AsyncIterator[Scene]:
    device = Gate(SIZE, limits=LIMITS, content=b"XFSB")

    async def check() -> None:
        [found] = await aioblk.signatures(device)
        assert found.name == "an XFS file system"

    yield Scene(lambda: aioblk.signatures(device), device.hold, device.release, check)


@operation("Faulty.reconnect", Wait.NONE)
async def reconnect(ground: Ground) -> AsyncIterator[Scene]:
    device = Faulty(gate())
    device.lose()

    async def check() -> None:
        assert device.lost is None
        await check_content(device)

    yield Scene(device.reconnect, check=check)


@operation("Recorder.replay", Wait.FINISHED)
async def replay(ground: Ground) -> AsyncIterator[Scene]:
    recorder = Recorder(gate())
    await recorder.write(0, NEW)
    other = gate()

    async def check() -> None:
        await Recorder.replay(other, recorder.records)
        assert await other.read(0, BLOCK) == NEW
        await check_content(other)

    yield Scene(lambda: Recorder.replay(other, recorder.records), other.hold, other.release, check)
