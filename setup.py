"""Build the two extension modules against libblkio; everything else about the package is in pyproject.toml."""

import os
import shlex
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
NATIVE = Path("aioblk/_native")
PRIVATE_PREFIX = ROOT / ".libblkio"

LIBBLKIO_NOT_FOUND = """
aioblk needs libblkio and pkg-config (or pkgconf) to build; 'pkg-config --exists blkio' failed.
  Debian 13 and later, Ubuntu 24.04 and later:  apt-get install libblkio-dev pkg-config
  Fedora, RHEL 9 and later:                     dnf install libblkio-devel pkgconf-pkg-config
  In a checkout of aioblk, on these and on Debian 12:  ./run setup
"""


def pkg_config(*arguments: str) -> list[str] | None:
    """What pkg-config prints, split as a shell would; None when it fails or is not there."""
    try:
        output = subprocess.run(
            [os.environ.get("PKG_CONFIG", "pkg-config"), *arguments], check=True, text=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return shlex.split(output.stdout)


def find_libblkio() -> tuple[list[str], list[str]]:
    """Flags to compile and to link with: the system's libblkio or, failing that, the copy `./run setup` made."""
    rpath: list[str] = []
    if pkg_config("--exists", "blkio") is None:
        directories = [str(file.parent) for file in PRIVATE_PREFIX.glob("lib/**/blkio.pc")]
        os.environ["PKG_CONFIG_PATH"] = ":".join([*directories, os.environ.get("PKG_CONFIG_PATH", "")])
        library_directory = pkg_config("--variable=libdir", "blkio")
        if not library_directory:
            raise SystemExit(LIBBLKIO_NOT_FOUND)
        rpath = [f"-Wl,-rpath,{Path(library_directory[0]).resolve()}"]
    return pkg_config("--cflags", "blkio") or [], [*(pkg_config("--libs", "blkio") or []), *rpath]


class BuildExtensions(build_ext):
    """Build with libblkio, found only now: sdists and metadata do not need it."""

    def build_extensions(self) -> None:
        compile_flags, link_flags = find_libblkio()
        for extension in self.extensions:
            extension.extra_compile_args += compile_flags
            extension.extra_link_args += link_flags
        super().build_extensions()


core = Extension(
    "aioblk._native._core",
    sources=sorted(str(path) for path in NATIVE.glob("src/*.c")),
    depends=[*sorted(str(path) for path in NATIVE.glob("src/*.h")), "setup.py"],
    extra_compile_args=["-O2", "-std=gnu11", "-Wall", "-Wextra", *shlex.split(os.environ.get("AIOBLK_CFLAGS", ""))],
)

setup(
    cffi_modules=[str(NATIVE / "_build.py:ffi")] if (NATIVE / "_build.py").exists() else [],
    ext_modules=[core] if core.sources else [],
    cmdclass={"build_ext": BuildExtensions},
)
