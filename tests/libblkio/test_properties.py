"""The table of properties agrees with libblkio, and the mapping reads what can be read."""

import errno
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from aioblk._libblkio.handle import Blkio
from aioblk._libblkio.properties import DRIVERS, PROPERTIES, Kind, Properties, Property, State, lookup
from aioblk._native._blkio import ffi, lib
from aioblk.errors import OptionError, PropertyError

from ..conftest import StorageDaemonFactory

if TYPE_CHECKING:
    from aioblk._native._blkio import Pointer


@pytest.mark.parametrize("driver", sorted(DRIVERS))
def test_libblkio_knows_every_property_of_the_table_and_its_type(driver: str) -> None:
    cell = ffi.new("struct blkio **")
    assert lib.blkio_create(driver.encode(), cell) == 0
    try:
        for entry in PROPERTIES.values():
            if driver in entry.drivers:
                assert _read_as(entry.kind, cell[0], entry.name.encode()) in (0, -errno.ENODEV), entry.name
    finally:
        lib.blkio_destroy(cell)


def _read_as(kind: Kind, instance: "Pointer", name: bytes) -> int:
    match kind:
        case "bool":
            return lib.blkio_get_bool(instance, name, ffi.new("bool *"))
        case "int":
            return lib.blkio_get_int(instance, name, ffi.new("int *"))
        case "uint64":
            return lib.blkio_get_uint64(instance, name, ffi.new("uint64_t *"))
        case "str":
            text = ffi.new("char **")
            result = lib.blkio_get_str(instance, name, text)
            lib.free(text[0])
            return result


def test_a_created_device_has_only_the_properties_that_connecting_needs() -> None:
    with Blkio("io_uring") as device:
        assert dict(Properties(device)) == {
            "driver": "io_uring",
            "can-add-queues": True,
            "path": "",
            "fd": -1,
            "read-only": False,
            "direct": False,
        }


def test_a_started_file_has_every_property_of_its_driver(scratch_file: Path) -> None:
    with Blkio("io_uring") as device:
        device.set("path", str(scratch_file))
        device.connect()
        device.start()
        properties = Properties(device)
        assert set(properties) == {entry.name for entry in PROPERTIES.values() if "io_uring" in entry.drivers}
        assert len(properties) == len(list(properties))
        assert properties["capacity"] == scratch_file.stat().st_size
        assert properties["can-grow"] is True
        assert properties["max-mem-regions"] == 2**64 - 1
        assert properties["path"] == str(scratch_file)


def test_a_started_vhost_user_device_has_every_property_of_its_driver(
    storage_daemon: StorageDaemonFactory,
) -> None:
    daemon = storage_daemon(num_queues=2)
    with Blkio("virtio-blk-vhost-user") as device:
        device.set("path", str(daemon.socket))
        device.connect()
        device.start()
        properties = Properties(device)
        assert set(properties) == {
            entry.name for entry in PROPERTIES.values() if device.driver in entry.drivers
        }
        assert properties["queue-size"] == 256
        assert properties["max-queues"] == 2
        assert properties["needs-mem-regions"] is True


def test_capacity_is_live(scratch_file: Path) -> None:
    with Blkio("io_uring") as device:
        device.set("path", str(scratch_file))
        device.connect()
        device.start()
        properties = Properties(device)
        with scratch_file.open("r+b") as file:
            file.truncate(12345)
        assert properties["capacity"] == 12345


def test_what_cannot_be_read_is_not_in_the_mapping() -> None:
    with Blkio("io_uring") as device:
        properties = Properties(device)
        for name in ("capacity", "queue-size", "no-such-thing"):
            assert name not in properties
            assert properties.get(name, "nothing") == "nothing"
        with pytest.raises(PropertyError, match="capacity can be read once the device is connected"):
            properties["capacity"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("capacitty", "did you mean capacity"),
        ("queue-size", "only virtio-blk-vfio-pci, virtio-blk-vhost-user, virtio-blk-vhost-vdpa has it"),
        ("zzz", "there are driver, can-add-queues, path"),
    ],
)
def test_an_unknown_property_gets_a_hint(name: str, hint: str) -> None:
    with pytest.raises(PropertyError, match=hint):
        lookup("io_uring", name)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("bool", [True, False], [1, 0, "true", None]),
        ("int", [0, -1, 2**31 - 1], [True, 2**31, -(2**31) - 1, 1.0, "1", None]),
        ("uint64", [0, 2**64 - 1], [True, -1, 2**64, "1", None]),
        ("str", ["", "x"], [b"x", "a\0b", "a\udcff", 1, None]),
    ],
)
def test_a_value_must_have_the_type_and_range_of_its_property(
    kind: Kind, good: list[object], bad: list[object]
) -> None:
    entry = Property("it", kind, "", writable_in=State.CREATED)
    for value in good:
        assert entry.check("io_uring", value) is value
    for value in bad:
        with pytest.raises(OptionError, match="it must be "):
            entry.check("io_uring", value)
