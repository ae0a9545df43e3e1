"""The systems that a release is tried on, newly installed, and the interpreter that each has."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .steps import Log

__all__ = ["SYSTEMS", "System", "available", "run_on"]

CHROOT = Path(__file__).parent / "chroot"


@dataclass(frozen=True)
class System:
    """A suite of a distribution."""

    suite: str
    name: str
    python: str
    """The version of its CPython, 3.11 for example."""
    builds: str = ""
    """The packages that it compiles the source with, of the system that this is tried on."""


SYSTEMS = (
    System("bookworm", "Debian 12", "3.11"),
    System("noble", "Ubuntu 24.04", "3.12"),
    System(
        "trixie", "Debian 13", "3.13", builds="gcc libc6-dev libblkio-dev pkg-config python3-dev python3-venv"
    ),
    System("forky", "Debian 14, testing", "3.14"),
)
"""One for each CPython, the oldest that has it. From the oldest on."""


def available(system: System) -> str | None:
    """Why it cannot be had here; None: it can."""
    if os.geteuid():
        return "needs root"
    for program in ("apt-get", "unshare"):
        if not shutil.which(program):
            return f"needs {program}"
    asked = subprocess.run([CHROOT, "--offers", system.suite], check=False, stderr=subprocess.DEVNULL)
    return "no mirror has it: DEBIAN_MIRROR, UBUNTU_MIRROR" if asked.returncode else None


def run_on(system: System, directory: Path, *command: str, log: Log, what: str) -> None:
    """Run it in *directory*, where what it makes stays."""
    log.run(CHROOT, system.suite, directory, *command, what=f"{system.name}: {what}")
