"""What this machine can run, and why not the rest: checks, each with what it found and what would help."""

import errno
import os
import re
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from .._device.holders import find_holders
from .._libblkio.properties import IO_URING, NVME_IO_URING, VFIO_PCI, VHOST_USER, VHOST_VDPA
from .._version import VERSION
from . import system
from .text import in_words, of_size

__all__ = ["Check", "DriverState", "Machine", "State", "examine"]

State: TypeAlias = Literal["ok", "note", "fails"]
"""Fine; worth knowing, and in the way of some; in the way."""

SYS_ADMIN, IPC_LOCK = 21, 14  # capability(7)


@final
@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    """Stable: "io_uring", "permission", "memlock", ..."""
    state: State
    found: str
    remedy: str | None = None
    """What would mend it, where it is not fine."""


@final
@dataclass(frozen=True, slots=True)
class DriverState:
    """Whether a driver can be used here."""

    driver: str
    usable: bool
    devices: list[str]
    """What there is to open, as far as the system shows it; files and sockets are not looked for."""
    checks: list[Check]


@final
@dataclass(frozen=True, slots=True)
class Machine:
    """What there is, the drivers, and what is common to them."""

    aioblk: str
    libblkio: str | None
    """Its version; None: its file does not say."""
    libblkio_path: str | None
    kernel: str
    python: str
    drivers: list[DriverState]
    common: list[Check]


def examine() -> Machine:
    """Look at this machine, from within this process: its privileges, limits and filters."""
    path = system.libblkio_file()
    numbers = re.search(r"\.so\.(\d+(?:\.\d+)+)", path or "")
    return Machine(
        aioblk=VERSION,
        libblkio=numbers[1] if numbers else None,
        libblkio_path=path,
        kernel=system.kernel_release(),
        python=sys.version.split()[0],
        drivers=[
            _state(IO_URING, _io_uring(), []),
            _state(NVME_IO_URING, *_nvme()),
            _state(
                VHOST_USER, iter([Check("sockets", "ok", "needs a backend that listens on a socket")]), []
            ),
            _state(VHOST_VDPA, *_vdpa()),
            _state(VFIO_PCI, *_vfio()),
        ],
        common=[*_common()],
    )


def _state(driver: str, checks: Iterator[Check], devices: Sequence[str]) -> DriverState:
    found = list(checks)
    if not system.libblkio_has(driver):
        remedy = "libblkio has to be built with it; distributions' packages are"
        found.insert(0, Check("libblkio", "fails", "libblkio was built without this driver", remedy))
    return DriverState(driver, not any(check.state == "fails" for check in found), list(devices), found)


def _is_capable(capability: int) -> bool:
    return bool(system.effective_capabilities() >> capability & 1)


def _version() -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", system.kernel_release())
    return (int(found[1]), int(found[2])) if found else (0, 0)


# --- rings --------------------------------------------------------------------------------------------------


def _io_uring() -> Iterator[Check]:
    number = system.io_uring_setup()
    if number == 0:
        yield Check("io_uring", "ok", "rings can be made")
        return
    found, remedy = _why_no_ring(number)
    yield Check("io_uring", "fails", found, remedy)


def _why_no_ring(number: int) -> tuple[str, str]:
    """What stands behind the errno of io_uring_setup(2), and what would help."""
    disabled = system.read("/proc/sys/kernel/io_uring_disabled")
    name = errno.errorcode.get(number, str(number))
    if number == errno.EPERM and disabled == "2":
        return (
            "the sysctl kernel.io_uring_disabled is 2: nobody may make rings",
            "as root: sysctl kernel.io_uring_disabled=0",
        )
    if number == errno.EPERM and disabled == "1" and not _is_capable(SYS_ADMIN):
        group = int(system.read("/proc/sys/kernel/io_uring_group") or -1)
        if group not in system.groups():
            whose = f"those in the group {system.group_name(group)}" if group >= 0 else "nobody else"
            return (
                f"the sysctl kernel.io_uring_disabled is 1: only CAP_SYS_ADMIN and {whose} may make rings",
                "as root: sysctl kernel.io_uring_disabled=0, or kernel.io_uring_group= with a group of yours",
            )
    filtered = re.search(r"^Seccomp:\s*2", system.read("/proc/self/status") or "", re.MULTILINE)
    if number in (errno.EPERM, errno.ENOSYS, errno.EACCES):
        if number == errno.ENOSYS and _version() < (5, 1):
            return f"Linux {system.kernel_release()} has no io_uring", "Linux 5.1 or later"
        if filtered:
            where = f"in {container}" if (container := _container()) else "of a sandbox or a service"
            return (
                f"a seccomp filter {where} forbids io_uring_setup ({name})",
                "allow it in the filter: docker run --security-opt seccomp=FILE, with io_uring_setup, "
                "io_uring_enter and io_uring_register among the allowed calls (or seccomp=unconfined); "
                "SystemCallFilter=@io-event io_uring_setup io_uring_enter io_uring_register in systemd",
            )
        if number == errno.ENOSYS:
            return "the kernel was built without io_uring (ENOSYS)", "a kernel with CONFIG_IO_URING"
        return (
            f"io_uring_setup is refused ({name}), by no sysctl and no filter: a security module, as SELinux",
            "ausearch -m avc, or journalctl -k, tells the rule",
        )
    if number == errno.ENOMEM:
        return (
            "the rings need more memory than may be locked (ENOMEM)",
            "ulimit -l, LimitMEMLOCK= of a systemd unit, or Linux 5.12, which does not count rings",
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return f"no file descriptor is left for a ring ({name})", "ulimit -n"
    return f"io_uring_setup fails ({name})", "strace shows how"


def _container() -> str | None:
    """What kind of container this process is in; None: none is recognised."""
    if system.read("/.dockerenv") is not None:
        return "a Docker container"
    if system.read("/run/.containerenv") is not None:
        return "a Podman container"
    environment = (system.read("/proc/1/environ") or "").split("\0")
    kind = next((each[10:] for each in environment if each.startswith("container=")), "")
    return f"a container ({kind})" if kind else None


def _nvme() -> tuple[Iterator[Check], list[str]]:
    devices = [path for path in system.paths("/dev/ng*n*") if re.fullmatch(r"/dev/ng\d+n\d+", path)]

    def checks() -> Iterator[Check]:
        yield from _io_uring()
        if _version() < (5, 19):
            found = f"Linux {system.kernel_release()} has no NVMe passthrough through io_uring"
            yield Check("kernel", "fails", found, "Linux 5.19 or later")
        if not devices:
            yield Check("devices", "fails", "there is no NVMe namespace: no /dev/ngXnY", None)
        if not _is_capable(SYS_ADMIN):
            found = "this process lacks CAP_SYS_ADMIN, which NVMe passthrough needs"
            yield Check(
                "capability", "fails", found, "run it as root, or with AmbientCapabilities=CAP_SYS_ADMIN"
            )
        yield from _permissions(devices)

    return checks(), devices


# --- virtio-blk ---------------------------------------------------------------------------------------------


def _vdpa() -> tuple[Iterator[Check], list[str]]:
    devices = system.paths("/dev/vhost-vdpa-*")

    def checks() -> Iterator[Check]:
        yield from _module("vhost_vdpa")
        if not devices:
            yield Check(
                "devices",
                "fails",
                "there is no vDPA device: no /dev/vhost-vdpa-N",
                "vdpa mgmtdev show, then vdpa dev add name NAME mgmtdev DEVICE; "
                "without hardware, by a VDUSE daemon: docs/drivers.md",
            )
        yield from _permissions(devices)
        yield from _pinned()

    return checks(), devices


def _vfio() -> tuple[Iterator[Check], list[str]]:
    disks = {
        path: system.target(f"{path}/driver")
        for path in system.paths("/sys/bus/pci/devices/*")
        if system.read(f"{path}/vendor") == "0x1af4" and system.read(f"{path}/device") in ("0x1001", "0x1042")
    }
    bound = [path for path, driver in disks.items() if driver == "vfio-pci"]

    def checks() -> Iterator[Check]:
        yield from _module("vfio_pci")
        yield from _module("vfio_iommu_type1")
        if not system.paths("/sys/kernel/iommu_groups/*"):
            found = "there is no IOMMU, or it is off"
            remedy = (
                "intel_iommu=on for the kernel, and its like in the firmware; a vIOMMU for a virtual machine"
            )
            yield Check("iommu", "fails", found, remedy)
        if not disks:
            yield Check("devices", "fails", "there is no virtio-blk PCI device", None)
        elif not bound:
            yield _unbound(disks)
        groups = [system.target(f"{path}/iommu_group") for path in bound]
        yield from _permissions([f"/dev/vfio/{group}" for group in groups if group])
        yield from _pinned()

    return checks(), bound


def _unbound(disks: Mapping[str, str | None]) -> Check:
    """Of PCI devices that the kernel drives; a remedy for those that it does not use."""
    names = {
        path: [os.path.basename(each) for each in system.paths(f"{path}/virtio*/block/*")] for path in disks
    }
    free = [path for path in disks if not any(_is_used(name) for name in names[path])]
    found = in_words(
        [
            f"{os.path.basename(path)} is bound to {driver or 'no driver'}"
            + (f", and used as {in_words(names[path])}" if path not in free else "")
            for path, driver in disks.items()
        ]
    )
    remedy = None
    if free:
        name = os.path.basename(free[0])
        remedy = (
            f"as root: echo vfio-pci > {free[0]}/driver_override; echo {name} > {free[0]}/driver/unbind; "
            f"echo {name} > /sys/bus/pci/drivers_probe"
        )
    return Check("devices", "fails", f"no virtio-blk PCI device is bound to vfio-pci: {found}", remedy)


def _is_used(name: str) -> bool:
    try:
        return bool(find_holders(f"/dev/{name}"))
    except OSError:
        return True  # as far as can be told


def _module(name: str) -> Iterator[Check]:
    match system.module_state(name):
        case "available":
            yield Check(
                f"module {name}", "fails", f"the module {name} is not loaded", f"as root: modprobe {name}"
            )
        case "missing":
            remedy = "a kernel that has it; some distributions have it in a package of extra modules"
            yield Check(f"module {name}", "fails", f"this kernel has no module {name}", remedy)
        case _:
            pass


def _permissions(devices: Sequence[str]) -> Iterator[Check]:
    refused = {path: whose for path in devices for may, whose in [system.who_may(path)] if not may}
    for path, whose in refused.items():
        group = whose.rpartition(":")[2]
        remedy = f"as root: chmod or chown it, by a udev rule; or join the group {group}, if that may"
        state: State = "fails" if len(refused) == len(devices) else "note"
        yield Check(
            "permission", state, f"{path} ({whose}) may not be opened for reading and writing", remedy
        )


def _pinned() -> Iterator[Check]:
    soft, _hard = system.limit(resource.RLIMIT_MEMLOCK)
    if soft is not None and not _is_capable(IPC_LOCK) and soft < 64 << 20:
        yield Check(
            "memlock",
            "note",
            f"{of_size(soft)} of memory may be locked, and all that is registered with the device is",
            "ulimit -l, or LimitMEMLOCK= of a systemd unit: the registered memory, bounce pool included",
        )


# --- what is common -----------------------------------------------------------------------------------------


def _common() -> Iterator[Check]:
    yield _memlock()
    yield _open_files()
    yield _huge_pages()
    yield _aio()
    yield _uvloop()


def _memlock() -> Check:
    soft, hard = system.limit(resource.RLIMIT_MEMLOCK)
    if _is_capable(IPC_LOCK):
        return Check("memlock", "ok", "CAP_IPC_LOCK: no limit of locked memory applies")
    rings = "rings too" if _version() < (5, 12) else "rings do not, from Linux 5.12 on"
    found = (
        f"{of_size(soft)}, at most {of_size(hard)}; memory that a VFIO or vDPA device reaches counts, {rings}"
    )
    if soft is None or (_version() >= (5, 12) and soft >= 8 << 20):
        return Check("memlock", "ok", found)
    return Check("memlock", "note", found, "ulimit -l, or LimitMEMLOCK= of a systemd unit")


def _open_files() -> Check:
    soft, hard = system.limit(resource.RLIMIT_NOFILE)
    found = f"{soft or 'any number of'} open files, at most {hard or 'any number'}"
    if soft is None or soft >= 1024:
        return Check("open_files", "ok", found)
    return Check("open_files", "note", found, "ulimit -n: a device takes about ten, each of its queues two")


def _huge_pages() -> Check:
    numbers = dict(re.findall(r"^(Huge\w+):\s+(\d+)", system.read("/proc/meminfo") or "", re.MULTILINE))
    total, free = (int(numbers.get(f"HugePages_{name}", 0)) for name in ("Total", "Free"))
    size = of_size(int(numbers.get("Hugepagesize", 0)) << 10)
    if total:
        return Check("huge_pages", "ok", f"{free} of {total} huge pages of {size} are free")
    return Check("huge_pages", "ok", "none are reserved; nothing here needs them")


def _aio() -> Check:
    used, most = (system.read(f"/proc/sys/fs/aio-{name}") for name in ("nr", "max-nr"))
    if used is None or most is None:
        return Check("aio", "ok", "this kernel has no Linux AIO; aioblk does not use it")
    return Check("aio", "ok", f"{used} of {most} events of Linux AIO are taken; aioblk does not use it")


def _uvloop() -> Check:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Check("uvloop", "ok", f"uvloop {version('uvloop')}")
    except PackageNotFoundError:
        remedy = "pip install aioblk[uvloop]"
        return Check("uvloop", "note", "uvloop is not installed: asyncio's own loop is used", remedy)
