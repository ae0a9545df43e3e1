"""A real vhost-user device: qemu-storage-daemon with a vhost-user-blk export."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["StorageDaemon"]

NODE = "disk"


class StorageDaemon:
    """One daemon with one export, ready to be connected to at :attr:`socket` as soon as it is constructed.

    *blockdev* describes the exported node as QEMU's ``--blockdev`` does; *options* come before it, as for
    what it refers to. The daemon dies with the process that started it, however that ends.
    """

    def __init__(
        self,
        blockdev: Mapping[str, object],
        *,
        num_queues: int = 1,
        writable: bool = True,
        block_size: int = 512,
        options: Sequence[str] = (),
    ) -> None:
        # A socket's path has room for 107 bytes only, which the directories that pytest makes may exceed.
        self._directory = Path(tempfile.mkdtemp(prefix="aioblk-"))
        self.socket: Path = self._directory / "blk.sock"
        self._blockdev = dict(blockdev)
        self._options = tuple(options)
        self._export: dict[str, object] = {
            "type": "vhost-user-blk",
            "id": "export",
            "node-name": NODE,
            "writable": writable,
            "num-queues": num_queues,
            "logical-block-size": block_size,
            "addr": {"type": "unix", "path": str(self.socket)},
        }
        try:
            self._start()
        except BaseException:  # there is no such program
            shutil.rmtree(self._directory, ignore_errors=True)
            raise

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "qemu-storage-daemon"),
                *self._options,
                *("--blockdev", json.dumps({"node-name": NODE, **self._blockdev})),
                *("--export", json.dumps(self._export)),
                *("--chardev", "stdio,id=qmp", "--monitor", "chardev=qmp"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            # The monitor answers once everything on the command line exists, the socket included.
            self.qmp("qmp_capabilities")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def holds(self, held: str) -> bool:
        """Whether what Holdings names is a pipe to the daemon, which restart() makes anew."""
        pipes = (self._process.stdin, self._process.stdout)
        return any(pipe and held.startswith(f"descriptor {pipe.fileno()} of pipe") for pipe in pipes)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ended_within(self, seconds: float) -> int | None:
        """Its status; None: it lives."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def qmp(self, command: str, **arguments: object) -> Any:
        """What QEMU's monitor returns for *command*; an underscore in a name stands for a dash."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        with suppress(BrokenPipeError):  # the daemon is gone, as its silence will show
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
        raise RuntimeError(f"qemu-storage-daemon is gone, status {self._process.wait()}")

    def pause(self) -> None:
        """Let the daemon do nothing from now on until resume()."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the daemon as a crash would."""
        self._process.kill()
        self._process.wait()

    def restart(self, **export: object) -> None:
        """Another daemon at the same socket, whose export may differ; the one before is killed."""
        self.kill()
        self._close_pipes()
        self._export |= {name.replace("_", "-"): value for name, value in export.items()}
        self._start()

    def close(self) -> None:
        self.kill()
        self._close_pipes()
        shutil.rmtree(self._directory)

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what could not be sent to a daemon that is gone
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
