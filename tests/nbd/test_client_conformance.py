"""The client of our own server is a block device and holds the contract. tests/interop/ has other servers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import aioblk
from aioblk.testing import MemoryDevice
from aioblk.testing.conformance import BlockDeviceConformance, Opener

from ..support.nbd_in_process import serving

SIZE = 8 << 20


class TestOfOurServer(BlockDeviceConformance):
    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        @asynccontextmanager
        async def opened(*, read_only: bool = False) -> AsyncIterator[aioblk.Nbd]:
            device = MemoryDevice(SIZE, limits=aioblk.Limits(request_alignment=512))
            async with serving(device, tmp_path / "s") as uri, aioblk.Nbd(uri, read_only=read_only) as dev:
                yield dev

        return opened


class TestOnSeveralConnections(BlockDeviceConformance):
    """With little in flight on each, so that commands wait for their turn."""

    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        @asynccontextmanager
        async def opened(*, read_only: bool = False) -> AsyncIterator[aioblk.Nbd]:
            async with serving(MemoryDevice(SIZE), tmp_path / "s") as uri:
                several = aioblk.Nbd(uri, read_only=read_only, connections=3, depth=4, lost_after=30.0)
                async with several as dev:
                    yield dev

        return opened
