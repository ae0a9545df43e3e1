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
"""The environment's name of a file that has a line for each time a server was started: the name of its file,
or ORIGINAL."""
ORIGINAL = "-"

CONTENTS = {"memory", "null", "pattern", "data", "sparse-random"}
"""Plugins whose content a file can have, for as long as nobody asks for more than that."""

NBDKIT_OPTIONS = [
    *(
        "run=",
        "single",
        "foreground",
        "exit-with-parent",
        "readonly",
        "unix=",
        "port=",
        "pidfile=",
        "filter=",
    ),
    *("tls=", "tls-certificates=", "tls-psk=", "tls-verify-peer"),
]
SHORT = {"-r": "--readonly", "-s": "--single", "-U": "--unix", "-P": "--pidfile", "-p": "--port"}
WAYS = {"--run", "--single", "--pidfile"}
"""One of them says how the server is used, if it does not inherit its socket."""

LARGEST = 1 << 40


def main() -> None:
    name, *arguments = sys.argv[1:]
    if name == "qemu-nbd":
        as_qemu_nbd(arguments)
    as_nbdkit(arguments)


def server(file: str, where: str = "", *, name: str = "", read_only: bool = False) -> list[str]:
    """The command that serves a file, under a name, at a Unix socket or at the one that is handed in."""
    note(file)
    os.environ["PYTHONPATH"] = str(ROOT)
    device = (f"{name}=" if name else "") + f"io_uring:{file}" + ("?read-only=true" if read_only else "")
    at = ["--unix", where] if where else []
    return [sys.executable, "-m", "aioblk", "serve", "nbd", device, *at, "--drain", "1"]


def note(line: str) -> None:
    with open(os.environ[MET], "a") as met:
        print(line, file=met)


def original(name: str, arguments: Sequence[str]) -> NoReturn:
    note(ORIGINAL)
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
    hand_in(options["-k"])
    os.execv(sys.executable, server(rest[0], name=options.get("-x", ""), read_only="-r" in options))


def hand_in(path: str) -> None:
    """A socket that listens, to the program that this one becomes. QEMU's tests wait a second for it, and a
    machine that is busy needs longer to start a server."""
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    os.dup2(listener.detach(), 3)
    os.set_inheritable(3, True)  # which dup2() leaves as it was, if it was the third
    os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))


# --- nbdkit -------------------------------------------------------------------------------------------------


def as_nbdkit(arguments: list[str]) -> NoReturn:
    try:
        found, rest = getopt.gnu_getopt(arguments, "vfrnsU:P:p:", NBDKIT_OPTIONS)
    except getopt.GetoptError:
        original("nbdkit", arguments)
    options = {SHORT.get(name, name): value for name, value in found}
    if not rest or rest[0] not in CONTENTS or not (options.keys() & WAYS or "LISTEN_FDS" in os.environ):
        original("nbdkit", arguments)
    if "--tls-psk" in options and sys.version_info < (3, 13):
        original("nbdkit", arguments)
    if options.get("--filter") not in (None, "cow"):  # files can be written to, whatever they are filled with
        original("nbdkit", arguments)
    with tempfile.TemporaryDirectory() as directory:
        file, where = f"{directory}/content", f"{directory}/socket"
        if not has_content(rest, file):
            original("nbdkit", arguments)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        command = server(file, where, read_only="--readonly" in options) + tls(options)
        if (path := options.get("--unix", "-")) != "-":
            command += ["--unix", path]
        if "--port" in options:
            command += ["--address", "*", "--port", options["--port"]]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            if "--pidfile" in options:
                Path(options["--pidfile"]).write_text(f"{os.getpid()}\n")
            try:
                status = serve(options, where)
            finally:
                process.terminate()
    sys.exit(status)


def serve(options: dict[str, str], where: str) -> int:
    """In the way that is asked for, while the server is there."""
    if "--run" in options:
        return run(options["--run"], where)
    if "--single" in options:
        return single(where)
    if "LISTEN_FDS" in os.environ:
        threading.Thread(target=accept, args=(socket.socket(fileno=3), where), daemon=True).start()
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.05)
    return 0


def tls(options: dict[str, str]) -> list[str]:
    found: list[str] = []
    for name in ("--tls-certificates", "--tls-psk"):
        if name in options:
            found += [name, options[name]]
    if found:
        found += ["--tls", {"on": "allow"}.get(options["--tls"], options["--tls"])]
    if "--tls-verify-peer" in options and "--tls-certificates" in options:
        found.append("--tls-verify-peer")
    return found


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


def single(where: str) -> int:
    """One client, whose socket is the standard input."""
    client = socket.socket(fileno=os.dup(0))
    pumps = connect(client, where)
    for each in pumps:
        each.join()
    return 0


def accept(listener: socket.socket, where: str) -> None:
    """By socket activation: what comes to the socket that was inherited goes to the server."""
    while True:
        connect(listener.accept()[0], where)


def connect(client: socket.socket, where: str) -> list[threading.Thread]:
    server = socket.socket(socket.AF_UNIX)
    server.connect(where)
    ways = ((client, server), (server, client))
    pumps = [threading.Thread(target=pump, args=way, daemon=True) for way in ways]
    for each in pumps:
        each.start()
    return pumps


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 18):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main()
