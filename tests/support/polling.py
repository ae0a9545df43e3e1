"""Waiting for what tells nobody that it has happened."""

import time
from collections.abc import Callable

PATIENCE = 30  # seconds


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError(f"{happened} is not so after {PATIENCE} seconds")
        time.sleep(0.05)
