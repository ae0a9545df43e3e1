"""Builds the two extension modules against libblkio; the rest of the package is in pyproject.toml."""

import os
import shlex
import subprocess
from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("aioblk/_native")
LIBBLKIO = "blkio >= 1.4"
PRIVATE_LIBBLKIO = Path(__file__).parent.absolute() / ".libblkio"

# Across the core's files, which call each other for every request. One takes 5 to 8 % fewer instructions than
# with -O2 and calls by way of a table (`./run bench instructions`). `./run coverage` wants none of it.
OPTIMISATION = shlex.split(os.environ.get("AIOBLK_OPTIMISATION", "-O3 -flto=auto -fno-plt"))

LIBBLKIO_NOT_FOUND = f"""
aioblk is built against libblkio, and 'pkg-config --exists "{LIBBLKIO}"' fails. To have both:
    apt-get install libblkio-dev pkg-config           Debian 13, Ubuntu 24.10 and later
    dnf install libblkio-devel pkgconf-pkg-config     Fedora, RHEL 9 and later
    ./run setup                                       in a checkout of aioblk, there and on Debian 12
"""


def pkg_config(*arguments: str) -> list[str] | None:
    """What pkg-config prints, as words; None when it fails or is not there."""
    try:
        done = subprocess.run(["pkg-config", *arguments], check=True, text=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return shlex.split(done.stdout)


def find_libblkio() -> None:
    """Let pkg-config find libblkio: the system's or, failing that, the copy that `./run setup` made."""
    if pkg_config("--exists", LIBBLKIO) is None:
        directories = [str(file.parent) for file in PRIVATE_LIBBLKIO.glob("lib/**/blkio.pc")]
        os.environ["PKG_CONFIG_PATH"] = ":".join([*directories, os.environ.get("PKG_CONFIG_PATH", "")])
        if pkg_config("--exists", LIBBLKIO) is None:
            raise SystemExit(LIBBLKIO_NOT_FOUND)


find_libblkio()
core = Extension(
    "aioblk._native._core",
    sources=sorted(map(str, NATIVE.glob("src/*.c"))),
    depends=sorted(map(str, NATIVE.glob("src/*.h"))),
    extra_compile_args=[
        *(*OPTIMISATION, "-fvisibility=hidden", "-std=gnu11", "-Wall", "-Wextra"),
        *(pkg_config("--cflags", "blkio") or []),
    ],
    extra_link_args=[*OPTIMISATION, *(pkg_config("--libs", "blkio") or [])],
)
setup(
    ext_modules=[core],
    cffi_modules=[str(NATIVE / "_build.py:ffi")],  # this one asks pkg-config itself
)
