"""The same seed and the same calls give the same events, to the last."""

import asyncio
import subprocess
import sys
from pathlib import Path

import aioblk

from .caller import Caller
from .devices import BLOCK, device_on, new_disk, pattern
from .library import Driver, Simulator, preloaded

WEATHER = {
    "late": 6,
    "batch": 3,
    "reorder": 1,
    "fail": 50,
    "transient": 100,
    "spurious": 100,
    "full": 100,
    "haunt": 50,
}


def _call(simulator: Simulator, seed: int, directory: Path) -> tuple[int, list[str]]:
    simulator.reset()
    simulator.configure(seed=seed, **WEATHER)
    with Caller(new_disk(simulator, Driver.VFIO_PCI, directory)) as caller:
        done = 0
        for turn in range(20):
            caller.read(turn * BLOCK, 0, BLOCK)
            caller.write(turn * BLOCK, BLOCK, BLOCK)
            caller.lib.blkioq_flush(caller.queue, caller.ffi.NULL, 0)
            while done < 3 * (turn + 1):
                done += len(caller.try_io())
        return simulator.trace_hash, simulator.trace


def test_a_caller_meets_the_same_events_again(simulator: Simulator, tmp_path: Path) -> None:
    first, again, other = (_call(simulator, seed, tmp_path) for seed in (1, 1, 2))
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]


async def _work(simulator: Simulator, seed: int, directory: Path) -> tuple[int, list[str]]:
    simulator.reset()
    disk = new_disk(simulator, Driver.VHOST_USER, directory)
    async with device_on(disk) as dev:
        await dev.read(0, BLOCK)  # has bounce memory mapped, in a thread
        simulator.configure(seed=seed, record=1, **WEATHER)
        for turn in range(5):
            requests: list[aioblk.Request[object]] = []
            for i in range(20):
                requests += [dev.write(i * BLOCK, pattern(turn)), dev.read(i * BLOCK, BLOCK)]
            await asyncio.gather(*requests, return_exceptions=True)
        return simulator.trace_hash, simulator.trace


async def test_a_device_meets_the_same_events_again(simulator: Simulator, tmp_path: Path) -> None:
    first = await _work(simulator, 1, tmp_path)
    again = await _work(simulator, 1, tmp_path)
    other = await _work(simulator, 2, tmp_path)
    assert first[1] == again[1]
    assert first[0] == again[0]
    assert first[0] != other[0]


PROGRAM = """
import asyncio, sys
from pathlib import Path
from tests.simulation.devices import device_on, new_disk
from tests.simulation.library import Driver, Simulator

async def main() -> None:
    simulator = Simulator()
    disk = new_disk(simulator, Driver.VFIO_PCI, Path("/nowhere"))
    async with device_on(disk) as dev:
        await dev.read(0, 512)
        before = simulator.counts["late"]
        await asyncio.gather(*(dev.read(i * 512, 512) for i in range(50)))
        print(simulator.counts["late"] > before)

asyncio.run(main())
"""


def test_a_program_is_run_from_a_seed_by_its_environment() -> None:
    for options, late in (({"seed": 5, "late": 3}, "True\n"), ({}, "False\n")):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=preloaded(**options), capture_output=True, text=True
        )
        assert (done.stdout, done.stderr) == (late, "")


def test_a_program_is_run_by_name() -> None:
    command = [sys.executable, "-m", "tests.simulation", "late=2", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_word_that_says_nothing_is_refused() -> None:
    done = subprocess.run([sys.executable, "-c", ""], env=preloaded(lat=3), capture_output=True, text=True)
    assert "simblkio: SIMBLKIO: there is a word in it that says nothing: lat=3" in done.stderr
    assert done.returncode != 0
