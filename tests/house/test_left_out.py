"""Where programs are missing the tests that need them are left out, and no others."""

import os
import subprocess
import sys
from pathlib import Path

from ..support.scripts import ROOT

CONFTEST = """
from tests.support.left_out import LeftOut

def pytest_configure(config):
    config.pluginmanager.register(LeftOut())
"""
TESTS = """
import subprocess, pytest

def test_needs_it(): subprocess.run(["no-such-program"])
def test_needs_it_in_a_group():
    try:
        subprocess.run(["/usr/bin/no-such-program"])
    except OSError as error:
        raise ExceptionGroup("several", [ValueError(), error])
def test_needs_what_is_not_known_to_be_missing(): subprocess.run(["another-program"])
def test_fails_by_itself(): assert not "no-such-program"
def test_passes(): pass

@pytest.fixture
def daemon(): pytest.fail("no-such-program is missing; install it")

def test_needs_a_fixture(daemon): pass
"""


def test_only_what_needs_a_missing_program_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_them.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "test_them.py"],
        cwd=tmp_path,
        env={**os.environ, "AIOBLK_TESTS_WITHOUT": "no-such-program", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no-such-program: 3 tests were left out" in done.stdout
    assert "2 failed, 1 passed, 3 skipped" in done.stdout
    assert done.returncode == 1
