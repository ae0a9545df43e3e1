"""virtio-blk devices: behind a vhost-user socket, in vDPA, or on the PCI bus through VFIO."""

from typing import final

from .._device.device import Device
from .._libblkio.options import DEFAULT_BOUNCE_POOL_SIZE, Checks, DriverOptions, StrPath
from .._libblkio.properties import VFIO_PCI, VHOST_USER, VHOST_VDPA

__all__ = ["VirtioBlkVfioPci", "VirtioBlkVhostUser", "VirtioBlkVhostVdpa"]

DEFAULT_QUEUE_SIZE = 256


@final
class VirtioBlkVhostUser(Device):
    """A vhost-user-blk backend: another process that serves virtio-blk over a Unix socket and shared memory.

    It needs permission to connect to the socket. A backend serves one client at a time: opening the device
    waits until it is free. To try it::

        qemu-storage-daemon --blockdev driver=file,filename=disk.img,node-name=disk,discard=unmap \\
            --export \\
            type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path=blk.sock

    :param path: The socket, at most 107 bytes long.
    :param read_only: Refuse every writing request. A backend that is not writable can be opened no other way.
    :param num_queues: Queues; the backend sets how many there can be (``properties["max-queues"]``).
    :param num_poll_queues: Queues whose completions are polled for.
    :param queue_size: Descriptors of each queue: a power of two from 4 to 32768 that the backend accepts. A
        read or write takes one for each buffer and two more.
    :param bounce_pool_size: The most memory for buffers in between, in bytes.
    :param lost_after: Seconds, from 0.1 to 86400. A device that does not answer a request for so long, and at
        most a quarter longer, counts as lost: everything in flight fails with :class:`DeviceLostError`. None:
        never. It is no timeout of requests (``asyncio.timeout()`` is), since the device is of no more use
        then; take several times what the slowest request may take.
    :param reconnect_for: Seconds, from 0.1 to 86400. When the backend's process dies, connect to another one
        at the same path for so long; requests in flight are made again there, and new ones wait. Only when
        that fails is the device lost. The process must be visible from here, and whatever it had
        acknowledged must outlive it. None: the device is lost at once.
    :param connect_timeout: Seconds, from 0.1 to 86400, that opening may take; then it fails with
        ``ETIMEDOUT``. None: it waits until the backend is free, and tells the logger "aioblk" after a second.
    :raises OptionError: An option has an impossible value; the message names it.
    """

    def __init__(
        self,
        path: StrPath,
        *,
        read_only: bool = False,
        num_queues: int = 1,
        num_poll_queues: int = 0,
        queue_size: int = DEFAULT_QUEUE_SIZE,
        bounce_pool_size: int = DEFAULT_BOUNCE_POOL_SIZE,
        lost_after: float | None = None,
        reconnect_for: float | None = None,
        connect_timeout: float | None = None,
    ) -> None:
        check = Checks(VHOST_USER)
        super().__init__(
            DriverOptions(
                driver=VHOST_USER,
                before_connect={
                    "path": check.socket_path(path),
                    "read-only": check.flag("read_only", read_only),
                },
                before_start={
                    **check.queues(num_queues, num_poll_queues),
                    **check.queue_size(queue_size),
                },
                bounce_pool_size=check.bounce_pool_size(bounce_pool_size),
                lost_after=check.seconds("lost_after", lost_after),
                reconnect_for=check.seconds("reconnect_for", reconnect_for),
                connect_timeout=check.seconds("connect_timeout", connect_timeout),
            )
        )


@final
class VirtioBlkVhostVdpa(Device):
    """A virtio-blk device offered through vDPA: by hardware, or by a process through VDUSE.

    It needs the kernel's ``vhost_vdpa`` module, a vDPA device bound to it, and permission to open its
    character device for reading and writing. Only one process can have it open. To try it without hardware,
    as root::

        modprobe -a vduse vhost_vdpa
        qemu-storage-daemon --blockdev driver=file,filename=disk.img,node-name=disk \\
            --export type=vduse-blk,id=export,node-name=disk,name=vduse0,writable=on &
        vdpa dev add name vduse0 mgmtdev vduse      # appears as /dev/vhost-vdpa-0

    :param path: The character device.
    :param fd: A descriptor of it, open for reading and writing, in place of *path*. It is duplicated: the
        caller's stays open and the caller's to close.
    :param read_only: Refuse every writing request.
    :param num_queues: Queues; the device sets how many there can be (``properties["max-queues"]``).
    :param num_poll_queues: Queues whose completions are polled for.
    :param queue_size: Descriptors of each queue: a power of two from 4 to 32768 that the device accepts. A
        read or write takes one for each buffer and two more.
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
        num_poll_queues: int = 0,
        queue_size: int = DEFAULT_QUEUE_SIZE,
        bounce_pool_size: int = DEFAULT_BOUNCE_POOL_SIZE,
        lost_after: float | None = None,
    ) -> None:
        check = Checks(VHOST_VDPA)
        super().__init__(
            DriverOptions(
                driver=VHOST_VDPA,
                before_connect={
                    **check.location(path, fd),
                    "read-only": check.flag("read_only", read_only),
                },
                before_start={
                    **check.queues(num_queues, num_poll_queues),
                    **check.queue_size(queue_size),
                },
                bounce_pool_size=check.bounce_pool_size(bounce_pool_size),
                lost_after=check.seconds("lost_after", lost_after),
            )
        )


@final
class VirtioBlkVfioPci(Device):
    """A virtio-blk PCI device, driven from user space through VFIO.

    It needs an IOMMU, the device bound to ``vfio-pci``, permission to open its group in ``/dev/vfio``, and
    enough lockable memory (``ulimit -l``) for what is mapped. Only one process can have it open. To try it,
    give a virtual machine an IOMMU and a disk that respects it, and bind the disk inside::

        qemu-system-x86_64 -machine q35 -device intel-iommu,intremap=on ... \\
            -drive file=disk.img,if=none,id=d0,format=raw \\
            -device virtio-blk-pci,drive=d0,addr=0x10,disable-legacy=on,iommu_platform=on
        echo vfio-pci > /sys/bus/pci/devices/0000:00:10.0/driver_override
        echo 0000:00:10.0 > /sys/bus/pci/drivers_probe

    Without ``iommu_platform=on`` the device opens and then never answers.

    :param path: The device's directory in sysfs, ``/sys/bus/pci/devices/0000:00:10.0``.
    :param read_only: Refuse every writing request.
    :param num_queues: Queues; the device sets how many there can be (``properties["max-queues"]``).
    :param num_poll_queues: Queues whose completions are polled for.
    :param queue_size: Descriptors of each queue: a power of two from 4 to 32768 that the device accepts. A
        read or write takes one for each buffer and two more.
    :param bounce_pool_size: The most memory for buffers in between, in bytes.
    :param lost_after: Seconds, from 0.1 to 86400. A device that does not answer a request for so long, and at
        most a quarter longer, counts as lost: everything in flight fails with :class:`DeviceLostError`. None:
        never. It is no timeout of requests (``asyncio.timeout()`` is), since the device is of no more use
        then; take several times what the slowest request may take.
    :raises OptionError: An option has an impossible value; the message names it.
    """

    def __init__(
        self,
        path: StrPath,
        *,
        read_only: bool = False,
        num_queues: int = 1,
        num_poll_queues: int = 0,
        queue_size: int = DEFAULT_QUEUE_SIZE,
        bounce_pool_size: int = DEFAULT_BOUNCE_POOL_SIZE,
        lost_after: float | None = None,
    ) -> None:
        check = Checks(VFIO_PCI)
        super().__init__(
            DriverOptions(
                driver=VFIO_PCI,
                before_connect={"path": check.path(path), "read-only": check.flag("read_only", read_only)},
                before_start={
                    **check.queues(num_queues, num_poll_queues),
                    **check.queue_size(queue_size),
                },
                bounce_pool_size=check.bounce_pool_size(bounce_pool_size),
                lost_after=check.seconds("lost_after", lost_after),
            )
        )
