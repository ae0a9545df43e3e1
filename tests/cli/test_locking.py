"""The programs lock what they use, as QEMU does, and say who has what they are not given."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from aioblk.cli.program import program
from aioblk.testing.storage_daemon import StorageDaemon

from ..conftest import StorageDaemonFactory
from ..support.nbd_server import NbdServer

MIB = 1 << 20
WHO = r"process \d+ \(qemu-storage-d.*\)"


@pytest.fixture
def machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage_daemon: StorageDaemonFactory
) -> StorageDaemon:
    """A virtual machine, as far as the image held.img is concerned, which it writes to."""
    monkeypatch.chdir(tmp_path)
    for name in ("free.img", "held.img"):
        Path(name).touch()
        os.truncate(name, MIB)
    return storage_daemon(tmp_path / "held.img")


def typed(*arguments: str, status: int = 0) -> str:
    done = CliRunner().invoke(program, arguments)
    assert done.exit_code == status, done.output
    return done.output


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    "arguments",
    [
        "copy --overwrite free.img held.img",
        "copy held.img copy.img",
        "bench --rw write --overwrite --runtime 1 held.img",
        "serve nbd --unix nbd.sock held.img",
        "serve nbd --unix nbd.sock --read-only held.img",
        "serve nbd --unix nbd.sock slice,length=4096:held.img",
    ],
)
def test_an_image_that_a_virtual_machine_writes_is_refused(arguments: str) -> None:
    assert re.search(rf"held.img.*: it is .* by {WHO}", typed(*arguments.split(), status=1))
    assert not Path("copy.img").exists()


@pytest.mark.usefixtures("machine")
def test_whoever_says_so_has_it_all_the_same() -> None:
    typed("copy", "-q", "io_uring:held.img?lock=off", "copy.img")
    typed("copy", "-q", "--no-lock", "held.img", "another.img")
    for options in (["path=held.img", "--no-lock"], ["path=held.img", "lock=off"]):
        with NbdServer("io_uring", *options) as server:
            assert "held.img" in server.announcement


@pytest.mark.usefixtures("machine")
def test_what_is_served_is_written_by_nobody_else() -> None:
    with NbdServer("io_uring", "path=free.img") as server:
        refused = typed("serve", "nbd", "--unix", "another.sock", "free.img", status=1)
        assert f"free.img': it is used by process {server.pid} (" in refused
        written = subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "write 0 512", "free.img"], capture_output=True, text=True
        )
        assert 'Failed to get "write" lock' in written.stderr


@pytest.mark.usefixtures("machine")
def test_parts_of_one_file_are_copied_to_each_other() -> None:
    typed("copy", "-q", "--overwrite", "slice,length=4K:free.img", "slice,offset=8K,length=4K:free.img")
