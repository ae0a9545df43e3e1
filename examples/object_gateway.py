"""HTTP for a block device: ranges, uploads, zeroes, holes. See `python examples/object_gateway.py --help`."""

import argparse
import asyncio
import contextlib
import importlib
import importlib.util
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path

import aioblk

try:
    import uvicorn
    from _gateway.app import Policy, application
    from _gateway.clients import KEPT, PIECE, Clients
    from _gateway.connection import Connection
    from _gateway.versions import Versions
except ModuleNotFoundError as missing:
    sys.exit(f"object_gateway: {missing}: it needs `pip install starlette uvicorn httptools`")

DESCRIPTION = """\
Serve a block device over HTTP, as object stores serve objects, and as oVirt's imageio serves images.

  pip install starlette uvicorn httptools
  python examples/object_gateway.py disk.img

and to use it:
  curl http://localhost:8080/disk -o copy.img                      all of it; -C - goes on with what broke off
  curl -r 0-511 http://localhost:8080/disk                         a range; several: multipart/byteranges
  curl -T disk.img http://localhost:8080/disk                      fill it
  curl -T part 'http://localhost:8080/disk?offset=1048576'         from there on; or by Content-Range
  curl -X DELETE 'http://localhost:8080/disk?offset=0&size=4096'   zeroes
  curl -X PATCH -d '{"op": "zero", "offset": 0, "size": 4096}' http://localhost:8080/disk
  curl http://localhost:8080/disk/extents                          where its holes are
  curl -X OPTIONS http://localhost:8080/disk                       what else there is

A PUT is durable when it is answered, unless it says ?flush=n; {"op": "flush"} makes all of them durable.

An ETag names a version of the device or, with ?offset=&size=, of that part. If-Match with PUT, PATCH and
DELETE keeps two writers from undoing each other. A download that a change overtakes is cut short, so that
nobody has half of one version and half of another. That holds for what is changed by way of the gateway:
where others write to the device meanwhile, say --shared, and nothing has an ETag.

SIGINT or SIGTERM end it: what is under way is finished within --drain seconds. A second one does not wait."""

DEVICE_GRACE = 2.0  # seconds, beyond those of clients, for the device to finish what it has

log = logging.getLogger("gateway")


def main() -> None:
    options = parse_options()
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    try:
        device = aioblk.open(
            str(options.device), **aioblk.parse_properties(options.device, options.properties)
        )
        with asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner:
            runner.run(run(device, options))
    except OSError as error:
        sys.exit(f"object_gateway: {error}")


def loop_factory(name: str | None) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop, which does a turn in half the time, where it is installed and nothing else is wanted."""
    if name == "asyncio" or (name is None and not importlib.util.find_spec("uvloop")):
        return None
    return importlib.import_module("uvloop").new_event_loop  # type: ignore[no-any-return]


async def run(device: aioblk.Openable, options: argparse.Namespace) -> None:
    """Open the device and serve it until a signal ends that."""
    family = socket.AF_INET6 if ":" in options.address else socket.AF_INET
    with socket.create_server((options.address, options.port), family=family, backlog=1024) as listener:
        async with device, serving(device, options) as server:
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, server.end)
            host, port = listener.getsockname()[:2]
            scheme = "https" if options.certificate else "http"
            where = f"[{host}]" if ":" in host else host
            print(f"{device.capacity} bytes at {scheme}://{where}:{port}/disk", flush=True)
            await server.serve([listener])


@contextlib.asynccontextmanager
async def serving(device: aioblk.BlockDevice, options: argparse.Namespace) -> AsyncGenerator["Server"]:
    """A server of an open device, which has not begun yet; to be left when it has ended."""
    async with aioblk.Arena(options.memory, kept=KEPT) as arena:
        if isinstance(device, aioblk.MapsMemory):
            await arena.attach(device)
        clients = Clients(arena, options.memory, clients=options.clients, requests=options.requests)
        token = read_token(options.token_file)
        policy = Policy(options.content_type, options.patience, options.requests, token)
        versions = Versions(device.capacity, shared=options.shared)
        yield Server(device, application(device, clients, versions, policy), options)
        if not device.read_only:
            await device.flush()


def read_token(file: Path | None) -> str | None:
    if file is None:
        return None
    if not (token := file.read_text().strip()):
        raise OSError(f"{file} has no token")
    return token


class Server(uvicorn.Server):
    """uvicorn, which ends when it is told to, and leaves signals to whoever runs it."""

    def __init__(self, device: aioblk.BlockDevice, app: object, options: argparse.Namespace) -> None:
        class Limited(Connection):
            patience = options.patience
            most_connections = 100 + 2 * options.clients * options.requests

        super().__init__(
            uvicorn.Config(
                app,  # type: ignore[arg-type]
                http=Limited,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=options.verbose,
                proxy_headers=options.proxy is not None,
                forwarded_allow_ips=options.proxy,
                server_header=False,
                timeout_keep_alive=max(1, int(options.patience)),
                ssl_certfile=options.certificate,
                ssl_keyfile=options.key,
            )
        )
        self._device = device
        self._drain = options.drain
        self.timers: list[asyncio.TimerHandle] = []
        """Of the end, which are nobody's when it has come."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    def end(self) -> None:
        """On a signal: finish what is under way, or what can be until the deadline."""
        if self.should_exit:
            os._exit(1)
        self.should_exit = True
        loop = asyncio.get_running_loop()
        self.timers = [
            loop.call_later(self._drain, self._send_away),
            loop.call_later(self._drain + DEVICE_GRACE, self._give_up),
        ]

    def _send_away(self) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                log.warning("%s is not waited for any longer", connection.client)
                connection.transport.abort()

    def _give_up(self) -> None:
        log.error("the device does not finish what it has been given")
        if isinstance(self._device, aioblk.Device):
            self._device.abandon("the gateway ends")
        else:
            os._exit(1)


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "device",
        metavar="DEVICE",
        help="an address, as disk.img, io_uring:/dev/sdb?direct=on, or a driver's name",
    )
    parser.add_argument("properties", nargs="*", metavar="PROPERTY=VALUE", help="path=disk.img direct=true")
    where = parser.add_argument_group("where")
    where.add_argument("--address", default="127.0.0.1", help="to listen at (%(default)s)")
    where.add_argument("--port", type=int, default=8080, help="0: any that is free (%(default)s)")
    where.add_argument("--certificate", metavar="FILE", help="for TLS, with --key")
    where.add_argument("--key", metavar="FILE", help="of the certificate")
    where.add_argument("--token-file", type=Path, metavar="FILE", help="clients have to know what it has")
    where.add_argument("--proxy", metavar="ADDRESS", help="who may say for whom it asks, by X-Forwarded-For")
    what = parser.add_argument_group("what")
    what.add_argument(
        "--content-type", default="application/octet-stream", help="of the device (%(default)s)"
    )
    what.add_argument("--shared", action="store_true", help="others change the device, too: give no ETags")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--clients", type=int, default=16, help="at a time, by address (%(default)s)")
    limits.add_argument("--requests", type=int, default=32, help="of a client at a time (%(default)s)")
    limits.add_argument(
        "--memory",
        type=aioblk.parse_size,
        default="32M",
        metavar="SIZE",
        help="for data: half of it shared out evenly, the rest for all in turns (32M)",
    )
    limits.add_argument(
        "--patience",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="for a header, and for 256 KiB to be sent or taken (%(default)g)",
    )
    limits.add_argument(
        "--drain", type=float, default=10.0, metavar="SECONDS", help="for what is under way (%(default)g)"
    )
    parser.add_argument(
        "--loop", choices=["asyncio", "uvloop"], help="event loop (uvloop if it is installed)"
    )
    parser.add_argument("--verbose", action="store_true", help="say who asks for what")
    options = parser.parse_args(arguments)
    least = int(options.clients * 2 * PIECE / KEPT)
    for name, lowest in (("clients", 1), ("requests", 1), ("memory", least), ("patience", 0), ("drain", 0)):
        if not lowest <= (value := getattr(options, name)) < math.inf:
            parser.error(f"--{name} must be a number, and at least {lowest}, not {value}")
    if not 0 <= options.port <= 65535:
        parser.error(f"--port must be from 0 to 65535, not {options.port}")
    if (options.certificate is None) != (options.key is None):
        parser.error("--certificate and --key belong together")
    return options


if __name__ == "__main__":
    main()
