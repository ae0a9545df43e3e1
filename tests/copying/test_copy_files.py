"""Copies of real files and disks: their sizes to the byte, their holes, and what is never written to."""

import asyncio
import json
import os
import random
import subprocess
from pathlib import Path

import pytest

import aioblk
import aioblk.copying.transfer

from ..conftest import StorageDaemonFactory
from ..support.loop_device import LoopDevice, cannot_have_loop_devices

MIB = 1 << 20
ODD = 3 * MIB + 777


def write_sparse(path: Path, size: int = ODD) -> None:
    """Data, a hole, data, a hole at the end."""
    with path.open("wb") as file:
        file.write(random.Random(1).randbytes(MIB))
        file.seek(2 * MIB)
        file.write(random.Random(2).randbytes(100_000))
        file.truncate(size)


def blocks(path: Path) -> int:
    return path.stat().st_blocks


def content(path: Path) -> bytes:
    return path.read_bytes()


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    write_sparse(path)
    return path


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("before", [None, 0, 1000, 5 * MIB])
async def test_a_file_gets_the_size_to_the_byte_and_keeps_holes(
    source: Path, tmp_path: Path, direct: bool, before: int | None
) -> None:
    path = tmp_path / "copy"
    if before is not None:
        path.write_bytes(b"x" * before)
    async with (
        aioblk.IoUring(source, direct=direct, read_only=True) as ours,
        aioblk.IoUring(path, direct=direct, create=0 if before is None else None) as theirs,
    ):
        result = await aioblk.copy(ours, theirs, verify=True, clone=False)
    assert content(path) == content(source)
    assert result.verified
    assert not result.source_changed
    assert blocks(path) <= blocks(source) + 16


async def test_everything_has_its_place_if_that_is_wanted(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    async with aioblk.IoUring(source, read_only=True) as ours, aioblk.IoUring(path, create=0) as theirs:
        await aioblk.copy(ours, theirs, allocate=True)
    assert content(path) == content(source)
    assert blocks(path) * 512 >= ODD // 4096 * 4096


async def test_a_file_keeps_what_lies_behind_where_it_is_not_to_be_resized(
    source: Path, tmp_path: Path
) -> None:
    path = tmp_path / "copy"
    path.write_bytes(b"x" * (5 * MIB))
    async with aioblk.IoUring(source, read_only=True) as ours, aioblk.IoUring(path) as theirs:
        await aioblk.copy(ours, theirs, resize=False)
    assert content(path) == content(source) + b"x" * (5 * MIB - ODD)


async def test_what_qemu_img_has_made_sparse_stays_so(source: Path, tmp_path: Path) -> None:
    made, path = tmp_path / "made", tmp_path / "copy"
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", source, made)
    async with aioblk.IoUring(made, read_only=True) as ours, aioblk.IoUring(path, create=0) as theirs:
        await aioblk.copy(ours, theirs)
    run("cmp", made, path)
    assert blocks(path) <= blocks(made) + 16


async def test_a_copy_to_vhost_user_ends_within_a_block(
    source: Path, tmp_path: Path, storage_daemon: StorageDaemonFactory
) -> None:
    exported = tmp_path / "exported"
    exported.write_bytes(b"x" * (4 * MIB))
    async with (
        aioblk.IoUring(source, read_only=True) as ours,
        aioblk.VirtioBlkVhostUser(storage_daemon(exported).socket) as theirs,
    ):
        result = await aioblk.copy(ours, theirs, verify=True)
        assert theirs.statistics().bounced_bytes < MIB  # edges of blocks only
    assert content(exported) == content(source) + b"x" * (4 * MIB - ODD)
    assert result.zeroed > 0


# --- sharing content ----------------------------------------------------------------------------------------


async def test_what_the_file_system_shares_is_not_copied(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As XFS and btrfs would."""

    async def share(ours: int, theirs: int) -> bool:
        return os.pwrite(theirs, content(source), 0) == ODD

    monkeypatch.setattr(aioblk.copying.transfer, "clone_file", share)
    path = tmp_path / "copy"
    async with aioblk.IoUring(source, read_only=True) as ours, aioblk.IoUring(path, create=0) as theirs:
        result = await aioblk.copy(ours, theirs, verify=True)
    assert content(path) == content(source)
    assert (result.cloned, result.copied) == (True, 0)


# --- refusals -----------------------------------------------------------------------------------------------


async def refused(source: aioblk.BlockDevice, destination: aioblk.BlockDevice, words: str) -> None:
    with pytest.raises(aioblk.OptionError, match=words):
        await aioblk.copy(source, destination)


async def test_a_file_is_not_copied_onto_itself_by_any_name(source: Path, tmp_path: Path) -> None:
    before = content(source)
    symbolic, hard = tmp_path / "symbolic", tmp_path / "hard"
    symbolic.symlink_to(source)
    hard.hardlink_to(source)
    async with aioblk.IoUring(source) as ours:
        await refused(ours, ours, "are the same")
        for name in (source, symbolic, hard):
            async with aioblk.IoUring(name) as theirs:
                await refused(ours, theirs, "are the same")
                part = aioblk.Slice(ours, 0, MIB)
                await refused(part, aioblk.Slice(theirs, MIB - 4096), "share bytes")
                await aioblk.copy(part, aioblk.Slice(ours, 2 * MIB, MIB))
    assert content(source) == before[: 2 * MIB] + before[:MIB] + before[3 * MIB :]


async def test_what_is_too_small_or_not_to_be_written_is_left_as_it_is(
    source: Path, tmp_path: Path, storage_daemon: StorageDaemonFactory
) -> None:
    exported = tmp_path / "exported"
    exported.write_bytes(b"x" * MIB)
    async with (
        aioblk.IoUring(source, read_only=True) as ours,
        aioblk.VirtioBlkVhostUser(storage_daemon(exported).socket) as theirs,
    ):
        await refused(ours, theirs, f"has {MIB} bytes, and the source {ODD}")
        with pytest.raises(aioblk.BlkioError, match="reading only"):
            await aioblk.copy(theirs, ours)
    assert content(exported) == b"x" * MIB


async def test_a_loop_device_is_the_file_that_lies_below(scratch_file: Path) -> None:
    """Where there are no loop devices, the file itself takes its place."""
    if cannot_have_loop_devices():
        async with aioblk.IoUring(scratch_file) as ours:
            await refused(ours, ours, "are the same")
        return
    with LoopDevice(scratch_file) as loop:
        async with aioblk.IoUring(scratch_file) as ours, aioblk.IoUring(loop.path) as theirs:
            await refused(ours, theirs, "are the same")


# --- going on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["source", "destination", "journal"])
async def test_a_journal_of_something_else_is_refused_and_kept(
    source: Path, tmp_path: Path, change: str
) -> None:
    path, journal = tmp_path / "copy", tmp_path / "journal"
    async with aioblk.IoUring(source, read_only=True) as ours, aioblk.IoUring(path, create=0) as theirs:
        await stopped(ours, theirs, journal)
        match change:
            case "source":
                write_sparse(source, ODD + 1)
            case "destination":
                await theirs.write(0, bytes(4096))
            case _:
                write_sparse(journal)
        kept = content(journal)
        with pytest.raises(aioblk.OptionError, match=r"remove it to copy anew|name another file"):
            await aioblk.copy(ours, theirs, journal=journal)
    assert content(journal) == kept


async def stopped(ours: aioblk.BlockDevice, theirs: aioblk.BlockDevice, journal: Path) -> None:
    """A copy that is cancelled when half of it is done."""
    copying: asyncio.Task[aioblk.CopyResult]

    def tell(now: aioblk.CopyProgress) -> None:
        if now.done > now.size // 2:
            copying.cancel()

    copying = asyncio.create_task(
        aioblk.copy(ours, theirs, journal=journal, on_progress=tell, request_size=65536, depth=2)
    )
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert content(journal)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 60000,
        '{"a":' * 10000,
        "1" * 60000,
        "[]",
        "{}",
        *(
            f'"done": {done}'
            for done in ("-1", "1.5", "1e999", "NaN", '"9"', "null", "true", "[1]", "1" * 5000)
        ),
        "no done",
    ],
    ids=lambda text: text[:16],
)
async def test_a_journal_that_somebody_else_has_written_is_refused(
    source: Path, tmp_path: Path, text: str
) -> None:
    path, journal = tmp_path / "copy", tmp_path / "journal"
    async with aioblk.IoUring(source, read_only=True) as ours, aioblk.IoUring(path, create=0) as theirs:
        if "done" in text:
            await stopped(ours, theirs, journal)
            good = json.loads(content(journal))
            entry = f", {text}" if text != "no done" else ""
            del good["done"]
            text = json.dumps(good).removesuffix("}") + entry + "}"
        journal.write_text(text)
        with pytest.raises(aioblk.OptionError, match="no journal of a copy; name another file"):
            await aioblk.copy(ours, theirs, journal=journal)
    assert journal.read_text() == text


async def test_a_journal_that_is_a_pipe_is_not_waited_for(source: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / "copy"
    async with aioblk.IoUring(source, read_only=True) as ours, aioblk.IoUring(path, create=0) as theirs:
        with pytest.raises(aioblk.OptionError, match="no journal of a copy"):
            await aioblk.copy(ours, theirs, journal=tmp_path / "pipe")


async def test_a_journal_is_not_written_through_a_link_beside_it(source: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".journal.new").symlink_to(victim)
    path = tmp_path / "copy"
    async with aioblk.IoUring(source, read_only=True) as ours, aioblk.IoUring(path, create=0) as theirs:
        await stopped(ours, theirs, tmp_path / "journal")
    assert victim.read_text() == "precious"


async def test_a_journal_that_cannot_be_kept_is_told_before_anything_is_changed(
    source: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "missing" / "journal"
    path = tmp_path / "copy"
    path.write_bytes(b"precious")
    async with aioblk.IoUring(source, read_only=True) as ours, aioblk.IoUring(path) as theirs:
        with pytest.raises(
            aioblk.BlkioError, match=r"No such file .*: the journal cannot be kept there"
        ) as caught:
            await aioblk.copy(ours, theirs, journal=journal)
        assert caught.value.filename == str(journal)
        with pytest.raises(aioblk.OptionError, match="rate must be positive"):
            await aioblk.copy(ours, theirs, rate=0)
    assert path.read_bytes() == b"precious"


async def test_the_journal_is_there_before_the_destination_is_changed(source: Path, tmp_path: Path) -> None:
    path, journal = tmp_path / "copy", tmp_path / "journal"
    seen: list[tuple[bool, int]] = []

    def tell(_: aioblk.CopyProgress) -> None:
        seen.append((journal.exists(), json.loads(content(journal))["done"]))

    async with aioblk.IoUring(source, read_only=True) as ours, aioblk.IoUring(path, create=0) as theirs:
        await aioblk.copy(ours, theirs, journal=journal, on_progress=tell)
    assert seen[0] == (True, 0)


async def test_a_rate_changes_nothing_but_the_time(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    async with aioblk.IoUring(source, read_only=True) as ours, aioblk.IoUring(path, create=0) as theirs:
        with pytest.raises(aioblk.OptionError, match="rate must be positive"):
            await aioblk.copy(ours, theirs, rate=0)
        before = ours.statistics().read.bytes
        await aioblk.copy(ours, theirs, rate=1 << 30)
        assert ours.statistics().read.bytes - before <= MIB + 102400
    assert content(path) == content(source)
