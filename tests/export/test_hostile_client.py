"""Whatever clients and guests do, an export goes on with the next; ./run campaign hostile-client tries it for
longer, under the sanitizers."""

from collections import Counter
from pathlib import Path

from .hostile import play

SEEDS = range(40)


async def test_whoever_comes_after_them_is_served(tmp_path: Path) -> None:
    done = Counter[str]()
    for seed in SEEDS:
        done += await play(seed, tmp_path / "blk.sock")
    assert done["begun"]
    assert done["queues that broke"]
