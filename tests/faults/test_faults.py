"""Descriptors, memory, threads and libblkio may fail at any step of anything: see scenarios.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support.loop_device import cannot_have_loop_devices
from ..support.turns import LOOP_FACTORIES
from .fault import FAULTS
from .scenarios import SCENARIOS
from .server import FaultServer

POSSIBLE = [name for name in SCENARIOS if "block_device" not in name or not cannot_have_loop_devices()]
LOOPS = list(LOOP_FACTORIES)
ALL = [
    # On one of the loops each, turn and turn about: what fails is none of theirs.
    (scenario, fault, LOOPS[(row + column) % len(LOOPS)])
    for row, scenario in enumerate(POSSIBLE)
    for column, fault in enumerate(FAULTS)
]


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.mark.parametrize(("scenario", "fault", "loop"), ALL)
def test_every_step_may_fail(
    scenario: str, fault: str, loop: str, server: FaultServer, tmp_path: Path
) -> None:
    status, said = server.attempt(scenario, fault, loop, tmp_path)
    assert status == 0, f"status {status}: {said}"
