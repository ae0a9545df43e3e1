"""How a release is made: what its files are held to, what steps that fail come to, what is said of it."""

import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from release.checks import check_wheel, glibc_of
from release.matrix import ROWS, oldest_dependencies
from release.steps import Log, StepError, Steps
from release.systems import SYSTEMS
from release.wheels import version_of

from ..support.scripts import ROOT

NAME = "aioblk-1.2-cp313-cp313-manylinux_2_34_x86_64.whl"
CONTENT = {
    "aioblk/_native/_core.cpython-313.so": b"code",
    "aioblk.libs/libblkio-1234.so.1.5.0": b"code",
    "aioblk-1.2.dist-info/licenses/LICENSE": b"MIT",
    "aioblk-1.2.dist-info/licenses/LICENSE.libblkio": b"MIT",
}


def _wheel(directory: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(directory / NAME, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return directory / NAME


def test_nothing_is_published_and_what_it_takes_is_said() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "release"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Nothing is published from here" in done.stderr
    assert "./run release --dry-run" in done.stderr


def test_a_wheel_is_told_by_what_it_runs_with(tmp_path: Path) -> None:
    assert check_wheel(_wheel(tmp_path, CONTENT), "1.2", ["/home/me"]).startswith("glibc 2.34 or later")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"aioblk/_native/_core.cpython-313.so": b"at /home/me/aioblk"},
            "names /home/me, a path of this machine",
        ),
        ({"aioblk-1.2.dist-info/licenses/LICENSE.libblkio": None}, "has no LICENSE.libblkio"),
        ({"aioblk.libs/libblkio-1234.so.1.5.0": None}, "has no libblkio"),
    ],
    ids=["path", "licence", "library"],
)
def test_a_wheel_that_would_not_do_is_refused(
    tmp_path: Path, change: dict[str, bytes | None], why: str
) -> None:
    content = {name: data for name, data in (CONTENT | change).items() if data is not None}
    with pytest.raises(StepError, match=why):
        check_wheel(_wheel(tmp_path, content), "1.2", ["/home/me"])


def test_a_wheel_of_another_version_or_for_one_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"it is 1\.2, not 1\.3"):
        check_wheel(_wheel(tmp_path, CONTENT), "1.3", [])
    with pytest.raises(StepError, match="for no Linux but that it was made on"):
        glibc_of(Path("aioblk-1.2-cp313-cp313-linux_x86_64.whl"))


def test_a_step_that_fails_shows_its_log_and_the_others_are_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(log: Log) -> str:
        log.run("sh", "-c", "echo said before; exit 3", what="could not do it")
        return "never"

    def succeeds(log: Log) -> str:
        log.run("echo", "12 passed", what="echo")
        return log.last_line()

    steps = Steps(tmp_path)
    assert (steps.take("first", fails), steps.take("second", succeeds)) == (False, True)
    steps.leave_out("third", "needs root")
    assert steps.failed
    assert "    said before\n" in capsys.readouterr().err
    head, first, second, third = (line.split() for line in steps.table().splitlines())
    assert (head, third) == (["step", "seconds"], ["third", "not", "done", "needs", "root"])
    assert first[:2] == ["first", "FAILED"]
    assert f"could not do it: status 3; {tmp_path}/first.log" in steps.table()
    assert (second[:2], second[3:]) == (["second", "ok"], ["12", "passed"])


RUN = """
import sys
from pathlib import Path
from release.steps import Log, alone_in

work, told = map(Path, sys.argv[1:])
with alone_in(work, "try"):
    Log(work.with_suffix(".log")).run("sh", "-c", "echo $$ >$0; exec sleep 60", told, what="sleep")
"""


def test_nobody_works_where_a_run_is_and_who_is_ended_ends_what_he_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, f"{tmp_path}/work", f"{tmp_path}/told"]
    os.mkfifo(tmp_path / "told")
    with subprocess.Popen(command, cwd=ROOT) as first:
        child = int((tmp_path / "told").read_text())
        second = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
        first.terminate()
    assert (second.returncode, second.stderr) == (1, "try: another run is at work in this checkout\n")
    assert first.returncode == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_environments_are_no_interpreters_that_wheels_are_made_with(tmp_path: Path) -> None:
    if sys.prefix != sys.base_prefix:
        assert version_of(Path(sys.executable)) is None
    assert version_of(tmp_path / "python3.11") is None


def test_each_system_is_for_another_python_and_told_of() -> None:
    pythons = [tuple(map(int, system.python.split("."))) for system in SYSTEMS]
    assert pythons == sorted(set(pythons))
    page = (ROOT / "docs/releases.md").read_text()
    for system in SYSTEMS:
        assert f"| {system.name} (`{system.suite}`) | {system.python} |" in page


APT = """\
#!/bin/sh
# Tells of the archive whose lists it has, and of another one.
case "$*" in
*--no-release-info*) sed 's/.* //' ;;
*) cat ;;
esac <<'TARGETS'
%s
TARGETS
"""


@pytest.mark.parametrize(
    ("targets", "mirror"),
    [
        ("Debian-Security http://a/debian-security/\nDebian http://a/packages/\nDebian http://b/debian/", "http://a/packages"),
        ("Other http://a/cloud-bookworm\n$(ORIGIN) http://a/debian-security/\n$(ORIGIN) http://a/debian/", "http://a/debian"),
        ("Ubuntu http://a/ubuntu/", None),
    ],
    ids=["by origin", "by address", "none"],
)  # fmt: skip
def test_the_mirror_of_debian_is_found_before_and_after_apt_has_its_lists(
    tmp_path: Path, targets: str, mirror: str | None
) -> None:
    (tmp_path / "apt-get").write_text(APT % targets)
    (tmp_path / "apt-get").chmod(0o755)

    def ask(**named: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **named}
        return subprocess.run(
            [ROOT / "release/mirror"], env=environment, capture_output=True, text=True, check=False
        )

    asked = ask()
    if mirror:
        assert (asked.stdout, asked.stderr) == (f"{mirror}\n", "")
    else:
        assert asked.returncode == 1
        assert "name one: DEBIAN_MIRROR=URL" in asked.stderr
    assert ask(DEBIAN_MIRROR="http://c/debian/").stdout == "http://c/debian\n"


def test_the_oldest_dependencies_are_those_that_the_project_names() -> None:
    oldest = oldest_dependencies()
    assert "anyio==4.14" in oldest
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", each) for each in oldest)


def test_every_cpython_that_is_named_has_a_row() -> None:
    names = {row.name for row in ROWS}
    assert names == {*(system.suite for system in SYSTEMS), "3.14t", "oldest"}


def test_what_is_no_row_is_refused_with_those_that_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "release.matrix", "jessie"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "there is no row 'jessie'; there are bookworm, " in done.stderr
