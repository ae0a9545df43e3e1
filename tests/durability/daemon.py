"""A storage daemon that logs what reaches its disk, in a log for each of its processes."""

from collections.abc import Callable
from pathlib import Path

from aioblk.testing.storage_daemon import StorageDaemon

from .write_log import Entry, entries

__all__ = ["LoggedDaemon"]


class LoggedDaemon(StorageDaemon):
    """The next process gets the next log. QEMU can append to one (``log-append``), but it takes the last
    flush for the end of what a process has logged that was killed."""

    def __init__(self, directory: Path, size: int) -> None:
        self.next_node: Callable[[dict[str, object]], dict[str, object]] = lambda node: node
        """What the next process has over that node."""
        self._place = directory
        self._logs: list[Path] = []
        with (directory / "disk.img").open("wb") as file:
            file.truncate(size)
        super().__init__(self._node())

    def _node(self) -> dict[str, object]:
        log = self._place / f"log.{len(self._logs)}"
        log.touch()
        self._logs.append(log)
        disk = {"driver": "file", "filename": str(self._place / "disk.img"), "discard": "unmap"}
        return {
            "driver": "blklogwrites",
            "discard": "unmap",
            "file": disk,
            "log": {"driver": "file", "filename": str(log)},
        }

    def restart(self, **export: object) -> None:
        self.kill()
        self._blockdev = self.next_node(self._node())
        super().restart(**export)

    def position(self) -> tuple[int, int]:
        """How far the log has come: what was answered before is before it."""
        return len(self._logs), self._logs[-1].stat().st_size

    def logged(self, *, stamped: bool = False) -> list[tuple[tuple[int, int], Entry]]:
        """All that reached the disk, with the position at the end of each. *stamped*: what is of an even
        number of sectors is of zeroes."""
        return [
            ((number, entry.end), entry)
            for number, log in enumerate(self._logs, 1)
            for entry in entries(log.read_bytes(), lambda count: stamped and count % 2 == 0)
        ]
