"""Wheels, each made from the archive of the source, for what this machine and the systems have of CPython."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .source import unpack
from .steps import Log, StepError
from .systems import System, run_on

__all__ = ["find_interpreters", "make_wheel", "make_wheel_on", "version_of"]

OLDEST = (3, 11)
PLACES = ("~/.pyenv/versions/*/bin", "build/free-threaded/*/bin")
"""Where interpreters may be beside PATH, the last of them left by `./run campaign free-threaded`."""

ASK = """if True:
    import sys, sysconfig
    assert sys.implementation.name == "cpython" and sys.prefix == sys.base_prefix
    print("%d.%d" % sys.version_info[:2] + ("t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""))
    import ensurepip, venv
    open(sysconfig.get_path("include") + "/Python.h")
"""


def version_of(interpreter: Path) -> str | None:
    """3.13, or 3.14t where threads need no GIL; None if no wheel can be made with it."""
    try:
        asked = subprocess.run([interpreter, "-c", ASK], check=True, text=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return asked.stdout.strip()


def find_interpreters(project: Path) -> dict[str, Path]:
    """Those of this machine that wheels are made for, by version; of several of one version, the first."""
    found: dict[str, Path] = {}
    for path in _candidates(project):
        version = version_of(path)
        if version and tuple(map(int, version.rstrip("t").split("."))) >= OLDEST:
            found.setdefault(version, path)
    return found


def _candidates(project: Path) -> Iterator[Path]:
    directories = [Path(entry) for entry in os.get_exec_path()]
    for place in PLACES:
        root, pattern = (Path.home(), place[2:]) if place.startswith("~/") else (project, place)
        directories += sorted(root.glob(pattern))
    for directory in directories:
        for path in sorted(directory.glob("python3.*")):
            if re.fullmatch(r"python3\.\d+t?", path.name):
                yield path


def make_wheel(
    source: Path, interpreter: Path, libblkio: Path | None, scratch: Path, target: Path, log: Log
) -> Path:
    """By an interpreter of this machine."""
    root = _prepared(source, libblkio, scratch)
    environment = {**os.environ, "PYTHON": str(interpreter)}
    log.run("./run", "wheel", cwd=root, environment=environment, what="could not make the wheel")
    return _moved(root, target)


def make_wheel_on(
    system: System, source: Path, libblkio: Path | None, scratch: Path, target: Path, log: Log
) -> Path:
    """By the interpreter of a newly installed system."""
    root = _prepared(source, libblkio, scratch)
    run_on(system, root, "./run", "wheel", log=log, what="could not make the wheel")
    return _moved(root, target)


def _prepared(source: Path, libblkio: Path | None, scratch: Path) -> Path:
    """The source, unpacked, with the same private libblkio for all, if this machine has it."""
    shutil.rmtree(scratch, ignore_errors=True)
    root = unpack(source, scratch)
    if libblkio:
        shutil.copytree(libblkio, root / ".libblkio", symlinks=True)
    return root


def _moved(root: Path, target: Path) -> Path:
    wheels = list((root / "dist").glob("*.whl"))
    if len(wheels) != 1:
        raise StepError(f"{len(wheels)} wheels were made, not one")
    moved = Path(shutil.move(wheels[0], target / wheels[0].name))
    shutil.rmtree(root)
    return moved
