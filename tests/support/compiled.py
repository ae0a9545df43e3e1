"""Shared libraries of the tests' own, made of C sources when they are needed and have changed."""

import hashlib
import os
import shlex
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

__all__ = ["BUILD", "blkio_cflags", "blkio_libs", "shared_library"]

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"


@cache
def shared_library(name: str, sources: Sequence[Path], flags: Sequence[str] = ()) -> Path:
    """The library made of what is compiled among *sources*; the others are headers."""
    key = hashlib.sha256(repr(flags).encode())
    for source in sources:
        key.update(source.read_bytes())
    path = BUILD / f"{name}-{key.hexdigest()[:16]}.so"
    if not path.exists():
        BUILD.mkdir(exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        command = ["cc", "-shared", "-fPIC", "-O1", "-g", "-Wall", "-Wextra", "-Werror", *flags]
        compiled = [str(source) for source in sources if source.suffix == ".c"]
        subprocess.run([*command, "-o", str(unfinished), *compiled, "-ldl"], check=True)
        unfinished.rename(path)
    return path


def blkio_cflags() -> tuple[str, ...]:
    """Where blkio.h is: the system's, or the copy that ./run has fetched."""
    return _pkg_config("--cflags")


def blkio_libs() -> tuple[str, ...]:
    """What links with libblkio, of the same."""
    return _pkg_config("--libs")


def _pkg_config(question: str) -> tuple[str, ...]:
    directories = [str(file.parent) for file in (ROOT / ".libblkio").glob("lib/**/blkio.pc")]
    path = ":".join([*directories, os.environ.get("PKG_CONFIG_PATH", "")])
    done = subprocess.run(
        ["pkg-config", question, "blkio"],
        env=os.environ | {"PKG_CONFIG_PATH": path},
        check=True,
        text=True,
        capture_output=True,
    )
    return tuple(shlex.split(done.stdout))
