"""One seed after the other, each in a process of its own, until time is up; then what has happened, counted.

python -m tests.campaigns.fuzz.search reentrancy [--minutes 60]    a search
python -m tests.campaigns.fuzz.search reentrancy --seed 17         one seed again
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Search", "main"]

ROOT = Path(__file__).parents[3]
PROGRAMS = {
    "reentrancy": "hostile code, from within whatever calls it",
    "api": "random calls of everything public, at any time",
}
MODULES = {"reentrancy": "native_reentrancy", "api": "house_api"}  # by the room that each attacks
TRIES = 3
QEMU_FELL = "vhost_user_server_ref: Assertion `!server->wait_idle' failed"
"""So some versions of QEMU end when a client goes while its queue still holds requests: it is tried again."""
LIMIT = 120.0  # seconds for one seed: twice what it gives itself
WORST = 5  # findings, after which a search ends


@dataclass
class Search:
    program: str
    counts: Counter[str] = field(default_factory=Counter[str])
    seeds: int = 0
    findings: list[int] = field(default_factory=list[int])

    def try_seed(self, seed: int) -> bool:
        """Whether nothing was found. What a process says is printed if something was."""
        for _ in range(TRIES - 1):
            status, said = self._play(seed)
            if QEMU_FELL not in said:
                break
        else:
            status, said = self._play(seed)
        self.seeds += 1
        if status == "0":
            return True
        self.findings.append(seed)
        print(f"--- {self.program} --seed {seed} (status {status})\n{said}", flush=True)
        return False

    def _play(self, seed: int) -> tuple[str, str]:
        """How a process has ended that played it, and what it has said."""
        command = [sys.executable, "-P", "-m", f"tests.campaigns.fuzz.{MODULES[self.program]}", str(seed)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=LIMIT
            )
        except subprocess.TimeoutExpired as hung:
            return "hangs", _text(hung.stdout) + _text(hung.stderr)
        counts = next((line for line in reversed(done.stdout.splitlines()) if line.startswith("{")), "{}")
        self.counts.update(json.loads(counts))
        return str(done.returncode), done.stdout + done.stderr

    def report(self) -> str:
        """Iterations, and how often each kind of event has occurred."""
        width = max(map(len, self.counts), default=0)
        lines = [f"{name:{width}} {count:10}" for name, count in sorted(self.counts.items())]
        return "\n".join([*lines, f"{self.seeds} seeds, findings: {self.findings or 'none'}"])


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def main() -> int:
    parser = argparse.ArgumentParser("./run campaign", description="Try one seed after the other.")
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--seed", type=int, help="the first one, and without --minutes the only one")
    chosen = parser.parse_args()
    search = Search(chosen.program)
    if chosen.seed is not None and "--minutes" not in sys.argv:
        search.try_seed(chosen.seed)
    else:
        seed = random.randrange(1 << 30) if chosen.seed is None else chosen.seed
        print(f"{chosen.program}: {PROGRAMS[chosen.program]}; from seed {seed} on", flush=True)
        end = time.monotonic() + 60 * chosen.minutes
        while time.monotonic() < end and len(search.findings) < WORST:
            search.try_seed(seed)
            seed += 1
    print(search.report())
    return int(bool(search.findings))


if __name__ == "__main__":
    sys.exit(main())
