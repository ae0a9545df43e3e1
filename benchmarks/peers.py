"""Other Python libraries for asynchronous file I/O, in an environment of their own."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.contenders import Contender, PythonWorker, python_version
from benchmarks.model import Operation
from benchmarks.paths import PEERS
from benchmarks.targets import UnavailableError

PACKAGES = {
    "turbofile": "turbofile",
    "pyaio": "pyaio>=0.5.0rc2",
    "urio": "urio",
    "asyncfiles": "py-asyncfiles",
    "caio": "caio",
    "aiofile": "aiofile",
    "aiofiles": "aiofiles",
    "liburing": "liburing",
}
"""What pip is asked for, by the name of the module."""
CAIO_BACKENDS = ("uring", "linux", "thread", "python")
UNALIGNED = "its memory is not aligned for O_DIRECT"
CANNOT_OPEN = "it opens files itself, without O_DIRECT"
BOTH: tuple[Operation, ...] = ("read", "write")


@dataclass(frozen=True)
class Peer(PythonWorker):
    """A program in workers/ that needs one package of the peers' environment."""

    package: str = field(default="", kw_only=True)

    def check(self) -> None:
        make_environment(self.python)
        reason = installation_failure(self.python, self.package)
        if reason:
            raise UnavailableError(reason)


def peer_contenders(interpreter: str | None) -> list[Contender]:
    choose_interpreter(interpreter)
    version = python_version(chosen_interpreter())

    def peer(
        name: str,
        module: str,
        *options: str,
        words: str = "",
        package: str = "",
        not_direct: Mapping[Operation, str],
    ) -> Peer:
        return Peer(
            name,
            f"{words or name}, {version}",
            module,
            str(PEERS / "bin" / "python"),
            options=options,
            files_only=True,
            not_direct=not_direct,
            package=package or name,
        )

    unaligned = dict.fromkeys(BOTH, UNALIGNED)
    cannot_open = dict.fromkeys(BOTH, CANNOT_OPEN)
    return [
        peer("turbofile", "peer_turbofile", words="turbofile, read_at", not_direct=cannot_open),
        peer(
            *("turbofile-into", "peer_turbofile", "into"),
            words="turbofile, readinto_at",
            package="turbofile",
            not_direct=cannot_open,
        ),
        peer("pyaio", "peer_pyaio", not_direct={"read": UNALIGNED}),
        peer("urio", "peer_seeking", "urio", not_direct=cannot_open),
        peer("asyncfiles", "peer_seeking", "asyncfiles", not_direct=cannot_open),
        *(
            peer(
                *(f"caio-{backend}", "peer_caio", backend),
                words=f"caio, {backend}",
                package="caio",
                not_direct=unaligned,
            )
            for backend in CAIO_BACKENDS
        ),
        peer("aiofile", "peer_aiofile", not_direct=cannot_open),
        peer("aiofiles", "peer_seeking", "aiofiles", not_direct={}),
        peer("liburing", "peer_liburing", words="liburing in a loop of batches", not_direct=unaligned),
    ]


_interpreter: list[str] = []


def choose_interpreter(wanted: str | None) -> None:
    """The newest Python on the path unless one is named: some of the libraries need 3.12."""
    names = [wanted] if wanted else ["python3.14", "python3.13", "python3.12", sys.executable]
    for name in names:
        path = shutil.which(name)
        if path and subprocess.run([path, "-c", "import ensurepip"], capture_output=True).returncode == 0:
            _interpreter[:] = [path]
            return
    raise UnavailableError(f"no interpreter for other libraries among {', '.join(names)}")


def chosen_interpreter() -> str:
    return _interpreter[0]


@functools.cache
def make_environment(python: str) -> None:
    """An environment with every library that installs; of one that does not, pip's last word is kept."""
    made_with = PEERS / "made-with"
    if made_with.exists() and made_with.read_text() == chosen_interpreter():
        return
    print("bench: installing other libraries into .venv-peers", file=sys.stderr)
    shutil.rmtree(PEERS, ignore_errors=True)
    subprocess.run([chosen_interpreter(), "-m", "venv", PEERS], check=True)
    for module, package in PACKAGES.items():
        result = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package],
            capture_output=True,
            text=True,
        )
        if result.returncode:
            errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
            (PEERS / f"failed-{module}").write_text(errors[-1] if errors else result.stderr[-300:])
    made_with.write_text(chosen_interpreter())


def installation_failure(python: str, module: str) -> str | None:
    failed = PEERS / f"failed-{module}"
    if failed.exists():
        return f"pip did not install it: {failed.read_text()}"
    attempt = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True)
    if attempt.returncode:
        lines = attempt.stderr.strip().splitlines()
        return f"does not import: {lines[-1] if lines else f'signal {-attempt.returncode}'}"
    return None
