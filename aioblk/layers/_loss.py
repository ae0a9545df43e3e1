"""Whether devices, or what lies under them, are lost, and how often; having done with the silent."""

from collections.abc import Iterator
from typing import cast

from .._device.device import Device
from ..errors import BlkioError, DeviceClosedError, DeviceLostError

__all__ = ["GONE", "devices_of", "give_up", "loss_of", "losses_of"]

GONE = (DeviceLostError, DeviceClosedError)
"""What a request of a device meets that is lost, whatever the device is made of."""


def loss_of(device: object) -> BlkioError | None:
    """Why a device is lost, or the one that it lies over, if they tell and it is."""
    below: object = device
    while below is not None:
        if isinstance(lost := getattr(below, "lost", None), BlkioError):
            return lost
        below = getattr(below, "device", None)
    return None


def losses_of(device: object) -> int:
    """How often a device was lost, or those that a layer lies over, as far as they tell. It never falls. One
    that has come back may lack what was not flushed."""
    if isinstance(losses := getattr(device, "losses", None), int):
        return losses
    below = (getattr(device, name, None) for name in ("device", "base", "overlay"))
    return sum(losses_of(each) for each in below if each is not None)


def devices_of(device: object) -> Iterator[Device]:
    """Those of drivers that it is made of."""
    if isinstance(device, Device):
        yield device
        return
    if (below := getattr(device, "device", None)) is not None:
        yield from devices_of(below)
    for leg in cast(tuple[object, ...], getattr(device, "legs", ())):
        yield from devices_of(getattr(leg, "device", None))


def give_up(device: object, why: str) -> None:
    """Have done with devices that do not finish what they have been given."""
    for each in devices_of(device):
        if not each.closed and each.lost is None:
            each.abandon(why)
