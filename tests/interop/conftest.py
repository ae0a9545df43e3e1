"""What other people's clients are given: NBD servers, and a file to copy to them."""

from ..support.nbd_exports import file_server, image, server, source  # noqa: F401 (fixtures)
