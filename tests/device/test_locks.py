"""Locks of files: what refuses what, aioblk and the real programs of QEMU, in both directions."""

import asyncio
import errno
import fcntl
import logging
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

import aioblk
from aioblk._device import lock as room
from aioblk._libblkio.handle import Blkio
from aioblk._queues.queue import Queue

from ..conftest import StorageDaemonFactory
from ..support.devices import BLOCK

IN_USE = "Is another process using the image"


@contextmanager
def qemu_io(path: Path, *options: str) -> Iterator[int]:
    """It has the image open; its process."""
    command = ["qemu-io", *options, "-f", "raw", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"read 0 512\n")
        process.stdin.flush()
        for line in process.stdout:
            if b"512/512" in line:
                break
        yield process.pid
        process.stdin.close()


@contextmanager
def qemu_nbd(path: Path, *options: str) -> Iterator[int]:
    """It serves the image; its process."""
    socket, pid = path.with_name("s"), path.with_name("pid")
    command = [
        "qemu-nbd",
        "--fork",
        "--persistent",
        f"--pid-file={pid}",
        f"--socket={socket}",
        "--format=raw",
    ]
    subprocess.run([*command, *options, path], check=True)
    number = int(pid.read_text())
    process = os.pidfd_open(number)
    try:
        yield number
    finally:
        os.kill(number, signal.SIGTERM)
        select.select([process], [], [])
        os.close(process)


Holder = Callable[..., Any]
WRITERS: dict[str, Holder] = {"qemu-io": qemu_io, "qemu-nbd": qemu_nbd}


def qemu(*command: object) -> str:
    """What a program of QEMU complains of; nothing, if nothing."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    return said if done.returncode or "an't open" in said else ""


def read(path: Path) -> str:
    return qemu("qemu-img", "info", path)


def serve(path: Path, *options: str) -> str:
    socket = path.with_name("refused")
    return qemu("qemu-nbd", "--fork", f"--socket={socket}", "--format=raw", *options, path)


def write(path: Path) -> str:
    return qemu("qemu-io", "-f", "raw", "-c", "write 0 512", path)


async def until_free(path: Path) -> None:
    """A thread, or the kernel, has still to let go of it."""
    async with asyncio.timeout(30):
        while True:
            try:
                aioblk.FileLock(path).release()
                break
            except aioblk.InUseError:
                await asyncio.sleep(0.01)


# --- with QEMU ----------------------------------------------------------------------------------------------


async def test_qemu_refuses_what_is_open_for_writing(scratch_file: Path) -> None:
    """Those of its tools that only read let others write meanwhile."""
    async with aioblk.IoUring(scratch_file, lock=True):
        assert not await asyncio.to_thread(read, scratch_file)
        assert IN_USE in await asyncio.to_thread(write, scratch_file)
        assert IN_USE in await asyncio.to_thread(serve, scratch_file)
        assert IN_USE in await asyncio.to_thread(serve, scratch_file, "--read-only")
    assert not await asyncio.to_thread(write, scratch_file)


async def test_qemu_reads_what_is_open_for_reading_and_refuses_to_write(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file, lock=True, read_only=True):
        assert not await asyncio.to_thread(read, scratch_file)
        assert IN_USE in await asyncio.to_thread(write, scratch_file)


async def test_a_storage_daemon_refuses_what_is_open(
    scratch_file: Path, storage_daemon: StorageDaemonFactory
) -> None:
    async with aioblk.IoUring(scratch_file, lock=True, read_only=True):
        with pytest.raises(Exception):  # noqa: B017, PT011 (it ends before it is asked anything)
            storage_daemon(scratch_file)
        storage_daemon(scratch_file, writable=False)


@pytest.mark.parametrize("holder", WRITERS)
async def test_what_qemu_writes_is_refused(scratch_file: Path, holder: str) -> None:
    with WRITERS[holder](scratch_file) as pid:
        for read_only in (False, True):
            with pytest.raises(aioblk.InUseError) as caught:
                await aioblk.IoUring(scratch_file, lock=True, read_only=read_only).open()
            assert f"by process {pid} ({holder})" in str(caught.value)
            assert str(caught.value).startswith(f"io_uring lock '{scratch_file}': it is ")
            assert (caught.value.errno, caught.value.filename) == (errno.EBUSY, str(scratch_file))
        async with aioblk.IoUring(scratch_file):
            pass
    async with aioblk.IoUring(scratch_file, lock=True):
        pass


async def test_what_qemu_reads_is_shared_with_readers(scratch_file: Path) -> None:
    with qemu_nbd(scratch_file, "--read-only") as pid:
        async with aioblk.IoUring(scratch_file, lock=True, read_only=True) as device:
            assert await device.read(0, 512) == bytes(512)
        with pytest.raises(aioblk.InUseError, match=rf"by process {pid} \(qemu-nbd\)"):
            await aioblk.IoUring(scratch_file, lock="auto").open()


async def test_who_lets_others_write_meanwhile_is_in_nobodys_way(scratch_file: Path) -> None:
    with qemu_io(scratch_file, "-r"):
        async with aioblk.IoUring(scratch_file, lock=True):
            pass


async def test_what_a_storage_daemon_serves_is_refused(
    scratch_file: Path, storage_daemon: StorageDaemonFactory
) -> None:
    daemon = storage_daemon(scratch_file)
    with pytest.raises(
        aioblk.InUseError, match=rf"it is used by process {daemon.pid} \(qemu-storage-daemon\)"
    ):
        await aioblk.IoUring(scratch_file, lock=True).open()
    with pytest.raises(aioblk.InUseError, match=rf"it is written by process {daemon.pid} \("):
        await aioblk.IoUring(scratch_file, lock=True, read_only=True).open()


@pytest.mark.parametrize(
    "command",
    [
        "convert -n -f raw -O raw {source} {image}",
        "convert -f raw -O raw {source} {image}",
        "dd -f raw -O raw if={source} of={image}",
        "resize -f raw {image} 16M",
        "create -f raw {image} 8M",
        "commit -f qcow2 {overlay}",
    ],
)
def test_qemu_img_writes_to_nothing_that_is_locked(scratch_file: Path, tmp_path: Path, command: str) -> None:
    source, overlay = tmp_path / "source", tmp_path / "overlay"
    source.write_bytes(b"x" * BLOCK)
    if "{overlay}" in command:
        assert not qemu("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", scratch_file, overlay)
    run = command.format(source=source, image=scratch_file, overlay=overlay).split()
    before = scratch_file.read_bytes()
    for read_only in (False, True):
        with aioblk.FileLock(scratch_file, read_only=read_only):
            assert "lock" in qemu("qemu-img", *run)
    assert scratch_file.read_bytes() == before
    assert not qemu("qemu-img", *run)


def test_qemu_img_copies_from_what_is_locked_for_reading(scratch_file: Path, tmp_path: Path) -> None:
    with aioblk.FileLock(scratch_file, read_only=True):
        assert not qemu("qemu-img", "convert", "-f", "raw", "-O", "raw", scratch_file, tmp_path / "copy")


def test_a_format_with_tables_is_read_beside_no_writer(tmp_path: Path) -> None:
    """QEMU would read them half changed. --force-share has it read all the same."""
    image = tmp_path / "image"
    assert not qemu("qemu-img", "create", "-q", "-f", "qcow2", image, "8M")
    with aioblk.FileLock(image):
        assert IN_USE in read(image)
        assert not qemu("qemu-img", "info", "--force-share", image)
    with aioblk.FileLock(image, read_only=True):
        assert not read(image)


# --- with itself --------------------------------------------------------------------------------------------


async def test_writers_share_with_nobody_and_readers_with_readers(scratch_file: Path) -> None:
    def device(read_only: bool) -> aioblk.IoUring:
        return aioblk.IoUring(scratch_file, lock=True, read_only=read_only)

    async with device(False):
        for read_only in (False, True):
            with pytest.raises(aioblk.InUseError, match=f"by this process, {os.getpid()}"):
                await device(read_only).open()
    async with device(True), device(True):
        with pytest.raises(aioblk.InUseError):
            await device(False).open()
    async with device(False):
        pass


async def test_a_file_is_one_by_all_of_its_names(scratch_file: Path, tmp_path: Path) -> None:
    (tmp_path / "symlink").symlink_to(scratch_file)
    (tmp_path / "link").hardlink_to(scratch_file)
    names = ("symlink", "link", "../" + tmp_path.name + "/scratch")
    async with aioblk.IoUring(tmp_path / "symlink", lock=True):
        for name in names:
            with pytest.raises(aioblk.InUseError):
                await aioblk.IoUring(tmp_path / name, lock=True).open()
        assert IN_USE in await asyncio.to_thread(write, tmp_path / "link")


async def test_two_files_of_one_process_have_locks_of_their_own(scratch_file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(bytes(BLOCK))
    async with aioblk.IoUring(scratch_file, lock=True):
        async with aioblk.IoUring(tmp_path / "other", lock=True):
            pass
        aioblk.FileLock(tmp_path / "other").release()
        with pytest.raises(aioblk.InUseError):
            aioblk.FileLock(scratch_file)


async def test_a_lock_is_not_lost_by_closing_other_descriptors(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file, lock=True):
        os.close(os.open(scratch_file, os.O_RDWR))
        async with aioblk.IoUring(scratch_file):
            pass
        assert IN_USE in await asyncio.to_thread(write, scratch_file)


async def test_a_descriptor_is_locked_as_its_file(scratch_file: Path) -> None:
    with scratch_file.open("r+b") as writing, scratch_file.open("rb") as reading:
        async with aioblk.IoUring(fd=writing.fileno(), lock=True):
            others: list[dict[str, Any]] = [
                {"fd": writing.fileno()},
                {"fd": reading.fileno()},
                {"path": scratch_file},
            ]
            for options in others:
                with pytest.raises(aioblk.InUseError):
                    await aioblk.IoUring(**options, lock=True).open()
        async with (
            aioblk.IoUring(fd=reading.fileno(), lock=True),
            aioblk.IoUring(fd=reading.fileno(), lock=True),
        ):
            assert IN_USE in await asyncio.to_thread(write, scratch_file)
    assert not await asyncio.to_thread(write, scratch_file)


async def test_a_lock_outlives_the_loss_of_the_device_until_it_is_closed(scratch_file: Path) -> None:
    async with aioblk.IoUring(scratch_file, lock=True) as device:
        device.abandon("as an example")
        with pytest.raises(aioblk.InUseError):
            aioblk.FileLock(scratch_file)
        await device.reconnect()
        assert await device.read(0, BLOCK) == bytes(BLOCK)
        with pytest.raises(aioblk.InUseError):
            aioblk.FileLock(scratch_file)
    aioblk.FileLock(scratch_file).release()


async def test_a_device_does_not_come_back_as_another_file(scratch_file: Path, tmp_path: Path) -> None:
    async with aioblk.IoUring(scratch_file, lock=True) as device:
        device.abandon("as an example")
        moved = tmp_path / "moved"
        os.rename(scratch_file, moved)
        os.link(moved, scratch_file)
        await device.reconnect()
        device.abandon("once more")
        os.unlink(scratch_file)
        os.close(os.open(scratch_file, os.O_RDWR | os.O_CREAT))
        with pytest.raises(aioblk.InUseError, match="leads to another file than to the one that is locked"):
            await device.reconnect()


async def test_a_device_in_several_queues_and_loops_is_locked_once(scratch_file: Path) -> None:
    device = await aioblk.IoUring(scratch_file, lock=True, num_queues=2).open()
    async with device.queue(1) as queue:
        await queue.read(0, BLOCK)
    await device.detach()
    with pytest.raises(aioblk.InUseError):
        aioblk.FileLock(scratch_file)

    async def close_here() -> None:
        await device.attach()
        await device.aclose()

    await asyncio.to_thread(lambda: asyncio.run(close_here()))
    aioblk.FileLock(scratch_file).release()


async def test_opening_that_fails_or_is_cancelled_lets_others_have_it(scratch_file: Path) -> None:
    with pytest.raises(aioblk.BlkioError, match="Poll queues"):
        await aioblk.IoUring(scratch_file, lock=True, num_poll_queues=1).open()
    aioblk.FileLock(scratch_file).release()
    opening = asyncio.create_task(aioblk.IoUring(scratch_file, lock=True).open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await until_free(scratch_file)


async def test_opening_that_is_cancelled_while_it_waits_leaves_no_lock(
    scratch_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, goes_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def wait(_seconds: float) -> None:
        loop.call_soon_threadsafe(waits.set)
        goes_on.wait()

    other = aioblk.FileLock(scratch_file)
    monkeypatch.setattr(room, "pause", wait)
    opening = asyncio.create_task(aioblk.IoUring(scratch_file, lock=True).open())
    await waits.wait()
    opening.cancel()
    other.release()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    monkeypatch.undo()
    await until_free(scratch_file)


async def test_the_lock_is_there_until_libblkio_has_closed_the_file(
    scratch_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def destroy(handle: Blkio, *, in_use: bool = False) -> None:
        original(handle, in_use=in_use)
        with pytest.raises(aioblk.InUseError):
            aioblk.FileLock(scratch_file)
        seen.append(in_use)

    device = await aioblk.IoUring(scratch_file, lock=True).open()
    original = Blkio.destroy
    monkeypatch.setattr(Blkio, "destroy", destroy)
    reading = asyncio.create_task(device.read(0, BLOCK))
    await device.aclose()
    assert seen == [False]
    await reading
    aioblk.FileLock(scratch_file).release()


@pytest.mark.parametrize("comes_back", [False, True])
async def test_what_the_kernel_has_still_to_do_for_a_lost_device_keeps_the_lock(
    scratch_file: Path, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    device = await aioblk.IoUring(scratch_file, lock=True).open()
    kernels = os.dup(cast(int, device.properties["fd"]))  # as what it has while it works on a request
    with monkeypatch.context() as patched:
        patched.setattr(Queue, "in_flight", 1)
        device.abandon()
    if comes_back:
        await device.reconnect()
    await device.aclose()
    with pytest.raises(aioblk.InUseError):
        aioblk.FileLock(scratch_file)
    os.close(kernels)
    await until_free(scratch_file)


async def test_a_file_that_is_made_is_locked(tmp_path: Path) -> None:
    async with aioblk.IoUring(tmp_path / "new", create=BLOCK, lock=True):
        with pytest.raises(aioblk.InUseError):
            aioblk.FileLock(tmp_path / "new", read_only=True)


async def test_a_device_that_is_dropped_lets_others_have_it(scratch_file: Path) -> None:
    device = await aioblk.IoUring(scratch_file, lock=True).open()
    with pytest.warns(ResourceWarning, match="unclosed"):
        del device
    aioblk.FileLock(scratch_file).release()


# --- locks by themselves ------------------------------------------------------------------------------------


def test_a_lock_of_ones_own_is_as_a_devices(scratch_file: Path) -> None:
    with aioblk.FileLock(scratch_file, read_only=True) as lock:
        assert repr(lock) == f"<aioblk.FileLock '{scratch_file}' for reading>"
        assert lock.held
        assert lock.read_only
        assert not read(scratch_file)
        assert IN_USE in write(scratch_file)
    assert repr(lock) == f"<aioblk.FileLock '{scratch_file}' released>"
    assert not lock.held
    lock.release()
    assert not write(scratch_file)


@contextmanager
def forked() -> Iterator[None]:
    """There is a child that runs, and does nothing."""
    ours, its = socket.socketpair()
    with ours, its:
        child = os.fork()
        if child == 0:
            ours.close()
            its.send(b"runs")
            its.recv(1)
            os._exit(0)
        ours.recv(4)
        try:
            yield
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            os.waitpid(child, 0)


def test_a_forked_child_does_not_keep_it(scratch_file: Path) -> None:
    lock = aioblk.FileLock(scratch_file)
    with forked():
        lock.release()
        aioblk.FileLock(scratch_file).release()


def test_a_copy_of_the_descriptor_does_not_keep_it(scratch_file: Path) -> None:
    """As a child has it that was not forked by Python, or that was a moment ago."""
    lock = aioblk.FileLock(scratch_file)
    copy = os.dup(lock._fd)
    lock.release()
    try:
        aioblk.FileLock(scratch_file).release()
    finally:
        os.close(copy)


def test_a_forked_child_does_not_keep_a_claim(loop_device: Path) -> None:
    lock = aioblk.FileLock(loop_device)
    with forked():
        lock.release()
        os.close(os.open(loop_device, os.O_RDONLY | os.O_EXCL))


def test_a_forked_child_cannot_release_what_is_its_parents(scratch_file: Path) -> None:
    with aioblk.FileLock(scratch_file) as lock:
        child = os.fork()
        if child == 0:
            lock.release()
            os._exit(lock.held)
        assert os.waitpid(child, 0)[1] == 0
        assert lock.held
        assert IN_USE in write(scratch_file)


async def test_a_forked_child_does_not_keep_what_a_device_has(scratch_file: Path) -> None:
    device = await aioblk.IoUring(scratch_file, lock=True).open()
    with forked():
        await device.aclose()
        aioblk.FileLock(scratch_file).release()


def test_of_two_who_come_together_one_gets_it(scratch_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one was there for a moment only."""
    other = aioblk.FileLock(scratch_file)
    monkeypatch.setattr(room, "pause", lambda _: other.release())
    aioblk.FileLock(scratch_file).release()


def test_a_lock_of_another_kind_is_respected(scratch_file: Path) -> None:
    with scratch_file.open("r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, room._FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        with pytest.raises(aioblk.InUseError, match=f"this process, {os.getpid()}"):
            aioblk.FileLock(scratch_file, read_only=True)


def test_what_a_loop_device_is_over_is_not_written_by_others(loop_device: Path, scratch_file: Path) -> None:
    with pytest.raises(aioblk.InUseError, match=f"it is behind the loop device {loop_device}"):
        aioblk.FileLock(scratch_file)
    aioblk.FileLock(scratch_file, read_only=True).release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
async def test_where_there_are_no_locks_the_option_decides(
    scratch_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(_fd: int, _kind: int, _start: int, _length: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(room, "_set", refuse)
    with pytest.raises(
        aioblk.UnsupportedError, match=r"its filesystem has no locks; lock='auto' .* goes on without"
    ) as caught:
        await aioblk.IoUring(scratch_file, lock=True).open()
    assert caught.value.errno == number
    with caplog.at_level(logging.WARNING, "aioblk"):
        async with aioblk.IoUring(scratch_file, lock="auto") as device:
            assert await device.read(0, BLOCK) == bytes(BLOCK)
    assert f"{str(scratch_file)!r} is not locked: its filesystem has no locks" in caplog.text


def test_what_is_no_file_is_not_locked(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "a regular file or a block device"), (tmp_path / "not", "No such file")):
        with pytest.raises(aioblk.BlkioError, match=message) as caught:
            aioblk.FileLock(path)
        assert caught.value.filename == str(path)
    with pytest.raises(aioblk.OptionError, match="fd 999999 is no open descriptor: Bad file descriptor"):
        aioblk.FileLock(fd=999999)
    with pytest.raises(aioblk.OptionError, match="path and fd exclude each other"):
        aioblk.FileLock(tmp_path, fd=0)
    with pytest.raises(aioblk.OptionError, match=r"lock must be True, False or 'auto', not 'on'"):
        aioblk.IoUring(tmp_path, lock="on")  # type: ignore[arg-type]


def test_an_address_has_the_option(scratch_file: Path) -> None:
    for text, lock in {"on": True, "auto": "auto", "off": False}.items():
        address = aioblk.parse_address(f"io_uring:{scratch_file}?lock={text}")
        assert address.options["lock"] == lock
        assert aioblk.parse_address(str(address)) == address
    with pytest.raises(aioblk.OptionError, match=r"lock must be auto or true or false, not 'perhaps'"):
        aioblk.parse_address("io_uring:x?lock=perhaps")


# --- block devices ------------------------------------------------------------------------------------------


async def test_a_block_device_that_is_written_is_claimed(loop_device: Path) -> None:
    async with aioblk.IoUring(loop_device, lock=True, read_only=True):
        os.close(os.open(loop_device, os.O_RDONLY | os.O_EXCL))
    claim = os.open(loop_device, os.O_RDONLY | os.O_EXCL)
    try:
        with pytest.raises(aioblk.InUseError, match=f"it is used by this process, {os.getpid()}"):
            await aioblk.IoUring(loop_device, lock=True).open()
        async with aioblk.IoUring(loop_device, lock=True, read_only=True):
            pass
    finally:
        os.close(claim)
    async with aioblk.IoUring(loop_device, lock=True):
        with pytest.raises(OSError, match="busy"):
            os.open(loop_device, os.O_RDONLY | os.O_EXCL)
        with pytest.raises(aioblk.InUseError, match=f"it is used by this process, {os.getpid()}"):
            await aioblk.IoUring(loop_device, lock=True).open()
        assert IN_USE in await asyncio.to_thread(write, loop_device)
    os.close(os.open(loop_device, os.O_RDONLY | os.O_EXCL))
