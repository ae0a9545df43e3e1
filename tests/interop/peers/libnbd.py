"""libnbd's own tests: scripts of its programs, and programs in C."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .place import DECLINED, FAILED, PASSED, Outcome, place
from .sources import fetch

LIBNBD = ("*/copy/*.sh", "*/info/*.sh", "*/tests/*", "*/common/include/*")


def libnbd_scripts() -> Iterator[tuple[str, Outcome]]:
    """Those of nbdcopy, nbdinfo and nbdsh, with this server where nbdkit would be."""
    files = fetch("libnbd", *LIBNBD)
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


KEYS = "psktool -u alice -p keys.psk && SRCDIR=. CERTTOOL=certtool sh make-pki.sh pki && touch config.h"
ALONE = ("close-null", "compile-", "debug", "dlopen", "errors-enum", "get-version", "pick-a-port", "requires")
"""What has no server; and what the others have in common."""
BY_SCRIPT = ("eflags", "opt-info", "opt-list")
BY_CERTIFICATES = '"--tls=require", "--tls-verify-peer", "--tls-certificates=pki"'


class Test(NamedTuple):
    source: str
    options: tuple[str, ...] = ()
    """Of the compiler."""


def _by_uri(uri: str, *parameters: str) -> Test:
    pid = '-DPIDFILE="connect-uri.pid"'
    unix = ["-DNEEDS_UNIX_SOCKET=1"] if uri.endswith("socket=") else []
    return Test("connect-uri", (f'-DURI="{uri}"', f"-DSERVER_PARAMS={', '.join(parameters)}", pid, *unix))


LOADS = ("aio-parallel", "aio-parallel-load", "synch-parallel")
VARIANTS = {
    "connect-tls-certs": Test("connect-tls", ("-DCERTS=1",)),
    "connect-tls-psk": Test("connect-tls", ("-DPSK=1",)),
    **{
        f"{name}-tls": Test(name, ("-DTLS=1",))
        for name in ("aio-parallel", "aio-parallel-load", "synch-parallel")
    },
    "connect-uri-nbd": _by_uri("nbd://localhost:32123/", '"-p", "32123"'),
    "connect-uri-nbd-unix": _by_uri("nbd+unix:///?socket=", '"-U", UNIX_SOCKET'),
    "connect-uri-nbds-certs": _by_uri(
        "nbds://localhost:32124/?tls-certificates=pki", '"-p", "32124"', BY_CERTIFICATES
    ),
    "connect-uri-nbds-unix-certs": _by_uri(
        "nbds+unix://alice@/?tls-certificates=pki&socket=", '"-U", UNIX_SOCKET', BY_CERTIFICATES
    ),
}
"""Tests that libnbd's makefile makes of the source of others."""


def libnbd_programs() -> Iterator[tuple[str, Outcome]]:
    """What libnbd has in C, with this server where nbdkit would be."""
    tests = fetch("libnbd", *LIBNBD) / "tests"
    subprocess.run(["sh", "-c", KEYS], cwd=tests, check=True, capture_output=True)
    several = {test.source for test in VARIANTS.values()} - {
        "aio-parallel",
        "aio-parallel-load",
        "synch-parallel",
    }
    names = [path.stem for path in sorted(tests.glob("*.c"))]
    plain = {name: Test(name) for name in names if name not in several and not name.startswith(ALONE)}
    for name, test in {**plain, **VARIANTS}.items():
        yield f"tests/{name}", _run_test(tests, name, test)


def _run_test(tests: Path, name: str, test: Test) -> Outcome:
    compiled = subprocess.run(
        [
            *("cc", "-w", "-D_GNU_SOURCE", *test.options, "-I.", "-I../common/include", "-o", name),
            *(f"{test.source}.c", "requires.c", "pick-a-port.c", "-lnbd", "-lpthread"),
        ],
        cwd=tests,
        capture_output=True,
        text=True,
    )
    if compiled.returncode:
        by_script = "nbdkit" in compiled.stderr or "SCRIPT" in compiled.stderr or name == "eflags"
        return (
            Outcome(DECLINED, "it takes a script of nbdkit's")
            if by_script
            else Outcome(FAILED, compiled.stderr)
        )
    command = ["bash", f"{name}.sh"] if (tests / f"{name}.sh").exists() else [f"./{name}"]
    with place() as here:
        done = here.run(*command, cwd=tests)
        told = done.stdout + done.stderr
        if not here.has_met_server():
            return Outcome(DECLINED, "it needs what only nbdkit has, or no server")
        if not done.returncode:
            return Outcome(PASSED)
        if done.returncode == 77:
            return Outcome(DECLINED, told.strip().splitlines()[-1])
        if here.without_stand_ins().run(*command, cwd=tests).returncode:
            return Outcome(DECLINED, "it fails here with nbdkit, too")
        return Outcome(FAILED, told)
