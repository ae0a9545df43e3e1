"""The order of it all, and the table at the end."""

import argparse
import hashlib
import os
import runpy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from .checks import check_files, check_wheel
from .source import make_source, unpack
from .steps import Log, Steps, alone_in
from .systems import SYSTEMS, System, available, run_on
from .wheels import find_interpreters, make_wheel, make_wheel_on, version_of

PROJECT = Path(__file__).parents[1]
WORK = PROJECT / "build/release"
PUBLISHING = """\
Nothing is published from here. A release is published by hand, by who may:
    - VERSION in aioblk/_version.py has no .dev, and './run release --dry-run' says ok throughout,
    - './run news' has become the changelog of it: docs/releases.md says how,
    - the commit is tagged v{version}, and the tag signed,
    - 'twine upload build/release/files/*' has a token of the index, by TWINE_PASSWORD or a keyring.
To see what would be published: ./run release --dry-run"""


def main() -> int:
    options = _options()
    version: str = runpy.run_path(str(PROJECT / "aioblk/_version.py"))["VERSION"]
    if not options.dry_run:
        print(PUBLISHING.format(version=version), file=sys.stderr)
        return 1
    with alone_in(WORK, "release"):
        return _dry_run(version, options)


def _dry_run(version: str, options: argparse.Namespace) -> int:
    shutil.rmtree(WORK, ignore_errors=True)
    files = WORK / "files"
    files.mkdir(parents=True)
    libblkio = PROJECT / ".libblkio"
    steps, release = Steps(WORK / "logs"), Release(version, files, libblkio if libblkio.is_dir() else None)
    print(f"release: aioblk {version}, of {_git('log', '-1', '--format=%h %s')}", file=sys.stderr)
    if _git("status", "--porcelain"):
        print("release: what is not committed is no part of it", file=sys.stderr)
    if steps.take("source", release.make_source):
        interpreters = {version_of(path) or "": path for path in options.python}
        if "" in interpreters:
            print(f"release: no wheel can be made with {interpreters['']}", file=sys.stderr)
            return 2
        release.make_and_try(steps, interpreters or find_interpreters(PROJECT), options.system)
    print(steps.table())
    print(f"\nWould be published as aioblk {version}, from {files.relative_to(PROJECT)}:")
    for file in sorted(files.iterdir()):
        print(f"    sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}")
    if ".dev" in version:
        print(f"    but {version} is no release: VERSION in aioblk/_version.py says which it will be")
    if steps.failed:
        print("\nrelease: not fit to be published: see above what FAILED", file=sys.stderr)
    return int(steps.failed)


INSTALL = """
apt-get update -q && apt-get install -yq --no-install-recommends {packages}
python3 -m venv venv && venv/bin/pip install ./{source}
venv/bin/python quickstart.py
dpkg-query -W libblkio-dev
"""


class Release:
    """The files of it."""

    def __init__(self, version: str, files: Path, libblkio: Path | None) -> None:
        self.version = version
        self.files = files
        self.libblkio = libblkio

    @property
    def source(self) -> Path:
        return next(self.files.glob("*.tar.gz"))

    def make_source(self, log: Log) -> str:
        archive = make_source(PROJECT, WORK / "source", self.files, log)
        return f"{archive.name}, twice the same bytes, all that is tracked"

    def make_and_try(self, steps: Steps, interpreters: dict[str, Path], systems: list[System]) -> None:
        """What this machine has no interpreter for is made on the system that has, and what no system has is
        tried on this machine."""
        why_not = {system: available(system) for system in systems}
        wheels: dict[str, Path] = {}
        for version, path in sorted(interpreters.items()):
            self._take_wheel(steps, wheels, version, path)
        for system in systems:
            if system.python not in wheels and not why_not[system] and system.python not in interpreters:
                self._take_wheel(steps, wheels, system.python, system)
        files = [self.source, *wheels.values()]
        steps.take("checks", partial(check_files, files))
        tried: set[str] = set()
        for system in systems:
            if system.builds and not why_not[system]:
                steps.take(f"source on {system.suite}", partial(self._build_on, system))
            name = f"tests on {system.suite}"
            if why := why_not[system]:
                steps.leave_out(name, f"{system.name}: {why}")
            elif system.python not in wheels:
                steps.leave_out(name, f"{system.name}: there is no wheel for its Python {system.python}")
            else:
                tried.add(system.python)
                steps.take(
                    f"newcomer on {system.suite}", partial(self._follow, system, wheels[system.python])
                )
                steps.take(name, partial(self._try, system, wheels[system.python]))
        for version in sorted(wheels.keys() & interpreters.keys() - tried):
            steps.take(
                f"tests with {version}", partial(self._try_here, interpreters[version], wheels[version])
            )

    def _take_wheel(self, steps: Steps, wheels: dict[str, Path], version: str, by: Path | System) -> None:
        def make(log: Log) -> str:
            scratch = WORK / f"wheel-{version}"
            if isinstance(by, Path):
                wheel = make_wheel(self.source, by, self.libblkio, scratch, self.files, log)
            else:
                wheel = make_wheel_on(by, self.source, self.libblkio, scratch, self.files, log)
            told = check_wheel(wheel, self.version, [str(PROJECT), str(Path.home()), str(PROJECT.resolve())])
            wheels[version] = wheel
            return f"{told}, made on {'this machine' if isinstance(by, Path) else by.name}"

        steps.take(f"wheel {version}", make)

    def _build_on(self, system: System, log: Log) -> str:
        """As its users do, where the system has libblkio."""
        scratch = WORK / "trial"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        shutil.copy(PROJECT / "examples/quickstart.py", scratch)
        shutil.copy(self.source, scratch)
        script = INSTALL.format(packages=system.builds, source=self.source.name)
        run_on(system, scratch, "sh", "-ec", script, log=log, what="could not be installed from its source")
        return f"{system.name}: compiled with {log.last_line()}"

    def _follow(self, system: System, wheel: Path, log: Log) -> str:
        """What the pages say, as somebody who has them and the wheel."""
        scratch = WORK / "trial"
        shutil.rmtree(scratch, ignore_errors=True)
        root = unpack(self.source, scratch)
        way = scratch / "way"
        (way / "dist").mkdir(parents=True)
        shutil.copytree(root / "docs", way / "docs")
        shutil.copy(root / "release/newcomer.py", way)
        shutil.copy(wheel, way / "dist")
        run_on(system, way, "python3", "newcomer.py", log=log, what="the pages do not lead through")
        return f"{system.name}: {log.last_line()}"

    def _try(self, system: System, wheel: Path, log: Log) -> str:
        """The wheel's own tests, on a system that has nothing else of the project."""
        root = self._tests_beside(wheel)
        run_on(system, root, "./run", "test-wheel", wheel.name, log=log, what="its tests")
        return f"{system.name}: {log.last_line()}"

    def _try_here(self, interpreter: Path, wheel: Path, log: Log) -> str:
        root = self._tests_beside(wheel)
        environment = {**os.environ, "PYTHON": str(interpreter)}
        log.run("./run", "test-wheel", wheel.name, cwd=root, environment=environment, what="its tests")
        return f"this machine: {log.last_line()}"

    def _tests_beside(self, wheel: Path) -> Path:
        """The source without the package itself."""
        scratch = WORK / "trial"
        shutil.rmtree(scratch, ignore_errors=True)
        root = unpack(self.source, scratch)
        shutil.rmtree(root / "aioblk")
        shutil.copy(wheel, root)
        return root


def _options() -> argparse.Namespace:
    by_suite = {system.suite: system for system in SYSTEMS}
    parser = argparse.ArgumentParser("./run release", description="Build and try what a release consists of.")
    parser.add_argument("--dry-run", action="store_true", help="do all but publish it; nothing else is done")
    parser.add_argument(
        "--python", type=Path, action="append", default=[], metavar="PATH",
        help="make wheels with this interpreter (default: with each that this machine has)",
    )  # fmt: skip
    parser.add_argument(
        "--system", choices=by_suite, action="append", metavar="SUITE",
        help=f"try them on this system only: {', '.join(by_suite)} (default: on each)",
    )  # fmt: skip
    parser.add_argument("--no-systems", action="store_true", help="try them on this machine only")
    options = parser.parse_args()
    wanted = [] if options.no_systems else options.system or by_suite
    options.system = [by_suite[suite] for suite in by_suite if suite in wanted]
    return options


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=PROJECT, check=False, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"release: a release is made of a commit, and git says: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
