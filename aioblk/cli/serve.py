"""``aioblk serve``: a device, or many, for others."""

import json
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import click

from ..errors import OptionError
from .running import LoopName, loop_factory
from .serve_running import serve
from .serve_settings import BY_NAME, SETTINGS, ExportSettings, Setting, Settings, read_file
from .serve_vhost_user import vhost_user

__all__ = ["command"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@click.group("serve")
def command() -> None:
    """Serve devices to others: aioblk serve nbd disk.img"""


command.add_command(vhost_user)


def _reader(setting: Setting) -> Callable[[str], Any]:
    """What reads an option's value."""

    def read(text: str) -> Any:
        try:
            return setting.read(text)
        except ValueError as error:
            raise click.BadParameter(f"it must be {error}, not {text!r}") from None

    return read


def options(function: Decorated) -> Decorated:
    """An option for each setting."""
    for setting in reversed(SETTINGS):
        if setting.is_switch:
            attributes: dict[str, Any] = {"is_flag": True, "default": None}
        else:
            attributes = {"type": _reader(setting), "multiple": setting.many, "metavar": setting.metavar}
        shown = setting.default
        said = "" if shown in (None, False, ()) else f"  [{_said(setting)}]"
        function = click.option(f"--{setting.name}", help=setting.help + said, **attributes)(function)
    return function


def _said(setting: Setting) -> str:
    value = setting.default
    if setting.metavar in ("SIZE", "RATE"):
        return f"{value >> 20}M" if value >= 1 << 20 else f"{value >> 10}K"
    return f"{value:g}" if isinstance(value, float) else str(value)


@command.command("nbd")
@click.argument("devices", metavar="[NAME=]DEVICE...", nargs=-1)
@click.option(
    "--config", metavar="FILE", help="Exports and settings from a TOML file. SIGHUP has it read again."
)
@click.option("--description", metavar="TEXT", default="", help="Of the export, for people.")
@click.option("--read-only", is_flag=True, help="Refuse all changes.")
@click.option("--default", metavar="NAME", help="The export for clients that name none.")
@options
def nbd(devices: tuple[str, ...], config: str | None, **given: Any) -> int:
    """Serve block devices over NBD, the network block device protocol.

    \b
    aioblk serve nbd disk.img
        a file, to clients on this machine, at nbd://localhost
    aioblk serve nbd 'io_uring:/dev/sdb?direct=on' --address '*' --allow 10.0.0.0/8
        a disk without the page cache, to a network; * is every address of this machine
    aioblk serve nbd root=root.img data=data.img --unix nbd.sock --default root
        two exports, at a Unix socket: nbd+unix:///data?socket=nbd.sock
    aioblk serve nbd disk.img --address '*' --tls-certificates /etc/pki/nbd --tls-verify-peer
        to whoever has a certificate
    aioblk serve nbd --config /etc/aioblk/nbd.toml
        what the file says; it is read again when the process is sent SIGHUP

    \b
    and to use it:
        nbdinfo nbd://localhost                 what is offered
        nbdcopy disk.img nbd://localhost        fill it
        qemu-img convert nbd://localhost -O qcow2 backup.qcow2
        nbd-client localhost /dev/nbd0          as a disk of this machine, for root

    A DEVICE is an address: a path; DRIVER:PATH?OPTION=VALUE&... with one of libblkio's drivers; another
    server's export, nbd://host/export; or a layer over any of them, slice,partition=1:/dev/sdb. NAME is what
    clients ask for; without one, the export has none, which is what they ask for when they name none. What
    has an equals sign in its path and no name is written ./a=b.

    SIGINT or SIGTERM end the server: what is in flight is finished and answered first, within --drain
    seconds, whatever clients do. A second one does not wait. A device that is lost is reported; what happens
    then is up to --when-lost. Clients are sent away in any case: nobody knows what is left of what they have
    not flushed.

    NBD knows no passwords: whoever can reach the port reads and writes, unless --tls-verify-peer, --tls-psk,
    --allow or --allow-user say who.
    """
    read = partial(_settings, devices, config, given)
    try:
        settings = read()
    except OptionError as error:
        raise click.UsageError(str(error.message)) from None
    _set_up_log(settings)
    import asyncio

    with asyncio.Runner(loop_factory=loop_factory(cast(LoopName, settings["loop"]))) as runner:
        return runner.run(serve(settings, read))


def _settings(devices: tuple[str, ...], config: str | None, given: dict[str, Any]) -> Settings:
    """Those of the file; and of the command line, which are stronger."""
    values = {
        name: value
        for name in BY_NAME
        if (value := given[name.replace("-", "_")]) not in (None, ()) and value is not False
    }
    exports: list[ExportSettings] = []
    if config is not None:
        exports, of_file = read_file(config)
        values = {**of_file, **values}
        for option in ("description", "read_only", "default"):
            if given[option]:
                raise OptionError(f"--{option.replace('_', '-')} goes into the file, to the export")
    description, default = given["description"], given["default"]
    if description and len(devices) != 1:
        raise OptionError("--description is of one export; use --config with several")
    for device in devices:
        name, address = _split(device)
        is_default = default is not None and name == default
        exports.append(ExportSettings(name, address, description, given["read_only"], is_default))
    if default is not None and not any(export.default for export in exports):
        raise OptionError(f"--default {default}: there is no such export")
    if not exports:
        raise OptionError("a DEVICE is needed, or --config with exports")
    names = [export.name for export in exports]
    for name in names:
        if names.count(name) > 1:
            what = f"two exports are called {name!r}" if name else "two exports have no name"
            raise OptionError(f"{what}: write NAME=DEVICE")
    settings = Settings.of(exports, values)
    try:
        settings.policy()
    except OptionError as error:
        where = "" if config is None else f"{config} and the command line: "
        raise OptionError(f"{where}{error.message}") from None
    return settings


def _split(device: str) -> tuple[str, str]:
    """The name and the address. What stands before an equals sign is a part of the address if it looks like
    the beginning of one: of a path, of options, or of a layer with options."""
    name, equals, address = device.partition("=")
    if not equals or set(name) & set("/:?,"):
        return "", device
    return name, address


# --- the log ------------------------------------------------------------------------------------------------


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _Journal(logging.Formatter):
    """The journal has the time itself, and takes the level from the beginning of a line."""

    def format(self, record: logging.LogRecord) -> str:
        level = {logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}.get(record.levelno, 7)
        return "\n".join(f"<{level}>{line}" for line in super().format(record).splitlines())


def _set_up_log(settings: Settings) -> None:
    handler = logging.StreamHandler()
    if settings["json-log"]:
        handler.setFormatter(_Json())
    elif "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_Journal("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO if settings["verbose"] else logging.WARNING, handlers=[handler])
    logging.getLogger("aioblk.device").propagate = False  # the server says itself what becomes of the device
