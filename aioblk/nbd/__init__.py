"""NBD, the network block device protocol: a server for any block device.

It is imported by its own name::

    import aioblk.nbd
"""

from ._server.export import Export
from ._server.policy import Policy
from ._server.server import Server
from ._server.statistics import ExportStatistics, ServerStatistics
from ._server.tls import Tls

__all__ = ["Export", "ExportStatistics", "Policy", "Server", "ServerStatistics", "Tls"]
