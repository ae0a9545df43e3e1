"""Runs what others have written. Each suite gives what became of each of its tests."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from ...support.nbd_server import NbdServer
from . import stand_in
from .sources import BUILD, fetch

TIME_LIMIT = 120.0


PASSED, FAILED, DECLINED = WORDS = ("passed", "failed", "declined")
"""Declined is what does not apply: as the test says itself, or because it never comes to the server."""


class Outcome(NamedTuple):
    """What became of a test; and why, or what it said."""

    word: str
    why: str = ""


class Place(NamedTuple):
    """Where a suite's tests run."""

    directory: Path
    environment: dict[str, str]
    met: Path

    def run(self, *command: str | Path, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["timeout", "--kill-after=5", str(TIME_LIMIT), *command],
            cwd=cwd or self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )

    def without_stand_ins(self, **more: str) -> "Place":
        return self._replace(environment={**self.environment, "PATH": os.environ["PATH"], **more})

    def servers_met(self) -> int:
        return len(self.met.read_text().splitlines()) if self.met.exists() else 0


@contextmanager
def place() -> Iterator[Place]:
    """A new directory, and the stand-ins before everything else that there is."""
    with tempfile.TemporaryDirectory(prefix="aioblk-") as name:
        directory = Path(name)
        programs = directory / "stand-ins"
        programs.mkdir()
        for program in ("qemu-nbd", "nbdkit"):
            script = programs / program
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in.__file__}" {program} "$@"\n')
            script.chmod(0o755)
        met = directory / "met"
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        yield Place(directory, {**os.environ, "PATH": path, stand_in.MET: str(met)}, met)


# --- QEMU ---------------------------------------------------------------------------------------------------


def qemu_iotests() -> Iterator[tuple[str, Outcome]]:
    """Those for raw images over NBD, with this server where qemu-nbd would be."""
    files = fetch("qemu", "*/tests/qemu-iotests/*", "*/python/qemu/*")
    tests = files / "tests/qemu-iotests"
    with place() as here:
        for directory in ("images", "sockets"):
            (here.directory / directory).mkdir()
        here.environment.update(
            TEST_DIR=str(here.directory / "images"),
            SOCK_DIR=str(here.directory / "sockets"),
            QEMU_NBD_PROG=str(here.directory / "stand-ins/qemu-nbd"),
            QEMU_PROG=_program("qemu-system-x86_64"),
            QEMU_IMG_PROG=_program("qemu-img"),
            QEMU_IO_PROG=_program("qemu-io"),
            QSD_PROG=_program("qemu-storage-daemon"),
        )
        for path in sorted([*tests.glob("[0-9][0-9][0-9]"), *tests.glob("tests/*")]):
            text = path.read_text(errors="replace")
            if not re.search(r"_supported_proto.*\b(nbd|generic)\b|supported_protocols=.*nbd", text):
                continue
            before = here.servers_met()
            check = (sys.executable, "check", "-raw", "-nbd", path.name)
            done = here.run(*check, cwd=tests)
            outcome = _judge_iotest(done.stdout, here.servers_met() > before)
            if outcome.word == FAILED:
                theirs = here.without_stand_ins(QEMU_NBD_PROG=_program("qemu-nbd"))
                if _judge_iotest(theirs.run(*check, cwd=tests).stdout, True).word != PASSED:
                    outcome = Outcome(DECLINED, "it fails here with qemu-nbd, too")
            yield path.name, outcome


def _judge_iotest(told: str, has_met: bool) -> Outcome:
    if declined := re.search(r" not run .*?\.\.\. +(.*)", told):
        return Outcome(DECLINED, declined[1].strip())
    if "Passed all 1" in told:
        return Outcome(PASSED) if has_met else Outcome(DECLINED, "it starts no server of raw images")
    return Outcome(FAILED, told)


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"run: {name} is missing")
    return found


# --- libnbd -------------------------------------------------------------------------------------------------


def libnbd_scripts() -> Iterator[tuple[str, Outcome]]:
    """Those of nbdcopy, nbdinfo and nbdsh, with this server where nbdkit would be."""
    files = fetch("libnbd", "*/copy/*.sh", "*/info/*.sh", "*/tests/functions.sh.in")
    functions = (files / "tests/functions.sh.in").read_text().replace("@abs_top_srcdir@", str(files))
    (files / "tests/functions.sh").write_text(functions)
    for path in sorted([*files.glob("copy/*.sh"), *files.glob("info/*.sh")]):
        with place() as here:
            here.environment.update(srcdir=".", abs_top_srcdir=str(files))
            done = here.run("bash", path, cwd=path.parent)
            if done.returncode not in (0, 77):  # some scripts of nbdkit's fail now and then
                done = here.run("bash", path, cwd=path.parent)
            if not here.servers_met():
                outcome = Outcome(DECLINED, "it needs what only nbdkit has, or no server")
            elif done.returncode == 77:
                outcome = Outcome(DECLINED, done.stdout.strip().splitlines()[-1])
            else:
                told = done.stdout + done.stderr
                outcome = Outcome(FAILED, told) if done.returncode else Outcome(PASSED)
            if outcome.word == FAILED:
                theirs = here.without_stand_ins().run("bash", path, cwd=path.parent)
                if theirs.returncode:
                    outcome = Outcome(DECLINED, "it fails here with nbdkit, too")
            yield f"{path.parent.name}/{path.stem}", outcome


# --- nbd ----------------------------------------------------------------------------------------------------

HERE = "tests/run"
TESTER: dict[str, tuple[str, ...]] = {
    "cfg1": (),
    "cfgsize": ("-o",),
    "write": ("-w",),
    "flush": ("-w", "-f"),
    "rowrite": ("-w", "-F"),
    "handshake": ("-h",),
    "list": ("-l",),
    "integrity": ("-i", "-t", f"{HERE}/integrity-test.tr"),
    "integrityhuge": ("-i", "-t", f"{HERE}/integrityhuge-test.tr"),
    "unix": ("-u",),
}
SIZES = {f"SIZEOF_UNSIGNED_{kind}_INT": size for kind, size in (("SHORT", 2), ("LONG", 8), ("LONG_LONG", 8))}


def nbd_tester() -> Iterator[tuple[str, Outcome]]:
    """nbd-tester-client, as nbd-server's own tests use it."""
    files = fetch("nbd")
    tester = _compile_tester(files)
    with place() as here:
        for name, options in TESTER.items():
            image = here.directory / "image"
            image.unlink(missing_ok=True)
            image.touch()
            os.truncate(image, 50 << 20)
            with NbdServer(
                *("io_uring", f"path={image}", f"read-only={'on' if name == 'rowrite' else 'off'}"),
                *(() if name == "unix" else ("--port", "0")),
                name="export1",
            ) as server:
                port = str(urlsplit(server.uri).port)
                where = [str(server.socket)] if name == "unix" else ["127.0.0.1", port]
                done = here.run(tester, "-N", "export1", *options, *where, cwd=files)
            told = re.sub(r"[^\n]*\r", "", done.stdout + done.stderr)
            yield name, Outcome(FAILED, told) if done.returncode else Outcome(PASSED)


def _compile_tester(files: Path) -> Path:
    """By hand: its configure script asks for much that the client does not need."""
    tester, configuration = BUILD / "nbd-tester-client", BUILD / "config.h"
    if not tester.exists():
        sizes = "".join(
            f"#define {name} {size}\n" for name, size in {**SIZES, "SIZEOF_UNSIGNED_INT": 4}.items()
        )
        configuration.write_text(f'#define PACKAGE_VERSION "0"\n#define HAVE_GNUTLS 0\n{sizes}')
        asked = ["pkg-config", "--cflags", "--libs", "glib-2.0"]
        flags = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
        sources = [str(files / HERE / "nbd-tester-client.c"), str(files / "cliserv.c")]
        options = ["-w", "-D_GNU_SOURCE", "-DHAVE_CONFIG_H", f"-I{BUILD}", f"-I{files}"]
        subprocess.run(
            ["cc", *options, "-o", str(tester), *sources, *flags], check=True, stderr=subprocess.DEVNULL
        )
    return tester


# --- programs -----------------------------------------------------------------------------------------------

SCRIPTS = {
    "nbdkit's nbd plugin": """
        nbdkit --exit-with-parent -U k.sock nbd uri="$uri" --run '
            nbdcopy data "$uri" && nbdcopy "$uri" back && cmp -n 4194304 data back && nbdinfo --map "$uri"'
    """,
    "nbdfuse": """
        mkdir mounted && nbdfuse -P pid mounted/disk "$uri" &
        while ! test -s pid; do sleep 0.1; done
        dd if=data of=mounted/disk bs=64k seek=16 conv=notrunc,fsync &&
            dd if=mounted/disk bs=64k skip=16 count=64 | cmp - data
        status=$?
        umount mounted || fusermount3 -u mounted
        wait
        exit $status
    """,
}


def programs() -> Iterator[tuple[str, Outcome]]:
    """Programs that pass it on."""
    for name, script in SCRIPTS.items():
        with place() as here:
            image = here.directory / "image"
            image.touch()
            os.truncate(image, 16 << 20)
            (here.directory / "data").write_bytes(os.urandom(4 << 20))
            with NbdServer("io_uring", f"path={image}") as server:
                here.environment["uri"] = server.uri
                here.environment["PATH"] = os.environ["PATH"]
                done = here.run("bash", "-c", script)
            yield name, Outcome(FAILED, done.stdout + done.stderr) if done.returncode else Outcome(PASSED)


# --- Linux --------------------------------------------------------------------------------------------------


def kernel() -> Iterator[tuple[str, Outcome]]:
    """Linux's own client, with file systems, in an emulated machine; ./run vm-test has it, too."""
    told = subprocess.run(
        ["vm/run", "tests/vm/test_nbd_kernel.py", "-k", "asyncio"],
        env={**os.environ, "VENV": sys.prefix},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    yield "file systems", Outcome(FAILED, told.stdout) if told.returncode else Outcome(PASSED)


SUITES: dict[str, Callable[[], Iterator[tuple[str, Outcome]]]] = {
    "qemu-iotests": qemu_iotests,
    "libnbd": libnbd_scripts,
    "nbd-tester-client": nbd_tester,
    "programs": programs,
    "kernel": kernel,
}
