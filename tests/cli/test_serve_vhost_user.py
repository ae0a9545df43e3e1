"""``aioblk serve vhost-user``: its life as a program, and what a client keeps when it is killed."""

import asyncio
import os
import signal
import socket as sockets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

import aioblk
from aioblk.cli.program import program

from ..support.guest import GET_ID, OK, OUT, SECTOR, Asked, Guest
from ..support.vhost_user_client import (
    CONFIG,
    GET_CONFIG,
    GET_INFLIGHT_FD,
    INFLIGHT,
    SET_BACKEND_REQ_FD,
    SET_INFLIGHT_FD,
    Client,
)
from .running import aioblk as run
from .running import command, variables

PATIENCE = 30


@contextmanager
def serving(device: object, socket: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """The program, when it says that it serves; it is killed in the end if it is still there."""
    process = subprocess.Popen(
        command("serve", "vhost-user", str(device), socket, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables()},
    )
    with process:
        try:
            assert process.stdout is not None
            assert "bytes of" in process.stdout.readline()
            yield process
        finally:
            process.kill()


def contents_of(file: Path) -> bytes:
    return file.read_bytes()


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "blk.sock"


async def test_a_file_is_a_disk_until_a_signal_comes(scratch_file: Path, socket: Path) -> None:
    with serving(scratch_file, socket, "--queues=2", "--serial=seven") as process:
        async with aioblk.VirtioBlkVhostUser(socket, num_queues=2) as device:
            await device.write(4096, b"x" * 4096)
        guest = Guest()
        async with Client(socket, guest) as client:
            await client.set_up()
            assert guest.data(await client.request(GET_ID, length=20)).rstrip(b"\0") == b"seven"
        guest.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        assert not process.stderr.read()
    assert contents_of(scratch_file)[4096:8192] == b"x" * 4096
    assert socket.name not in os.listdir(socket.parent)


async def test_whoever_serves_it_next_does_what_a_killed_one_has_not_answered(
    scratch_file: Path, socket: Path
) -> None:
    """Killed again and again under load: every request is answered once, and nothing that was is lost."""
    guest = Guest(size=4 << 20, queue=256)
    region, account = -1, b""
    waiting: dict[int, Asked] = {}
    sector = answered = 0

    async def collect(client: Client) -> None:
        nonlocal answered
        await client.called()
        for head, _ in guest.finished():
            assert guest.status(waiting.pop(head)) == OK
            answered += 1

    for kills in range(3):
        with serving(scratch_file, socket) as process:
            async with Client(socket, guest) as client:
                await client.negotiate()
                await client.lend()
                if region < 0:
                    client.send(GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, 1, guest.queue))
                    _, account, [region] = await client.receive()
                assert await client.tell(SET_INFLIGHT_FD, account, [region])
                await client.start()
                for _ in range(30):
                    for _ in range(8):
                        sector += 1
                        asked = guest.ask(OUT, sector, sector.to_bytes(2, "little") * (SECTOR // 2))
                        waiting[asked.head] = asked
                    client.kick()
                    if kills == 2:
                        await collect(client)
                    while len(waiting) > 64:  # each takes three descriptors
                        await collect(client)
                if kills == 2:
                    while waiting:
                        await collect(client)
                process.kill()
                await client.until_hung_up()
    assert answered == sector == 720
    content = contents_of(scratch_file)
    for number in range(1, sector + 1):
        at = number * SECTOR
        assert content[at : at + SECTOR] == number.to_bytes(2, "little") * (SECTOR // 2)
    os.close(region)
    guest.close()


async def test_another_size_is_told_by_a_signal(scratch_file: Path, socket: Path) -> None:
    ours, theirs = sockets.socketpair()
    with serving(scratch_file, socket) as process, ours, theirs:
        async with Client(socket) as client:
            await client.negotiate()
            assert await client.tell(SET_BACKEND_REQ_FD, b"", [theirs.fileno()])
            os.truncate(scratch_file, 16 << 20)
            process.send_signal(signal.SIGHUP)
            ours.setblocking(False)
            await asyncio.get_running_loop().sock_recv(ours, 12)
            reply = await client.ask(GET_CONFIG, CONFIG.pack(0, 8, 0) + bytes(8))
            assert int.from_bytes(reply[CONFIG.size :], "little") == (16 << 20) // SECTOR


def test_what_is_wrong_is_said(scratch_file: Path, socket: Path) -> None:
    for arguments, words in (
        (["--queues=0"], "queues must be from 1 to 256"),
        (["--serial", "x" * 30], "serial must be at most 20 bytes"),
    ):
        done = CliRunner().invoke(
            program, ["serve", "vhost-user", str(scratch_file), str(socket), *arguments]
        )
        assert done.exit_code == 2
        assert words in done.output
    assert run("serve", "vhost-user", scratch_file.with_name("none"), socket).returncode == 1
