"""The fixtures, as another project uses them."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from aioblk.testing.storage_daemon import StorageDaemon

TESTS = """
import pytest
import aioblk
from aioblk.testing import MemoryDevice
from aioblk.testing.conformance import BlockDeviceConformance, Opener


@pytest.mark.asyncio
async def test_a_device_in_memory(block_device):
    assert block_device.limits.request_alignment == 512
    await block_device.write(0, bytes(512))


@pytest.mark.asyncio
async def test_a_real_one(vhost_user_daemon, tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(1 << 20))
    async with aioblk.VirtioBlkVhostUser(vhost_user_daemon(path).socket) as device:
        await device.write(0, b"x" * 512)
    assert path.read_bytes()[:1] == b"x"


class TestMine(BlockDeviceConformance):
    @pytest.fixture
    def opener(self) -> Opener:
        return lambda *, read_only=False: MemoryDevice(1 << 20, read_only=read_only)


class Wrong(MemoryDevice):
    def writev(self, offset, buffers, *, fua=False):
        return super().flush()


class TestWrong(BlockDeviceConformance):
    @pytest.fixture
    def opener(self) -> Opener:
        return lambda *, read_only=False: Wrong(1 << 20, read_only=read_only)
"""


def run(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_another_project(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["aioblk.testing.plugin"]\n')
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    passing = run(tmp_path, "-k", "not Wrong")
    assert passing.returncode == 0, passing.stdout
    failing = run(tmp_path, "-k", "Wrong and what_is_written_is_read")
    assert failing.returncode == 1, failing.stdout
    assert "test_what_is_written_is_read" in failing.stdout
    assert "assert" in failing.stdout, "what was found, and what was expected, is shown"


def test_where_there_is_no_program_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        StorageDaemon({"driver": "null-co", "size": 1 << 20})
    assert list(tmp_path.iterdir()) == []
