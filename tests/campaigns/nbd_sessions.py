"""NBD clients that say anything the protocol has words for, and damaged ones, for ten minutes.

./run campaign nbd-sessions
"""

import os

import pytest

from tests.nbd import test_adversity
from tests.nbd.test_adversity import test_sessions_of_any_kind_are_answered_by_the_protocol
from tests.support.nbd_exports import image

__all__ = ["image", "test_sessions_of_any_kind_are_answered_by_the_protocol"]


@pytest.fixture(autouse=True)
def longer(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = float(os.environ.get("AIOBLK_CAMPAIGN_SECONDS", "300"))  # on each loop
    monkeypatch.setattr(test_adversity, "SESSIONS", 10**9)
    monkeypatch.setattr(test_adversity, "SESSIONS_SECONDS", seconds)
