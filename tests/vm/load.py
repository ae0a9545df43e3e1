"""python load.py DIRECTORY SEED: change files at random, and say what is durable by now.

Each line of the output is the name of a file and the SHA-256 of what it holds: that was synced, and so was
its directory, before the line was written, and the file is never touched again. Others are written, cut,
renamed and removed all the time, and nobody knows what is left of them after a power failure. It is to be
killed.
"""

import hashlib
import os
import random
import sys
from pathlib import Path

MOST_KEPT = 500  # files, of 20 KB on average


def main(directory: Path, chance: random.Random) -> None:
    for number in range(MOST_KEPT):
        for _ in range(8):
            disturb(directory, chance)
        kept = directory / f"kept-{number}"
        content = chance.randbytes(chance.randrange(1, 40_000))
        with kept.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(directory)
        print(kept.name, hashlib.sha256(content).hexdigest(), flush=True)


def disturb(directory: Path, chance: random.Random) -> None:
    """Change one of a few files that are nobody's."""
    path = directory / f"passing-{chance.randrange(6)}"
    match chance.randrange(5):
        case 0:
            path.write_bytes(chance.randbytes(chance.randrange(100_000)))
        case 1:
            with path.open("ab") as file:
                file.write(chance.randbytes(chance.randrange(20_000)))
        case 2:
            with path.open("ab") as file:
                file.truncate(chance.randrange(100_000))
        case 3:
            path.unlink(missing_ok=True)
        case _:
            path.touch()
            path.rename(directory / f"passing-{chance.randrange(6)}")


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main(Path(sys.argv[1]), random.Random(int(sys.argv[2])))
