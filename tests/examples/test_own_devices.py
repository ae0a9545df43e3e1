"""The services among the examples, on devices that aioblk knows nothing of."""

import asyncio
import errno
import inspect
import random
from collections.abc import Callable
from pathlib import Path

import nbd_server
import pytest
from log_store import LogInUseError, LogStore, OccupiedError
from ram_device import RamDevice

import aioblk
from aioblk.nbd import Export, Server
from aioblk.testing import Fault, Faulty, MemoryDevice, PowerLoss, Recorder

from ..nbd import wire
from ..support.nbd_server import ROOT, TIME_LIMIT

SIZE = 8 << 20

LIMITS = aioblk.Limits(request_alignment=512)
SLOWLY = aioblk.Rate(operations=5000, burst_operations=20)


def memory() -> MemoryDevice:
    return MemoryDevice(SIZE, limits=LIMITS)


DEVICES: dict[str, Callable[[], aioblk.BlockDevice]] = {
    "our own": lambda: RamDevice(SIZE),
    "a layer over it": lambda: aioblk.ByteView(RamDevice(SIZE)),
    "Layer": lambda: aioblk.Layer(memory()),
    "Slice": lambda: aioblk.Slice(MemoryDevice(2 * SIZE, limits=LIMITS), SIZE // 2, SIZE),
    "Throttle": lambda: aioblk.Throttle(memory(), aioblk.ThrottleGroup(total=SLOWLY)),
    "Tracked": lambda: aioblk.Tracked(memory()),
    "CopyOnWrite": lambda: aioblk.CopyOnWrite(MemoryDevice(SIZE, read_only=True), memory()),
    "Mirror": lambda: aioblk.Mirror(memory(), memory()),
    "a mirror that loses a leg": lambda: aioblk.Mirror(
        memory(), Faulty(memory(), Fault(after=20, error=errno.EIO))
    ),
    "all of them": lambda: aioblk.Tracked(
        aioblk.CopyOnWrite(aioblk.Slice(memory()), aioblk.Mirror(aioblk.Layer(memory()), memory()))
    ),
    "MemoryDevice": memory,
    "Faulty": lambda: Faulty(memory(), Fault(probability=0.5), Fault(probability=0.1, delay=0.001)),
    "PowerLoss": lambda: PowerLoss(SIZE, limits=LIMITS),
    "Recorder": lambda: Recorder(memory()),
}


@pytest.fixture(params=DEVICES)
async def device(request: pytest.FixtureRequest) -> aioblk.BlockDevice:
    device = DEVICES[request.param]()
    assert not isinstance(device, aioblk.Device)
    return device


def test_the_documentation_shows_it() -> None:
    page = (ROOT / "docs" / "own-devices.md").read_text()
    assert inspect.getsource(RamDevice) in page


async def test_the_log_store(device: aioblk.BlockDevice) -> None:
    await LogStore.format(device)
    records = [random.randbytes(random.randrange(20_000)) for _ in range(200)]
    async with LogStore(device) as log:
        assert await asyncio.gather(*map(log.append, records)) == list(range(1, 201))
        with pytest.raises(LogInUseError):
            await LogStore(device).__aenter__()
    with pytest.raises(OccupiedError):
        await LogStore.format(device)
    async with LogStore(device) as log:
        assert log.last == 200
        assert await log.append(b"one more") == 201
        assert [record.data async for record in log.records()] == [*records, b"one more"]


async def test_the_log_store_beside_its_writer(device: aioblk.BlockDevice) -> None:
    await LogStore.format(device)
    async with LogStore(device) as log, LogStore(device, read_only=True) as reader:
        await log.append(b"later")
        assert reader.last == 0
        async with LogStore(device, read_only=True) as later:
            assert [record.data async for record in later.records()] == [b"later"]


async def test_the_nbd_server(device: aioblk.BlockDevice, tmp_path: Path) -> None:
    place = tmp_path / "nbd.sock"
    async with Server([Export(device)]) as server:
        server.listen_at_path(place)
        serving = asyncio.create_task(server.serve())
        async with asyncio.timeout(TIME_LIMIT):
            await asyncio.to_thread(use, place, isinstance(device, aioblk.KnowsExtents))
            assert await device.read(0, 4096) == bytes(1000) + b"x" * 3000 + bytes(96)
            serving.cancel()
            await asyncio.wait([serving])
    assert serving.cancelled()


async def test_the_nbd_server_among_the_examples(
    scratch_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serving = asyncio.create_task(nbd_server.serve(str(scratch_file), 0))
    async with asyncio.timeout(TIME_LIMIT):
        while not (said := capsys.readouterr().out):  # noqa: ASYNC110 (it says so on its standard output only)
            await asyncio.sleep(0.001)
        port = int(said.split()[-1].rstrip("/").rpartition(":")[2])
        client = await asyncio.to_thread(lambda: wire.Client(("127.0.0.1", port)).connect())
        with client:
            assert (await asyncio.to_thread(client.call, wire.READ, 0, 512)).error == 0
            serving.cancel()
            await asyncio.wait([serving])
    assert serving.cancelled()


def use(place: Path, knows_extents: bool) -> None:
    """Every command there is, at offsets that suit no block."""
    with wire.Client(place).connect(allocation=True) as client:
        assert client.call(wire.WRITE, 1000, 5000, flags=wire.FUA, data=b"x" * 5000).error == 0
        assert client.call(wire.READ, 999, 5002).data == b"\0" + b"x" * 5000 + b"\0"
        assert client.call(wire.WRITE_ZEROES, 4000, 3000).error == 0
        assert client.call(wire.READ, 0, 8192).data == bytes(1000) + b"x" * 3000 + bytes(4192)
        for kind in (wire.CACHE, wire.FLUSH):
            assert client.call(kind, 0, 0).error == 0
        assert client.call(wire.TRIM, SIZE // 2, SIZE // 2).error == 0
        (extents,) = client.call(wire.BLOCK_STATUS, 0, SIZE).states.values()
        assert sum(length for length, _ in extents) == SIZE
        assert any(kind == 0 for _, kind in extents)  # data
        assert knows_extents or extents == [(SIZE, 0)]
        assert client.call(wire.READ, SIZE - 1, 1).data == b"\0"
        assert client.call(wire.READ, SIZE, 1).error
        client.send_command(wire.DISC)
        assert client.is_closed_by_server()
