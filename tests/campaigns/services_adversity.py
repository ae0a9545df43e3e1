"""Services, mistreated for longer: thousands of kills, a hundred thousand raving
clients.

./run test tests/campaigns/services_adversity.py
"""

import pytest

from tests.examples import test_log_store
from tests.examples.test_log_store import listener, test_killed_at_any_moment
from tests.nbd import test_adversity
from tests.nbd.test_adversity import test_thousands_of_raving_clients
from tests.support.nbd_exports import image

__all__ = ["image", "listener", "test_killed_at_any_moment", "test_thousands_of_raving_clients"]


@pytest.fixture(autouse=True)
def longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_log_store, "LIVES", 4000)
    monkeypatch.setattr(test_adversity, "RAVING_CLIENTS", 100_000)
