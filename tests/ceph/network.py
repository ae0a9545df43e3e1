"""Another machine, as far as the network goes: a namespace, joined to this one by a pair of interfaces.

The namespace has no name. It is there for as long as a process is in it, so nothing of it is left when that
process ends, however it ends. Needs root.
"""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from .processes import TIME_LIMIT, Processes

HOLDER = "network"
PORT = 10809
LOSSES = ("iptables", "iptables-legacy")  # whichever the kernel has


class Network:
    """The namespace, its processes, and the link to it."""

    def __init__(self, folder: Path) -> None:
        self.processes = Processes(folder)
        self.processes.start(HOLDER, ["unshare", "--net", "sleep", "infinity"])
        try:
            self._namespace = self._wait_for_namespace(folder)
            number = random.randrange(1 << 15)  # of the 198.18.0.0/15 that are for tests of networks
            net = f"198.{18 + (number >> 14)}.{(number >> 6) & 255}.{(number & 63) * 4}"
            base, _, last = net.rpartition(".")
            self.here, self.there = f"{base}.{int(last) + 1}", f"{base}.{int(last) + 2}"
            self._interface, theirs = f"aioblk{number}h", f"aioblk{number}t"
            self._ip("link", "add", self._interface, "type", "veth", "peer", "name", theirs)
            self._ip("link", "set", theirs, "netns", str(self._pid))
            self._ip("address", "add", f"{self.here}/30", "dev", self._interface)
            self._ip("link", "set", self._interface, "up")
            for arguments in (
                ("address", "add", f"{self.there}/30", "dev", theirs),
                ("link", "set", theirs, "up"),
                ("link", "set", "lo", "up"),
            ):
                _run([*self.prefix, "ip", *arguments])
        except BaseException:
            self.close()
            raise

    def _wait_for_namespace(self, folder: Path) -> Path:
        self._pid = int((folder / f"{HOLDER}.process").read_text())
        namespace = Path(f"/proc/{self._pid}/ns/net")
        deadline = time.monotonic() + TIME_LIMIT
        while os.readlink(namespace) == os.readlink("/proc/self/ns/net"):
            if not self.processes.is_running(HOLDER) or time.monotonic() > deadline:
                raise RuntimeError(f"no network namespace: {self.processes.said(HOLDER)}; root can have one")
            time.sleep(0.01)
        return namespace

    @property
    def prefix(self) -> list[str]:
        """Before a command that is to run over there."""
        return ["nsenter", f"--net={self._namespace}", "--"]

    def start(self, name: str, command: Sequence[str]) -> None:
        self.processes.start(name, [*self.prefix, *command])

    def serve(self, name: str, command: Sequence[str]) -> None:
        """Start a server over there; return when it says where it listens."""
        self.start(name, command)
        deadline = time.monotonic() + TIME_LIMIT
        while " at nbd" not in self.processes.said(name):
            if not self.processes.is_running(name) or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)} did not start: {self.processes.said(name)}")
            time.sleep(0.02)

    # --- what becomes of the link ---------------------------------------------------------------------------

    def down(self) -> None:
        """The cable is pulled: nothing is told to anybody."""
        self._ip("link", "set", self._interface, "down")

    def up(self) -> None:
        self._ip("link", "set", self._interface, "up")

    def lose(self, share: float) -> str:
        """Lose that share of the packets that arrive over there, at random; the program that does."""
        complaints: list[str] = []
        for program in LOSSES:
            if not shutil.which(program):
                continue
            rule = f"INPUT -m statistic --mode random --probability {share} -j DROP".split()
            done = subprocess.run(
                [*self.prefix, program, "-A", *rule], stdin=subprocess.DEVNULL, capture_output=True, text=True
            )
            if done.returncode == 0:
                return program
            complaints.append(f"{program}: {done.stderr.strip()}")
        raise RuntimeError(f"packets cannot be lost here ({'; '.join(complaints) or 'no iptables'})")

    def lost(self, program: str) -> int:
        """How many packets the rule has dropped."""
        listed = _run([*self.prefix, program, "-L", "INPUT", "-v", "-n", "-x"])
        rules = [line for line in listed.splitlines() if "DROP" in line and "statistic" in line]
        return sum(int(rule.split()[0]) for rule in rules)

    def lose_nothing(self, program: str) -> None:
        _run([*self.prefix, program, "-F", "INPUT"])

    def close(self) -> None:
        """End whatever is there. With its last process the namespace is gone, and the link with it."""
        self.processes.stop_all()

    def _ip(self, *arguments: str) -> None:
        _run(["ip", *arguments])


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIME_LIMIT
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout
