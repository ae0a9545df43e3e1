"""Queues of the core by themselves."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from ..support.bench import Bench
from ..support.fake_backend import FakeBackend


@pytest.fixture
def disk() -> Iterator[FakeBackend]:
    """A vhost-user disk that does what a test says."""
    with FakeBackend() as disk:
        yield disk


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    yield bench
    bench.end()
    asyncio._set_running_loop(None)


@pytest.fixture
def outside() -> Iterator[Bench]:
    """Discards are made by a hook; nothing reaches libblkio but what is never issued."""
    bench = Bench(suspended=False, discard_method=2)
    loop: Any = bench.loop
    asyncio._set_running_loop(loop)
    yield bench
    bench.core.suspend()
    bench.end()
    asyncio._set_running_loop(None)
