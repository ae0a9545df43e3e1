"""The archive of the source: made twice, from clones of the commit; nothing that is not tracked is in it."""

import subprocess
import sys
import tarfile
from pathlib import Path

from .steps import Log, StepError

__all__ = ["make_source", "unpack"]

MADE = ("PKG-INFO", "setup.cfg", "aioblk.egg-info/")
"""What setuptools adds."""


def make_source(project: Path, scratch: Path, target: Path, log: Log) -> Path:
    """The archive, in *target*."""
    archives: list[Path] = []
    for number in (1, 2):
        clone, out = scratch / f"clone {number}", scratch / f"source-{number}"
        log.run("git", "clone", "-q", project, clone, what="could not clone the commit")
        # What is archived must not depend on who does it.
        umask = ("sh", "-c", f'umask {(0o22, 0o77)[number - 1]:03o}; exec "$@"', "sh")
        log.run(
            *umask, sys.executable, "-m", "build", "--sdist", "--outdir", out, clone,
            what="could not archive the source",
        )  # fmt: skip
        archives.extend(out.glob("*.tar.gz"))
    first, second = archives
    if first.read_bytes() != second.read_bytes():
        raise StepError(f"the source gave different bytes twice: compare {first} and {second}")
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=scratch / "clone 1", check=True, text=True, capture_output=True
    ).stdout.split("\0")
    with tarfile.open(first) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    strange = {name for name in packed - set(tracked) if not name.startswith(MADE)}
    missing = {name for name in tracked if name} - packed
    if strange or missing:
        raise StepError(f"MANIFEST.in: not tracked {sorted(strange)}, missing {sorted(missing)}")
    target.mkdir(parents=True, exist_ok=True)
    return first.rename(target / first.name)


def unpack(source: Path, target: Path) -> Path:
    """The root of what is in the archive."""
    target.mkdir(parents=True)
    with tarfile.open(source) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.2 has none
        archive.extractall(target)
    [root] = target.iterdir()
    return root
