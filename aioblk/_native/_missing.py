"""Why what is compiled cannot be imported, and what to do: for who runs Python in a checkout, above all."""

import shlex
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

__all__ = ["explained"]

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
"""If it is one."""


def explained(error: ImportError) -> ImportError:
    """The error to raise for one of importing the core: the same, where that says all by itself."""
    if isinstance(error, ModuleNotFoundError) and error.name == f"{__package__}._core":
        return ImportError(" ".join(_not_compiled()), name=error.name)
    if "libblkio" in str(error) and "cannot open shared object file" in str(error):
        return ImportError(" ".join(_no_libblkio(error)), name=error.name, path=error.path)
    return error


def _not_compiled() -> list[str]:
    others = ", ".join(sorted(path.name for path in HERE.glob("_core.*.so")))
    only = f", only {others}" if others else ""
    said = [f"aioblk is not compiled for this interpreter: {HERE} has no _core{EXTENSION_SUFFIXES[0]}{only}."]
    if _is_checkout():
        said.append(
            f"In the checkout {CHECKOUT}, './run setup' compiles it for .venv/bin/python, "
            f"'PYTHON={shlex.quote(sys.executable)} ./run setup' for this interpreter."
        )
    else:
        said.append("Install it again: pip install --force-reinstall aioblk.")
    if hidden := _hidden():
        said.append(
            f"It hides the aioblk in {hidden}: Python imports that one with -P, or from another directory."
        )
    return said


def _no_libblkio(error: ImportError) -> list[str]:
    said = [f"aioblk needs libblkio, and the dynamic loader does not find it: {error}."]
    if _is_checkout():
        said.append(f"In the checkout {CHECKOUT}, './run setup' gets it.")
    else:
        said.append(
            "Install it (Debian: libblkio1, Fedora: libblkio), or aioblk from a wheel that brings it."
        )
    return said


def _is_checkout() -> bool:
    return (CHECKOUT / "setup.py").exists()


def _hidden() -> Path | None:
    """Where another one lies that would have been imported, were this one not found first."""
    for entry in map(Path, sys.path):
        package = entry / "aioblk/_native"
        if any((package / f"_core{suffix}").exists() for suffix in EXTENSION_SUFFIXES) and package != HERE:
            return entry
    return None
