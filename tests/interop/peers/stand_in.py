"""A program that takes the place of qemu-nbd, or of nbdkit: by which of the two names it is called.

It understands what the tests of QEMU and libnbd say. What asks for something that only the original has (a
format, a filter, a plugin that is a script) is given the original.
"""

import contextlib
import getopt
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[3]
MET = "AIOBLK_MET"
"""The environment's name of a file that has a line for each time the server was started."""

CONTENTS = {"memory", "null", "pattern", "data", "sparse-random"}
"""Plugins whose content a file can have, for as long as nobody asks for more than that."""

LARGEST = 1 << 40
PATIENCE = 20.0


def main() -> None:
    name, *arguments = sys.argv[1:]
    if name == "qemu-nbd":
        as_qemu_nbd(arguments)
    as_nbdkit(arguments)


def server(file: str, where: str, name: str = "", *, read_only: bool = False) -> list[str]:
    """The command that serves a file, under a name, at a Unix socket."""
    with open(os.environ[MET], "a") as met:
        print(file, file=met)
    os.environ["PYTHONPATH"] = str(ROOT)
    device = (f"{name}=" if name else "") + f"io_uring:{file}" + ("?read-only=true" if read_only else "")
    return [sys.executable, "-m", "aioblk", "serve", "nbd", device, "--unix", where, "--drain", "1"]


def original(name: str, arguments: Sequence[str]) -> NoReturn:
    path = os.pathsep.join(
        each for each in os.environ["PATH"].split(os.pathsep) if Path(each).name != "stand-ins"
    )
    os.execvpe(name, [name, *arguments], {**os.environ, "PATH": path})


# --- qemu-nbd -----------------------------------------------------------------------------------------------


def as_qemu_nbd(arguments: list[str]) -> NoReturn:
    try:
        found, rest = getopt.gnu_getopt(arguments, "vtrk:f:e:x:", ["pid-file="])
    except getopt.GetoptError:
        original("qemu-nbd", arguments)
    options = dict(found)
    if options.get("-f") != "raw" or "-k" not in options or len(rest) != 1:
        original("qemu-nbd", arguments)
    if "--pid-file" in options:
        Path(options["--pid-file"]).write_text(f"{os.getpid()}\n")
    Path(options["-k"]).unlink(missing_ok=True)
    os.execv(
        sys.executable,
        server(rest[0], options["-k"], options.get("-x", ""), read_only="-r" in options),
    )


# --- nbdkit -------------------------------------------------------------------------------------------------


def as_nbdkit(arguments: list[str]) -> NoReturn:
    try:
        long = ["run=", "exit-with-parent", "readonly", "unix="]
        found, rest = getopt.gnu_getopt(arguments, "vfrU:P:", long)
    except getopt.GetoptError:
        original("nbdkit", arguments)
    options = dict(found)
    if not rest or rest[0] not in CONTENTS or not (options.keys() & {"--run"} or "LISTEN_FDS" in os.environ):
        original("nbdkit", arguments)
    with tempfile.TemporaryDirectory() as directory:
        file, where = f"{directory}/content", f"{directory}/socket"
        if not has_content(rest, file):
            original("nbdkit", arguments)
        read_only = bool({"-r", "--readonly"} & options.keys())
        with subprocess.Popen(server(file, where, read_only=read_only), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                status = run(options["--run"], where) if "--run" in options else relay(where)
            finally:
                process.terminate()
    sys.exit(status)


def has_content(plugin: list[str], file: str) -> bool:
    """The original's, with its holes: where 32 KiB are zeroes."""
    copy = (
        f'test $(nbdinfo --size "$uri") -le {LARGEST}'
        f' && truncate -s $(nbdinfo --size "$uri") {shlex.quote(file)}'
        f' && nbdcopy -S 32768 --request-size=32768 --destination-is-zero "$uri" {shlex.quote(file)}'
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LISTEN_")}
    environment["PATH"] = os.pathsep.join(
        each for each in environment["PATH"].split(os.pathsep) if Path(each).name != "stand-ins"
    )
    return subprocess.run(["nbdkit", "-U", "-", *plugin, "--run", copy], env=environment).returncode == 0


def run(script: str, where: str) -> int:
    told = {"uri": f"nbd+unix://?socket={where}", "unixsocket": where, "nbd": f"nbd:unix:{where}"}
    return subprocess.run(["sh", "-c", script], env={**os.environ, **told}).returncode


def relay(where: str) -> int:
    """By socket activation: what comes to the socket that was inherited goes to the server, until whoever has
    started this is gone."""
    parent = os.getppid()
    threading.Thread(target=accept, args=(socket.socket(fileno=3), where), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while os.getppid() == parent:
        time.sleep(0.05)
    return 0


def accept(listener: socket.socket, where: str) -> None:
    while True:
        client, _ = listener.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(where)
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=pump, args=(source, target), daemon=True).start()


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 18):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main()
