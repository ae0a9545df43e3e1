"""A thread that has no loop waits for its queue."""

import asyncio
import ctypes
import functools
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from aioblk._native._core import QueueCore, Submitter

from ..support.bench import BLOCK, Bench
from ..support.refused_memory import new_device_core


def test_waiting_is_for_the_thread_of_a_usable_queue() -> None:
    core = QueueCore(new_device_core(), 1, -1, None, 8)
    core.suspend()
    with pytest.raises(RuntimeError, match="usable queue"):
        core.wait(None, 0)
    with ThreadPoolExecutor(1) as thread, pytest.raises(RuntimeError, match="in its own thread"):
        thread.submit(core.wait, None, 0).result()


def test_who_waits_without_a_loop_is_told_first_that_the_device_is_lost() -> None:
    """Another thread has found that, and left it to this one."""
    core = QueueCore(new_device_core(), 1, -1, None, 8)
    core.suspend()
    submitter = Submitter()
    submitter._core = core
    request = submitter.read(0, BLOCK)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(core.abandon, OSError("lost")).result() == 0
    assert not request.done()
    assert core.wait(request, 0) is True
    assert isinstance(request.exception(), OSError)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 1e10])
def test_waiting_for_nothing_takes_no_time(seconds: float) -> None:
    core = QueueCore(new_device_core(), 1, -1, None, 8)
    assert core.wait(None, seconds) is False
    core.suspend()


class Waiting:
    """A queue without a loop: it waits for what another has given up, and has a region's end to tell."""

    def __init__(self) -> None:
        self.other = Bench(suspended=False, discard_method=2, needs_regions=True)
        self.device: Any = self.other.device
        self.core: Any = QueueCore(self.device, 1, -1, None, 8)
        submitter = Submitter()
        submitter._core = self.core
        loop: Any = self.other.loop
        asyncio._set_running_loop(loop)
        self._leave_a_region(submitter)
        other: Any = self.other.core
        self.core.on_discard = other.on_discard = lambda *_: None
        self._given_up = self.other.submitter.discard(0, BLOCK)
        self._given_up.cancel()
        self.waits = submitter.discard(0, BLOCK)

    def _leave_a_region(self, submitter: Submitter) -> None:
        buffer = bytearray(BLOCK)
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        self.device.add_region(address, BLOCK)
        self.core.suspend()
        request = submitter.read_into(0, buffer)
        self.device.retire_region(address)
        refusals = [MemoryError(), MemoryError()]

        def refuse(_address: int) -> None:
            raise refusals.pop()

        self.device.on_region_idle = refuse
        request.cancel()
        self.core.flush()
        assert request.cancelled()
        assert not refusals
        self.core.resume(1, -1, 8)

    def end(self) -> None:
        self.other.core.suspend()
        self.other.end()
        self.core.suspend()
        self.core.abandon(OSError("lost"))
        asyncio._set_running_loop(None)


@pytest.fixture
def waiting_queue() -> Iterator[Waiting]:
    queue = Waiting()
    yield queue
    queue.end()


def test_what_could_not_be_told_is_told_while_waiting(waiting_queue: Waiting) -> None:
    told: list[int] = []
    waiting_queue.device.on_region_idle = told.append
    assert waiting_queue.core.wait(None, 0.0) is False
    assert len(told) == 1


def test_what_is_told_while_waiting_may_give_up_the_device(waiting_queue: Waiting) -> None:
    core = waiting_queue.core
    waiting_queue.device.on_region_idle = lambda _: core.abandon(OSError("lost"))
    assert core.wait(None, -1.0) is False
    assert isinstance(waiting_queue.waits.exception(), OSError)


def test_a_signal_ends_waiting(waiting_queue: Waiting) -> None:
    """Its handler runs in between, and may raise."""

    def arrive(*_: object) -> None:
        raise ArithmeticError("arrived")

    before = signal.signal(signal.SIGUSR1, arrive)
    waiting_queue.device.on_region_idle = functools.partial(ctypes.CDLL(None)["raise"], signal.SIGUSR1)
    with pytest.raises(ArithmeticError, match="arrived"):
        waiting_queue.core.wait(None, -1.0)
    signal.signal(signal.SIGUSR1, before)
    assert not waiting_queue.waits.done()
