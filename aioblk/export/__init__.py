"""The other side: block devices served to who drives them, over the protocols of virtual machines.

It is imported by its own name::

    import aioblk.export

What is named here is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .disk import Disk
    from .statistics import VhostUserStatistics
    from .vhost_user import VhostUser

__all__ = ["Disk", "VhostUser", "VhostUserStatistics"]

_ROOMS = {"Disk": "disk", "VhostUser": "vhost_user", "VhostUserStatistics": "statistics"}


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        value: object = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
