"""What a process holds: descriptors, shared mappings and threads, to compare before and after a test."""

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Holdings:
    descriptors: frozenset[str]
    mappings: frozenset[str]
    threads: frozenset[str]

    @classmethod
    def now(cls) -> Self:
        return cls(
            descriptors=frozenset(_descriptors()),
            mappings=frozenset(_memory_file_mappings()),
            threads=frozenset(
                f"thread {thread.name} ({thread.native_id})" for thread in threading.enumerate()
            ),
        )

    def added_since(self, before: "Holdings") -> list[str]:
        """What is held now and was not before, in words."""
        return sorted(
            (self.descriptors - before.descriptors)
            | (self.mappings - before.mappings)
            | (self.threads - before.threads)
        )


def _descriptors() -> list[str]:
    found: list[str] = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that listed the directory
            found.append(f"descriptor {number} of {Path(f'/proc/self/fd/{number}').readlink()}")
    return found


def _memory_file_mappings() -> list[str]:
    """Mappings of memfds, which is where memory regions live."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [f"mapping {line}" for line in lines if "/memfd:" in line]
