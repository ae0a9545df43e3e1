"""A device may die within any call of libblkio's interface: what that call answers then."""

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .caller import CONNECTED, CREATED, MAPPED, STARTED, Caller
from .devices import BLOCK, new_disk
from .library import VIRTIO, Death, Driver, Simulator

Call = Callable[[Caller], Any]


def _call(name: str, *arguments: Any) -> Call:
    return lambda it: getattr(it.lib, f"blkio_{name}")(it.instance, *arguments)


def _get(kind: str, name: bytes, cell: str) -> Call:
    return lambda it: getattr(it.lib, f"blkio_get_{kind}")(it.instance, name, it.ffi.new(cell))


def _get_text(it: Caller) -> None:
    cell = it.ffi.new("char **")
    it.must(it.lib.blkio_get_str(it.instance, b"driver", cell))
    it.lib.free(cell[0])


def _allocate(it: Caller) -> Any:
    region = it.ffi.new("struct blkio_mem_region *")
    it.must(it.lib.blkio_alloc_mem_region(it.instance, region, 4096))
    return region


def _allocate_and_free(it: Caller) -> None:
    it.lib.blkio_free_mem_region(it.instance, _allocate(it))


def _request(name: str, *arguments: Any) -> Call:
    return lambda it: getattr(it.lib, f"blkioq_{name}")(it.queue, *arguments, it.ffi.NULL, 0)


def _buffer(name: str) -> Call:
    return lambda it: _request(name, 0, it.memory, BLOCK)(it)


def _vector(name: str) -> Call:
    return lambda it: _request(name, 0, it.vector((0, BLOCK), (BLOCK, BLOCK)), 2)(it)


def _do_io(it: Caller) -> Any:
    completions = it.ffi.new("struct blkio_completion[]", 4)
    return it.lib.blkioq_do_io(it.queue, completions, 0, 4, it.ffi.NULL)


def _do_io_interruptible(it: Caller) -> Any:
    completions = it.ffi.new("struct blkio_completion[]", 4)
    return it.lib.blkioq_do_io_interruptible(it.queue, completions, 0, 4, it.ffi.NULL, it.ffi.NULL)


ZONES = [f"{act}_{of}" for act in ("open", "close", "finish", "reset") for of in ("zone", "all_zones")]

# From which stage on, and the call; where it makes another one before it, that is named.
CALLS: dict[str, tuple[int, Call]] = {
    "blkio_connect": (CREATED, _call("connect")),
    "blkio_set_bool": (CONNECTED, _call("set_bool", b"read-only", False)),
    "blkio_set_int": (CONNECTED, _call("set_int", b"num-queues", 1)),
    "blkio_set_uint64": (CONNECTED, _call("set_uint64", b"capacity", 1)),
    "blkio_set_str": (CONNECTED, _call("set_str", b"num-queues", b"1")),
    "blkio_start": (CONNECTED, _call("start")),
    "blkio_get_bool": (STARTED, _get("bool", b"read-only", "bool *")),
    "blkio_get_int": (STARTED, _get("int", b"num-queues", "int *")),
    "blkio_get_uint64": (STARTED, _get("uint64", b"capacity", "uint64_t *")),
    "blkio_get_str": (STARTED, _get_text),
    "blkio_map_mem_region": (STARTED, lambda it: it.lib.blkio_map_mem_region(it.instance, it.region)),
    "blkio_unmap_mem_region": (MAPPED, lambda it: it.lib.blkio_unmap_mem_region(it.instance, it.region)),
    "blkio_alloc_mem_region": (STARTED, _allocate),
    "blkio_free_mem_region": (STARTED, _allocate_and_free),
    "blkio_add_queue": (STARTED, _call("add_queue")),
    "blkio_add_poll_queue": (STARTED, _call("add_poll_queue")),
    "blkio_get_queue": (STARTED, _call("get_queue", 0)),
    "blkio_get_poll_queue": (STARTED, _call("get_poll_queue", 0)),
    "blkio_remove_queue": (STARTED, _call("remove_queue", 0)),
    "blkio_remove_poll_queue": (STARTED, _call("remove_poll_queue", 0)),
    "blkio_destroy": (MAPPED, lambda it: it.destroy()),
    "blkioq_get_completion_fd": (STARTED, lambda it: it.lib.blkioq_get_completion_fd(it.queue)),
    "blkioq_set_completion_fd_enabled": (
        STARTED,
        lambda it: it.lib.blkioq_set_completion_fd_enabled(it.queue, False),
    ),
    "blkioq_read": (MAPPED, _buffer("read")),
    "blkioq_write": (MAPPED, _buffer("write")),
    "blkioq_readv": (MAPPED, _vector("readv")),
    "blkioq_writev": (MAPPED, _vector("writev")),
    "blkioq_write_zeroes": (MAPPED, _request("write_zeroes", 0, BLOCK)),
    "blkioq_discard": (MAPPED, _request("discard", 0, BLOCK)),
    "blkioq_flush": (MAPPED, _request("flush")),
    "blkioq_report_zones": (MAPPED, lambda it: _request("report_zones", 0, it.ffi.NULL, 0)(it)),
    **{f"blkioq_{zone}": (MAPPED, _request(zone, *([] if "all" in zone else [0]))) for zone in ZONES},
    "blkioq_do_io": (MAPPED, _do_io),
    "blkioq_do_io_interruptible": (MAPPED, _do_io_interruptible),
}
CALLED_BEFORE = {"blkio_free_mem_region": 1}

TELLING = (
    "blkio_connect",
    "blkio_start",
    "blkio_map_mem_region",
    "blkio_get_uint64",
    "blkioq_do_io",
    "blkioq_do_io_interruptible",
)
"""Calls that say whether they have succeeded, and do here while the device lives."""

FAILING = {
    Death.SILENT: (),
    Death.HUNG_UP: TELLING[:4],
    Death.KILLED: TELLING[:4],
    Death.BROKEN: TELLING[4:],
}

DEATHS = [
    (Driver.VHOST_USER, Death.SILENT),
    (Driver.VHOST_USER, Death.HUNG_UP),
    (Driver.VHOST_USER, Death.KILLED),
    (Driver.VFIO_PCI, Death.SILENT),
    (Driver.VFIO_PCI, Death.BROKEN),
]


def test_the_table_has_every_call_to_a_device() -> None:
    declarations = (Path(__file__).parents[2] / "aioblk/_native/_cdefs.h").read_text()
    calls = set(re.findall(r"\b(blkioq?_\w+)\(", declarations))
    assert set(CALLS) == calls - {"blkio_create", "blkio_get_error_msg"}


@pytest.mark.parametrize(("driver", "death"), DEATHS, ids=lambda it: it.name.lower())
@pytest.mark.parametrize("name", CALLS)
def test_a_device_dies_within_the_call(
    name: str, driver: Driver, death: Death, simulator: Simulator, tmp_path: Path
) -> None:
    stage, call = CALLS[name]
    with Caller(new_disk(simulator, driver, tmp_path), stage=stage, num_poll_queues=1) as caller:
        simulator.die_at(1 + CALLED_BEFORE.get(name, 0), death)
        result = call(caller)
        assert simulator.counts["device dies"] == 1
        if name in FAILING[death]:
            assert result == -errno.EIO
        elif name in TELLING:
            assert result == 0


@pytest.mark.parametrize("driver", list(Driver), ids=lambda it: it.name.lower())
@pytest.mark.parametrize("name", CALLS)
def test_a_device_dies_by_chance_within_the_call(
    name: str, driver: Driver, simulator: Simulator, tmp_path: Path
) -> None:
    stage, call = CALLS[name]
    polls = int(driver in VIRTIO)
    if "poll" in name and not polls:
        return
    with Caller(new_disk(simulator, driver, tmp_path), stage=stage, num_poll_queues=polls) as caller:
        simulator.configure(seed=1, die=1000)
        call(caller)
        assert simulator.counts["device dies"] == 1


@pytest.mark.parametrize("driver", list(Driver), ids=lambda it: it.name.lower())
def test_every_way_to_die_comes_by_chance(driver: Driver, simulator: Simulator, tmp_path: Path) -> None:
    disk = new_disk(simulator, driver, tmp_path)
    ways = set()
    for seed in range(1, 20):
        simulator.configure(seed=seed, die=1000)
        with Caller(disk, stage=CREATED) as caller:
            caller.lib.blkio_connect(caller.instance)
        ways.add(next(line[-1] for line in reversed(simulator.trace) if "device dies" in line))
        if driver is Driver.VHOST_USER:
            disk.restart()
    expected = (
        {Death.SILENT, Death.HUNG_UP, Death.KILLED}
        if driver is Driver.VHOST_USER
        else {Death.SILENT, Death.BROKEN}
    )
    assert ways == {str(int(death)) for death in expected}
