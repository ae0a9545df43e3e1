"""What tests of the NBD server are given: servers, and the file behind them."""

from ..support.nbd_exports import file_server, image, server  # noqa: F401 (fixtures)
