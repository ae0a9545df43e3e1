"""Runs ``python -m aioblk`` in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 60 if "TSAN_OPTIONS" not in os.environ else 1200  # seconds


def aioblk(
    *arguments: str | Path, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """What a user sees who has typed ``aioblk`` and *arguments*, however it ends."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, **variables(), **(environment or {})},
    )


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "aioblk", *map(str, arguments)]


def variables() -> dict[str, str]:
    """The environment in which the package is found, and a terminal's width is known."""
    path = os.pathsep.join([str(ROOT), *(path for path in sys.path if path)])
    return {"PYTHONPATH": path, "COLUMNS": "100", "TERM": "dumb"}
