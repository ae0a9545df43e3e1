"""Copies of the package, with a fault or without; the C core of each is compiled with assertions.

What a mutant leaves as it is, is compiled once: another one takes one source to compile, and linking.
"""

import hashlib
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import final

from ...support.compiled import BUILD, blkio_cflags, blkio_libs
from .mutant import ROOT, Mutant

__all__ = ["Copies"]

PACKAGE = ROOT / "aioblk"
SRC = Path("_native/src")
CORE = Path(f"_native/_core{sysconfig.get_config_var('EXT_SUFFIX')}")


@final
class Copies:
    """Of the package as it is now."""

    def __init__(self, *, jobs: int = 1, core: Path | None = None) -> None:
        """*core*, compiled already, is for where no fault is in it; *jobs* is how many compile at a time."""
        self._jobs = jobs
        self._given = core

    def make(self, directory: Path, mutant: Mutant | None = None) -> None:
        """An aioblk/ in *directory*, with the mutant planted if there is one."""
        package = directory / "aioblk"
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        if (private := ROOT / ".libblkio").exists():  # which what is compiled in place looks for beside it
            (directory / private.name).symlink_to(private)
        if mutant is not None:
            mutant.plant(package)
        if mutant is None or not mutant.is_compiled:
            shutil.copy(self._core, package / CORE)
            return
        changed = directory / "changed.o"
        self._compile(package / mutant.file, changed)
        others = [
            compiled for source, compiled in self._objects.items() if source.name != Path(mutant.file).name
        ]
        self._link([*others, changed], package / CORE)

    @cached_property
    def _core(self) -> Path:
        """The core without a fault."""
        core = self._given or self._directory / "core.so"
        if not core.exists():
            self._link(self._objects.values(), core)
        return core

    @cached_property
    def _objects(self) -> dict[Path, Path]:
        """Of each source, what it is compiled to."""
        objects = {
            source: self._directory / f"{source.stem}.o" for source in sorted((PACKAGE / SRC).glob("*.c"))
        }
        self._directory.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(self._jobs) as threads:
            missing = {source: place for source, place in objects.items() if not place.exists()}
            list(threads.map(self._compile, missing.keys(), missing.values()))
        return objects

    @cached_property
    def _directory(self) -> Path:
        """For what is compiled of the sources as they are."""
        key = hashlib.sha256(repr(self._command).encode())
        for source in sorted((PACKAGE / SRC).iterdir()):
            key.update(source.read_bytes())
        return BUILD / f"mutants-{key.hexdigest()[:16]}"

    @cached_property
    def _command(self) -> tuple[str, ...]:
        flags = ("-std=gnu11", "-fPIC", "-fvisibility=hidden", "-O1", "-g", "-UNDEBUG")
        return ("cc", *flags, f"-I{sysconfig.get_path('include')}", *blkio_cflags())

    def _compile(self, source: Path, place: Path) -> None:
        unfinished = place.with_suffix(f".{os.getpid()}")
        subprocess.run([*self._command, "-c", source, "-o", unfinished], check=True)
        unfinished.rename(place)

    def _link(self, objects: Iterable[Path], core: Path) -> None:
        unfinished = core.with_suffix(f".{os.getpid()}")
        subprocess.run(["cc", "-shared", *objects, "-o", unfinished, *blkio_libs()], check=True)
        unfinished.rename(core)
