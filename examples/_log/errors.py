"""What can be wrong with a log."""


class LogError(Exception):
    """The device holds no log, or cannot go on holding it."""


class LogFullError(LogError):
    """There is no room for the record."""


class LogInUseError(LogError):
    """Somebody else writes to the log."""


class OccupiedError(LogError):
    """The device holds something that would be overwritten."""


class LogDamagedError(LogError):
    """A record that was acknowledged cannot be read any more. Nothing has been changed on the device."""

    def __init__(self, message: str, offset: int = 0, number: int = 0) -> None:
        super().__init__(message)
        self.offset = offset
        """Of the first byte that cannot be relied on."""
        self.number = number
        """Of the first record that is missing."""
