"""One fault, in this process: `python -m tests.reliability.alone NAME [--short]` prints what was seen."""

import asyncio
import faulthandler
import signal
import sys
import tempfile
from pathlib import Path

from .book import FAULTS
from .row import Setting


def main(name: str, *, short: bool) -> int:
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    with tempfile.TemporaryDirectory(prefix="aioblk-") as directory:
        seen = asyncio.run(_asked(name, Setting(Path(directory), short)))
    print(seen)
    return 0


async def _asked(name: str, setting: Setting) -> str:
    return await FAULTS[name].scenario(setting)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], short="--short" in sys.argv))
