"""Metrics of a server over HTTP, in threads of their own."""

import contextlib
import errno
from collections.abc import Callable
from socketserver import BaseRequestHandler, StreamRequestHandler
from typing import Any, cast

import prometheus_client

from ..metrics import NbdServerCollector
from ..nbd import Server

__all__ = ["serve_metrics"]

PATIENCE = 10.0  # seconds, with who connects and says nothing: each has a thread


def serve_metrics(server: Server, address: str, port: int) -> tuple[str, Callable[[], None]]:
    """Where they are, and what ends it: it blocks until the thread has ended that listens.

    OSError: they cannot be served there.
    """
    registry = prometheus_client.CollectorRegistry()
    registry.register(NbdServerCollector(server))
    try:
        listener, thread = prometheus_client.start_http_server(port, address, registry)
    except OSError as error:
        text = f"cannot serve metrics at {address}, port {port}: {error.strerror}"
        raise OSError(error.errno, text) from None
    except UnicodeError as error:  # no name of a host
        text = f"cannot serve metrics at {address!r}, port {port}: {error}"
        raise OSError(errno.EADDRNOTAVAIL, text) from None
    listener.RequestHandlerClass = _patient(listener.RequestHandlerClass)

    def end() -> None:
        listener.shutdown()
        listener.server_close()
        thread.join()

    return "http://{}:{}/metrics".format(*listener.server_address[:2]), end


def _patient(handler: Any) -> Callable[[Any, Any, Any], BaseRequestHandler]:
    def handle(self: StreamRequestHandler) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError):
            handler.handle(self)

    return cast(
        "type[BaseRequestHandler]", type("Patient", (handler,), {"timeout": PATIENCE, "handle": handle})
    )
