"""The older form: a driver's name, and its options beside it, which may be text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import aioblk
from aioblk import IoUring, NvmeIoUring, OptionError, VirtioBlkVhostUser


def refuses(make: Callable[..., object], message: str, *arguments: object, **options: object) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        make(*arguments, **options)
    assert isinstance(caught.value, ValueError)


async def test_text_opens_a_device(scratch_file: Path) -> None:
    device = aioblk.open(
        "io_uring", path=str(scratch_file), direct="true", num_queues="2", num_entries="0x40"
    )
    assert isinstance(device, IoUring)
    async with device:
        assert device.properties["direct"] is True
        assert device.properties["num-queues"] == 2
        assert device.properties["num-entries"] == 64


def test_names_are_spelt_with_dashes_or_underscores() -> None:
    assert isinstance(aioblk.open("nvme-io_uring", path="x", **{"num-queues": 1}), NvmeIoUring)
    assert isinstance(aioblk.open("NVME_IO_URING", path="x", read_only=True), NvmeIoUring)
    assert isinstance(
        aioblk.open("virtio-blk-vhost-user", path="x", **{"queue-size": "1K"}), VirtioBlkVhostUser
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("65536", 1 << 16),
        ("64k", 1 << 16),
        ("64 KiB", 1 << 16),
        ("1M", 1 << 20),
        ("0x10000", 1 << 16),
        ("1TiB", 1 << 40),
    ],
)
def test_numbers_may_have_units(text: str, value: int) -> None:
    options: Any = aioblk.open("io_uring", path="x", bounce_pool_size=text)
    assert options._options.bounce_pool_size == value


@pytest.mark.parametrize("text", ["true", "Yes", "ON", "1", "false", "no", "off", "0"])
def test_switches_have_the_usual_words(text: str) -> None:
    options: Any = aioblk.open("io_uring", path="x", direct=text)
    assert options._options.before_connect["direct"] is (text.lower() in {"true", "yes", "on", "1"})


@pytest.mark.parametrize(
    ("driver", "properties", "message"),
    [
        (
            "iouring",
            {"path": "x"},
            "no driver 'iouring'; there are io_uring, nvme-io_uring, .* Did you mean io_uring",
        ),
        ("zzz", {"fd": 3}, "no driver 'zzz'; there are io_uring, .*virtio-blk-vfio-pci.$"),
        ("io_uring", {"path": "x", "driect": "on"}, "no property 'driect'; .* Did you mean direct"),
        (
            "io_uring",
            {"path": "x", "queue-size": 8},
            "no property 'queue-size'; there are path, fd, create, direct",
        ),
        ("io_uring", {"path": "x", "capacity": 8}, "no property 'capacity'"),
        ("io_uring", {"path": "x", "direct": "maybe"}, "direct must be true or false, not 'maybe'"),
        ("io_uring", {"path": "x", "num_queues": "1x"}, "num_queues must be a number"),
        ("io_uring", {"path": "x", "num_queues": "-1"}, "num_queues must be a number"),
        ("io_uring", {"path": "x", "num_queues": 1, "num-queues": 1}, "property num_queues is given twice"),
        ("io_uring", {}, "path or fd is needed"),
        ("virtio-blk-vhost-user", {}, "property path is needed"),
        ("virtio-blk-vhost-user", {"path": "x", "queue_size": "2"}, "queue_size must be from 4"),
    ],
)
def test_text_that_means_nothing_is_refused(driver: str, properties: dict[str, object], message: str) -> None:
    refuses(aioblk.open, message, driver, **properties)


def test_properties_of_a_command_line() -> None:
    arguments = ["path=a=b", "direct=on", "num-queues=2", "bounce_pool_size=1MiB"]
    properties = aioblk.parse_properties("io_uring", arguments)
    assert properties == {"path": "a=b", "direct": True, "num_queues": 2, "bounce_pool_size": 1 << 20}
    assert isinstance(aioblk.open("io_uring", **properties), IoUring)
    assert aioblk.parse_properties("virtio-blk-vhost-user", ["path="]) == {"path": ""}
    assert aioblk.parse_properties("nvme-io_uring", []) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["path"], "'path' is not of the form PROPERTY=VALUE"),
        (["=x"], "'=x' is not of the form"),
        (["dirct=on"], "no property 'dirct'; .* Did you mean direct"),
        (["direct=perhaps"], "direct must be true or false, not 'perhaps'"),
        (["num-queues=many"], "num_queues must be a number .* not 'many'"),
        (["path=x", "path=y"], "property path is given twice"),
    ],
)
def test_command_lines_that_mean_nothing_are_refused(arguments: list[str], message: str) -> None:
    refuses(aioblk.parse_properties, message, "io_uring", arguments)


def test_a_command_line_names_the_driver_that_was_meant() -> None:
    refuses(aioblk.parse_properties, "Did you mean io_uring", "io_urin", ["path=x", "direct=on"])


def test_a_command_line_may_have_an_address_before_its_properties() -> None:
    properties = aioblk.parse_properties(
        "slice,length=1M:disk.img", ["offset=4K", "direct=on", "read-only=no"]
    )
    assert properties == {"offset": 4096, "direct": True, "read_only": False}
    refuses(aioblk.parse_properties, "no property 'offzet'", "slice,length=1M:disk.img", ["offzet=4K"])
