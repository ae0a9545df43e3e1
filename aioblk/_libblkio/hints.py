"""What usually lies behind a failure to connect or start, where libblkio gives no more than an errno."""

import errno
from collections.abc import Iterable, Mapping

from .properties import DRIVERS, IO_URING, NVME_IO_URING, RINGS, VFIO_PCI, VHOST_USER, VHOST_VDPA

__all__ = ["hint", "is_no_answer", "shortage"]

_NO_RING = (
    "io_uring is not available here: kernel.io_uring_disabled or a container's seccomp filter forbids it"
)

_ENTRIES: Iterable[tuple[Iterable[str], str, int, str]] = (
    (RINGS, "start", errno.ENOSYS, _NO_RING),
    (RINGS, "start", errno.EPERM, _NO_RING),
    (RINGS, "start", errno.ENOMEM, "the rings need more memory than may be locked (ulimit -l)"),
    ({NVME_IO_URING}, "connect", errno.ENOTTY, "it is no NVMe namespace; /dev/ngXnY is"),
    ({NVME_IO_URING}, "connect", errno.EACCES, "NVMe passthrough needs CAP_SYS_ADMIN"),
    ({NVME_IO_URING}, "connect", errno.EPERM, "NVMe passthrough needs CAP_SYS_ADMIN"),
    ({VHOST_USER}, "connect", errno.ENOENT, "a backend makes the socket when it starts"),
    ({VHOST_USER}, "connect", errno.EPROTOTYPE, "it is no stream socket"),
    ({VHOST_USER}, "connect", errno.ECONNREFUSED, "no backend listens on the socket"),
    ({VHOST_VDPA}, "connect", errno.EBUSY, "another process has the device open"),
    (
        {VFIO_PCI},
        "connect",
        errno.ENOENT,
        "it is no PCI device, or not bound to vfio-pci, or has no IOMMU group",
    ),
    ({VFIO_PCI}, "connect", errno.EBUSY, "another process has the device open"),
    ({IO_URING}, "connect", errno.EROFS, "open it with read_only=True"),
    (DRIVERS - {IO_URING}, "start", errno.EROFS, "open it with read_only=True"),
)

_HINTS: Mapping[tuple[str, str, int], str] = {
    (driver, operation, number): text for drivers, operation, number, text in _ENTRIES for driver in drivers
}


def hint(driver: str, operation: str, number: int) -> str | None:
    """The usual reason for errno *number* from *operation* ("connect" or "start"), if there is one."""
    return _HINTS.get((driver, operation, number))


def shortage(number: int | None) -> str:
    """What to look at, as the end of a sentence, where memory with a file behind it is not to be had."""
    return "; see ulimit -n" if number == errno.EMFILE else ""


_NO_ANSWERS = frozenset(
    {
        "received unexpected vhost-user message type",
        "failed to receive vhost-user message",
        "failed to read vhost-user message, payload exceeds the maximum",
    }
)


def is_no_answer(driver: str, message: str | None) -> bool:
    """Whether libblkio's *message* says that a vhost-user backend has not answered what it was asked.

    A refusal is an answer. Without one it is not known what the backend has done, and the next answer that
    comes may belong to this question.
    """
    return driver == VHOST_USER and message in _NO_ANSWERS
