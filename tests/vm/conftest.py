"""Where the guest's devices are; on a host without them these tests are not collected."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import aioblk

if "AIOBLK_VM_NVME" not in os.environ:
    collect_ignore_glob = ["test_*.py"]

RecordProperty: TypeAlias = Callable[[str, object], None]
VirtioBlk: TypeAlias = Callable[..., aioblk.Device]


@pytest.fixture
def nvme(record_property: RecordProperty) -> Path:
    """The character device of a plain NVMe namespace."""
    record_property("driver", "nvme")
    return Path(os.environ["AIOBLK_VM_NVME"])


@pytest.fixture
def zns(record_property: RecordProperty) -> Path:
    """The character device of a zoned NVMe namespace."""
    record_property("driver", "zns")
    return Path(os.environ["AIOBLK_VM_ZNS"])


@pytest.fixture(params=["vduse", "vfio"])
def virtio_blk(request: pytest.FixtureRequest, record_property: RecordProperty) -> VirtioBlk:
    """Makes devices, not yet open, of each virtio driver in turn."""
    record_property("driver", request.param)

    def make(**options: Any) -> aioblk.Device:
        if request.param == "vduse":
            return aioblk.VirtioBlkVhostVdpa(os.environ["AIOBLK_VM_VDPA"], **options)
        return aioblk.VirtioBlkVfioPci(os.environ["AIOBLK_VM_VFIO"], **options)

    return make
