"""What is said where the compiled part, or libblkio, is missing: for whom, where, and what to do."""

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

import aioblk

PACKAGE = Path(aioblk.__file__).parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """With nothing compiled in it."""
    root = tmp_path / "checkout"
    shutil.copytree(PACKAGE, root / "aioblk", ignore=shutil.ignore_patterns("*.so*", "__pycache__"))
    (root / "setup.py").touch()
    return root


def import_in(directory: Path, *path: Path, flags: tuple[str, ...] = ()) -> str:
    """Import it there, with more directories to look in: the error, or where it was found."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", "import aioblk; print(aioblk.__file__)"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return (done.stdout or done.stderr).splitlines()[-1]


def test_a_checkout_that_was_not_built_says_how_to_build_it(checkout: Path) -> None:
    said = import_in(checkout)
    assert said.startswith(
        f"ImportError: aioblk is not compiled for this interpreter: {checkout}/aioblk/_native"
    )
    assert f"In the checkout {checkout}, './run setup' compiles it" in said
    assert f"PYTHON={sys.executable} ./run setup" in said


def test_one_that_was_built_for_others_names_them(checkout: Path) -> None:
    (checkout / "aioblk/_native/_core.cpython-310-x86_64-linux-gnu.so").touch()
    assert ", only _core.cpython-310-x86_64-linux-gnu.so." in import_in(checkout)


def test_what_it_hides_is_named_and_can_be_imported(checkout: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site-packages"
    installed.mkdir()
    (installed / "aioblk").symlink_to(PACKAGE)
    assert f"It hides the aioblk in {installed}: " in import_in(checkout, installed)
    for found in (import_in(checkout, installed, flags=("-P",)), import_in(tmp_path, installed)):
        assert found == str(installed / "aioblk/__init__.py")


def test_an_installation_without_its_compiled_part_is_to_be_installed_again(checkout: Path) -> None:
    (checkout / "setup.py").unlink()
    said = import_in(checkout)
    assert "pip install --force-reinstall aioblk" in said
    assert "./run" not in said


def test_a_libblkio_that_is_not_found_is_named(checkout: Path) -> None:
    """Here the core asks for one that there is not."""
    core = PACKAGE / f"_native/_core{EXTENSION_SUFFIXES[0]}"
    content = core.read_bytes()
    assert content.count(b"libblkio.so.1\0") == 1
    (checkout / "aioblk/_native" / core.name).write_bytes(
        content.replace(b"libblkio.so.1\0", b"libblkio.so.9\0")
    )
    said = import_in(checkout)
    assert "aioblk needs libblkio, and the dynamic loader does not find it: libblkio.so.9: " in said
    assert f"In the checkout {checkout}, './run setup' gets it." in said
    (checkout / "setup.py").unlink()
    assert "Debian: libblkio1" in import_in(checkout)
