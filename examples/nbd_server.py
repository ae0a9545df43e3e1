"""An NBD server for any device that aioblk can open. See `python examples/nbd_server.py --help`."""

import argparse
import asyncio
import contextlib
import errno
import importlib
import importlib.util
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator
from urllib.parse import quote

from _nbd.clients import Policy, serve_clients
from _nbd.export import Export

import aioblk

DESCRIPTION = """\
Serve a block device over NBD, the network block device protocol.

examples:
  python examples/nbd_server.py io_uring path=disk.img
      a file, to clients on this machine, at nbd://localhost
  python examples/nbd_server.py io_uring path=/dev/sdb direct=true --address 0.0.0.0 --port 10810
      a disk without the page cache, to the network. NBD knows no passwords: mind who can reach the port
  python examples/nbd_server.py virtio-blk-vhost-user path=blk.sock --unix nbd.sock
      what a vhost-user daemon offers, at a Unix socket
  python examples/nbd_server.py io_uring path=disk.img read-only=true --name backup
      one export called backup, which nobody can change

and to use it:
  nbdinfo nbd://localhost                  what is offered
  nbdcopy disk.img nbd://localhost         fill it
  qemu-img convert nbd://localhost -O qcow2 backup.qcow2
  nbd-client localhost /dev/nbd0           as a disk of this machine, for root

DRIVER is one of libblkio's; PROPERTY=VALUE are the options of aioblk's class for it (aioblk.IoUring and
others): sizes like 64K or 1GiB, switches like true and off.

SIGINT or SIGTERM end the server: what is in flight is finished and answered first. A second one does not
wait."""


def main() -> None:
    options = parse_options()
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    try:
        device = aioblk.open(options.driver, **aioblk.parse_properties(options.driver, options.properties))
        with asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner:
            runner.run(serve(device, options))
    except OSError as error:
        sys.exit(f"nbd_server: {error}")


def loop_factory(name: str | None) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop, which does a turn in half the time, where it is installed and nothing else is wanted."""
    if name == "asyncio" or (name is None and not importlib.util.find_spec("uvloop")):
        return None
    return importlib.import_module("uvloop").new_event_loop  # type: ignore[no-any-return]


async def serve(device: aioblk.Device, options: argparse.Namespace) -> None:
    policy = Policy(options.clients, options.patience, options.requests, bytes=options.memory // 2)
    async with device, aioblk.Arena(options.memory) as arena:
        await arena.attach(device)
        export = Export(device, arena, name=options.name, description=options.description)
        with listen(options) as listener:
            serving = asyncio.create_task(serve_clients(export, listener, policy))
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, end, serving)
            print(announcement(export, listener), flush=True)
            with contextlib.suppress(asyncio.CancelledError):
                await serving


def end(serving: "asyncio.Task[None]") -> None:
    if serving.cancelling():
        os._exit(1)
    serving.cancel()


def announcement(export: Export, listener: socket.socket) -> str:
    name = quote(export.name)
    if listener.family == socket.AF_UNIX:
        uri = f"nbd+unix:///{name}?socket={quote(listener.getsockname())}"
    else:
        host, port = listener.getsockname()[:2]
        uri = f"nbd://{f'[{host}]' if ':' in host else host}:{port}/{name}"
    return f"{export.size} bytes at {uri}"


@contextlib.contextmanager
def listen(options: argparse.Namespace) -> Generator[socket.socket]:
    """The listening socket. A Unix socket's file is removed in the end."""
    if options.unix is None:
        address = (options.address, options.port)
        family = socket.AF_INET6 if ":" in options.address else socket.AF_INET
        with socket.create_server(address, family=family, backlog=options.clients) as listener:
            yield listener
        return
    with socket.socket(socket.AF_UNIX) as listener:
        bind_unix(listener, options.unix)
        listener.listen(options.clients)
        try:
            yield listener
        finally:
            os.unlink(options.unix)


def bind_unix(listener: socket.socket, path: str) -> None:
    try:
        listener.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or is_answered(path):
            raise
        os.unlink(path)  # left behind by a server that was killed
        listener.bind(path)


def is_answered(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        return True


# --- options ------------------------------------------------------------------------------------------------


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("driver", metavar="DRIVER", help="io_uring, virtio-blk-vhost-user, ...")
    parser.add_argument("properties", nargs="*", metavar="PROPERTY=VALUE", help="path=disk.img direct=true")
    where = parser.add_argument_group("where")
    where.add_argument("--address", default="127.0.0.1", help="to listen at (%(default)s)")
    where.add_argument("--port", type=int, default=10809, help="0: any that is free (%(default)s)")
    where.add_argument("--unix", metavar="PATH", help="listen at a Unix socket instead")
    what = parser.add_argument_group("what")
    what.add_argument("--name", default="", help="of the export (none)")
    what.add_argument("--description", default="", help="for people")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--clients", type=int, default=100, help="at a time; others wait (%(default)s)")
    limits.add_argument(
        "--requests", type=int, default=128, help="of one client in flight at a time (%(default)s)"
    )
    limits.add_argument(
        "--memory",
        type=aioblk.parse_size,
        default="64M",
        metavar="SIZE",
        help="for the data of all clients; one gets half of it at most (64M)",
    )
    limits.add_argument(
        "--patience",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="for a client to send or take any one message (%(default)g)",
    )
    parser.add_argument(
        "--loop", choices=["asyncio", "uvloop"], help="event loop (uvloop if it is installed)"
    )
    parser.add_argument("--verbose", action="store_true", help="say who comes and why they go")
    options = parser.parse_args()
    for name, least in (("clients", 1), ("requests", 1), ("memory", 1 << 20)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}")
    return options


if __name__ == "__main__":
    main()
