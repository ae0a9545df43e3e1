"""Who waits for ever is ended, and shows what came before; so does who crashes, if it was asked to."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from .library import Simulator, preloaded

WAITING = """
import asyncio
import os
import signal
from pathlib import Path

from tests.simulation.devices import BLOCK, device_on, new_disk, until_held
from tests.simulation.library import Driver, Simulator


async def wait_for_ever() -> None:
    simulator = Simulator()
    simulator.patience(600)
    simulator.configure(seed=77)
    async with device_on(new_disk(simulator, Driver.VFIO_PCI, Path("/nowhere"))) as dev:
        await dev.read(0, BLOCK)
        simulator.configure(hold=1)
        read = asyncio.ensure_future(dev.read(7 * BLOCK, BLOCK))
        await until_held(simulator, 1)
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGALRM)  # time is up
        await read
"""

PROGRAM = WAITING + "\nasyncio.run(wait_for_ever())\n"
TEST = WAITING + "\ndef test_waiting() -> None:\n    asyncio.run(wait_for_ever())\n"


def _is_told(output: str) -> None:
    lines = output.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.endswith("simblkio: seed 77; what came before:"))
    end = lines.index("simblkio: hang: no end came in time")
    assert any("take #2 read 3584+512" in line for line in lines[begin:end]), output
    assert "in run_until_complete" in output[output.index(lines[end]) :], "where Python is"


def test_a_program_that_hangs_shows_the_last_events() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", PROGRAM],
        env=preloaded(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGABRT
    _is_told(done.stderr)


CRASHING = """
import ctypes
from pathlib import Path

from aioblk._libblkio.handle import Blkio
from tests.simulation.devices import new_disk
from tests.simulation.library import Driver, Simulator

simulator = Simulator()
simulator.tell_of_crashes()
new_disk(simulator, Driver.VFIO_PCI, Path("/nowhere"))
Blkio("virtio-blk-vfio-pci")
ctypes.string_at(0)
"""


def test_a_program_that_crashes_shows_them_once_and_crashes_as_before() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", CRASHING],
        env=preloaded(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGSEGV, done.stderr
    told, _, python = done.stderr.partition("simblkio: crash: Segmentation fault\n")
    assert "i0 create: 3" in told
    assert "in string_at" in python
    assert "simblkio" not in python


def test_a_test_that_hangs_shows_them_though_output_is_captured(tmp_path: Path) -> None:
    file = tmp_path / "test_waiting.py"
    file.write_text(TEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(file)],
        env=preloaded() | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGABRT
    _is_told(done.stdout + done.stderr)


def test_patience_has_no_end_unless_it_is_asked_for(simulator: Simulator) -> None:
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 0, "the fixture has some"
    simulator.patience(0)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
