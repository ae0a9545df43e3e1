"""What a process holds (descriptors, mapped memory, threads), to compare before and after a test."""

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from aioblk._sync.threads import dismiss

PATIENCE = 5  # seconds for a thread that has done its work to be gone


@dataclass(frozen=True)
class Holdings:
    descriptors: frozenset[str]
    mappings: frozenset[str]
    threads: frozenset[threading.Thread]

    @classmethod
    def now(cls) -> Self:
        return cls(
            threads=frozenset(threading.enumerate()),
            descriptors=frozenset(_descriptors()),
            mappings=frozenset(_memory_file_mappings()),
        )

    def added_since(self, before: "Holdings") -> list[str]:
        """What is held now and was not before, in words."""
        threads = {f"thread {thread.name}" for thread in self.threads - before.threads}
        return sorted((self.descriptors - before.descriptors) | (self.mappings - before.mappings) | threads)


def join_threads(before: Holdings) -> None:
    """Let the threads come to their end that have been started since."""
    dismiss()
    for thread in frozenset(threading.enumerate()) - before.threads:
        thread.join(PATIENCE)


# Each test asks twice: no objects are made of what is not looked at.


def _descriptors() -> list[str]:
    found: list[str] = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that listed the directory
            found.append(f"descriptor {number} of {os.readlink(f'/proc/self/fd/{number}')}")
    return found


def _memory_file_mappings() -> list[str]:
    """Mappings of memfds, which is where memory regions live."""
    with open("/proc/self/maps", "rb") as maps:
        content = maps.read()
    if b"/memfd:" not in content:
        return []
    return [f"mapping {line}" for line in os.fsdecode(content).splitlines() if "/memfd:" in line]
