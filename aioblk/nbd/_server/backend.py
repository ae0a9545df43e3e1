"""The device behind the export: noticing that it is lost, and what then becomes of the server."""

import asyncio
import logging

from ..._device.device import Device
from ...errors import BlkioError, DeviceLostError, UsageError
from ...layers.block_device import BlockDevice
from .clients import Clients

log = logging.getLogger("nbd")

LOOK_EVERY = 0.5  # seconds
TRY_EVERY = 1.0


def loss_of(device: BlockDevice) -> DeviceLostError | None:
    """Why the device is lost, if it is. Only those of libblkio's drivers tell."""
    return device.lost if isinstance(device, Device) else None


async def watch(device: BlockDevice, clients: Clients, *, reconnect: bool) -> None:
    """Wait until the device is lost for good; raise why.

    Whatever clients have not made durable is in doubt then, so they are sent away, also if the device is to
    come back: none of them could tell from a flush that comes later.
    """
    while True:
        while (lost := loss_of(device)) is None:  # noqa: ASYNC110 (the device tells nobody who asks nothing)
            await asyncio.sleep(LOOK_EVERY)
        if not (reconnect and isinstance(device, Device)):
            raise lost
        log.error("%s; waiting for it to come back", lost)
        clients.refusal = "the device is lost"
        await clients.send_away("the device is lost")
        await _reconnect(device)
        clients.refusal = None
        log.warning("the device is back")


async def _reconnect(device: Device) -> None:
    said = ""
    while True:
        try:
            return await device.reconnect()
        except (DeviceLostError, UsageError):  # another device is there now, or it cannot be
            raise
        except BlkioError as error:
            if str(error) != said:
                said = str(error)
                log.info("it does not come back yet: %s", error)
        await asyncio.sleep(TRY_EVERY)
