"""NBD servers that others have written, each a process of its own at a Unix socket."""

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TIME_LIMIT = 30


@contextmanager
def peer(*command: str | Path, where: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server that listens at the socket, until the end."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + TIME_LIMIT
        while not answers(where):
            if process.poll() is not None or time.monotonic() > deadline:
                assert process.stderr is not None
                process.kill()
                raise RuntimeError(f"{command[0]} did not start: {process.stderr.read().decode()}")
            time.sleep(0.01)
        yield process
    finally:
        process.terminate()  # which has QEMU write what it knows of bitmaps
        try:
            process.wait(TIME_LIMIT)
        finally:
            process.kill()
        assert process.stderr is not None
        process.stderr.close()


def answers(path: Path) -> bool:
    """Whether anybody listens at a Unix socket."""
    with socket.socket(socket.AF_UNIX) as caller:
        return caller.connect_ex(str(path)) == 0


@contextmanager
def directory() -> Iterator[Path]:
    """One whose name is short enough for a socket's."""
    with tempfile.TemporaryDirectory(prefix="aioblk-") as name:
        yield Path(name)


@contextmanager
def qemu_nbd(image: Path, *options: str) -> Iterator[str]:
    """QEMU's server of a raw image, for several clients at a time; its URI."""
    with directory() as where:
        path = where / "nbd.sock"
        with peer(
            *("qemu-nbd", "--socket", str(path), "--persistent", "--shared=16", "--format=raw"),
            *("--discard=unmap", *options, str(image)),
            where=path,
        ):
            yield f"nbd+unix:///?socket={path}"


@contextmanager
def nbdkit(*arguments: str | Path) -> Iterator[str]:
    """nbdkit with a plugin, and filters before it; its URI."""
    with directory() as where:
        path = where / "nbd.sock"
        with peer("nbdkit", "--foreground", "--unix", path, *arguments, where=path):
            yield f"nbd+unix:///?socket={path}"
