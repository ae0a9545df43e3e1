"""What the files of a release are held to, before anybody installs them."""

import re
import sys
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

from .steps import Log, StepError

__all__ = ["check_files", "check_wheel", "glibc_of", "version_in"]

LICENCES = ("LICENSE", "LICENSE.libblkio")
COMPILED = re.compile(r"\.so(\.\d+)*$")


def check_files(files: Sequence[Path], log: Log) -> str:
    """By the tools of those who run indexes of packages."""
    log.run(sys.executable, "-m", "twine", "check", "--strict", *files, what="twine")
    wheels = [file for file in files if file.suffix == ".whl"]
    log.run(sys.executable, "-m", "check_wheel_contents", *wheels, what="check-wheel-contents")
    return "twine, check-wheel-contents"


def check_wheel(wheel: Path, version: str, paths: Collection[str]) -> str:
    """That it has the version and the licences, and that nothing compiled in it names one of the *paths*."""
    if version_in(wheel) != version:
        raise StepError(f"it is {version_in(wheel)}, not {version}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for licence in LICENCES:
            if not any(name.endswith(f".dist-info/licenses/{licence}") for name in names):
                raise StepError(f"has no {licence}")
        compiled = [name for name in names if COMPILED.search(name)]
        for path in paths:
            named = [name for name in compiled if path.encode() in archive.read(name)]
            if named:
                raise StepError(f"{', '.join(named)} names {path}, a path of this machine")
        if not any("libblkio" in name for name in compiled):
            raise StepError("has no libblkio")
    return f"glibc {glibc_of(wheel)} or later, {wheel.stat().st_size / 1e6:.1f} MB"


def version_in(file: Path) -> str:
    """aioblk-VERSION-..., aioblk-VERSION.tar.gz."""
    return file.name.removesuffix(".tar.gz").split("-")[1]


def glibc_of(wheel: Path) -> str:
    """The oldest that it runs with, as its name says."""
    found = re.search(r"manylinux_(\d+)_(\d+)_", wheel.name)
    if not found:
        raise StepError(f"{wheel.name} is for no Linux but that it was made on")
    return f"{found[1]}.{found[2]}"
