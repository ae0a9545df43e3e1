"""An NBD server for any device that aioblk can open. See `python examples/nbd_server.py --help`."""

import argparse
import asyncio
import contextlib
import importlib
import importlib.util
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from urllib.parse import quote

import aioblk
from aioblk.nbd._server.backend import loss_of, watch
from aioblk.nbd._server.clients import Clients, Policy
from aioblk.nbd._server.export import CACHED_AT_ONCE, Export
from aioblk.nbd._server.memory import GRANULE
from aioblk.nbd._server.unix_socket import listen_at

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

SIGINT or SIGTERM end the server: what is in flight is finished and answered first, within --drain seconds,
whatever clients do. A second one does not wait. A device that is lost is reported; what happens then is up to
--when-lost. Clients are sent away in any case: nobody knows what is left of what they have not flushed."""

LONGEST_NAME = 4096  # bytes, says the protocol
LONGEST_WAIT = 1e6  # seconds, what timers of all kinds can do
BACKLOG = 1024  # who has connected and not been accepted, for a moment
DEVICE_GRACE = 2.0  # seconds, beyond those of clients, for the device to finish what it has

log = logging.getLogger("nbd")


def main() -> None:
    options = parse_options()
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    logging.getLogger("aioblk.device").propagate = False  # the server says itself what becomes of the device
    hold_standard_descriptors()
    try:
        properties = aioblk.parse_properties(options.driver, options.properties)
        device = aioblk.open(str(options.driver), **properties)
        with asyncio.Runner(loop_factory=loop_factory(options.loop)) as runner:
            status = runner.run(run(device, options))
    except OSError as error:
        sys.exit(f"nbd_server: {error}")
    except KeyboardInterrupt:  # before there was anything to finish
        status = 130
    sys.exit(status)


def hold_standard_descriptors() -> None:
    """What is closed of them becomes /dev/null, not a device or a socket that is sent what is said."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def loop_factory(name: str | None) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop, which does a turn in half the time, where it is installed and nothing else is wanted."""
    if name == "asyncio" or (name is None and not importlib.util.find_spec("uvloop")):
        return None
    return importlib.import_module("uvloop").new_event_loop  # type: ignore[no-any-return]


async def run(device: aioblk.Openable, options: argparse.Namespace) -> int:
    """Open the device and serve it; the exit status."""
    ending = Ending(device, options.drain)
    async with device:
        await serve(device, options, ending)
    return ending.status


async def serve(device: aioblk.BlockDevice, options: argparse.Namespace, ending: "Ending") -> None:
    """Serve an open device until a signal ends it, or the device is lost."""
    policy = Policy(options.clients, options.patience, options.least_rate, options.requests, options.drain)
    async with aioblk.Arena(options.memory + CACHED_AT_ONCE) as arena:
        if isinstance(device, aioblk.MapsMemory):
            await arena.attach(device)
        export = Export(
            device, arena, name=options.name, description=options.description, clients=options.clients
        )
        with listen(options) as listener:
            clients = Clients(export, policy)
            serving = asyncio.create_task(clients.serve(listener))
            losing = asyncio.create_task(watch(device, clients, reconnect=options.when_lost == "reconnect"))
            ending.serving = serving
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, ending.on_signal)
            print(announcement(export, listener), flush=True)
            await asyncio.wait([serving, losing], return_when=asyncio.FIRST_COMPLETED)
            if losing.done() and (lost := losing.exception()):
                log.error("%s: the server ends", lost)
                ending.status = 1
                ending.begin()
            await asyncio.wait([serving])
            if ending.status == 0 and clients.refusal is None and (lost := loss_of(device)):
                log.error("%s while the server ended", lost)  # which nobody has said yet
                ending.status = 1
            losing.cancel()
            if not serving.cancelled():
                serving.result()


class Ending:
    """The end, which comes in any case: clients have until the deadline, and so has the device, nearly."""

    def __init__(self, device: aioblk.BlockDevice, deadline: float) -> None:
        self._device = device
        self._deadline = deadline
        self._begun = self._signalled = False
        self.serving: asyncio.Task[None] | None = None
        """What is cancelled."""
        self.status = 0

    def on_signal(self) -> None:
        if self._signalled:
            os._exit(1)
        self._signalled = True
        self.begin()

    def begin(self) -> None:
        """Idempotent."""
        if self._begun:
            return
        self._begun = True
        if self.serving is not None:
            self.serving.cancel()
        asyncio.get_running_loop().call_later(self._deadline + DEVICE_GRACE, self._give_up)

    def _give_up(self) -> None:
        device = self._device
        if isinstance(device, aioblk.Device):
            if not device.closed or device.lost is None:
                self._complain()
                device.abandon("the server ends")
        elif self.serving is not None and not self.serving.done():
            self._complain()
            os._exit(1)

    def _complain(self) -> None:
        log.error("the device does not finish what it has been given: the server ends without it")
        self.status = 1


def announcement(export: Export, listener: socket.socket) -> str:
    name = quote(export.name)
    if listener.family == socket.AF_UNIX:
        uri = f"nbd+unix:///{name}?socket={quote(listener.getsockname())}"
    else:
        host, port = listener.getsockname()[:2]
        uri = f"nbd://{f'[{host}]' if ':' in host else host}:{port}/{name}"
    return f"{export.size} bytes at {uri}"


def listen(options: argparse.Namespace) -> contextlib.AbstractContextManager[socket.socket]:
    if options.unix is not None:
        return listen_at(options.unix, BACKLOG)
    family = socket.AF_INET6 if ":" in options.address else socket.AF_INET
    return socket.create_server((options.address, options.port), family=family, backlog=BACKLOG)


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
    limits.add_argument(
        "--clients", type=int, default=100, help="at a time; others are refused (%(default)s)"
    )
    limits.add_argument(
        "--requests",
        type=int,
        default=128,
        help="in flight at a time of a client that is alone: each has an eighth for itself, which nobody "
        "else can take, and the rest is for all in turns (%(default)s)",
    )
    limits.add_argument(
        "--memory",
        type=aioblk.parse_size,
        default="64M",
        metavar="SIZE",
        help="for the data of all clients: half of it shared out evenly among as many as there may be, the "
        "rest for who can use it, but nobody gets more of that than is left (64M)",
    )
    limits.add_argument(
        "--patience",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="for a handshake; for which a client may be behind the least rate; of silence until a peer in "
        "the network is taken for dead (%(default)g)",
    )
    limits.add_argument(
        "--least-rate",
        type=aioblk.parse_size,
        default="4K",
        metavar="SIZE",
        help="per second, of a client that is in the middle of sending or taking something (4K)",
    )
    limits.add_argument(
        "--drain",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="for finishing and answering what is in flight when the server ends (%(default)g)",
    )
    parser.add_argument(
        "--when-lost",
        choices=["end", "reconnect"],
        default="end",
        help="what to do when the device is lost: end with status 1, or open it again when it can be; see to "
        "it that what was behind it does nothing any more (%(default)s)",
    )
    parser.add_argument(
        "--loop", choices=["asyncio", "uvloop"], help="event loop (uvloop if it is installed)"
    )
    parser.add_argument("--verbose", action="store_true", help="say who comes and why they go")
    options = parser.parse_args()
    for name, least in (
        *(("clients", 1), ("requests", 1), ("memory", max(1 << 20, 2 * GRANULE * options.clients))),
        *(("least-rate", 1), ("drain", 0), ("patience", 0)),
    ):
        if not (value := getattr(options, name.replace("-", "_"))) >= least:  # nor is it nan
            parser.error(f"--{name} must be at least {least}, not {value}")
    for name in ("drain", "patience"):
        if (value := getattr(options, name)) > LONGEST_WAIT:
            parser.error(f"--{name} must be at most {LONGEST_WAIT:g}, not {value:g}")
    if not 0 <= options.port <= 65535:
        parser.error(f"--port must be from 0 to 65535, not {options.port}")
    if options.unix == "":
        parser.error("--unix must be a path, not empty")
    for name in ("name", "description"):
        try:
            length = len(getattr(options, name).encode())
        except UnicodeEncodeError:
            parser.error(f"--{name} must be UTF-8, not {getattr(options, name)!r}")
        if length > LONGEST_NAME:
            parser.error(f"--{name} must have at most {LONGEST_NAME} bytes, not {length}")
    return options


if __name__ == "__main__":
    main()
