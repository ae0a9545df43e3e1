"""All suites by their names. Each gives what became of each of its tests."""

from collections.abc import Callable, Iterator

from .libnbd import libnbd_programs, libnbd_scripts
from .nbd_server import nbd_tester
from .place import Outcome
from .programs import kernel, programs
from .qemu import qemu_iotests

SUITES: dict[str, Callable[[], Iterator[tuple[str, Outcome]]]] = {
    "qemu-iotests": qemu_iotests,
    "libnbd": libnbd_scripts,
    "libnbd-c": libnbd_programs,
    "nbd-tester-client": nbd_tester,
    "programs": programs,
    "kernel": kernel,
}
