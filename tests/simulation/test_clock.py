"""A clock that passes only where it is read: spinning and waiting take as long in each run."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

import aioblk

from .caller import Caller
from .devices import BLOCK, device_on, new_disk, pattern
from .library import Death, Disk, Driver, Simulator, preloaded
from .loop import SimulatedLoop, simulated_threads

READING = 1e-6
DAY = 86400.0


def test_each_reading_takes_a_microsecond(simulator: Simulator) -> None:
    simulator.clock(5)
    assert [time.monotonic_ns() for _ in range(3)] == [5_000_000_000, 5_000_001_000, 5_000_002_000]
    assert time.perf_counter() == pytest.approx(5 + 3 * READING)


def test_only_the_monotonic_clock_is_another(simulator: Simulator) -> None:
    before = {clock: time.clock_gettime(clock) for clock in (time.CLOCK_REALTIME, time.CLOCK_BOOTTIME)}
    simulator.clock(1e9)
    for clock, then in before.items():
        assert then <= time.clock_gettime(clock) < then + DAY
    assert time.process_time() < DAY
    assert time.thread_time() < DAY


def test_who_sleeps_is_back_at_once_and_the_time_has_passed(simulator: Simulator) -> None:
    simulator.clock(5)
    time.sleep(DAY)
    assert 5 + DAY <= time.monotonic() <= 5 + DAY + 10 * READING


def test_the_machines_clock_comes_back(simulator: Simulator) -> None:
    before = time.monotonic()
    simulator.clock(before + DAY)
    simulator.clock(None)
    assert before <= time.monotonic() < before + DAY
    simulator.clock(before + DAY)
    simulator.reset()
    assert before <= time.monotonic() < before + DAY


def test_a_time_that_no_clock_shows_is_refused(simulator: Simulator) -> None:
    for seconds in (0, -1):
        with pytest.raises(ValueError, match="the time begins above 0"):
            simulator.clock(seconds)
    simulator.clock(1e-12)
    assert time.monotonic_ns() == 1


def test_waiting_for_a_silent_device_takes_no_time(backend: Disk, simulator: Simulator) -> None:
    with Caller(backend) as caller:
        caller.read(0, 0, BLOCK)
        backend.die(Death.SILENT)
        simulator.clock(5)
        completion = caller.ffi.new("struct blkio_completion *")
        half_a_second = caller.ffi.new("struct timespec *", {"tv_sec": 0, "tv_nsec": 500_000_000})
        assert caller.lib.blkioq_do_io(caller.queue, completion, 1, 1, half_a_second) < 0
        assert 5.5 <= time.monotonic() < 5.6


def test_a_blocking_queues_patience_is_of_that_time(disk: Disk, simulator: Simulator) -> None:
    async def open_and_use() -> None:
        async with device_on(disk, num_queues=2) as dev:
            await asyncio.to_thread(use, dev)

    def use(dev: aioblk.Device) -> None:
        with dev.blocking_queue(1) as queue:
            queue.wait(queue.write(0, pattern(1)))
            simulator.configure(hold=1)
            read = queue.read(0, BLOCK)
            simulator.clock(5)
            with pytest.raises(TimeoutError):
                queue.wait(read, timeout=0.5)
            assert 5.5 <= time.monotonic() < 6
            simulator.clock(None)
            simulator.configure(hold=0)
            assert queue.wait(read) == pattern(1)

    asyncio.run(open_and_use())


# --- spinning -----------------------------------------------------------------------------------------------

SPIN = 50 * READING


def _spin(simulator: Simulator, directory: Path) -> tuple[int, int]:
    """The hash of all that has happened, and how often do_io was called. Without threads: each would read the
    clock, and when it does is the system's affair."""
    simulator.reset()
    loop = SimulatedLoop(1)
    try:
        with simulated_threads(loop):
            return loop.run_until_complete(_spinning(simulator, directory))
    finally:
        loop.close()


async def _spinning(simulator: Simulator, directory: Path) -> tuple[int, int]:
    async with device_on(new_disk(simulator, Driver.VHOST_USER, directory)) as dev:
        await dev.read(0, BLOCK)  # has bounce memory mapped, in a thread
        simulator.configure(seed=1, late=60, reorder=1, transient=50, record=1)
        calls = dev.statistics().do_io_calls
        dev.queue().spin = SPIN
        simulator.clock(5)
        for turn in range(10):
            await asyncio.gather(*(dev.write(i * BLOCK, pattern(turn)) for i in range(4)))
        simulator.clock(None)
        return simulator.trace_hash, dev.statistics().do_io_calls - calls


def test_spinning_is_replayed(simulator: Simulator, tmp_path: Path) -> None:
    first, again = [_spin(simulator, tmp_path) for _ in range(2)]
    assert first == again
    assert first[1] > 10 * SPIN / READING / 2, "it has spun"


PROGRAM = """
import pathlib, sys
from tests.simulation.library import Simulator
from tests.simulation.test_clock import _spin

print(_spin(Simulator(), pathlib.Path(sys.argv[1])))
"""


def test_spinning_is_replayed_in_another_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    runs = [subprocess.run(command, env=preloaded(), capture_output=True, text=True) for _ in range(2)]
    assert runs[0].stdout.startswith("("), runs[0].stderr
    assert runs[0].stdout == runs[1].stdout
