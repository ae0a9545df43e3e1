"""NBD, the network block device protocol: a server for any block device, and a client that is one.

It is imported by its own name::

    import aioblk.nbd

What is named here is imported when it is asked for: who needs the client has not to wait for the server.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._client.block_status import BlockStatus
    from ._client.device import Nbd
    from ._client.handshake import ExportInfo
    from ._client.listing import list_exports
    from ._server.export import Export
    from ._server.policy import Policy
    from ._server.server import Server
    from ._server.statistics import ExportStatistics, ServerStatistics
    from ._server.tls import Tls

__all__ = [
    "BlockStatus",
    "Export",
    "ExportInfo",
    "ExportStatistics",
    "Nbd",
    "Policy",
    "Server",
    "ServerStatistics",
    "Tls",
    "list_exports",
]

_ROOMS = {
    "BlockStatus": "_client.block_status",
    "Export": "_server.export",
    "ExportInfo": "_client.handshake",
    "ExportStatistics": "_server.statistics",
    "Nbd": "_client.device",
    "Policy": "_server.policy",
    "Server": "_server.server",
    "ServerStatistics": "_server.statistics",
    "Tls": "_server.tls",
    "list_exports": "_client.listing",
}


def _found(name: str) -> object:
    if name in _ROOMS:
        value: object = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if not TYPE_CHECKING:  # which would take any name then, wrong ones included
    __getattr__ = _found


def __dir__() -> list[str]:
    return __all__
