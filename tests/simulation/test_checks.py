"""What a caller of libblkio must not do is noticed: each check, on a caller that does it."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from ..support.polling import wait_until
from .caller import MEMORY, Caller
from .devices import BLOCK
from .library import Disk, Simulator, preloaded

FUA, NO_UNMAP = 1, 2


def finish(caller: Caller, simulator: Simulator) -> None:
    """Let what is in flight be over."""
    simulator.configure(hold=0)
    caller.do_io()
    caller.do_io()


# --- requests -----------------------------------------------------------------------------------------------


def outside_the_regions(caller: Caller) -> None:
    other = caller.ffi.new("char[]", BLOCK)
    caller.lib.blkioq_read(caller.queue, 0, other, BLOCK, caller.ffi.NULL, 0)
    caller.do_io()


def across_the_end_of_a_region(caller: Caller) -> None:
    caller.lib.blkio_unmap_mem_region(caller.instance, caller.region)
    half = caller.region_of(0, MEMORY // 2)
    caller.lib.blkio_map_mem_region(caller.instance, half)
    caller.read(0, MEMORY // 2 - BLOCK, 2 * BLOCK)


def too_many_segments(caller: Caller) -> None:
    vector = caller.vector(*((i * BLOCK, BLOCK) for i in range(5)))
    caller.lib.blkioq_readv(caller.queue, 0, vector, 5, caller.ffi.NULL, 0)
    caller.do_io()


def changed_vector(caller: Caller) -> None:
    vector = caller.vector((0, BLOCK), (BLOCK, BLOCK))
    caller.lib.blkioq_writev(caller.queue, 0, vector, 2, caller.ffi.NULL, 0)
    vector[1].iov_len = 1
    caller.do_io()


def early_reuse_of_a_reads_memory(caller: Caller) -> None:
    caller.read(0, 0, BLOCK)
    caller.memory[7] = b"x"
    caller.do_io()


def early_reuse_of_a_writes_memory(caller: Caller) -> None:
    caller.write(0, 0, BLOCK)
    caller.memory[BLOCK - 1] = b"x"
    caller.do_io()


def two_reads_into_the_same_memory(caller: Caller) -> None:
    caller.read(0, 0, BLOCK)
    caller.read(0, BLOCK // 2, BLOCK)


def a_write_from_where_a_read_goes_to(caller: Caller) -> None:
    caller.read(0, 0, BLOCK)
    caller.write(0, 0, BLOCK)


def more_than_the_ring_holds(caller: Caller) -> None:
    for i in range(3):  # of three descriptors each, in a ring of eight
        caller.read(0, i * BLOCK, BLOCK)


def too_long_zeroes(caller: Caller) -> None:
    caller.lib.blkioq_write_zeroes(caller.queue, 0, 1 << 25, caller.ffi.NULL, 0)


def too_long_discard(caller: Caller) -> None:
    caller.lib.blkioq_discard(caller.queue, 0, 1 << 25, caller.ffi.NULL, 0)


def odd_discard(caller: Caller) -> None:
    caller.lib.blkioq_discard(caller.queue, BLOCK, 2 * BLOCK, caller.ffi.NULL, 0)


def unmapping_in_use(caller: Caller) -> None:
    caller.read(0, 0, BLOCK)
    caller.do_io()
    caller.lib.blkio_unmap_mem_region(caller.instance, caller.region)


def from_another_thread(caller: Caller) -> None:
    caller.read(0, 0, BLOCK)
    caller.do_io()
    thread = threading.Thread(target=caller.do_io)
    thread.start()
    thread.join()


WRONG_REQUESTS: dict[str, tuple[Callable[[Caller], None], str]] = {
    "outside the regions": (outside_the_regions, "segment 0 lies in no mapped region"),
    "across the end of a region": (across_the_end_of_a_region, "segment 0 lies in no mapped region"),
    "an odd start": (lambda it: it.read(1, 0, BLOCK), "at 1: request-alignment is 512"),
    "an odd length": (lambda it: it.read(0, 0, 3), "of 3 bytes at 0: request-alignment is 512"),
    "an odd address": (lambda it: it.read(0, 2, BLOCK), "buf-alignment, 4, wants it"),
    "of no bytes": (lambda it: it.read(0, 0, 0), "a virtio device would never answer"),
    "too long": (lambda it: it.read(0, 0, 16 * BLOCK), "max-transfer is 4096"),
    "too long a segment": (lambda it: it.read(0, 0, 3 * BLOCK), "has 1536 bytes, max-segment-len is 1024"),
    "too many segments": (too_many_segments, "it has 5 segments, max-segments is 4"),
    "too long zeroes": (too_long_zeroes, "max-write-zeroes-len is 16777216"),
    "too long a discard": (too_long_discard, "max-discard-len is 16777216"),
    "an odd discard": (odd_discard, "discard-alignment is 1024 from 0 on"),
    "FUA on a read": (lambda it: it.read(0, 0, BLOCK, FUA), "it cannot have the flags 0x1"),
    "an unknown flag": (lambda it: it.write(0, 0, BLOCK, 8), "it cannot have the flags 0x8"),
    "more than the ring holds": (more_than_the_ring_holds, "the ring has room for 8, and this makes 9"),
    "a vector changes": (changed_vector, "its vector was changed while it was in flight"),
    "a read's memory is reused": (early_reuse_of_a_reads_memory, "segment 0 was changed while it was in"),
    "a write's memory is reused": (early_reuse_of_a_writes_memory, "segment 0 was changed while it was in"),
    "two reads in one place": (two_reads_into_the_same_memory, r"segment 0 is in use by request \d+, read"),
    "a write from a read's place": (
        a_write_from_where_a_read_goes_to,
        "segment 0 is in use by .*, read",
    ),
    "unmapping in use": (unmapping_in_use, "request 1, read .* its memory is unmapped while it is in flight"),
    "from another thread": (from_another_thread, "is called from another thread, with requests in flight"),
}


KEEPS_ITS_MEMORY = "unmapping in use"


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(wrong, marks=[pytest.mark.abandons_memory] if wrong == KEEPS_ITS_MEMORY else [])
        for wrong in WRONG_REQUESTS
    ],
)
def test_a_wrong_request_is_noticed(wrong: str, backend: Disk, simulator: Simulator) -> None:
    backend.override(
        buf_alignment=4, max_segments=4, max_segment_len=1024, max_transfer=4096, discard_alignment=1024
    )
    act, words = WRONG_REQUESTS[wrong]
    with Caller(backend, queue_size=8) as caller:
        simulator.configure(hold=int(act in (unmapping_in_use, from_another_thread)))
        act(caller)
        noticed = simulator.forgive()
        assert noticed, "nothing was noticed"
        assert re.search(words, noticed[0]), noticed
        finish(caller, simulator)
        simulator.forgive()  # what follows from it


def test_a_careful_caller_is_not_accused(backend: Disk, simulator: Simulator) -> None:
    with Caller(backend) as caller:
        caller.write(0, 0, BLOCK, FUA)
        caller.lib.blkioq_write_zeroes(caller.queue, BLOCK, BLOCK, caller.ffi.NULL, FUA | NO_UNMAP)
        vector = caller.vector((BLOCK, BLOCK), (4 * BLOCK, BLOCK))
        caller.lib.blkioq_readv(caller.queue, 0, vector, 2, caller.ffi.NULL, 0)
        caller.lib.blkioq_discard(caller.queue, 0, BLOCK, caller.ffi.NULL, 0)
        caller.lib.blkioq_flush(caller.queue, caller.ffi.NULL, 0)
        assert caller.do_io() == [0] * 5
        caller.lib.blkio_unmap_mem_region(caller.instance, caller.region)
    assert not simulator.violations


# --- life ---------------------------------------------------------------------------------------------------


def a_property_after_the_end(caller: Caller) -> None:
    caller.destroy()
    caller.lib.blkio_get_bool(caller.instance, b"read-only", caller.ffi.new("bool *"))


def a_request_after_the_end(caller: Caller) -> None:
    caller.destroy()
    caller.read(0, 0, BLOCK)


def a_request_to_a_removed_queue(caller: Caller) -> None:
    caller.lib.blkio_remove_queue(caller.instance, 0)
    caller.read(0, 0, BLOCK)


def the_end_in_flight(caller: Caller) -> None:
    caller.read(0, 0, BLOCK)
    caller.do_io()
    caller.destroy()


def unmapping_with_other_values(caller: Caller) -> None:
    caller.lib.blkio_unmap_mem_region(caller.instance, caller.region_of(0, MEMORY // 2))


def mapping(offset: int, length: int, fd: int | None = None) -> Callable[[Caller], None]:
    def act(caller: Caller) -> None:
        caller.lib.blkio_unmap_mem_region(caller.instance, caller.region)
        caller.lib.blkio_map_mem_region(caller.instance, caller.region_of(offset, length, fd))

    return act


def mapping_twice(caller: Caller) -> None:
    caller.lib.blkio_map_mem_region(caller.instance, caller.region_of(MEMORY // 2, BLOCK))


def mapping_too_many(caller: Caller) -> None:
    caller.lib.blkio_unmap_mem_region(caller.instance, caller.region)
    for i in range(4):  # one less: the virtqueues have one of their own
        caller.lib.blkio_map_mem_region(caller.instance, caller.region_of(i * BLOCK, BLOCK))


def freeing_what_was_not_allocated(caller: Caller) -> None:
    caller.lib.blkio_unmap_mem_region(caller.instance, caller.region)
    caller.lib.blkio_free_mem_region(caller.instance, caller.region)


WRONG_LIVES: dict[str, tuple[Callable[[Caller], object], str]] = {
    "a property after the end": (a_property_after_the_end, "blkio_get_bool: instance 0 has been destroyed"),
    "a request after the end": (a_request_after_the_end, "read: instance 0 has been destroyed"),
    "a removed queue": (a_request_to_a_removed_queue, "read: queue 0 of instance 0 has been removed"),
    "no such queue": (lambda it: it.lib.blkio_get_queue(it.instance, 7), "queue 7, which it does not have"),
    "the end in flight": (the_end_in_flight, "is destroyed with 1 requests in flight"),
    "unmapping other values": (unmapping_with_other_values, "is not mapped, or was mapped with other values"),
    "an empty region": (mapping(0, 0), "a region of 0 bytes is mapped"),
    "an odd region": (mapping(BLOCK, BLOCK // 2), "a region of 256 bytes is mapped, mem-region-alignment is"),
    "without a descriptor": (mapping(0, BLOCK, -1), "a region without a descriptor is mapped"),
    "with a closed descriptor": (mapping(0, BLOCK, 10**6), "a region with a closed descriptor is mapped"),
    "overlapping regions": (mapping_twice, "a region is mapped that overlaps another"),
    "too many regions": (mapping_too_many, "3 regions are mapped, and another one; max-mem-regions is 4"),
    "freeing": (freeing_what_was_not_allocated, "a region is freed that was not allocated here"),
}


@pytest.mark.parametrize("wrong", WRONG_LIVES)
def test_a_wrong_life_is_noticed(wrong: str, backend: Disk, simulator: Simulator) -> None:
    backend.override(max_mem_regions=4, mem_region_alignment=BLOCK)
    act, words = WRONG_LIVES[wrong]
    with Caller(backend) as caller:
        simulator.configure(hold=1)
        act(caller)
        noticed = simulator.forgive()
        assert noticed, "nothing was noticed"
        assert re.search(words, noticed[0]), noticed


def test_two_threads_at_once_are_noticed(backend: Disk, simulator: Simulator) -> None:
    with Caller(backend) as caller:
        region = caller.region
        caller.lib.blkio_unmap_mem_region(caller.instance, region)
        with simulator.blocking("map"):
            thread = threading.Thread(target=caller.lib.blkio_map_mem_region, args=(caller.instance, region))
            thread.start()
            wait_until(lambda: simulator.blocked("map") == 1)
            caller.lib.blkio_get_bool(caller.instance, b"read-only", caller.ffi.new("bool *"))
        thread.join()
    assert simulator.forgive() == ["blkio_get_bool: another thread is calling instance 0"]


def test_the_end_of_a_queue_that_is_being_called_is_noticed(backend: Disk, simulator: Simulator) -> None:
    results: list[int] = []

    def wait_for_completion(caller: Caller) -> None:
        completion = caller.ffi.new("struct blkio_completion *")
        results.append(caller.lib.blkioq_do_io(caller.queue, completion, 1, 1, caller.ffi.NULL))

    with Caller(backend) as caller:
        simulator.configure(hold=1, abandons=1)
        thread = threading.Thread(target=wait_for_completion, args=(caller,))
        caller.lib.blkioq_flush(caller.queue, caller.ffi.NULL, 0)
        simulator.forgive()
        thread.start()
        wait_until(lambda: any(request.place for request in simulator.requests()))
        caller.destroy()
        thread.join()
    noticed = simulator.forgive()
    assert any("is destroyed while it is being called" in text for text in noticed), noticed
    assert results == [-errno.EINVAL]


def test_a_call_from_a_forked_child_is_noticed(backend: Disk, simulator: Simulator) -> None:
    with Caller(backend) as caller:
        child = os.fork()
        if child == 0:
            caller.do_io()
            noticed = simulator.violations == ["blkioq_do_io: the instance is that of a parent process"]
            os._exit(0 if noticed else 1)
        assert os.waitpid(child, 0)[1] == 0


PROGRAM = """
from pathlib import Path
from tests.simulation.caller import Caller
from tests.simulation.devices import new_disk
from tests.simulation.library import Driver, Simulator

disk = new_disk(Simulator(), Driver.VFIO_PCI, Path("/nowhere"))
caller = Caller(disk)
caller.read(0, 0, 512)
caller.do_io()
caller.read(3, 0, 512)
"""


def test_what_is_wrong_ends_a_process_that_does_not_ask_for_a_record() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=preloaded(seed=77), capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGABRT
    *came_before, last = [line for line in done.stderr.splitlines() if line]
    assert last == "simblkio: violation: request 2, read of 512 bytes at 3: request-alignment is 512"
    assert came_before[0] == "simblkio: seed 77; what came before:"
    assert any(line.endswith("i0 q0 reap #1 read 0+512 flags 0: 0") for line in came_before)
