"""The exceptions of aioblk: one tree, with structured fields.

Every failure is a :class:`BlkioError`, which is an :class:`OSError`. The subclasses are also what a caller
expects elsewhere: a bad argument is a ``ValueError``, a closed device an ``anyio.ClosedResourceError``.
"""

import errno as errnos
import os
from typing import Any, ClassVar

import anyio

__all__ = [
    "AlignmentError",
    "BlkioError",
    "DeviceClosedError",
    "DeviceLostError",
    "InUseError",
    "OptionError",
    "PartitionTableError",
    "PropertyError",
    "RegistrationError",
    "StreamBusyError",
    "UnsupportedError",
    "UsageError",
    "request_error",
]


class BlkioError(OSError):
    """A failure of a device, a request or a call.

    ``errno`` is always set, and positive. ``message`` is the explanation: libblkio's text where libblkio
    refused, aioblk's where aioblk did, ``None`` where there is none. ``driver``, ``operation``, ``filename``,
    ``offset`` and ``length`` (in bytes) say what failed; each is ``None`` where it does not apply.

    ``BlkioError(errno.EIO, "text", "path")`` works as with every OSError. Instances can be copied and
    pickled, so they cross process boundaries whole.
    """

    _default_errno: ClassVar[int] = errnos.EIO
    # Where aioblk explains a refusal in its own words, the errno's text would only repeat it less well.
    _explains_itself: ClassVar[bool] = False

    message: str | None
    """The explanation; None: there is none."""
    driver: str | None
    """libblkio's name of the driver, or ``"nbd"``."""
    operation: str | None
    """What failed: ``"read"``, ``"connect"``, ..."""
    offset: int | None
    """Of the request, in bytes."""
    length: int | None
    """Of the request, in bytes."""

    def __init__(
        self,
        message: str | int | None = None,
        strerror: str | None = None,
        filename: str | None = None,
        *,
        errno: int | None = None,
        driver: str | None = None,
        operation: str | None = None,
        offset: int | None = None,
        length: int | None = None,
    ) -> None:
        if isinstance(message, int):
            if errno is not None:
                raise TypeError(f"{type(self).__name__}() takes one errno, not both {message} and {errno}")
            errno, message = message, strerror
        number = self._default_errno if errno is None else errno
        super().__init__(number, strerror if strerror is not None else os.strerror(number))
        self.message = message
        self.driver = driver
        self.operation = operation
        self.offset = offset
        self.length = length
        self.filename = filename

    def __str__(self) -> str:
        name = None if self.filename is None else repr(self.filename)
        where = " ".join(word for word in (self.driver, self.operation, name) if word)
        if self.offset is not None:
            where += f" at offset {self.offset}"
        if self.length is not None:
            where += f", length {self.length}"
        parts = [where] if where else []
        if not (self._explains_itself and self.message):
            parts.append(f"[Errno {self.errno}] {self.strerror}")
        if self.message and (self._explains_itself or self.message != self.strerror):
            parts.append(self.message)
        return ": ".join(parts)

    def __repr__(self) -> str:
        fields = {name: value for name, value in self._fields().items() if value is not None}
        if fields.get("strerror") == os.strerror(self.errno or 0):
            del fields["strerror"]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in fields.items())})"

    def _fields(self) -> dict[str, Any]:
        return {
            "message": self.message,
            "errno": self.errno,
            "strerror": self.strerror,
            "driver": self.driver,
            "operation": self.operation,
            "offset": self.offset,
            "length": self.length,
            "filename": self.filename,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # the dictionary brings __notes__ along
        return _rebuild, (type(self), self._fields()), self.__dict__


def _rebuild(kind: type[BlkioError], fields: dict[str, Any]) -> BlkioError:
    error = kind.__new__(kind)  # subclasses may be made of something else
    BlkioError.__init__(error, **fields)
    return error


class AlignmentError(BlkioError, ValueError):
    """An offset, length or address is not a multiple of what the device requires. Nothing was submitted."""

    _default_errno: ClassVar[int] = errnos.EINVAL
    _explains_itself: ClassVar[bool] = True


class OptionError(BlkioError, ValueError):
    """An option of a driver is missing, unknown, contradicts another one or has an impossible value."""

    _default_errno: ClassVar[int] = errnos.EINVAL
    _explains_itself: ClassVar[bool] = True


class PartitionTableError(BlkioError, ValueError):
    """The partition table of a device is damaged, or contradicts itself or the device."""

    _default_errno: ClassVar[int] = errnos.EINVAL
    _explains_itself: ClassVar[bool] = True


class PropertyError(BlkioError, KeyError):
    """The driver has no such property, or it cannot be read in the present state of the device."""

    _default_errno: ClassVar[int] = errnos.ENOENT
    _explains_itself: ClassVar[bool] = True


class UsageError(BlkioError, RuntimeError):
    """The call is not allowed here: in this state, from this event loop or thread, or after fork()."""

    _default_errno: ClassVar[int] = errnos.EBUSY
    _explains_itself: ClassVar[bool] = True


class StreamBusyError(UsageError, anyio.BusyResourceError):
    """Another task is receiving from the stream. Nothing has been taken from it."""


class DeviceClosedError(BlkioError, anyio.ClosedResourceError):
    """The device is closed or is being closed."""

    _default_errno: ClassVar[int] = errnos.EBADF
    _explains_itself: ClassVar[bool] = True


class DeviceLostError(BlkioError, anyio.BrokenResourceError):
    """The device is gone: its backend died or no longer answers. What became of the request is not known."""

    _default_errno: ClassVar[int] = errnos.ENODEV
    _explains_itself: ClassVar[bool] = True


class InUseError(BlkioError):
    """The file or block device is locked by somebody else: by another program, or a virtual machine."""

    _default_errno: ClassVar[int] = errnos.EBUSY
    _explains_itself: ClassVar[bool] = True


class UnsupportedError(BlkioError):
    """The driver, the device or the kernel does not support the operation (``ENOTSUP``)."""

    _default_errno: ClassVar[int] = errnos.ENOTSUP


class RegistrationError(BlkioError):
    """Memory could not be registered with the device. Requests on it still work; they bounce."""

    _default_errno: ClassVar[int] = errnos.ENOMEM
    _explains_itself: ClassVar[bool] = True


def request_error(
    driver: str,
    operation: str,
    errno: int,
    message: str | None = None,
    offset: int | None = None,
    length: int | None = None,
    *,
    filename: str | None = None,
) -> BlkioError:
    """The exception for a call or request that libblkio failed with *errno* (positive).

    *operation* is the verb the user knows ("read", "connect"); *message* is libblkio's text, if it gave one.
    """
    if message == f"{os.strerror(errno)} (os error {errno})":  # Rust's words for the errno and no more
        message = None
    kind = UnsupportedError if errno == errnos.ENOTSUP else BlkioError
    return kind(
        message,
        errno=errno,
        driver=driver,
        operation=operation,
        offset=offset,
        length=length,
        filename=filename,
    )
