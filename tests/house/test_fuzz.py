"""A few seeds of the searches `reentrancy` and `api`, which `./run campaign` tries by the hundred."""

import pytest

from ..campaigns.fuzz.search import PROGRAMS, Search

SEEDS = range(1, 4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_crashes_hangs_or_stays(program: str, seed: int) -> None:
    search = Search(program)
    assert search.try_seed(seed), f"found with seed {seed}, see above"
    assert search.counts.total() > 100
