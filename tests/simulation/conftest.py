"""A module of tests here is one test, which runs the module in a process that has the simulator preloaded.

To choose among its tests: ``python -m tests.simulation -m pytest tests/simulation/test_checks.py -k NAME``.
"""

import faulthandler
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..support.leaks import Holdings, join_threads
from .devices import new_disk
from .library import VIRTIO, Disk, Driver, Simulator, is_preloaded, preloaded

LIMIT = 100  # seconds for a module
PATIENCE = 40  # seconds for a test of it


class Elsewhere(pytest.Module):
    """A module that is run in another process."""

    def collect(self) -> Iterator[pytest.Item]:
        yield Simulated.from_parent(self, name="simulated")


class Simulated(pytest.Item):
    def runtest(self) -> None:
        # Importing some of them takes longer than a module's tests.
        unused = ("anyio", "cacheprovider", "hypothesispytest", "xdist")
        options = ["-q", *(word for name in unused for word in ("-p", f"no:{name}"))]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, str(self.path)],
            env=preloaded(),
            cwd=self.config.rootpath,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
        )
        if done.returncode != 0:
            pytest.fail(done.stdout, pytrace=False)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.stem} under the simulator"


def pytest_pycollect_makemodule(module_path: Path, parent: Any) -> pytest.Module | None:
    if is_preloaded():
        return None  # as usual
    return Elsewhere.from_parent(parent, path=module_path)


@pytest.fixture
def simulator(no_leaks: None) -> Iterator[Simulator]:
    """The simulator, as new; a test in which aioblk has done something wrong fails. What it expects
    it forgives."""
    # pytest's watchdog reads the clock in a thread of its own, which may be so late that a test has set the
    # virtual one by then: the machine's is far ahead of it, and the watchdog ends the process at once.
    faulthandler.cancel_dump_traceback_later()
    simulator = Simulator()
    simulator.configure(record=1)
    simulator.patience(PATIENCE)
    before = Holdings.now()
    yield simulator
    simulator.patience(0)
    join_threads(before)  # they may be giving back what nobody waits for any more
    wrong = simulator.violations
    trace = simulator.trace
    simulator.reset()
    assert not wrong, "\n".join([*trace[-60:], *wrong])


@pytest.fixture(params=list(Driver), ids=lambda driver: driver.name.lower())
def disk(request: pytest.FixtureRequest, simulator: Simulator, tmp_path: Path) -> Disk:
    """An empty disk of each driver."""
    return new_disk(simulator, request.param, tmp_path)


@pytest.fixture(params=VIRTIO, ids=lambda driver: driver.name.lower())
def virtio_disk(request: pytest.FixtureRequest, simulator: Simulator, tmp_path: Path) -> Disk:
    """An empty disk of each driver of virtio devices."""
    return new_disk(simulator, request.param, tmp_path)


@pytest.fixture
def backend(simulator: Simulator, tmp_path: Path) -> Disk:
    """A vhost-user backend with an empty disk."""
    return new_disk(simulator, Driver.VHOST_USER, tmp_path)
