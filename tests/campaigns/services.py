"""The services, mistreated for longer: thousands of kills, a hundred thousand raving clients.

./run test tests/campaigns/services.py
"""

import pytest

from tests.services import test_log_store, test_nbd_adversity
from tests.services.conftest import image
from tests.services.test_log_store import listener, test_killed_at_any_moment
from tests.services.test_nbd_adversity import test_thousands_of_raving_clients

__all__ = ["image", "listener", "test_killed_at_any_moment", "test_thousands_of_raving_clients"]


@pytest.fixture(autouse=True)
def longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_log_store, "LIVES", 4000)
    monkeypatch.setattr(test_nbd_adversity, "RAVING_CLIENTS", 100_000)
