"""The devices behind the exports: noticing that one is lost, and whether it is back."""

import asyncio
import errno
import logging
import time
from typing import final

from ...errors import BlkioError, DeviceClosedError, DeviceLostError, UsageError
from ...layers._loss import GONE, devices_of, loss_of, losses_of
from ...layers.block_device import BlockDevice
from ...layers.byte_view import ByteView

log = logging.getLogger("aioblk.nbd")

LOOK_EVERY = 0.5  # seconds
TRY_EVERY = 1.0

SAY_EVERY = 60.0

EXPECTED = (errno.ENOTSUP, errno.EINVAL, errno.EPERM, errno.EACCES, errno.EROFS, errno.ESHUTDOWN)
"""What a device that is well may answer to what a client asks for."""


@final
class Backend:
    """A device, and all that its exports have in common.

    Partial blocks are changed by way of one view, so that clients of two exports do not undo each other's.
    """

    def __init__(self, device: BlockDevice) -> None:
        self.device = device
        self.view = ByteView(device)
        self.exports = 0
        self.refusal: str | None = None
        """Why nobody may use it, while it is lost."""
        self.failed_flushes = 0
        """So many have failed, or writes with FUA. The page cache gives up what such a one could not write,
        whose ever it was, and the next flush succeeds: each client is told of it, not only who asked."""
        self.watching: asyncio.Task[None] | None = None
        self._suspected = asyncio.Event()
        self._said: float | None = None  # when, that it fails

    def note(self, error: BaseException) -> None:
        """A command of a client has failed: maybe because the device is lost. What else is wrong with it is
        said, once a minute: nobody but the client would know."""
        if isinstance(error, GONE):
            self._suspected.set()
        elif not (isinstance(error, OSError) and error.errno in EXPECTED):
            now = time.monotonic()
            if self._said is None or now - self._said >= SAY_EVERY:
                self._said = now
                log.warning("the device fails, and maybe not only here: %s", error or repr(error))

    async def until_lost(self) -> BlkioError:
        """Wait until the device is lost; why.

        Devices that tell, and layers over those, are asked. Others, such as a mirror, whose requests fail
        when the last of its devices is gone, are tried when that has happened to a client's. One that is back
        by the time that it is asked was lost all the same: what clients have not flushed is in doubt.
        """
        losses = losses_of(self.device)
        while (lost := loss_of(self.device)) is None:
            if losses_of(self.device) != losses:
                return DeviceLostError("it was lost, and is back")
            try:
                async with asyncio.timeout(LOOK_EVERY):
                    await self._suspected.wait()
            except TimeoutError:
                continue
            self._suspected.clear()
            if loss_of(self.device) is None and (failed := await self._try()) is not None:
                return failed
        return lost

    async def until_back(self) -> None:
        """Try to open again what is lost, until the device can be read.

        Raises:
            BlkioError: it is in vain, since another device is there now, or it cannot be opened again.
        """
        said = ""
        while True:
            error: BlkioError | None = None
            for device in devices_of(self.device):
                if device.lost is not None:
                    try:
                        await device.reconnect()
                    except (DeviceLostError, UsageError):
                        raise
                    except BlkioError as failed:
                        error = failed
            if error is None and loss_of(self.device) is None and (error := await self._try()) is None:
                self._suspected.clear()
                return
            if isinstance(error, DeviceClosedError):
                raise error
            if error is not None and str(error) != said:
                said = str(error)
                log.info("it does not come back yet: %s", error)
            await asyncio.sleep(TRY_EVERY)

    async def _try(self) -> BlkioError | None:
        """What a read meets of which only the loss of the device is of interest."""
        try:
            await self.device.read(0, min(self.device.limits.request_alignment, self.device.capacity))
        except GONE as error:
            return error
        except OSError:
            pass
        return None
