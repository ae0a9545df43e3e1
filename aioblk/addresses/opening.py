"""The text-driven door: what an address names, as a device to be opened."""

import os
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Self, cast, overload

from typing_extensions import Protocol, runtime_checkable

from .._device.lock import Locking
from ..drivers import CLASSES, IoUring, NvmeIoUring, VirtioBlkVfioPci, VirtioBlkVhostUser, VirtioBlkVhostVdpa
from ..errors import OptionError
from ..layers.block_device import BlockDevice
from ._escapes import shown
from ._layered import LayeredDevice
from ._layers import LAYERS
from ._named import find_named, nbd_client, spells_driver
from .address import Address, parse_address, place_properties, read_address

__all__ = ["Openable", "open", "open_locked", "parse_properties"]


@runtime_checkable
class Openable(BlockDevice, Protocol):
    """A block device that is not open until it is entered: ``async with aioblk.open(address) as dev``.

    It can be opened once, and is closed for good.
    """

    async def open(self) -> Self:
        """Open it, where ``async with`` does not: until :meth:`aclose`."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@overload
def open(address: Literal["io_uring"], **properties: Any) -> IoUring: ...
@overload
def open(address: Literal["nvme-io_uring"], **properties: Any) -> NvmeIoUring: ...
@overload
def open(address: Literal["virtio-blk-vhost-user"], **properties: Any) -> VirtioBlkVhostUser: ...
@overload
def open(address: Literal["virtio-blk-vhost-vdpa"], **properties: Any) -> VirtioBlkVhostVdpa: ...
@overload
def open(address: Literal["virtio-blk-vfio-pci"], **properties: Any) -> VirtioBlkVfioPci: ...
@overload
def open(address: str | os.PathLike[str] | Address, **properties: Any) -> Openable: ...
def open(address: str | os.PathLike[str] | Address, **properties: Any) -> Any:
    """The device at an address, not opened yet::

        async with aioblk.open("io_uring:disk.img?direct=on") as dev:
            ...

    An address is what :func:`parse_address` takes: a path, a driver's name and a path, an NBD URI, or layers
    over any of them. A driver's name alone ("io_uring", "virtio-blk-vhost-user", ...) has everything beside
    it: ``aioblk.open("io_uring", path=...)``, and gives an instance of the driver's class.

    Properties are options, with underscores or dashes; a value may also be text. Each goes to the outermost
    layer that has it, or to the device: ``read_only=True`` opens the device below all layers for reading.
    What an address says already may be said again, and not be contradicted.

    Raises:
        OptionError: the address means nothing, or an option is unknown, missing or does not fit.
    """
    return _open(address, properties, False)


def open_locked(
    address: str | os.PathLike[str] | Address, *, lock: Locking = "auto", **properties: Any
) -> Openable:
    """As :func:`open`, for programs whose users name devices: files and block devices are locked by default.

    *lock* counts for every one that the address names, that of an overlay included, and that can be locked;
    what an address says itself, as ``io_uring:disk.img?lock=off``, counts more. "auto" goes on where a
    filesystem has no locks. Opening it fails with :class:`InUseError` if somebody else has it in use.
    """
    return cast(Openable, _open(address, properties, lock))


def _open(address: str | os.PathLike[str] | Address, properties: dict[str, Any], lock: Locking) -> Any:
    found = parse_address(address, **properties)
    try:
        return _make(found, lock)
    except OptionError as error:
        if error.filename is None and address not in CLASSES:
            error.filename = shown(str(found))
        raise


def _make(address: Address, lock: Locking, **forced: object) -> Openable:
    if address.base is not None:
        layering = LAYERS[address.name]
        put_over = layering.prepare(address.options, lambda text: _make(parse_address(text), lock))
        base = _forced(address.base, {**layering.base, **forced})
        return LayeredDevice(str(address), _make(base, lock), put_over)
    named = find_named(address.name)
    options = dict(address.options)
    if lock is not False and "lock" in named.options:
        options.setdefault("lock", lock)
    for name, option in named.options.items():
        if option.is_needed and name not in options:
            raise OptionError(f"property {name} is needed", driver=address.name)
    if named.kind == "nbd":
        return cast(Openable, nbd_client()(options.pop("uri"), **options))
    return cast(Openable, CLASSES[address.name](**options))  # type: ignore[arg-type]


def _forced(address: Address, properties: Mapping[str, object]) -> Address:
    """With what a layer asks of the device below it, whatever that was told."""
    return parse_address(address, **properties) if properties else address


def parse_properties(address: str, arguments: Iterable[str]) -> dict[str, object]:
    """The options in a command line's ``PROPERTY=VALUE`` arguments, for :func:`open` or the driver's class::

        driver, *arguments = "io_uring path=disk.img direct=true num-entries=1K".split()
        properties = aioblk.parse_properties(driver, arguments)
        assert properties == {"path": "disk.img", "direct": True, "num_entries": 1024}
        device = aioblk.open(driver, **properties)

    Before them stands a driver's name, or an address: then they are what goes beside it.

    Each value gets the type of its property: text as it is; true, yes, on, 1 or false, no, off, 0; a number
    as :func:`parse_size` reads it, a time as :func:`parse_duration` does, or none. Names have dashes, as in
    libblkio, or underscores.

    Raises:
        OptionError: an argument is not of that form, or as by :func:`open`. Whether the values fit together
            is found out by :func:`open`.
    """
    pairs: list[tuple[str, str]] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not name:
            rule = f"{shown(argument)!r} is not of the form PROPERTY=VALUE, as path=disk.img is"
            raise OptionError(rule, driver=spells_driver(address))
        pairs.append((name, value))
    found = read_address(address, [name for name, _ in pairs])
    return {new.option: new.value for new in place_properties(found, pairs)}
