"""Making a connection to a device: all that may block, in one call for a worker thread."""

from typing import TYPE_CHECKING, NamedTuple, cast

from ._descriptor import require_suitable
from ._handle import Blkio
from ._peer import Peer, connected_sockets
from ._properties import VHOST_USER

if TYPE_CHECKING:
    from .drivers._options import DriverOptions

__all__ = ["Connection", "connect"]


class Connection(NamedTuple):
    """A started device."""

    handle: Blkio
    peer: Peer | None
    """The vhost-user backend."""
    capacity: int
    """In bytes."""

    def close(self) -> None:
        """Nobody has used it: give everything back."""
        if self.peer is not None:
            self.peer.close()
        self.handle.destroy()


def connect(options: "DriverOptions") -> Connection:
    """Connect and start. Whatever fails leaves nothing open."""
    require_suitable(options)
    socket_path = str(options.before_connect["path"]) if options.driver == VHOST_USER else None
    known = connected_sockets() if socket_path is not None else {}
    handle, peer = Blkio(options.driver), None
    try:
        for name, value in options.before_connect.items():
            handle.set(name, value)
        handle.connect()
        if socket_path is not None:
            peer = Peer.find(socket_path, known)
        for name, value in options.before_start.items():
            handle.set(name, value)
        handle.start()
        return Connection(handle, peer, cast(int, handle.get("capacity")))
    except BaseException:
        Connection(handle, peer, 0).close()
        raise
