"""What an error is about: which device. And the errors that do not depend on what the device is."""

from dataclasses import dataclass
from typing import TypeVar, final

from ..errors import BlkioError, DeviceClosedError, DeviceLostError, OptionError, UnsupportedError, UsageError

__all__ = ["Subject", "complete"]

E = TypeVar("E", bound=BlkioError)


@final
@dataclass(frozen=True, slots=True)
class Subject:
    """The device that errors name."""

    driver: str
    filename: str | None

    def __str__(self) -> str:
        """As the log has it."""
        return f"{self.driver} {self.filename!r}" if self.filename else self.driver

    def misuse(self, operation: str, message: str) -> UsageError:
        """It is not allowed here, or now."""
        return self._error(UsageError, operation, message)

    def unsupported(self, operation: str, message: str) -> UnsupportedError:
        """It cannot be done with this device."""
        return self._error(UnsupportedError, operation, message)

    def invalid(
        self, operation: str, message: str, offset: int | None = None, length: int | None = None
    ) -> OptionError:
        """A value is impossible."""
        error = self._error(OptionError, operation, message)
        error.offset, error.length = offset, length
        return error

    def closed(self, operation: str | None, message: str = "the device is closed") -> DeviceClosedError:
        """It is closed, or being so."""
        return self._error(DeviceClosedError, operation, message)

    def lost(self, operation: str | None, why: str | None) -> DeviceLostError:
        """It is lost, or is so by this."""
        return self._error(DeviceLostError, operation, why)

    def _error(self, kind: type[E], operation: str | None, message: str | None) -> E:
        return kind(message, driver=self.driver, operation=operation, filename=self.filename)


def complete(
    error: BlkioError,
    *,
    driver: str,
    operation: str | None = None,
    offset: int | None = None,
    length: int | None = None,
    filename: str | None = None,
) -> None:
    """Have an error say what it is about that was made where that was not known: for want of a thread."""
    if error.driver is None:
        error.driver, error.operation, error.filename = driver, operation, filename
        error.offset, error.length = offset, length
