"""Daemons that are known by files with their process ids, so that a test ends what its runner has started."""

import os
import select
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

TIME_LIMIT = 60.0  # seconds for whatever should take one


class Processes:
    """Those of one folder. Each is in a session of its own, since Ctrl-C is for whoever started them, who
    ends them in order; and each dies with whoever started it, unless it is to *stay*."""

    def __init__(self, folder: Path, *, stay: bool = False) -> None:
        self._folder = folder
        self._stay = stay
        self._ours: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start it; what it says goes to NAME.out of the folder, where the one before is forgotten."""
        tied = () if self._stay else ("setpriv", "--pdeathsig", "KILL")
        with (self._folder / f"{name}.out").open("wb") as output:
            process = subprocess.Popen(
                [*tied, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._ours[name] = process
        self._file(name).write_text(f"{process.pid}\n")

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, whoever has started it; return when it is gone."""
        try:
            pid = int(self._file(name).read_text())
            descriptor = os.pidfd_open(pid)
        except (FileNotFoundError, ProcessLookupError):
            return
        try:
            signal.pidfd_send_signal(descriptor, how)
            signal.pidfd_send_signal(descriptor, signal.SIGCONT)  # one that is paused ends when it goes on
            if not select.select([descriptor], [], [], TIME_LIMIT)[0]:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                select.select([descriptor], [], [], TIME_LIMIT)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)
        self._file(name).unlink()
        if (ours := self._ours.pop(name, None)) is not None:
            ours.wait()

    def pause(self, name: str) -> None:
        """It does nothing from now on, and keeps its connections."""
        os.kill(int(self._file(name).read_text()), signal.SIGSTOP)

    def resume(self, name: str) -> None:
        os.kill(int(self._file(name).read_text()), signal.SIGCONT)

    def is_running(self, name: str) -> bool:
        if (ours := self._ours.get(name)) is not None:
            return ours.poll() is None
        try:
            os.kill(int(self._file(name).read_text()), 0)
        except (FileNotFoundError, ProcessLookupError):
            return False
        return True

    def said(self, name: str) -> str:
        """The end of what it has put out."""
        return (self._folder / f"{name}.out").read_text(errors="replace")[-4000:]

    def stop_all(self) -> None:
        """In the reverse order of their starting."""
        files = sorted(self._folder.glob("*.process"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        for file in files:
            self.stop(file.stem)

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.process"
