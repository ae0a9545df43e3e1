"""Where the suite finds things and puts things."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "benchmarks"
"""Scratch files and compiled tools; not kept in version control."""
RESULTS = ROOT / "benchmarks" / "results"
"""Published runs: the JSON and pictures that RESULTS.md shows."""
PRIVATE_LIBBLKIO = ROOT / ".libblkio"
PEERS = ROOT / ".venv-peers"
"""The environment of other libraries, so that they and aioblk cannot get into each other's way."""
