"""Blkio: its states, what it refuses, and what it leaves behind."""

import errno
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from aioblk._libblkio.handle import Blkio
from aioblk._libblkio.mem_region import MemRegion
from aioblk._libblkio.properties import State, usable_mem_regions
from aioblk._native._blkio import ffi
from aioblk.errors import (
    AlignmentError,
    BlkioError,
    OptionError,
    PropertyError,
    RegistrationError,
    UnsupportedError,
    UsageError,
)

from ..conftest import StorageDaemonFactory
from ..support.blocking_io import BlockingQueue
from ..support.devices import SCRATCH_SIZE

PAGE = mmap.PAGESIZE


@pytest.fixture
def created() -> Iterator[Blkio]:
    with Blkio("io_uring") as device:
        yield device


@pytest.fixture
def connected(created: Blkio, scratch_file: Path) -> Blkio:
    created.set("path", str(scratch_file))
    created.connect()
    return created


@pytest.fixture
def started(connected: Blkio) -> Blkio:
    connected.start()
    return connected


@pytest.fixture
def vhost_user(storage_daemon: StorageDaemonFactory) -> Iterator[Blkio]:
    daemon = storage_daemon()
    with Blkio("virtio-blk-vhost-user") as device:
        device.set("path", str(daemon.socket))
        device.connect()
        device.start()
        yield device
    assert daemon.alive


@contextmanager
def memory_file(size: int) -> Iterator[tuple[int, int]]:
    """Descriptor and address of shared memory."""
    fd = os.memfd_create("test")
    try:
        os.ftruncate(fd, size)
        with mmap.mmap(fd, size) as mapping:
            yield fd, int(ffi.cast("uintptr_t", ffi.from_buffer(mapping)))
    finally:
        os.close(fd)


# --- states -------------------------------------------------------------------------------------------------


def test_an_unknown_driver_is_an_error() -> None:
    with pytest.raises(BlkioError, match=r"no-such-driver create: .*Unknown driver name") as caught:
        Blkio("no-such-driver")
    assert caught.value.errno == errno.ENOENT


def test_a_device_goes_from_created_to_destroyed_and_each_step_can_be_repeated(scratch_file: Path) -> None:
    device = Blkio("io_uring")
    assert device.state is State.CREATED
    device.set("path", str(scratch_file))
    for step, state in (
        (device.connect, State.CONNECTED),
        (device.start, State.STARTED),
        (device.destroy, State.DESTROYED),
    ):
        step()
        assert device.state is state
        step()
        assert device.state is state


def test_steps_cannot_be_taken_out_of_order(created: Blkio, scratch_file: Path) -> None:
    with pytest.raises(UsageError, match="can be started once it is connected; this device is created"):
        created.start()
    created.set("path", str(scratch_file))
    created.connect()
    created.start()
    with pytest.raises(
        UsageError, match="can be connected once, before it is started; this device is started"
    ):
        created.connect()
    created.destroy()
    for step in (created.connect, created.start):
        with pytest.raises(UsageError, match="this device is destroyed"):
            step()


@pytest.mark.parametrize(
    ("driver", "path", "number"),
    [
        ("io_uring", "/no/such/file", errno.ENOENT),
        ("io_uring", "/dev/null", errno.EINVAL),
        ("nvme-io_uring", "/dev/null", errno.ENOTTY),
        ("virtio-blk-vhost-user", "/no/such/socket", errno.ENOENT),
        ("virtio-blk-vhost-vdpa", "/no/such/device", errno.ENOENT),
        ("virtio-blk-vhost-vdpa", "/dev/null", errno.EIO),
        ("virtio-blk-vfio-pci", "/no/such/device", errno.ENOENT),
    ],
)
def test_a_device_that_is_not_there_fails_to_connect_and_leaves_nothing(
    driver: str, path: str, number: int
) -> None:
    with Blkio(driver) as device:
        device.set("path", path)
        with pytest.raises(BlkioError, match=f"{driver} connect '{path}'") as caught:
            device.connect()
        assert caught.value.errno == number
        assert caught.value.filename == path
        assert device.state is State.CREATED


def test_the_text_of_an_error_is_that_of_its_own_thread() -> None:
    """libblkio keeps the text per thread: failures in several at once must not mix."""
    messages: dict[str, set[tuple[int | None, str | None]]] = {
        path: set() for path in ("/no/such/file", "/dev/null", "/proc", "/dev/null/x")
    }
    barrier = threading.Barrier(len(messages))

    def connect_to(path: str) -> None:
        barrier.wait()
        for _ in range(100):
            with Blkio("io_uring") as device:
                device.set("path", path)
                try:
                    device.connect()
                except BlkioError as error:
                    messages[path].add((error.errno, error.message))

    threads = [threading.Thread(target=connect_to, args=(path,)) for path in messages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert messages == {
        "/no/such/file": {(errno.ENOENT, None)},
        "/dev/null": {(errno.EINVAL, "The file must be a block device or a regular file")},
        "/proc": {(errno.EISDIR, None)},
        "/dev/null/x": {(errno.ENOTDIR, None)},
    }


def test_threads_do_not_mix_up_the_answers_of_a_backend(vhost_user: Blkio) -> None:
    """Both kinds of call send a message over one socket and wait for the answer."""
    regions = [vhost_user.alloc_mem_region(PAGE) for _ in range(8)]
    mapping_is_over = threading.Event()
    capacities: set[object] = set()

    def read_capacity() -> None:
        while not mapping_is_over.is_set():
            capacities.add(vhost_user.get("capacity"))

    reader = threading.Thread(target=read_capacity)
    reader.start()
    try:
        for _ in range(200):
            for region in regions:
                vhost_user.map_mem_region(region)
            for region in regions:
                vhost_user.unmap_mem_region(region)
    finally:
        mapping_is_over.set()
        reader.join()
    assert capacities == {SCRATCH_SIZE}


def test_an_instance_goes_from_thread_to_thread(scratch_file: Path) -> None:
    with Blkio("io_uring") as device:

        def connect() -> None:
            device.set("path", str(scratch_file))
            device.connect()
            device.start()

        thread = threading.Thread(target=connect)
        thread.start()
        thread.join()
        assert device.get("capacity") == scratch_file.stat().st_size


def test_a_device_that_is_forgotten_warns() -> None:
    device: Blkio | None = Blkio("io_uring")
    with pytest.warns(ResourceWarning, match="unclosed <Blkio io_uring created>"):
        device = None
    assert device is None


def test_a_forked_child_leaves_the_device_to_its_parent(storage_daemon: StorageDaemonFactory) -> None:
    """In a process of its own: forking one that has threads is not for the test runner."""
    script = f"""if True:
        import os
        from aioblk._libblkio.handle import Blkio
        with Blkio("virtio-blk-vhost-user") as device:
            device.set("path", {str(storage_daemon().socket)!r})
            device.connect()
            device.start()
            child = os.fork()
            if child == 0:
                device.destroy()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            region = device.alloc_mem_region(4096)
            device.map_mem_region(region)
            from tests.support.blocking_io import BlockingQueue
            assert BlockingQueue(device).read(0, region.address, 4096) == 0
    """
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# --- properties ---------------------------------------------------------------------------------------------


def test_settings_have_their_time(created: Blkio, scratch_file: Path) -> None:
    with pytest.raises(UsageError, match=r"num-queues can be set between connect and start; .* is created"):
        created.set("num-queues", 2)
    created.set("path", str(scratch_file))
    created.connect()
    with pytest.raises(UsageError, match="path can be set before connect; this device is connected"):
        created.set("path", "elsewhere")
    created.set("num-queues", 2)
    created.start()
    with pytest.raises(UsageError, match=r"num-queues can be set between connect and start; .* is started"):
        created.set("num-queues", 3)
    assert created.get("num-queues") == 2


@pytest.mark.parametrize(
    ("name", "value", "kind", "message"),
    [
        ("capacity", 1, UsageError, "capacity is read-only"),
        ("driver", "x", UsageError, "driver is read-only"),
        ("direct", 1, OptionError, "direct must be True or False, not 1"),
        ("path", "a\0b", OptionError, "path must be a string of UTF-8 without null characters"),
        ("path", "a\udcff", OptionError, "path must be a string of UTF-8"),
        ("queue-size", 1, PropertyError, "no property 'queue-size'; only virtio"),
        ("read_only", True, PropertyError, "did you mean read-only"),
        ("fd", 2**20, OptionError, "fd 1048576: Bad file descriptor"),
    ],
)
def test_what_cannot_be_set_is_refused(
    created: Blkio, name: str, value: bool | int | str, kind: type[BlkioError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        created.set(name, value)


def test_libblkio_has_the_last_word_on_a_value(connected: Blkio) -> None:
    with pytest.raises(BlkioError, match=r"set num-entries to 0: .*num-entries must be greater than 0"):
        connected.set("num-entries", 0)


def test_a_property_of_a_destroyed_device_cannot_be_read(started: Blkio) -> None:
    started.destroy()
    with pytest.raises(PropertyError, match="this device is destroyed"):
        started.get("capacity")


def test_a_path_may_be_in_any_language(tmp_path: Path, created: Blkio) -> None:
    path = tmp_path / "día tříště 東京"
    path.write_bytes(bytes(512))
    created.set("path", str(path))
    created.connect()
    assert created.get("path") == str(path)


# --- a descriptor in place of a path ------------------------------------------------------------------------


def test_the_callers_descriptor_stays_the_callers(scratch_file: Path) -> None:
    fd = os.open(scratch_file, os.O_RDWR)
    try:
        with Blkio("io_uring") as device:
            device.set("fd", fd)
            device.connect()
            device.start()
            assert device.get("fd") != fd
            assert device.get("capacity") == os.fstat(fd).st_size
        assert os.fstat(fd).st_size == scratch_file.stat().st_size
    finally:
        os.close(fd)


def test_a_descriptor_that_does_not_fit_is_closed_once() -> None:
    """libblkio closes it when connect fails, whatever its manual says; a second close may hit another."""
    reader, writer = os.pipe()
    try:
        with Blkio("io_uring") as device:
            device.set("fd", reader)
            with pytest.raises(BlkioError, match="must be a block device or a regular file"):
                device.connect()
            in_its_place = os.dup(reader)
        os.fstat(in_its_place)
        os.close(in_its_place)
    finally:
        os.close(reader)
        os.close(writer)


def test_a_descriptor_that_is_never_used_is_closed(scratch_file: Path) -> None:
    with scratch_file.open() as file, Blkio("io_uring") as device:
        device.set("fd", file.fileno())
        device.set("fd", file.fileno())


@pytest.mark.parametrize("both", [True, False])
def test_path_and_descriptor_exclude_each_other(created: Blkio, scratch_file: Path, both: bool) -> None:
    with scratch_file.open() as file:
        if both:
            created.set("path", str(scratch_file))
            created.set("fd", file.fileno())
        with pytest.raises(OptionError, match="set one of path and fd"):
            created.connect()


# --- memory regions -----------------------------------------------------------------------------------------


def test_memory_can_be_mapped_once_started(connected: Blkio) -> None:
    for call in (
        lambda: connected.alloc_mem_region(PAGE),
        lambda: connected.map_mem_region(MemRegion(PAGE, PAGE)),
        lambda: connected.take_queue(0),
    ):
        with pytest.raises(UsageError, match="this needs a started device; this device is connected"):
            call()


def test_allocated_memory_is_mapped_unmapped_and_freed(vhost_user: Blkio) -> None:
    region = vhost_user.alloc_mem_region(PAGE)
    assert region.length == PAGE
    assert region.fd >= 0
    vhost_user.map_mem_region(region)
    assert list(vhost_user.mapped_regions) == [region]
    with pytest.raises(UsageError, match="is mapped; unmap it first"):
        vhost_user.free_mem_region(region)
    vhost_user.unmap_mem_region(region)
    assert list(vhost_user.mapped_regions) == []
    vhost_user.free_mem_region(region)
    with pytest.raises(UsageError, match="was not allocated by this device"):
        vhost_user.free_mem_region(region)


def test_unmapping_takes_the_description_that_was_mapped(vhost_user: Blkio) -> None:
    region = vhost_user.alloc_mem_region(PAGE)
    vhost_user.map_mem_region(region)
    for other in (
        region._replace(length=PAGE // 2),
        region._replace(fd_offset=PAGE),
        region._replace(address=region.address + 512),
    ):
        with pytest.raises(UsageError, match="is not mapped"):
            vhost_user.unmap_mem_region(other)
    vhost_user.unmap_mem_region(region)
    with pytest.raises(UsageError, match="is not mapped"):
        vhost_user.unmap_mem_region(region)


def test_memory_of_the_caller_is_mapped_by_its_descriptor(vhost_user: Blkio) -> None:
    with memory_file(4 * PAGE) as (fd, address):
        region = MemRegion(address + PAGE, 2 * PAGE, fd_offset=PAGE, fd=fd)
        vhost_user.map_mem_region(region)
        vhost_user.unmap_mem_region(region)


@pytest.mark.parametrize("length", [0, -1, 2**64])
def test_lengths_that_cannot_be_are_refused(vhost_user: Blkio, length: int) -> None:
    with pytest.raises(AlignmentError, match=f"length {length} is not a positive multiple of 1 "):
        vhost_user.alloc_mem_region(length)
    with pytest.raises(AlignmentError, match=f"length {length} is not a positive multiple of 1 "):
        vhost_user.map_mem_region(MemRegion(PAGE, length))


def test_misaligned_regions_are_refused(loop_device: Path) -> None:
    with Blkio("io_uring") as device:
        device.set("path", str(loop_device))
        device.set("direct", True)
        device.connect()
        device.start()
        for region in (MemRegion(PAGE + 1, PAGE), MemRegion(PAGE, PAGE + 1)):
            with pytest.raises(AlignmentError, match=r"4097 is not a .* multiple of 512 \(mem-region-align"):
                device.map_mem_region(region)
        with pytest.raises(AlignmentError, match="length 513 is not"):
            device.alloc_mem_region(513)


def test_regions_that_would_harm_the_backend_are_refused(vhost_user: Blkio) -> None:
    with memory_file(4 * PAGE) as (fd, address):
        first = MemRegion(address + PAGE, PAGE, fd_offset=PAGE, fd=fd)
        vhost_user.map_mem_region(first)
        for region, reason in (
            (first, "overlaps"),
            (MemRegion(address, PAGE + 1, fd=fd), "overlaps"),
            (MemRegion(first.end - 1, PAGE, fd_offset=PAGE, fd=fd), "overlaps"),
            (MemRegion(address, 3 * PAGE, fd=fd), "overlaps"),
            (MemRegion(address, PAGE), "needs memory with a file descriptor"),
            (MemRegion(address, PAGE, fd=2**20), "fd 1048576: Bad file descriptor"),
            (MemRegion(address, PAGE, fd=fd, fd_offset=-PAGE), "fd_offset -4096 is negative"),
            (MemRegion(address, PAGE, fd=fd, fd_offset=4 * PAGE), "ends past its file's end"),
            (MemRegion(2**64 - PAGE, 2 * PAGE, fd=fd), "past the end of the address space"),
        ):
            with pytest.raises(RegistrationError, match=reason):
                vhost_user.map_mem_region(region)
        assert vhost_user.mapped_regions == (first,)


def test_the_region_that_would_kill_the_backend_is_refused(vhost_user: Blkio) -> None:
    """max-mem-regions is 32, or 509 with a newer QEMU, but libblkio itself has one of them."""
    room = cast(int, vhost_user.get("max-mem-regions")) - 1
    *regions, another = (vhost_user.alloc_mem_region(PAGE) for _ in range(room + 1))
    for region in regions:
        vhost_user.map_mem_region(region)
    with pytest.raises(RegistrationError, match=f"{room} regions are mapped; the device takes no more"):
        vhost_user.map_mem_region(another)
    vhost_user.unmap_mem_region(regions[5])
    vhost_user.map_mem_region(another)
    assert list(vhost_user.mapped_regions) == sorted([*regions[:5], *regions[6:], another])
    assert BlockingQueue(vhost_user).read(0, another.address, PAGE) == 0


# --- queues -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [1, -1, 2**31, 2**40])
def test_a_queue_that_is_not_there_is_refused(started: Blkio, index: int) -> None:
    for call in (started.take_queue, started.remove_queue):
        with pytest.raises(UsageError, match=f"there is no queue {index}") as caught:
            call(index)
        assert caught.value.errno == errno.ENOENT
    for call in (partial(started.take_queue, poll=True), started.remove_poll_queue):
        with pytest.raises(UsageError, match=f"there is no poll queue {index}"):
            call(index)


def test_queues_come_and_go_on_a_started_device(started: Blkio) -> None:
    assert started.queue_count == 1
    assert started.add_queue() == 1
    addresses, descriptors = zip(started.take_queue(0), started.take_queue(1), strict=True)
    assert len({*addresses}) == len({*descriptors}) == 2
    started.give_queue(0)
    started.remove_queue(0)
    assert started.queue_count == 2
    with pytest.raises(UsageError, match="there is no queue 0"):
        started.take_queue(0)
    started.give_queue(1)


def test_a_queue_is_taken_once_and_not_removed_meanwhile(started: Blkio) -> None:
    started.add_queue()
    started.take_queue(1)
    for call in (started.take_queue, started.remove_queue):
        with pytest.raises(UsageError, match="queue 1 is in use; close it first") as caught:
            call(1)
        assert caught.value.errno == errno.EBUSY
    started.give_queue(1)
    started.remove_queue(1)
    with pytest.raises(UsageError, match="there is no queue 1"):
        started.take_queue(1)


def test_an_instance_whose_queues_are_in_use_is_leaked_rather_than_destroyed(scratch_file: Path) -> None:
    """In a process of its own, which it leaves with the instance."""
    script = f"""if True:
        import warnings
        from aioblk._libblkio.handle import Blkio
        from tests.support.blocking_io import BlockingQueue, queue_of
        device = Blkio("io_uring")
        device.set("path", {str(scratch_file)!r})
        device.connect()
        device.start()
        queue = BlockingQueue(device)
        device.take_queue(0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            device.destroy()
        print([str(warning.message) for warning in caught], queue.flush())
    """
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 0, ended.stderr
    assert "is leaked, since queues of it are in use: [0]" in ended.stdout
    assert ended.stdout.endswith("] 0\n")


def test_a_driver_that_cannot_add_queues_says_so(vhost_user: Blkio) -> None:
    for add in (vhost_user.add_queue, vhost_user.add_poll_queue):
        with pytest.raises(UnsupportedError, match="Driver does not support dynamically adding queues"):
            add()


# --- hints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSYS, "io_uring is not available here: kernel.io_uring_disabled or a container's seccomp"),
        (errno.EPERM, "io_uring is not available here: kernel.io_uring_disabled or a container's seccomp"),
        (errno.ENOMEM, "the rings need more memory than may be locked (ulimit -l)"),
    ],
)
def test_a_process_without_io_uring_is_told_why(scratch_file: Path, number: int, reason: str) -> None:
    script = f"""if True:
        from aioblk._libblkio.handle import Blkio
        from aioblk.errors import BlkioError
        from tests.support.no_io_uring import forbid_io_uring
        forbid_io_uring({number})
        with Blkio("io_uring") as device:
            device.set("path", {str(scratch_file)!r})
            device.connect()
            try:
                device.start()
            except BlkioError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, timeout=60, text=True, capture_output=True
    )
    assert done.stdout.startswith(f"io_uring start '{scratch_file}': [Errno {number}] ")
    assert reason in done.stdout


def test_a_backend_that_cannot_be_written_is_said_to_be(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon(writable=False)
    with Blkio("virtio-blk-vhost-user") as device:
        device.set("path", str(daemon.socket))
        device.connect()
        with pytest.raises(BlkioError, match="Device is read-only; open it with read_only=True") as caught:
            device.start()
        assert caught.value.errno == errno.EROFS


def test_a_socket_that_nobody_listens_on_is_said_to_be(storage_daemon: StorageDaemonFactory) -> None:
    daemon = storage_daemon()
    daemon.kill()
    with Blkio("virtio-blk-vhost-user") as device:
        device.set("path", str(daemon.socket))
        with pytest.raises(BlkioError, match="Connection refused: no backend listens on the socket"):
            device.connect()


# --- giving back --------------------------------------------------------------------------------------------


def test_a_region_with_the_same_values_is_not_given_back(vhost_user: Blkio) -> None:
    """It has the address of one that is long gone."""
    region = vhost_user.alloc_mem_region(PAGE)
    vhost_user.map_mem_region(region)
    vhost_user.give_back_mem_region(MemRegion(*region))
    assert region in vhost_user.mapped_regions
    vhost_user.give_back_mem_region(region)
    vhost_user.give_back_mem_region(region)
    assert region not in vhost_user.mapped_regions


def test_what_could_not_be_given_back_makes_room_for_the_next(vhost_user: Blkio) -> None:
    most = usable_mem_regions(vhost_user)
    regions = [vhost_user.alloc_mem_region(PAGE) for _ in range(most + 1)]
    for region in regions[:most]:
        vhost_user.map_mem_region(region)
    with pytest.raises(RegistrationError):
        vhost_user.map_mem_region(regions[-1])
    vhost_user.give_back_later(regions[0])
    assert regions[0] in vhost_user.mapped_regions
    vhost_user.map_mem_region(regions[-1])
    assert regions[0] not in vhost_user.mapped_regions
