"""``aioblk info``: what this machine can run, and what a device is."""

import asyncio
import errno
import json
import os
import re
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import aioblk
from aioblk._device.holders import find_holders
from aioblk.cli import machine, system
from aioblk.cli.description import describe
from aioblk.cli.machine import DriverState, examine
from aioblk.cli.parameters import Opener
from aioblk.cli.program import program
from aioblk.testing.storage_daemon import StorageDaemon

from ..support.scripts import run_script
from .running import aioblk as run_aioblk

Kernel = Callable[..., None]

EVERYTHING = (1 << 64) - 1


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Has the small readers of ``system`` answer as a test wants, and files be what it says."""

    def pretend(
        files: dict[str, str] | None = None, globs: dict[str, list[str]] | None = None, **others: Any
    ) -> None:
        if files is not None:
            monkeypatch.setattr(system, "read", files.get)
        if globs is not None:
            monkeypatch.setattr(system, "paths", lambda pattern: globs.get(pattern, []))
        for name, value in others.items():
            monkeypatch.setattr(system, name, lambda *_arguments, value=value: value)

    return pretend


def driver(name: str) -> DriverState:
    return next(state for state in examine().drivers if state.driver == name)


def failures(name: str) -> dict[str, str]:
    """The checks that fail for a driver, with all that they say."""
    return {
        check.name: f"{check.found}; {check.remedy}"
        for check in driver(name).checks
        if check.state == "fails"
    }


# --- rings --------------------------------------------------------------------------------------------------


def test_where_rings_can_be_made_io_uring_is_usable() -> None:
    state = driver("io_uring")
    assert state.usable == (system.io_uring_setup() == 0)


@pytest.mark.parametrize(
    ("number", "files", "said"),
    [
        (
            errno.EPERM,
            {"/proc/sys/kernel/io_uring_disabled": "2"},
            "sysctl kernel.io_uring_disabled is 2: nobody",
        ),
        (
            errno.EPERM,
            {"/proc/sys/kernel/io_uring_disabled": "1", "/proc/sys/kernel/io_uring_group": "-1"},
            "only CAP_SYS_ADMIN and nobody else may make rings; as root: sysctl kernel.io_uring_disabled=0",
        ),
        (
            errno.EPERM,
            {"/proc/sys/kernel/io_uring_disabled": "1", "/proc/sys/kernel/io_uring_group": "0"},
            "only CAP_SYS_ADMIN and those in the group root",
        ),
        (
            errno.EPERM,
            {"/proc/self/status": "Seccomp:\t2", "/.dockerenv": ""},
            "a seccomp filter in a Docker container forbids io_uring_setup (EPERM); allow it in the filter",
        ),
        (
            errno.ENOSYS,
            {"/proc/self/status": "Seccomp:\t2", "/proc/1/environ": "A=b\0container=lxc\0"},
            "a seccomp filter in a container (lxc) forbids io_uring_setup (ENOSYS)",
        ),
        (
            errno.EPERM,
            {"/proc/sys/kernel/io_uring_disabled": "0", "/proc/self/status": "Seccomp:\t0"},
            "by no sysctl and no filter: a security module",
        ),
        (errno.ENOSYS, {}, "the kernel was built without io_uring"),
        (errno.ENOMEM, {}, "more memory than may be locked (ENOMEM); ulimit -l"),
        (errno.EMFILE, {}, "no file descriptor is left for a ring (EMFILE); ulimit -n"),
        (errno.EIO, {}, "io_uring_setup fails (EIO)"),
    ],
    ids=[
        "sysctl-2",
        "sysctl-1",
        "sysctl-1-group",
        "eperm",
        "enosys",
        "lsm",
        "config",
        "memlock",
        "nofile",
        "odd",
    ],
)
def test_what_stands_behind_a_refused_ring_is_told_apart(
    kernel: Kernel, number: int, files: dict[str, str], said: str
) -> None:
    kernel(files, io_uring_setup=number, effective_capabilities=0, groups=set(), kernel_release="6.1.0")
    assert said in failures("io_uring")["io_uring"]
    assert not driver("io_uring").usable


def test_who_is_in_the_group_of_io_uring_is_refused_for_another_reason(kernel: Kernel) -> None:
    files = {"/proc/sys/kernel/io_uring_disabled": "1", "/proc/sys/kernel/io_uring_group": "0"}
    kernel(files, io_uring_setup=errno.EPERM, effective_capabilities=0, groups={0})
    assert "security module" in failures("io_uring")["io_uring"]


def test_a_kernel_without_io_uring_is_told_by_its_version(kernel: Kernel) -> None:
    kernel({}, io_uring_setup=errno.ENOSYS, kernel_release="4.19.0-25-amd64")
    assert "Linux 4.19.0-25-amd64 has no io_uring; Linux 5.1 or later" in failures("io_uring")["io_uring"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_real_filter_is_recognised_and_the_device_says_the_same(scratch_file: Path, number: int) -> None:
    script = """
        import asyncio, sys
        from aioblk.cli.description import describe
        from aioblk.cli.machine import examine
        from aioblk.cli.parameters import Opener
        from tests.support.no_io_uring import forbid_io_uring
        forbid_io_uring(int(sys.argv[1]))
        [check] = examine().drivers[0].checks
        print(check.found)
        found = asyncio.run(describe(Opener(sys.argv[2])))
        assert found.error is not None and found.file is not None and found.capacity is None
        assert check.found in found.remedies[-1]
    """
    shown = run_script(script, str(number), scratch_file).stdout
    assert f"forbids io_uring_setup ({errno.errorcode[number]})" in shown


# --- the other drivers --------------------------------------------------------------------------------------


def test_nvme_needs_a_namespace_a_kernel_and_a_capability(kernel: Kernel) -> None:
    kernel({}, {}, io_uring_setup=0, kernel_release="5.10.0", effective_capabilities=0)
    assert set(failures("nvme-io_uring")) == {"kernel", "devices", "capability"}
    kernel(
        {},
        {"/dev/ng*n*": ["/dev/ng0n1", "/dev/ng0nothing"]},
        kernel_release="6.1.0",
        effective_capabilities=EVERYTHING,
        who_may=(True, "crw-rw---- root:disk"),
    )
    state = driver("nvme-io_uring")
    assert (state.usable, state.devices) == (True, ["/dev/ng0n1"])


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("available", "not loaded; as root: modprobe vhost_vdpa"),
        ("missing", "this kernel has no module vhost_vdpa"),
    ],
)
def test_a_missing_module_has_its_remedy(kernel: Kernel, module: str, said: str) -> None:
    kernel({}, {}, module_state=module)
    assert said in failures("virtio-blk-vhost-vdpa")["module vhost_vdpa"]


def test_devices_that_may_not_be_opened_are_told_with_their_owner(kernel: Kernel) -> None:
    nodes = ["/dev/vhost-vdpa-0", "/dev/vhost-vdpa-1"]
    refused = {nodes[0]: (False, "crw-rw---- root:kvm"), nodes[1]: (False, "crw------- root:root")}
    kernel({}, {"/dev/vhost-vdpa-*": nodes}, module_state="loaded", io_uring_setup=0)
    monkeypatched = pytest.MonkeyPatch()
    with monkeypatched.context() as patch:
        patch.setattr(system, "who_may", refused.__getitem__)
        state = driver("virtio-blk-vhost-vdpa")
        assert not state.usable
        assert "/dev/vhost-vdpa-0 (crw-rw---- root:kvm) may not be opened" in state.checks[0].found
        assert "join the group kvm" in (state.checks[0].remedy or "")
        refused[nodes[1]] = (True, "crw-rw-rw- root:root")
        state = driver("virtio-blk-vhost-vdpa")
        assert state.usable
        assert [check.name for check in state.checks if check.state == "note"][:1] == ["permission"]


def test_little_lockable_memory_is_worth_a_note_where_memory_is_pinned(kernel: Kernel) -> None:
    kernel(
        {},
        {"/dev/vhost-vdpa-*": ["/dev/vhost-vdpa-0"]},
        module_state="loaded",
        who_may=(True, ""),
        limit=(8 << 20, 8 << 20),
        effective_capabilities=0,
    )
    [check] = driver("virtio-blk-vhost-vdpa").checks
    assert (check.name, check.state) == ("memlock", "note")
    assert "8 MiB of memory may be locked" in check.found
    kernel(effective_capabilities=EVERYTHING)
    assert driver("virtio-blk-vhost-vdpa").checks == []


PCI = "/sys/bus/pci/devices/0000:00:10.0"


@pytest.mark.parametrize("used", [False, True])
def test_a_disk_that_the_kernel_uses_is_not_proposed_for_vfio(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    kernel(
        {f"{PCI}/vendor": "0x1af4", f"{PCI}/device": "0x1042"},
        {
            "/sys/bus/pci/devices/*": [PCI],
            f"{PCI}/virtio*/block/*": [f"{PCI}/virtio0/block/vda"],
            "/sys/kernel/iommu_groups/*": ["0"],
        },
        target="virtio-pci",
        module_state="loaded",
    )
    monkeypatch.setattr(machine, "find_holders", lambda _path: ["somebody"] if used else [])
    told = failures("virtio-blk-vfio-pci")
    assert set(told) == {"devices"}
    assert "0000:00:10.0 is bound to virtio-pci" in told["devices"]
    assert ("unbind" in told["devices"]) is not used
    assert ("used as vda" in told["devices"]) is used


def test_a_driver_that_libblkio_lacks_is_told(kernel: Kernel) -> None:
    kernel(libblkio_has=False)
    assert "built without this driver" in failures("virtio-blk-vhost-user")["libblkio"]
    assert system.libblkio_has("io_uring") is False  # as it was told to say


# --- the process --------------------------------------------------------------------------------------------


def test_limits_of_the_process_are_told_as_they_are() -> None:
    script = """
        import resource, sys
        from aioblk.cli.machine import examine
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))
        found = {check.name: check for check in examine().common}
        assert found["open_files"].state == "note"
        assert "200 open files, at most 300" in found["open_files"].found
    """
    run_script(script)


@pytest.mark.parametrize(
    ("limit", "release", "state"),
    [
        ((64 << 10, 64 << 10), "5.10.0", "note"),
        ((8 << 20, 8 << 20), "5.10.0", "note"),
        ((8 << 20, 8 << 20), "6.1.0", "ok"),
        ((64 << 10, None), "6.1.0", "note"),
        ((None, None), "5.10.0", "ok"),
    ],
)
def test_what_of_memory_counts_as_locked_depends_on_the_kernel(
    kernel: Kernel, limit: tuple[int | None, int | None], release: str, state: str
) -> None:
    kernel(limit=limit, kernel_release=release, effective_capabilities=0)
    [check] = [check for check in examine().common if check.name == "memlock"]
    assert check.state == state
    assert ("rings too" in check.found) == release.startswith("5.10")


def test_the_limits_are_those_of_resource() -> None:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert system.limit(resource.RLIMIT_NOFILE)[0] in (soft, None)


def test_everything_is_told_as_a_table_and_as_json() -> None:
    done = run_aioblk("info")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(run_aioblk("info", "--json").stdout)
    assert re.fullmatch(r"\d+\.\d+\.\d+", told["libblkio"])
    assert told["kernel"] == os.uname().release
    names = [state["driver"] for state in told["drivers"]]
    assert names == list(aioblk.drivers.CLASSES)
    for state in told["drivers"]:
        assert state["driver"] in done.stdout
        for check in state["checks"]:
            assert set(check) == {"name", "state", "found", "remedy"}
    assert {check["name"] for check in told["common"]} == {
        "memlock",
        "open_files",
        "huge_pages",
        "aio",
        "uvloop",
    }


# --- devices ------------------------------------------------------------------------------------------------


def info(*arguments: str | Path) -> tuple[int, Any]:
    result = CliRunner().invoke(program, ["info", "--json", *map(str, arguments)])
    return result.exit_code, json.loads(result.stdout)


def test_a_file_is_described(scratch_file: Path) -> None:
    subprocess.run(
        ["sfdisk", "-q", scratch_file], input="label: gpt\nsize=1M, name=boot\n", text=True, check=True
    )
    status, told = info(scratch_file)
    assert (status, told["error"], told["driver"]) == (0, None, "io_uring")
    assert (told["capacity"], told["read_only"]) == (8 << 20, False)
    assert told["file"]["kind"] == "file"
    assert told["limits"]["max_transfer"] == 1 << 30
    assert told["properties"]["direct"] is False
    assert [each["name"] for each in told["signatures"]] == ["a GPT partition table"]
    [partition] = told["partitions"]
    assert (partition["offset"], partition["length"], partition["name"]) == (1 << 20, 1 << 20, "boot")
    shown = CliRunner(env={"COLUMNS": "160"}).invoke(program, ["info", str(scratch_file)]).stdout
    for words in ("8 MiB (8388608 bytes)", "a GPT partition table (at 512)", "boot", "request-alignment"):
        assert words in shown


def test_holes_are_summed_up(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(4 << 20)
        os.pwrite(file.fileno(), b"x" * 65536, 1 << 20)
    _, told = info(path)
    assert told["extents"] == {"data": 65536, "holes": (4 << 20) - 65536, "pieces": 3, "complete": True}


def test_a_file_that_may_not_be_written_is_described_for_what_it_is(
    scratch_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda _path, mode, **_: not mode & os.W_OK)
    assert info(scratch_file)[1]["read_only"] is True


@pytest.mark.parametrize(
    ("address", "read_only"),
    [
        ("readonly:{}", True),
        ("io_uring:{}?read-only=on", True),
        ("slice,length=4M:readonly:{}", True),
        ("cow,read-only=on:{}", True),
        ("cow:readonly:{}", False),
        ("slice,length=4M:{}", False),
    ],
)
def test_an_address_that_allows_no_changes_is_not_writable(
    scratch_file: Path, address: str, read_only: bool
) -> None:
    assert info(address.format(scratch_file))[1]["read_only"] is read_only


def test_looking_leaves_the_file_as_it_was(scratch_file: Path) -> None:
    before = scratch_file.read_bytes(), os.stat(scratch_file)
    info(scratch_file)
    after = os.stat(scratch_file)
    assert scratch_file.read_bytes() == before[0]
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before[1].st_mtime_ns, before[1].st_ctime_ns)


def test_an_empty_file_is_described(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.touch()
    status, told = info(path)
    assert (status, told["capacity"], told["signatures"], told["partitions"]) == (0, 0, [], [])


def test_a_damaged_partition_table_is_told_and_the_rest_as_well(scratch_file: Path) -> None:
    with scratch_file.open("r+b") as file:
        file.write(bytes(446) + b"\x7e" + bytes(63) + b"\x55\xaa")
    status, told = info(scratch_file)
    assert status == 0
    assert "neither bootable nor not" in told["partition_error"]
    assert told["limits"]


def test_a_device_that_does_not_open_is_described_as_far_as_it_is_known(tmp_path: Path) -> None:
    path = tmp_path / "nothing.sock"
    path.touch()
    status, told = info(f"virtio-blk-vhost-user:{path}")
    assert status == 1
    assert (told["capacity"], told["limits"]) == (None, {})
    assert told["file"]["kind"] == "file"
    assert str(path) in told["error"]
    assert CliRunner().invoke(program, ["info", f"virtio-blk-vhost-user:{path}"]).exit_code == 1


def test_a_vhost_user_device_is_described(slow_daemon: StorageDaemon) -> None:
    status, told = info(f"virtio-blk-vhost-user:{slow_daemon.socket}")
    assert (status, told["error"]) == (0, None)
    assert told["file"]["kind"] == "socket"
    assert told["limits"]["needs_mem_regions"] is True


def test_what_is_not_writable_is_opened_for_reading(storage_daemon: Any, scratch_file: Path) -> None:
    daemon = storage_daemon(scratch_file, writable=False)
    _, told = info(f"virtio-blk-vhost-user:{daemon.socket}")
    assert told["read_only"] is True


def test_a_block_device_says_what_lies_behind_it(loop_device: Path, scratch_file: Path) -> None:
    _, told = info(loop_device)
    assert told["file"]["kind"] == "block device"
    assert told["capacity"] == 8 << 20
    assert [holder.who for holder in find_holders(str(scratch_file)) if holder.kind == "device"] == [
        f"behind the loop device {loop_device}"
    ]


def test_a_process_that_has_it_open_is_named(scratch_file: Path) -> None:
    with scratch_file.open("rb") as file, subprocess.Popen(["sleep", "60"], stdin=file) as process:
        [holder] = find_holders(str(scratch_file))
        process.kill()
    assert (holder.kind, holder.who) == ("process", f"open for reading in process {process.pid} (sleep)")
    assert not holder.writes


def test_an_exclusive_claim_is_told(loop_device: Path) -> None:
    claim = os.open(loop_device, os.O_RDONLY | os.O_EXCL)
    try:
        assert "exclusive" in [holder.kind for holder in find_holders(str(loop_device))]
    finally:
        os.close(claim)
    assert "exclusive" not in [holder.kind for holder in find_holders(str(loop_device))]


def test_a_lock_of_another_process_is_told(scratch_file: Path) -> None:
    script = (
        "import fcntl, sys, os; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX, 1, 100); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        ["python3", "-c", script, str(scratch_file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        found = asyncio.run(describe(Opener(str(scratch_file))))
        process.communicate()
    assert [holder.kind for holder in found.holders] == ["lock", "process"]
    assert found.holders[0].who.startswith(f"locked by process {process.pid} (python3)")
