"""What is built of the project: its version, compiled files that know no path, and the source's archive."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import aioblk
import aioblk._native._blkio
import aioblk._native._core

from ..support.scripts import ROOT, run_script

SYSTEM_HAS_LIBBLKIO = subprocess.run(["pkg-config", "--exists", "blkio >= 1.5"], check=False).returncode == 0
"""Otherwise there is the copy that `./run setup` makes."""

COMPILING = 300
"""Seconds, at the most, on a machine that has other things to do as well."""

NAMES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "aioblk")
"""Of what a build needs."""


def setup(source: Path, *arguments: str | Path, **environment: str) -> None:
    """Run setup.py, as builders do."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", *arguments],
        cwd=source,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMPILING,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An archive's content: nothing that was compiled, and no libblkio."""
    target = tmp_path / "unpacked"
    target.mkdir()
    unwanted = shutil.ignore_patterns("*.so*", "__pycache__")
    for name in NAMES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=unwanted)
        else:
            shutil.copy(ROOT / name, target)
    return target


# --- the version --------------------------------------------------------------------------------------------


def test_the_version_is_told_without_an_installation() -> None:
    done = run_script(
        f"""
        import sys
        sys.path[:] = [{str(ROOT)!r}, *(path for path in sys.path if "packages" not in path)]
        import aioblk
        print(aioblk.__version__, "importlib.metadata" in sys.modules)
        """
    )
    assert done.stdout.split() == [aioblk.__version__, "False"]


def test_builds_are_told_the_version_that_the_package_tells() -> None:
    assert importlib.metadata.version("aioblk") == aioblk.__version__


# --- what is compiled ---------------------------------------------------------------------------------------


def test_what_is_installed_knows_no_path_of_the_checkout(source: Path, tmp_path: Path) -> None:
    """It is unpacked elsewhere, and built by a command that was started in the checkout; then all is gone."""
    environment = {"PWD": str(ROOT), "CFLAGS": "-g", "AIOBLK_OPTIMISATION": "-O0"}
    built, scratch = tmp_path / "built", tmp_path / "scratch"
    setup(source, "build", "--build-lib", built, "--build-temp", scratch, **environment)
    shutil.rmtree(source)
    modules = sorted((built / "aioblk/_native").glob("_*.so"))
    assert [module.name.partition(".")[0] for module in modules] == ["_blkio", "_core"]
    for module in modules:
        content = module.read_bytes()
        assert b"submitter.h" in content or b"blkio.h" in content, "what was compiled is not told of at all"
        for path in (source, ROOT, (ROOT / ".libblkio").resolve()):
            assert os.fsencode(path) not in content, f"{module.name} names {path}"
    done = run_script(
        """
        import sys
        sys.path.insert(0, sys.argv[1])
        import aioblk._native._blkio
        print({line.split()[-1] for line in open("/proc/self/maps") if "libblkio.so" in line}.pop())
        """,
        built,
    )
    beside = built / "aioblk/_native/libblkio.so.1"
    assert (done.stdout.strip() == str(beside)) == beside.exists() == (not SYSTEM_HAS_LIBBLKIO)
    licence = beside.with_name("libblkio.copyright")
    assert licence.exists() == beside.exists()
    assert not licence.exists() or "libblkio" in licence.read_text()


def test_a_checkout_can_be_moved_with_its_libblkio() -> None:
    for name in ("_core", "_blkio"):
        compiled = sys.modules[f"aioblk._native.{name}"].__file__
        assert compiled is not None
        content = Path(compiled).read_bytes()
        assert (b"$ORIGIN/../../.libblkio/lib" in content) == (not SYSTEM_HAS_LIBBLKIO)
        assert os.fsencode(ROOT.resolve() / ".libblkio/lib") not in content


def test_without_libblkio_a_build_says_how_to_get_it(source: Path, tmp_path: Path) -> None:
    nothing = {"PWD": str(tmp_path), "PKG_CONFIG_LIBDIR": str(tmp_path), "PKG_CONFIG_PATH": ""}
    with pytest.raises(AssertionError) as caught:
        setup(source, "build", **nothing)
    for remedy in ("apt-get install libblkio-dev", "dnf install libblkio-devel", "./run setup"):
        assert remedy in str(caught.value)
    setup(source, "sdist", "--dist-dir", tmp_path, SOURCE_DATE_EPOCH="0", **nothing)  # it needs none


def test_no_libblkio_is_taken_from_where_a_build_happens_to_be_started(source: Path, tmp_path: Path) -> None:
    (tmp_path / "setup.py").write_text("# of another project")
    (tmp_path / ".libblkio").symlink_to(ROOT / ".libblkio")
    with pytest.raises(AssertionError, match="aioblk is built against libblkio"):
        setup(source, "build_ext", PWD=str(tmp_path), PKG_CONFIG_LIBDIR=str(tmp_path), PKG_CONFIG_PATH="")


# --- the archive of the source ------------------------------------------------------------------------------


def test_the_source_is_archived_in_the_same_bytes_anywhere(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "of somebody else"
    shutil.copytree(source, other)
    for number, path in enumerate(sorted(other.rglob("*"))):
        os.utime(path, (number, number))
        path.chmod(0o755 if path.is_dir() else 0o600)
    (other / "aioblk.egg-info").mkdir()
    (other / "stray.txt").write_text("of an earlier build")
    (other / "aioblk.egg-info/SOURCES.txt").write_text("stray.txt")
    for number, tree in enumerate((source, other)):
        setup(tree, "sdist", "--dist-dir", tmp_path / str(number), SOURCE_DATE_EPOCH="1700000000")
    first, second = (next((tmp_path / str(number)).iterdir()) for number in range(2))
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as archive:
        entries = archive.getmembers()
    (tmp_path / "from it").mkdir()
    subprocess.run(["tar", "--extract", "--file", first, "--directory", tmp_path / "from it"], check=True)
    [unpacked] = (tmp_path / "from it").iterdir()
    setup(unpacked, "sdist", "--dist-dir", tmp_path / "again")  # at the time that its files bear
    assert (tmp_path / "again" / first.name).read_bytes() == first.read_bytes()
    assert {(each.uid, each.gid, each.uname, each.gname, each.mtime) for each in entries} == {
        (0, 0, "", "", 1700000000)
    }
    names = [entry.name.partition("/")[2] for entry in entries]
    assert {"LICENSE", "PKG-INFO", "pyproject.toml", "setup.py", "aioblk/_native/src/rooms.h"} <= set(names)
    assert [name for name in names if name.endswith((".so", ".pyc"))] == []


def test_all_that_is_tracked_is_archived() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    archived = {"MANIFEST.in", "pyproject.toml", "setup.py"}  # by setuptools
    for line in (ROOT / "MANIFEST.in").read_text().splitlines():
        if line.startswith(("graft ", "include ")):
            archived.update(line.split()[1:])
    assert {name.partition("/")[0] for name in tracked} <= archived


@pytest.mark.parametrize(("epoch", "why"), [("yesterday", "yesterday"), ("", "git")], ids=["words", "no git"])
def test_a_source_without_a_time_says_how_to_give_it_one(source: Path, epoch: str, why: str) -> None:
    (source / ".git").write_text("gitdir: nowhere")
    with pytest.raises(AssertionError, match=f"the source has no time: .*{why}.*SOURCE_DATE_EPOCH=SECONDS"):
        setup(source, "sdist", SOURCE_DATE_EPOCH=epoch)
