"""Debian's source packages, of the release that this is, with package lists of their own."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

BUILD = Path("build/interop").absolute()
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
RELEASES = ("bookworm", "trixie")


def fetch(package: str, *wanted: str) -> Path:
    """The directory of a package's files, or of those of its files that are wanted, as patterns.

    What this release's mirror does not have is looked for in the others'.
    """
    present = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    for release in (present, *(each for each in RELEASES if each != present)):
        place = BUILD / release / package
        complete = place / "complete"
        if complete.exists() and complete.read_text() == " ".join(wanted):
            return place / "files"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if release in RELEASES and _download(package, release, place):
            [archive] = place.glob("*.orig.tar.*[z2]")
            (place / "files").mkdir()
            patterns = ["--wildcards", *wanted] if wanted else []
            subprocess.run(
                ["tar", "-xf", archive, "-C", place / "files", "--strip-components=1", *patterns], check=True
            )
            complete.write_text(" ".join(wanted))
            return place / "files"
    raise SystemExit(f"run: no mirror of Debian that apt is set up with has the source of {package}")


def _download(package: str, release: str, place: Path) -> bool:
    home = BUILD / "apt"
    for directory in ("lists/partial", "cache/archives/partial"):
        (home / directory).mkdir(parents=True, exist_ok=True)
    configuration = home / "apt.conf"
    if not configuration.exists():
        lines = (f"deb-src [signed-by={KEYRING}] {_mirror()} {each} main\n" for each in RELEASES)
        (home / "sources.list").write_text("".join(lines))
        configuration.write_text(
            f'Dir::Etc::SourceList "{home}/sources.list";\nDir::Etc::SourceParts "/dev/null";\n'
            f'Dir::State::Lists "{home}/lists";\nDir::Cache "{home}/cache";\nAcquire::Languages "none";\n'
        )
        _apt("update", cwd=home)
    return _apt("source", "--download-only", "--only-source", f"{package}/{release}", cwd=place)


def _apt(*arguments: str, cwd: Path) -> bool:
    done = subprocess.run(
        ["apt-get", "-o", "APT::Sandbox::User=root", *arguments],
        cwd=cwd,
        env={**os.environ, "APT_CONFIG": str(BUILD / "apt/apt.conf")},
        capture_output=True,
    )
    return done.returncode == 0


def _mirror() -> str:
    """DEBIAN_MIRROR, or the one that apt is set up with."""
    told = subprocess.run(["release/mirror"], capture_output=True, text=True, check=False)
    if told.returncode:
        raise SystemExit(f"run: {told.stderr.strip()}")
    return told.stdout.strip()
