"""The client is a block device: it holds the contract, on servers that we have not written."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import aioblk
from aioblk.testing.conformance import BlockDeviceConformance, Opener

from ..support.nbd_peers import qemu_nbd


class TestNbd(BlockDeviceConformance):
    @pytest.fixture
    def opener(self, scratch_file: Path) -> Iterator[Opener]:
        with qemu_nbd(scratch_file) as uri:
            yield lambda *, read_only=False: aioblk.Nbd(uri, read_only=read_only)


class TestNbdOnSeveralConnections(BlockDeviceConformance):
    """With little in flight on each, so that commands wait for their turn."""

    @pytest.fixture
    def opener(self, scratch_file: Path) -> Iterator[Opener]:
        with qemu_nbd(scratch_file) as uri:
            yield lambda *, read_only=False: aioblk.Nbd(
                uri, read_only=read_only, connections=3, depth=4, lost_after=30.0
            )
