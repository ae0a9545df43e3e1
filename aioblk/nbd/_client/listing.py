"""What a server exports."""

import asyncio
import errno
import ssl

from ..._libblkio.options import Checks
from ..._sync.loops import running_loop
from ...errors import BlkioError
from .handshake import ExportInfo, greet, list_exports_of
from .tls import StrPath, tls_context
from .uri import DRIVER, NbdUri

__all__ = ["list_exports"]

DEAD_AFTER = 30.0


async def list_exports(
    uri: str,
    *,
    tls: ssl.SSLContext | None = None,
    tls_certificates: StrPath | None = None,
    tls_psk: StrPath | None = None,
    connect_timeout: float | None = 30.0,
) -> list[ExportInfo]:
    """The exports of the server that a URI names, of which the export's name does not count::

        for export in await aioblk.nbd.list_exports("nbd://host"):
            print(export.name, export.description)

    The options are those of :class:`aioblk.Nbd`.

    Raises:
        OptionError: an option, or the URI, is not what it should be.
        BlkioError: there is nobody, the server does not tell (``EACCES``, ``ENOTSUP``), or it takes too long.
    """
    running_loop("list_exports", DRIVER)
    where = NbdUri.parse(uri)
    context = tls_context(where, tls, tls_certificates, tls_psk)
    seconds = Checks(DRIVER).seconds("connect_timeout", connect_timeout)
    try:
        async with asyncio.timeout(seconds):
            options = await greet(where, context, DEAD_AFTER)
            try:
                return await list_exports_of(options, where)
            finally:
                options.channel.close()
    except TimeoutError:
        raise BlkioError(
            f"the server does not answer within {seconds:g} seconds (connect_timeout)",
            errno=errno.ETIMEDOUT,
            driver=DRIVER,
            operation="list_exports",
            filename=uri,
        ) from None
