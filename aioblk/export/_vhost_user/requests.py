"""From a guest's request to one of the device, and from its outcome to a status."""

import asyncio
import errno
from collections.abc import Awaitable
from typing import Any, TypeAlias, final

from ..._native._core import GuestRequest, Request
from ...layers._begun import future_of
from ..disk import Served
from . import protocol

Work: TypeAlias = Request[Any] | asyncio.Future[Any]

UNSUPPORTED = (errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP)


@final
class Requests:
    """Those of one client."""

    def __init__(self, device: Served) -> None:
        self._device = device
        self.write_through = False
        """The guest does not flush, so what is written is to be durable when it is done."""

    def begin(self, request: GuestRequest) -> Work | None:
        """The device's work; None: there is nothing to do. What is wrong is raised, or its outcome."""
        device, offset, length = self._device, request.offset, request.length
        match request.kind:
            case protocol.READ:
                work: Awaitable[Any] = device.readv(offset, request.buffers)
            case protocol.WRITE:
                work = device.writev(offset, request.buffers, fua=self.write_through)
            case protocol.FLUSH:
                work = device.flush()
            case protocol.WRITE_ZEROES:
                keeps = not request.flags & protocol.UNMAP
                work = device.write_zeroes(offset, length, fua=self.write_through, no_unmap=keeps)
            case _:
                limits = device.limits
                unit, first = max(limits.discard_alignment, 1), limits.discard_alignment_offset
                start = offset + (first - offset) % unit  # what is beside whole units stays
                end = offset + length - (offset + length - first) % unit
                if start >= end:
                    return None
                work = device.discard(start, end - start)
        return work if isinstance(work, Request) else future_of(work)


def status_of(error: BaseException | None) -> int:
    """What the guest is told."""
    if error is None:
        return protocol.OK
    if isinstance(error, OSError) and error.errno in UNSUPPORTED:
        return protocol.UNSUPPORTED
    return protocol.FAILED
