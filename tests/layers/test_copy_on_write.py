"""A base that stays as it is, an overlay, and committing the one to the other."""

import asyncio
import errno
import random
from pathlib import Path

import pytest

import aioblk
from aioblk.testing import Fault, Faulty, MemoryDevice, PowerLoss, Recorder

BLOCK = 512
LIMITS = aioblk.Limits(request_alignment=BLOCK)
SIZE = 64 * BLOCK
OLD = random.Random(1).randbytes(SIZE)
NEW = b"n" * BLOCK


def memory(size: int = SIZE, content: bytes = b"", **options: bool) -> MemoryDevice:
    return MemoryDevice(size, limits=LIMITS, content=content, **options)


async def test_what_it_cannot_be_made_of() -> None:
    base = memory()
    for overlay, words in (
        (base, "the overlay is the base itself"),
        (memory(read_only=True), "the overlay is open for reading only"),
        (memory(SIZE - BLOCK), f"the overlay has {SIZE - BLOCK} bytes, and the base {SIZE}"),
    ):
        with pytest.raises(aioblk.OptionError, match=words):
            aioblk.CopyOnWrite(base, overlay)


async def test_each_block_comes_from_where_it_is() -> None:
    base, overlay = Recorder(memory(content=OLD, read_only=True)), Recorder(memory(content=SIZE * b"?"))
    device = aioblk.CopyOnWrite(base, overlay)
    assert not device.read_only
    for block in (1, 2, 5):
        await device.write(block * BLOCK, NEW)
    content = OLD[:BLOCK] + 2 * NEW + OLD[3 * BLOCK : 5 * BLOCK] + NEW + OLD[6 * BLOCK :]
    assert await device.read(0, SIZE) == content
    pieces = [bytearray(100), bytearray(BLOCK), bytearray(0), bytearray(SIZE - BLOCK - 100)]
    await device.readv(0, pieces)
    assert b"".join(pieces) == content
    base.records.clear()
    overlay.records.clear()
    assert await device.read(BLOCK, 2 * BLOCK) == 2 * NEW
    assert await device.read(3 * BLOCK, BLOCK) == OLD[3 * BLOCK : 4 * BLOCK]
    assert [len(base.records), len(overlay.records)] == [1, 1]
    assert list(device.changed) == [(BLOCK, 2 * BLOCK), (5 * BLOCK, BLOCK)]


async def test_a_change_that_fails_or_is_not_done_is_not_seen() -> None:
    overlay = Faulty(
        memory(content=SIZE * b"?"), Fault(operations={"write"}, times=1, error=errno.EIO, executed=True)
    )
    device = aioblk.CopyOnWrite(memory(content=OLD), overlay)
    with pytest.raises(aioblk.BlkioError):
        await device.write(0, NEW)
    assert await device.read(0, BLOCK) == OLD[:BLOCK]
    overlay.add(Fault(operations={"write"}, delay=0.001))
    write = asyncio.ensure_future(device.write(0, NEW))
    assert await device.read(0, BLOCK) == OLD[:BLOCK]
    await write
    assert await device.read(0, BLOCK) == NEW


async def test_whoever_is_told_that_a_change_is_done_sees_it() -> None:
    device = aioblk.CopyOnWrite(memory(content=OLD), memory())
    seen: list[bytes] = []
    write = asyncio.ensure_future(device.write(0, NEW))
    write.add_done_callback(lambda _: reads.append(device.read(0, BLOCK)))
    reads: list[object] = []
    await write
    seen.append(await device.read(0, BLOCK))
    await asyncio.sleep(0)
    seen += [await read for read in reads]  # type: ignore[misc]
    assert seen == [NEW, NEW]


async def test_zeroing_and_discarding() -> None:
    device = aioblk.CopyOnWrite(base := memory(content=OLD), memory(content=SIZE * b"?"))
    await device.write_zeroes(0, 2 * BLOCK)
    await device.discard(BLOCK, 2 * BLOCK)
    assert await device.read(0, BLOCK) == bytes(BLOCK)
    assert await device.read(2 * BLOCK, BLOCK) == OLD[2 * BLOCK : 3 * BLOCK]
    assert base.content() == OLD


async def test_it_knows_holes(tmp_path: Path) -> None:
    base = memory(64 << 10)
    await base.write(16 << 10, NEW)
    device = aioblk.CopyOnWrite(base, memory(64 << 10))
    await device.write(32 << 10, NEW)
    found = [extent async for extent in device.extents(0, 40 << 10)]
    assert found == [
        (0, 16 << 10, aioblk.ExtentKind.HOLE),
        (16 << 10, 4096, aioblk.ExtentKind.DATA),
        (20 << 10, 12 << 10, aioblk.ExtentKind.HOLE),
        (32 << 10, BLOCK, aioblk.ExtentKind.DATA),
        ((32 << 10) + BLOCK, (8 << 10) - BLOCK, aioblk.ExtentKind.HOLE),
    ]


# --- committing ---------------------------------------------------------------------------------------------


async def test_committing() -> None:
    base, overlay = PowerLoss(SIZE, limits=LIMITS, content=OLD), memory()
    device = aioblk.CopyOnWrite(base, overlay)
    await device.write(BLOCK, 2 * NEW)
    await device.commit()
    content = OLD[:BLOCK] + 2 * NEW + OLD[3 * BLOCK :]
    assert not device.changed
    assert base.content() == await device.read(0, SIZE) == content
    for seed in range(10):
        assert base.crash(seed).content() == content, "a commit is durable"
    await device.commit()


async def test_committing_to_another_device() -> None:
    base, target = memory(content=OLD, read_only=True), memory(content=OLD)
    device = aioblk.CopyOnWrite(base, memory())
    await device.write(BLOCK, NEW)
    with pytest.raises(aioblk.UsageError, match="the base is open for reading only; open it for writing, or"):
        await device.commit()
    with pytest.raises(aioblk.UsageError, match="the target is open for reading only"):
        await device.commit(memory(read_only=True))
    with pytest.raises(aioblk.OptionError, match="the target has"):
        await device.commit(memory(BLOCK))
    await device.commit(target)
    assert target.content() == await device.read(0, SIZE) == OLD[:BLOCK] + NEW + OLD[2 * BLOCK :]
    assert list(device.changed) == [(BLOCK, BLOCK)]


@pytest.mark.parametrize("victim", ["base", "overlay"])
async def test_a_commit_may_fail_at_any_step(victim: str) -> None:
    for step in range(30):
        devices = {"base": Faulty(memory(content=OLD)), "overlay": Faulty(memory())}
        device = aioblk.CopyOnWrite(devices["base"], devices["overlay"])
        content = bytearray(OLD)
        for block in (1, 5, 6, 20):
            await device.write(block * BLOCK, NEW)
            content[block * BLOCK : (block + 1) * BLOCK] = NEW
        fault = devices[victim].add(Fault(after=step, times=1, error=errno.EIO))
        try:
            await device.commit()
        except aioblk.BlkioError:
            devices[victim].remove(fault)
            assert list(device.changed) == [(BLOCK, BLOCK), (5 * BLOCK, 2 * BLOCK), (20 * BLOCK, BLOCK)]
            assert await device.read(0, SIZE) == content
            await device.commit()
            assert devices["base"].device.content() == content
        else:
            assert step > 2
            return
    pytest.fail("it takes more steps than that")


async def test_what_is_changed_during_a_commit_stays_changed() -> None:
    for turns in range(1, 40):
        base = Faulty(memory(content=OLD), Fault())
        device = aioblk.CopyOnWrite(base, Faulty(memory(), Fault()))
        await device.write(0, 8 * NEW)
        committing = asyncio.ensure_future(device.commit())
        for _ in range(turns):
            await asyncio.sleep(0)
        with_it = not committing.done()
        if with_it:
            with pytest.raises(aioblk.UsageError, match="it is being committed already"):
                await device.commit()
        await device.write(2 * BLOCK, b"2" * BLOCK)
        await committing
        content = 2 * NEW + b"2" * BLOCK + 5 * NEW + OLD[8 * BLOCK :]
        assert await device.read(0, SIZE) == content
        await device.commit()
        assert base.device.content() == content
        if not with_it:
            return
    pytest.fail("it takes longer than that")


async def test_a_commit_that_is_cancelled_can_be_repeated() -> None:
    device = aioblk.CopyOnWrite(base := Faulty(memory(content=OLD), Fault()), memory())
    await device.write(0, 8 * NEW)
    committing = asyncio.ensure_future(device.commit())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    committing.cancel()
    await asyncio.wait([committing])
    assert committing.cancelled()
    await device.commit()
    assert base.device.content() == 8 * NEW + OLD[8 * BLOCK :]


async def test_over_files(tmp_path: Path) -> None:
    """The overlay is an empty file, which grows."""
    golden, changes = tmp_path / "golden", tmp_path / "changes"
    golden.write_bytes(OLD)
    changes.touch()
    async with aioblk.IoUring(golden, read_only=True) as base, aioblk.IoUring(changes) as overlay:
        async with aioblk.CopyOnWrite(base, overlay) as device:
            await device.write(SIZE - 3, b"end")
            assert await device.read(0, SIZE) == OLD[:-3] + b"end"
            with pytest.raises(aioblk.BlkioError):
                await device.write(SIZE - 3, b"beyond")
        assert golden.read_bytes() == OLD
