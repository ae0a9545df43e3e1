"""NBD servers that do anything, and servers that die with what is in their caches, for ten minutes.

./run campaign nbd-client
"""

import os
import time
from pathlib import Path

import pytest

from tests.nbd import test_client_crashes, test_client_fuzz
from tests.nbd.test_client_fuzz import test_whatever_a_server_does_everything_ends_as_it_should

__all__ = ["test_whatever_a_server_does_everything_ends_as_it_should"]

SECONDS = float(os.environ.get("AIOBLK_CAMPAIGN_SECONDS", "300"))  # each


@pytest.fixture(autouse=True)
def longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_client_fuzz, "LIVES", 10**9)
    monkeypatch.setattr(test_client_fuzz, "LIVES_SECONDS", SECONDS)


async def test_what_was_durable_outlives_every_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = time.monotonic() + SECONDS
    number = 0
    while time.monotonic() < over:
        where = tmp_path / str(number)
        where.mkdir()
        await test_client_crashes.test_what_was_durable_outlives_every_server_and_nothing_old_comes_back(
            where, monkeypatch, ("lose", "report")[number & 1], has_fua=bool(number & 2)
        )
        number += 1
