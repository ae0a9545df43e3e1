"""Builds the two extension modules against libblkio, and archives the source; the rest is in pyproject.toml.

What is installed knows no path of the checkout that it was built in. Where the system has no libblkio, the
copy that `./run setup` made is put beside the extension modules; a checkout that is used as it stands finds
it where it lies.
"""

import gzip
import io
import os
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent.absolute()
NATIVE = Path("aioblk/_native")
LIBBLKIO = "blkio >= 1.5"  # 1.4 has all of the calls as well, but nobody has tried it
LIBRARY = "libblkio.so.1"  # as extension modules ask for it

# Across the core's files, which call each other for every request. One takes 5 to 8 % fewer instructions than
# with -O2 and calls by way of a table (`./run bench instructions`). `./run coverage` wants none of it.
OPTIMISATION = shlex.split(os.environ.get("AIOBLK_OPTIMISATION", "-O3 -flto=auto -fno-plt"))

LIBBLKIO_NOT_FOUND = f"""
aioblk is built against libblkio, and 'pkg-config --exists "{LIBBLKIO}"' fails. To have both:
    apt-get install libblkio-dev pkg-config           Debian 13, Ubuntu 25.04 and later
    dnf install libblkio-devel pkgconf-pkg-config     Fedora, RHEL 9 and later
    ./run setup                                       in a checkout of aioblk, there and on Debian 12;
                                                      builds that are started in that directory find it
"""

# --- libblkio -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Libblkio:
    """What compilers and linkers are told of it."""

    cflags: list[str]
    libs: list[str]


@dataclass(frozen=True)
class PrivateLibblkio(Libblkio):
    """A copy that `./run setup` made."""

    root: Path
    """Like /usr for the system's."""
    directory: Path
    """Where the library is."""

    @property
    def licence(self) -> Path:
        return self.root / "share/doc/libblkio1/copyright"


def pkg_config(*arguments: str, path: Path | None = None) -> list[str] | None:
    """What pkg-config prints, as words; None when it fails or is not there. *path* is searched first."""
    environment = dict(os.environ)
    if path:
        environment["PKG_CONFIG_PATH"] = f"{path}:{environment.get('PKG_CONFIG_PATH', '')}"
    command = ["pkg-config", *arguments]
    try:
        done = subprocess.run(command, check=True, text=True, capture_output=True, env=environment)
    except (OSError, subprocess.CalledProcessError):
        return None
    return shlex.split(done.stdout)


def checkouts() -> Iterator[Path]:
    """Where `./run setup` may have left a copy: here and, since builders unpack sources elsewhere, in the
    checkout of the same sources in which the build was started. There it must be the builder's own: nobody
    expects to be given a library by whatever directory a command is started in."""
    yield HERE
    started_in = Path(os.environ.get("PWD", "."))
    try:
        same = (started_in / "setup.py").read_bytes() == Path(__file__).read_bytes()
        if same and (started_in / ".libblkio").stat().st_uid == os.geteuid():
            yield started_in
    except OSError:
        pass  # somewhere else


def find_libblkio() -> Libblkio:
    """The system's or, failing that, a private copy."""
    if pkg_config("--exists", LIBBLKIO) is not None:
        return Libblkio(pkg_config("--cflags", "blkio") or [], pkg_config("--libs", "blkio") or [])
    for checkout in checkouts():
        root = checkout / ".libblkio"
        for description in root.glob("lib/**/blkio.pc"):
            if pkg_config("--exists", LIBBLKIO, path=description.parent) is not None:
                # Its directories may be those of another place, where it was unpacked: checkouts are moved.
                directory = description.parent.parent
                return PrivateLibblkio(
                    [f"-I{root}/include"], [f"-L{directory}", "-lblkio"], root=root, directory=directory
                )
    raise SystemExit(LIBBLKIO_NOT_FOUND)


# --- what is built ------------------------------------------------------------------------------------------


class BuildPython(build_py):
    """Begins with an empty directory: what an earlier build has left there would be packed as well."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildExtensions(build_ext):
    """Links with libblkio, and takes a private copy along."""

    def run(self) -> None:
        libblkio = find_libblkio()
        to_be_moved = not self.inplace
        compiler, linker = libblkio.cflags, libblkio.libs
        if isinstance(libblkio, PrivateLibblkio):
            linker = [*linker, f"-Wl,-rpath,$ORIGIN/{'' if to_be_moved else way_to(libblkio.directory)}"]
        if to_be_moved:
            paths = [f"-ffile-prefix-map={HERE}=."]
            if isinstance(libblkio, PrivateLibblkio):
                paths.insert(0, f"-ffile-prefix-map={libblkio.root}=libblkio")
            compiler, linker = [*compiler, *paths], [*linker, *paths]  # the linker compiles, too
        for extension in self.extensions:
            extension.extra_compile_args += compiler
            extension.extra_link_args += linker
        super().run()
        if to_be_moved and isinstance(libblkio, PrivateLibblkio):
            package = Path(self.build_lib, NATIVE)
            shutil.copyfile(libblkio.directory / LIBRARY, package / LIBRARY)
            # Whoever passes on a copy passes on its licence too.
            shutil.copyfile(libblkio.licence, package / "libblkio.copyright")


def way_to(directory: Path) -> str:
    """From the extension modules of this checkout; so that it can be moved."""
    return os.path.relpath(directory, HERE / NATIVE)


class ArchiveSource(sdist):
    """Gives the same bytes for a commit, whenever and wherever it is run, under any umask and user."""

    def run(self) -> None:
        for remembered in HERE.glob("*.egg-info/SOURCES.txt"):
            remembered.unlink()  # what it names would be packed, whether or not it is meant to be
        super().run()

    def make_distribution(self) -> None:
        super().make_distribution()
        for archive in map(Path, self.archive_files):
            archive.write_bytes(in_order(archive.read_bytes(), time_of_source()))


def in_order(archive: bytes, time: int) -> bytes:
    """The files of a .tar.gz by their names, of nobody in particular, and of that time."""
    ordered = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive)) as source,
        gzip.GzipFile(filename="", mode="wb", fileobj=ordered, mtime=time) as packed,
        tarfile.open(fileobj=packed, mode="w") as target,
    ):
        for found in sorted(filter(tarfile.TarInfo.isfile, source), key=lambda entry: entry.name):
            entry = tarfile.TarInfo(found.name)
            entry.size, entry.mtime = found.size, time
            entry.mode = 0o755 if found.mode & 0o100 else 0o644
            target.addfile(entry, source.extractfile(found))
    return ordered.getvalue()


def time_of_source() -> int:
    """SOURCE_DATE_EPOCH, or that of the commit; of what was unpacked, the time that all of it bears."""
    try:
        if said := os.environ.get("SOURCE_DATE_EPOCH"):
            return int(said)
        if (HERE / ".git").exists():
            asked = ["git", "log", "-1", "--format=%ct"]
            return int(subprocess.run(asked, check=True, cwd=HERE, text=True, stdout=subprocess.PIPE).stdout)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"the source has no time: {error}. SOURCE_DATE_EPOCH=SECONDS says which, since 1970"
        ) from None
    return int((HERE / "setup.py").stat().st_mtime)


core = Extension(
    "aioblk._native._core",
    sources=sorted(map(str, NATIVE.glob("src/*.c"))),
    depends=sorted(map(str, NATIVE.glob("src/*.h"))),
    extra_compile_args=[*OPTIMISATION, "-fvisibility=hidden", "-std=gnu11", "-Wall", "-Wextra"],
    extra_link_args=[*OPTIMISATION],
)
setup(
    ext_modules=[core],
    cffi_modules=[str(NATIVE / "_build.py:ffi")],
    cmdclass={"build_py": BuildPython, "build_ext": BuildExtensions, "sdist": ArchiveSource},
)
