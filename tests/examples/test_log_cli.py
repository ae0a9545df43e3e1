"""The log store from the command line."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from log_store import LARGEST_RECORD

from ..support.nbd_server import EXAMPLES

TIME_LIMIT = 30
PROGRAM = (sys.executable, str(EXAMPLES / "log_store.py"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.touch()
    os.truncate(path, 8 << 20)
    assert call("format", path).returncode == 0
    return path


def call(
    command: str, image: Path, *arguments: str, given: bytes = b""
) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [*PROGRAM, command, "io_uring", f"path={image}", *arguments],
        input=given,
        capture_output=True,
        timeout=TIME_LIMIT,
    )


def test_lines_become_records_and_come_back(image: Path) -> None:
    done = call("append", image, given=b"one\ntwo\n\nno newline")
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [b"1", b"2", b"3", b"4"], b"")
    assert call("read", image).stdout == b"one\ntwo\n\nno newline\n"
    assert call("read", image, "--from", "4").stdout == b"no newline\n"
    assert call("info", image).stdout.startswith(b"4 records in ")


def test_a_line_that_is_too_long_is_left_out_with_words(image: Path) -> None:
    longest = b"x" * LARGEST_RECORD
    lines = [b"first", longest, longest + b"x", b"y" * (2 << 20), b"last"]
    done = call("append", image, given=b"\n".join(lines))
    assert done.returncode == 1
    assert done.stdout.split() == [b"1", b"2", b"3"]
    assert done.stderr.decode().splitlines() == [
        f"log_store: line {number} is left out: a record has at most {LARGEST_RECORD} bytes, not {length}"
        for number, length in ((3, LARGEST_RECORD + 1), (4, 2 << 20))
    ]
    assert call("read", image).stdout == b"first\n" + longest + b"\nlast\n"


def test_a_full_log_is_said_once(image: Path) -> None:
    done = call("append", image, given=(b"x" * 500_000 + b"\n") * 40)
    assert done.returncode == 1
    (words,) = done.stderr.decode().splitlines()
    assert words.startswith(f"log_store: {image}: the log is full: the record takes 500064 bytes, and of ")
    assert len(done.stdout.split()) == 16


def test_formatting_asks(image: Path) -> None:
    call("append", image, given=b"precious\n")
    refused = call("format", image)
    assert refused.returncode == 1
    assert b"holds a log, which would be lost; --force formats all the same" in refused.stderr
    assert call("read", image).stdout == b"precious\n"
    for answer, left in ((b"n\n", b"precious\n"), (b"\x04", b"precious\n"), (b"y\n", b"")):
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [*PROGRAM, "format", "io_uring", f"path={image}"], stdin=theirs, stdout=theirs, stderr=theirs
        ) as process:
            os.close(theirs)
            os.write(ours, answer)
            assert process.wait(TIME_LIMIT) == (0 if answer == b"y\n" else 1)
        assert b"Traceback" not in os.read(ours, 1 << 16)
        os.close(ours)
        assert call("read", image).stdout == left
    call("append", image, given=b"precious\n")
    assert call("format", image, "--force").returncode == 0
    assert call("read", image).stdout == b""


def test_damage_is_said_and_the_records_before_it_are_read(image: Path) -> None:
    for word in (b"one", b"two", b"three"):
        call("append", image, given=word)
    image.write_bytes(image.read_bytes().replace(b"two", b"tWo"))
    before = image.read_bytes()
    for command in ("append", "read", "info"):
        done = call(command, image, given=b"four\n")
        assert done.returncode == 1
        assert f"log_store: {image}: record 2 is damaged, at offset 12".encode() in done.stderr
        assert done.stdout == {"append": b"", "read": b"one\n"}.get(command, done.stdout)
    assert image.read_bytes() == before


def test_who_waits_for_input_can_be_interrupted(image: Path) -> None:
    with subprocess.Popen(
        [*PROGRAM, "append", "io_uring", f"path={image}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"1\n"
        another = call("append", image, given=b"two\n")
        assert another.returncode == 1
        assert b"another writer has the log open" in another.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(TIME_LIMIT) == 130
    assert call("append", image, given=b"two\n").stdout == b"2\n"


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    for arguments, words in (
        (("append", "io_uring", "path=/nowhere"), b"No such file"),
        (("append", "io_uring", "path"), b"PROPERTY=VALUE"),
        (("append", "iouring", "path=x"), b"io_uring"),
    ):
        done = subprocess.run([*PROGRAM, *arguments], capture_output=True, timeout=TIME_LIMIT)
        assert done.returncode == 1
        assert done.stderr.startswith(b"log_store: ")
        assert words in done.stderr
    empty = tmp_path / "empty"
    empty.write_bytes(bytes(1 << 16))
    assert b"holds no log; format it first" in call("append", empty).stderr


def test_a_log_of_another_format_is_left_alone(image: Path) -> None:
    for offset in (0, 4096):
        with image.open("r+b") as file:
            file.seek(offset)
            file.write(b"aioblkl3")
    before = image.read_bytes()
    assert b"a log of another format, b'aioblkl3'; this program knows" in call("read", image).stderr
    assert b"a log of another format, or a damaged one, which would be lost" in call("format", image).stderr
    assert image.read_bytes() == before


def call_with(redirections: str, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    command = ["sh", "-c", f'exec "$@" {redirections}', "sh", *PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, input=b"a line\n", timeout=TIME_LIMIT)


def test_standard_descriptors_may_be_closed(image: Path) -> None:
    """The device does not get their numbers, nor does anything else go wrong."""
    device = ("io_uring", f"path={image}")
    assert call("append", image, given=b"one\n").returncode == 0
    for command in ("append", "read", "info"):
        done = call_with("<&- >&- 2>&-", command, *device)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = call_with("2>&-", "format", *device)
    assert (done.returncode, done.stdout) == (1, b"")
    done = call_with("<&-", "format", *device)
    assert done.returncode == 1
    assert b"--force formats all the same" in done.stderr
    assert call("read", image).stdout == b"one\n"


def test_an_output_that_cannot_be_written_is_named(image: Path) -> None:
    call("append", image, given=b"x" * 100_000)
    for command in ("append", "read", "info"):
        done = call_with(">/dev/full", command, "io_uring", f"path={image}")
        assert done.returncode == 1
        (words,) = done.stderr.decode().splitlines()
        assert words == "log_store: [Errno 28] the standard output cannot be written: No space left on device"
