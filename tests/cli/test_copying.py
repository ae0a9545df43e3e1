"""copy, compare, checksum and map, as a user types them."""

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from aioblk import BlkioError, Openable
from aioblk.addresses import open_locked
from aioblk.cli.map import picture
from aioblk.cli.program import program
from aioblk.cli.text import of_size, of_wait
from aioblk.testing.storage_daemon import StorageDaemon

from ..conftest import StorageDaemonFactory
from .running import PATIENCE, aioblk, command, variables

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """1 MiB of data and 1 MiB of a hole, in the current directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(MIB))
    os.truncate(path, 2 * MIB + 100)
    return path


def typed(*arguments: str, status: int = 0) -> str:
    """What is printed, on stdout and stderr, by a command in this process."""
    done = CliRunner().invoke(program, arguments)
    assert done.exit_code == status, done.output
    return done.output


def test_a_file_is_copied_and_compared(source: Path) -> None:
    done = aioblk("copy", "disk.img", "copy.img")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("1 MiB copied, 1 MiB of zeroes, in ")
    assert Path("copy.img").read_bytes() == source.read_bytes()
    same = aioblk("compare", "disk.img", "copy.img")
    assert (same.returncode, same.stdout, same.stderr) == (0, "the same: 2 MiB\n", "")


def test_what_was_done_is_told_as_json(source: Path) -> None:
    found = json.loads(typed("copy", "--json", "-q", "--verify", "disk.img", "copy.img"))
    assert found["size"] == source.stat().st_size
    assert found["copied"] + found["skipped"] == found["size"]
    assert found["verified"] is True


@pytest.mark.parametrize(
    ("more", "ways"),
    [
        ([], [True]),
        (["copy.img", "--sparse", "512"], [None]),  # there may be disks with larger blocks below it
        (["io_uring:copy.img?direct=off"], [None]),
        (["io_uring:copy.img?direct=on"], [True]),
    ],
)
def test_a_new_file_of_whole_blocks_is_written_past_the_page_cache(
    source: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], ways: list[bool | None]
) -> None:
    os.truncate(source, 2 * MIB)
    found = ways_of_making(monkeypatch)
    typed("copy", "disk.img", *(more or ["copy.img"]))
    assert Path("copy.img").read_bytes() == source.read_bytes()
    assert found == ways


def test_a_new_file_that_ends_within_a_block_is_written_through_the_page_cache(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ways_of_making(monkeypatch)
    typed("copy", "disk.img", "copy.img")
    assert found == [None]


def test_a_new_file_on_a_file_system_without_direct_io_is_written_through_the_page_cache(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(source, 2 * MIB)
    found = ways_of_making(monkeypatch, refused=errno.EINVAL)
    typed("copy", "disk.img", "copy.img")
    assert Path("copy.img").read_bytes() == source.read_bytes()
    assert found == [True, None]


def test_a_new_file_that_cannot_be_made_is_not_tried_in_another_way(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(source, 2 * MIB)
    found = ways_of_making(monkeypatch, refused=errno.ENOSPC)
    assert "No space left on device" in typed("copy", "disk.img", "copy.img", status=1)
    assert found == [True]


def ways_of_making(monkeypatch: pytest.MonkeyPatch, refused: int | None = None) -> list[bool | None]:
    """Whether files were made with ``direct``, of those that were; or with which error that is refused."""
    found: list[bool | None] = []

    def open_and_tell(address: str, **properties: Any) -> Openable:
        device = open_locked(address, **properties)
        if "create" in properties:
            found.append(properties.get("direct"))
            if refused is not None and found[-1]:
                raise BlkioError(errno=refused, operation="open", filename=address)
        return device

    monkeypatch.setattr("aioblk.cli.parameters.open_locked", open_and_tell)
    return found


def test_nobody_is_told_to_write_a_file_over_itself(source: Path) -> None:
    os.symlink("disk.img", "link.img")
    for options in (), ("--overwrite",):
        refused = typed("copy", *options, "disk.img", "link.img", status=1)
        assert refused == "aioblk: disk.img and link.img are the same\n"


def test_what_can_only_be_read_is_no_destination(source: Path) -> None:
    Path("copy.img").touch()
    refused = typed("copy", "disk.img", "readonly:copy.img", status=1)
    assert refused == "aioblk: readonly:copy.img can only be read: it is opened, or offered, so\n"


def test_a_file_with_content_is_written_over_if_that_is_said(source: Path) -> None:
    Path("copy.img").write_bytes(b"precious")
    refused = typed("copy", "disk.img", "copy.img", status=1)
    assert refused == "aioblk: copy.img is there already; --overwrite writes over it\n"
    refused = typed("copy", "disk.img", "slice,length=4:copy.img", status=1)
    assert "--overwrite writes over it" in refused
    assert Path("copy.img").read_bytes() == b"precious"
    typed("copy", "--overwrite", "-q", "disk.img", "copy.img")
    assert Path("copy.img").read_bytes() == source.read_bytes()


def test_what_is_refused_leaves_nothing_behind(source: Path) -> None:
    Path("link.img").symlink_to(source)
    assert "are the same" in typed("copy", "--overwrite", "disk.img", "link.img", status=1)
    assert "sparse is 1000" in typed(
        "copy", "--sparse", "1000", "io_uring:disk.img?direct=on", "new.img", status=1
    )
    assert "No such file" in typed("copy", "missing.img", "new.img", status=1)
    assert "no journal" in typed("copy", "--resume", "disk.img", "disk.img", "new.img", status=1)
    assert source.stat().st_size == 2 * MIB + 100
    assert not Path("new.img").exists()
    typed("copy", "--rate", "fast", "disk.img", "new.img", status=2)


def test_a_device_is_copied_to_and_from(source: Path, storage_daemon: StorageDaemonFactory) -> None:
    exported = Path("exported.img").absolute()
    exported.write_bytes(b"x" * (3 * MIB))
    daemon: StorageDaemon = storage_daemon(exported)
    address = f"virtio-blk-vhost-user:{daemon.socket}"
    typed("copy", "-q", "--verify", "disk.img", address)
    rest = 3 * MIB - source.stat().st_size
    assert exported.read_bytes() == source.read_bytes() + b"x" * rest
    typed("copy", "-q", f"slice,length=1M:{address}", "back.img")
    assert Path("back.img").read_bytes() == source.read_bytes()[:MIB]


def test_a_device_that_is_too_small_is_told_with_both_sizes(
    source: Path, storage_daemon: StorageDaemonFactory
) -> None:
    exported = Path("exported.img").absolute()
    exported.write_bytes(b"x" * MIB)
    address = f"virtio-blk-vhost-user:{storage_daemon(exported).socket}"
    words = typed("copy", "disk.img", address, status=1)
    assert f"the destination has {MIB} bytes, and the source {source.stat().st_size}" in words
    assert exported.read_bytes() == b"x" * MIB


def test_one_backend_by_two_names_is_not_waited_for(
    source: Path, storage_daemon: StorageDaemonFactory
) -> None:
    socket = storage_daemon(source).socket
    Path("link.sock").symlink_to(socket)
    names = (f"virtio-blk-vhost-user:{socket}", "slice,length=4K:virtio-blk-vhost-user:link.sock")
    assert "serves one client at a time" in typed("copy", *names, status=1)
    assert "serves one client at a time" in typed("compare", *names, status=2)


# --- ended in the middle ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_copy_that_is_ended_goes_on_and_is_right(source: Path, how: signal.Signals) -> None:
    with source.open("ab") as file:
        file.write(random.Random(2).randbytes(30 * MIB))
    arguments = ("copy", "--resume", "state", "--rate", "8M/s", "disk.img", "copy.img")
    process = subprocess.Popen(
        command(*arguments), stderr=subprocess.PIPE, text=True, env={**os.environ, **variables()}
    )
    deadline = time.monotonic() + PATIENCE
    while not _has_begun(how) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(how)
    _, words = process.communicate(timeout=PATIENCE)
    expected = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}
    assert process.returncode == expected[how], words
    if how != signal.SIGKILL:
        assert "aioblk: copy.img has " in words
        assert "the same command goes on from there" in words
    assert Path("state").exists()
    found = json.loads(typed("copy", "-q", "--json", "--resume", "state", "disk.img", "copy.img"))
    assert found["resumed_at"] > 0
    assert Path("copy.img").read_bytes() == source.read_bytes()
    assert not Path("state").exists()


def _has_begun(how: signal.Signals) -> bool:
    """So that something is kept, however it is ended: what was begun first is done by then."""
    if how == signal.SIGKILL:
        return Path("state").exists() and json.loads(Path("state").read_text())["done"] > 0
    return Path("copy.img").exists() and Path("copy.img").stat().st_blocks * 512 > 4 * MIB


def test_a_copy_that_is_killed_before_anything_was_copied_goes_on(source: Path) -> None:
    arguments = ("copy", "--resume", "state", "--rate", "1", "--request-size", "64K", "disk.img", "copy.img")
    process = subprocess.Popen(command(*arguments), env={**os.environ, **variables()})
    deadline = time.monotonic() + PATIENCE
    while not Path("state").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    refused = typed("copy", "--resume", "state", "disk.img", "other.img", status=1)
    assert "whose destination was another one, or has been changed since: file [" in refused
    assert "Give the same destination, or remove it to copy anew" in refused
    assert not Path("other.img").exists()
    typed("copy", "-q", "--resume", "state", "disk.img", "copy.img")
    assert Path("copy.img").read_bytes() == source.read_bytes()


def test_a_file_that_is_no_journal_is_left_as_it_is(source: Path) -> None:
    Path("diary").write_text("dear diary")
    assert "no journal of a copy" in typed("copy", "--resume", "diary", "disk.img", "new.img", status=1)
    assert Path("diary").read_text() == "dear diary"
    assert not Path("new.img").exists()


# --- progress -----------------------------------------------------------------------------------------------


def test_progress_is_shown_in_a_terminal_and_told_in_lines_elsewhere(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aioblk.cli.progress.LINES_EVERY", 0.01)
    words = typed("copy", "--progress", "--rate", "4M/s", "--request-size", "64K", "disk.img", "copy.img")
    assert "copying: " in words
    assert " of 2 MiB, " in words
    monkeypatch.setattr("aioblk.cli.progress.FIRST", 0.0)
    leader, follower = os.openpty()
    environment = {**os.environ, **variables(), "TERM": "xterm"}
    arguments = command("copy", "--rate", "1M/s", "--request-size", "64K", "disk.img", "other.img")
    process = subprocess.Popen(arguments, stderr=follower, env=environment)
    os.close(follower)
    shown = b""
    while piece := _read(leader):
        shown += piece
    os.close(leader)
    assert process.wait() == 0
    assert b"copying" in shown


def _read(terminal: int) -> bytes:
    """Nothing, when nobody has its other side open."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1 GiB"), (150 << 40, "150 TiB")],
)
def test_sizes_are_told_in_words(size: int, text: str) -> None:
    assert of_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.50 s"), (12, "12 s"), (245, "4:05"), (3723, "1:02:03")]
)
def test_times_are_told_in_words(seconds: float, text: str) -> None:
    assert of_wait(seconds) == text


# --- compare, checksum, map ---------------------------------------------------------------------------------


def test_the_status_tells_the_same_from_different_and_from_an_error(source: Path) -> None:
    other = bytearray(source.read_bytes())
    other[1000] ^= 1
    other[2000] ^= 1
    Path("other.img").write_bytes(other)
    assert typed("compare", "disk.img", "other.img", status=1) == "different: the first byte is at 1000\n"
    words = typed("compare", "--all", "disk.img", "other.img", status=1)
    assert "1024 bytes in 2 ranges" in words
    found = json.loads(typed("compare", "--all", "--json", "disk.img", "other.img", status=1))
    assert found["ranges"] == [{"offset": 512, "length": 512}, {"offset": 1536, "length": 512}]
    assert (found["same"], found["first"]) == (False, 1000)
    assert typed("compare", "-q", "disk.img", "other.img", status=1) == ""
    assert "No such file" in typed("compare", "disk.img", "missing.img", status=2)


def test_a_longer_file_is_the_same_if_zeroes_follow(source: Path) -> None:
    longer = Path("longer.img")
    longer.write_bytes(source.read_bytes() + bytes(1000))
    assert "the longer one has zeroes behind that" in typed("compare", "disk.img", "longer.img")
    words = typed("compare", "--strict", "disk.img", "longer.img", status=1)
    assert f"the sizes are {2 * MIB + 100} and {2 * MIB + 1100}" in words


def test_a_checksum_is_what_sha256sum_says(source: Path) -> None:
    known = subprocess.run(["sha256sum", "disk.img"], capture_output=True, text=True, check=True).stdout
    assert typed("checksum", "disk.img") == known
    [found] = json.loads(typed("checksum", "--json", "-a", "blake2b", "--length", "1M", "disk.img"))
    assert found["digest"] == hashlib.blake2b(source.read_bytes()[:MIB]).hexdigest()
    assert "no algorithm 'crc'" in typed("checksum", "-a", "crc", "disk.img", status=2)


def test_a_map_is_a_table_or_json(source: Path) -> None:
    rows = json.loads(typed("map", "--json", "disk.img"))
    assert rows == [
        {"offset": 0, "length": MIB, "kind": "data"},
        {"offset": MIB, "length": MIB + 100, "kind": "hole"},
    ]
    words = typed("map", "disk.img")
    assert f"{MIB:>20} {MIB + 100:>20}  hole" in words
    assert "data: 1 MiB, 50.0 %, in 1 piece\n" in words
    source.write_bytes(source.read_bytes())  # no holes any more
    assert "hole: 0 B" in typed("map", "--summary", "disk.img")
    assert "hole: 1 MiB" in typed("map", "--summary", "--detect-zeroes", "4K", "disk.img")


def test_a_picture_shows_how_full_each_part_is() -> None:
    from aioblk import Extent, ExtentKind

    found = [
        Extent(0, 100),
        Extent(100, 100, ExtentKind.HOLE),
        Extent(200, 50),
        Extent(250, 150, ExtentKind.HOLE),
    ]
    assert picture(found, 4) == "█ ▒ "
    assert picture(found, 2) == "▒░"


def test_an_empty_file_is_copied_compared_and_mapped(source: Path) -> None:
    Path("empty.img").touch()
    typed("copy", "-q", "empty.img", "copy.img")
    assert Path("copy.img").stat().st_size == 0
    typed("compare", "empty.img", "copy.img")
    assert typed("checksum", "empty.img").startswith(hashlib.sha256().hexdigest())
    assert "data: 0 B" in typed("map", "empty.img")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["copy", "--rate", "0", "a", "b"], "--rate 0: nothing would be done"),
        (["copy", "--rate", "inf", "a", "b"], "'inf' is not a rate such as 100M/s"),
        (["copy", "--depth", "inf", "a", "b"], "'inf' is not a valid whole number"),
        (["bench", "--bs", "0", "a"], "--bs 0: requests of nothing measure nothing"),
        (["bench", "--latency-target", "0", "a"], "--latency-target 0: nothing is as fast as that"),
        (["bench", "--iodepth", "nan", "a"], "'nan' is not a valid whole number"),
    ],
)
def test_numbers_that_nothing_can_be_done_with_are_wrong_arguments(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(program, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
