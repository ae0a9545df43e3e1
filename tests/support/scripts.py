"""Scripts that run in an interpreter of their own, for what may crash it, hang it or end it."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 60 if "TSAN_OPTIONS" not in os.environ else 1200  # seconds

STRICT = {"PYTHONMALLOC": "debug"}
"""Memory that has been freed is filled with a pattern: who goes on using it crashes."""


def run_script(
    script: str, *arguments: str | Path, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run *script*, which must end by itself, and with status 0."""
    return _run(["-c", textwrap.dedent(script), *arguments], environment)


def run_module(
    name: str, *arguments: str | Path, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """The same for a module of the tests."""
    return _run(["-m", name, *arguments], environment)


def _run(command: list[str | Path], environment: dict[str, str] | None) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "default", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
    )
    assert done.returncode == 0, done.stderr
    return done
