"""What takes the device's place in a layer that is closed."""

from typing import NoReturn, final

from ..errors import DeviceClosedError

__all__ = ["Closed"]


@final
class Closed:
    """Refuses whatever is asked of it."""

    def __init__(self, what: str) -> None:
        """*what* is closed, as in "the view"."""
        self._what = what

    def __getattr__(self, operation: str) -> NoReturn:
        raise DeviceClosedError(f"{self._what} is closed", operation=operation)
