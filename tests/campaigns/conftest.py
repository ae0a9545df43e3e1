"""One loop is enough for a long run, and the suite need not wait for it."""

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest

Report = Callable[[str], None]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.SelectorEventLoop}


@pytest.fixture
def requests_wanted() -> int:
    """How many requests a campaign makes of each device; AIOBLK_CAMPAIGN_REQUESTS changes it."""
    return int(os.environ.get("AIOBLK_CAMPAIGN_REQUESTS", "1000000"))


@pytest.fixture
def report(capsys: pytest.CaptureFixture[Any]) -> Report:
    """Print a line that pytest does not keep to itself."""

    def say(line: str) -> None:
        with capsys.disabled():
            print(line)

    return say
