"""NVMe commands straight to a namespace, through io_uring passthrough."""

from typing import final

from .._device.device import Device
from .._libblkio.options import DEFAULT_BOUNCE_POOL_SIZE, Checks, DriverOptions, StrPath
from .._libblkio.properties import NVME_IO_URING

__all__ = ["NvmeIoUring"]


@final
class NvmeIoUring(Device):
    """An NVMe namespace, its commands passed through io_uring without file system, page cache or block layer.

    It needs Linux 5.19, the capability ``CAP_SYS_ADMIN``, and the namespace's character device
    ``/dev/ngXnY`` (not the block device ``/dev/nvmeXnY``). To try it without the hardware, give a virtual
    machine one::

        qemu-system-x86_64 ... -drive file=nvme.img,if=none,id=d0,format=raw -device nvme,drive=d0,serial=1

    :param path: The character device.
    :param fd: An open descriptor of it, in place of *path*. It is duplicated: the caller's stays open and the
        caller's to close.
    :param read_only: Refuse every writing request.
    :param num_queues: Queues, each an io_uring of its own. There are no poll queues.
    :param num_entries: Entries of each ring; libblkio's default is 128.
    :param bounce_pool_size: The most memory for buffers in between, in bytes.
    :param lost_after: Seconds, from 0.1 to 86400. A device that does not answer a request for so long, and at
        most a quarter longer, counts as lost: everything in flight fails with :class:`DeviceLostError`. None:
        never. It is no timeout of requests (``asyncio.timeout()`` is), since the device is of no more use
        then; take several times what the slowest request may take.
    :raises OptionError: An option has an impossible value; the message names it.
    """

    def __init__(
        self,
        path: StrPath | None = None,
        *,
        fd: int | None = None,
        read_only: bool = False,
        num_queues: int = 1,
        num_entries: int | None = None,
        bounce_pool_size: int = DEFAULT_BOUNCE_POOL_SIZE,
        lost_after: float | None = None,
    ) -> None:
        check = Checks(NVME_IO_URING)
        super().__init__(
            DriverOptions(
                driver=NVME_IO_URING,
                before_connect={
                    **check.location(path, fd),
                    "read-only": check.flag("read_only", read_only),
                },
                before_start={**check.queues(num_queues, 0), **check.ring_entries(num_entries)},
                bounce_pool_size=check.bounce_pool_size(bounce_pool_size),
                lost_after=check.seconds("lost_after", lost_after),
            )
        )
