"""A device of another machine, by NBD: the contract, a log, copies; in plain text and with TLS."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from log_store import LogStore

import aioblk
from aioblk.testing.conformance import BlockDeviceConformance, Opener

from ..support.scripts import ROOT
from .conftest import Remote

CLEAN = 1 << 20


def opener_of(uri: str, tls_certificates: Path | None = None) -> Opener:
    @asynccontextmanager
    async def opened(*, read_only: bool = False) -> AsyncIterator[aioblk.BlockDevice]:
        async with aioblk.Nbd(uri, tls_certificates=tls_certificates) as device:
            await device.write_zeroes(0, CLEAN)
        async with aioblk.Nbd(uri, tls_certificates=tls_certificates, read_only=read_only) as device:
            yield device

    return opened


class TestInPlainText(BlockDeviceConformance):
    @pytest.fixture
    def opener(self, remote: Remote) -> Opener:
        return opener_of(remote.uri)


class TestWithTls(BlockDeviceConformance):
    @pytest.fixture
    def opener(self, remote_tls: tuple[Remote, Path]) -> Opener:
        server, certificates = remote_tls
        return opener_of(f"{server.uri}?tls-hostname=localhost", certificates)


async def test_without_a_certificate_nobody_gets_in(remote_tls: tuple[Remote, Path], tmp_path: Path) -> None:
    server, certificates = remote_tls
    (bare := tmp_path / "bare").mkdir()
    (bare / "ca-cert.pem").write_bytes((certificates / "ca-cert.pem").read_bytes())
    with pytest.raises(aioblk.BlkioError):
        await aioblk.Nbd(f"{server.uri}?tls-hostname=localhost", tls_certificates=bare).open()
    with pytest.raises(aioblk.BlkioError, match="TLS"):
        await aioblk.Nbd(server.uri.replace("nbds:", "nbd:")).open()


async def test_a_log(remote: Remote) -> None:
    records = [os.urandom(size) for size in (0, 1, 4096, 100_000)]
    async with aioblk.Nbd(remote.uri) as device:
        await LogStore.format(device)
        async with LogStore(device) as log:
            await asyncio.gather(*map(log.append, records))
    async with aioblk.Nbd(remote.uri) as device, LogStore(device, read_only=True) as log:
        assert [record.data async for record in log.records()] == records


def test_copies_there_and_back_are_equal(remote: Remote, remote_file: Path, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    with source.open("wb") as file:
        for start in range(0, 16 << 20, 4 << 20):
            file.seek(start)
            file.write(os.urandom(300_000))
        file.truncate(16 << 20)
    for words in ((str(source), remote.uri), (remote.uri, str(back))):
        done = subprocess.run(
            [sys.executable, "-m", "aioblk", "copy", "--verify", *words],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    assert remote_file.read_bytes() == source.read_bytes() == back.read_bytes()
