"""The facts about a machine without which its figures mean nothing."""

import functools
import os
import platform
import shutil
import subprocess
from pathlib import Path


def describe(python: str) -> dict[str, str]:
    """The facts, with those of the interpreter `python`."""
    facts = {
        "processor": f"{os.cpu_count()} x {processor_model()}",
        "kernel": f"Linux {platform.release().split('-')[0]}",
        "distribution": distribution(),
        "Python": python_build(python),
        "libblkio": library_version(),
        "load when it began": "{:.2f} {:.2f} {:.2f}".format(*os.getloadavg()),
    }
    for tool in ("fio", "qemu-storage-daemon"):
        if shutil.which(tool):
            facts[tool] = first_line(tool, "--version").removeprefix("fio-").removeprefix(f"{tool} version ")
    return facts


@functools.cache
def python_build(python: str) -> str:
    """Its kind and version, and whether its threads take turns: CPython 3.11.2, GIL."""
    code = (
        "import platform, sys; gil = getattr(sys, '_is_gil_enabled', lambda: True)();"
        "threads = 'GIL' if gil else 'free-threaded';"
        "print(platform.python_implementation(), f'{platform.python_version()}, {threads}')"
    )
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def processor_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"


def library_version() -> str:
    """The version of the libblkio that this process maps once aioblk's binding is imported."""
    try:
        import aioblk._native._blkio  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        return "unknown"
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libblkio.so" in line:
            return os.path.realpath(line.split()[-1]).rsplit(".so.", 1)[-1]
    return "unknown"


def first_line(*command: str) -> str:
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return output.splitlines()[0] if output else "unknown"
