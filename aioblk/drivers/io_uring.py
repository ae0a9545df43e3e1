"""Files and block devices through the kernel's io_uring."""

from typing import Literal, final

from .._device.device import Device
from .._libblkio.descriptor import LARGEST_FILE
from .._libblkio.options import DEFAULT_BOUNCE_POOL_SIZE, Checks, DriverOptions, StrPath
from .._libblkio.properties import IO_URING

__all__ = ["IoUring"]


@final
class IoUring(Device):
    """A regular file or a block device, driven by io_uring.

    It needs a kernel that lets this process use io_uring (``/proc/sys/kernel/io_uring_disabled`` is 0 and no
    seccomp filter of a container is in the way) and permission to open the file; nothing else. To try it,
    any file will do::

        IoUring("disk.img", create=1 << 30)

    and ``losetup --find --show disk.img`` makes a block device of it, for root.

    :param path: The file or block device.
    :param fd: An open descriptor of it, in place of *path*. It is duplicated: the caller's stays open and the
        caller's to close, and its position stays where it is. How it was opened decides about *direct* and
        *read_only*, which cannot be given with it; it must not append.
    :param create: Make a new regular file of so many bytes when the device is opened, all of them a hole.
        Nothing may be at *path* yet: what is there is never overwritten, and opening fails with ``EEXIST``.
        Should opening fail later, the file is removed again.
    :param direct: Bypass the page cache (``O_DIRECT``); offsets and lengths then have to be aligned as
        ``limits`` says, typically to 512 bytes, and buffers that are not are copied.
    :param read_only: Open for reading; every writing request is refused.
    :param lock: Refuse what others use, and keep it from others, by the rules of QEMU's locks: who writes
        shares the file with nobody, who has it ``read_only`` with others who do. A block device that is to be
        written is claimed, so that it is not mounted. Opening fails with :class:`InUseError`, which says who.
        True: fail as well where the filesystem has no locks; "auto": go on without there, and tell the logger
        "aioblk". See :class:`FileLock`.
    :param num_queues: Queues, each an io_uring of its own.
    :param num_poll_queues: Queues whose completions are polled for; they need *direct* and a device that can.
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
        create: int | None = None,
        direct: bool = False,
        read_only: bool = False,
        lock: bool | Literal["auto"] = False,
        num_queues: int = 1,
        num_poll_queues: int = 0,
        num_entries: int | None = None,
        bounce_pool_size: int = DEFAULT_BOUNCE_POOL_SIZE,
        lost_after: float | None = None,
    ) -> None:
        check = Checks(IO_URING)
        location = check.location(path, fd)
        flags = {"direct": check.flag("direct", direct), "read-only": check.flag("read_only", read_only)}
        for name, value in flags.items():
            if value and fd is not None:
                option = name.replace("-", "_")
                raise check.error(f"{option} has no effect with fd; open the descriptor accordingly")
        if create is not None:
            check.integer("create", create, at_least=0, at_most=LARGEST_FILE)
            if fd is not None or read_only:
                raise check.error(f"create and {'read_only' if fd is None else 'fd'} exclude each other")
        super().__init__(
            DriverOptions(
                driver=IO_URING,
                before_connect={**location, **flags},
                before_start={
                    **check.queues(num_queues, num_poll_queues),
                    **check.ring_entries(num_entries),
                },
                lock=check.locking(lock),
                create=create,
                bounce_pool_size=check.bounce_pool_size(bounce_pool_size),
                lost_after=check.seconds("lost_after", lost_after),
            )
        )
