"""`aioblk serve nbd` as users start it: a process of its own."""

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TIME_LIMIT = 30


def address(driver: str, properties: Sequence[str]) -> str:
    """A device's, of a driver and its PROPERTY=VALUE, the first of which is the path."""
    path, *rest = properties
    return f"{driver}:{path.removeprefix('path=')}" + (f"?{'&'.join(rest)}" if rest else "")


def command(*arguments: str) -> list[str]:
    """That starts a server."""
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *(sys.executable, "-W", "error", "-m", "aioblk", "serve", "nbd", *arguments),
    ]


class NbdServer:
    """A server that is ready to be connected to as soon as it is constructed: at :attr:`uri`, which is at the
    Unix socket :attr:`socket` unless the arguments name a port."""

    def __init__(
        self, driver: str, *arguments: str, name: str = "", environment: Mapping[str, str] | None = None
    ) -> None:
        """Of a driver and its PROPERTY=VALUE, before options; or of arguments alone, as ``--config``."""
        if driver.startswith("-"):
            arguments = driver, *arguments
        else:
            options = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
            device = address(driver, arguments[:options])
            arguments = f"{name}={device}" if name else device, *arguments[options:]
        self._directory = tempfile.TemporaryDirectory(prefix="aioblk-")
        self.socket = Path(self._directory.name) / "nbd.sock"
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._expected: list[str] = []
        self._expected_status = 0
        where = () if {"--port", "--unix", "--config"} & {*arguments} else ("--unix", str(self.socket))
        self._process = subprocess.Popen(
            command(*arguments, *where),
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], TIME_LIMIT)
        self.announcement = self._process.stdout.readline() if ready else ""
        if " at nbd" not in self.announcement:
            self.kill()
            errors = self.errors()
            self._let_go()
            raise RuntimeError(f"the server did not start: {errors}")

    @property
    def uri(self) -> str:
        return self.announcement.split()[-1]

    @property
    def address(self) -> tuple[str, int]:
        """The host and the port, if the arguments name one."""
        host, _, port = self.uri.partition("://")[2].rstrip("/").rpartition(":")
        return host, int(port)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))

    def errors(self) -> str:
        """What it has complained about."""
        self._errors.seek(0)
        return self._errors.read()

    def expect(self, complaint: str, *, status: int = 0) -> None:
        """It is right that the server complains of this, a regular expression, and ends with that status."""
        self._expected.append(complaint)
        self._expected_status = max(status, self._expected_status)

    def complaints(self, complaint: str) -> list[str]:
        """The lines in which the server complains of something, a regular expression."""
        return [line for line in self.errors().splitlines() if re.search(complaint, line)]

    def end(self) -> None:
        """Ask it to end."""
        self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Its status, once it has ended."""
        return self._process.wait(TIME_LIMIT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it, and see that it ends well and has had nothing to complain about but what was expected."""
        try:
            if self.alive:
                self.end()
            status = self.wait()
            wanted = self._expected_status
            assert status == wanted, f"the server ended with status {status}: {self.errors()}"
            for complaint in self._expected:
                assert self.complaints(complaint), f"nothing was said of {complaint!r}: {self.errors()}"
            expected = "|".join(self._expected)
            unexpected = [
                line for line in self.errors().splitlines() if not (expected and re.search(expected, line))
            ]
            assert not unexpected, unexpected
            assert not self.socket.exists()
        finally:
            self.kill()
            self._let_go()

    def _let_go(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
