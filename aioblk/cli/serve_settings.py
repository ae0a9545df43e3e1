"""What ``aioblk serve nbd`` can be told: on the command line, in a file; and what is made of it."""

import difflib
import ipaddress
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

from ..addresses import Openable, open_locked, parse_duration, parse_rate, parse_size
from ..addresses import open as open_address
from ..errors import OptionError
from ..layers.throttle import Rate
from ..nbd import Policy, Tls
from ..nbd._server.exports import refuse_text
from .accounts import group_number, user_number

__all__ = ["EXPORT_KEYS", "SETTINGS", "ExportSettings", "Setting", "Settings", "read_file"]

# --- values -------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("text")
    if "\0" in value:
        raise ValueError("text without zero bytes")
    return value


def _description(value: object) -> str:
    return "" if value == "" else _text(value)


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _count(value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 63:
        raise ValueError("a whole number")
    return value


def _port(value: object) -> int:
    try:
        if 0 <= (port := _count(value)) <= 65535:
            return port
    except ValueError:
        pass
    raise ValueError("from 0 to 65535")


def _positive(read: Callable[[object], int]) -> Callable[[object], int]:
    def read_positive(value: object) -> int:
        if (number := read(value)) <= 0:
            raise ValueError("positive")
        return number

    return read_positive


def _size(value: object) -> int:
    """Bytes: 4096, "64M"."""
    if isinstance(value, str):
        try:
            return parse_size(value)
        except OptionError as error:
            raise ValueError("a size such as 512, 64K or 1GiB") from error
    return _count(value)


def _rate(kilo: int) -> Callable[[object], int]:
    """So much a second: 4096, "100M/s"."""

    def read(value: object) -> int:
        if not isinstance(value, str):
            return _count(value)
        try:
            return int(parse_rate(value, kilo=kilo))
        except (OptionError, OverflowError) as error:
            raise ValueError("a rate such as 100M/s, 1.5G/min or 500") from error

    return read


def _seconds(value: object) -> float:
    try:
        if isinstance(value, str):
            text = value
            try:
                value = float(text)
            except ValueError:
                value = parse_duration(text)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError
        return float(value)
    except (ValueError, OverflowError):
        raise ValueError("a number of seconds or a time such as 250ms or 1h30m") from None


def _network(value: object) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(_text(value))
    except ValueError as error:
        raise ValueError(f"a network such as 10.0.0.0/8 or fd00::/8 ({error})") from None


def _one_of(*words: str) -> Callable[[object], str]:
    def choose(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError(" or ".join(words))
        return value

    return choose


@final
@dataclass(frozen=True, slots=True)
class Setting:
    """One of the program."""

    name: str
    """As it is written; on the command line after two dashes."""
    section: str
    """Of the file."""
    read: Callable[[object], Any]
    """ValueError: it is not..."""
    default: Any
    help: str
    metavar: str = "TEXT"
    many: bool = False
    """It may be given several times; in the file it is a list."""

    @property
    def is_switch(self) -> bool:
        return self.read is _switch

    def value(self, given: object, where: str) -> Any:
        """OptionError: it does not fit."""
        values: Sequence[object] = (
            cast(Sequence[object], given) if isinstance(given, (list, tuple)) else [given]
        )
        if not self.many and isinstance(given, (list, tuple)):
            raise OptionError(f"{where} is one value, not {given!r}")
        if not values and self.name.startswith("allow"):  # which nobody means as "everybody"
            raise OptionError(f"{where} must name somebody, not {given!r}; leave it out to let everybody in")
        try:
            found = tuple(self.read(value) for value in values)
        except ValueError as error:
            raise OptionError(f"{where} must be {error}, not {given!r}") from None
        return found if self.many else found[0]


SETTINGS: tuple[Setting, ...] = (
    Setting(
        *("address", "listen", _text, ()),
        "Listen at this host's addresses; several times: at each. * is every address of this "
        "machine. Without any, and without --unix, 127.0.0.1.",
        "HOST",
        many=True,
    ),
    Setting("port", "listen", _port, 10809, "TCP port. 0: any that is free.", "PORT"),
    Setting(
        "unix", "listen", _text, (), "Listen at a Unix socket; several times: at each.", "PATH", many=True
    ),
    Setting(
        *("tls", "tls", _one_of("off", "allow", "require"), None),
        "Whether clients may use TLS, or must. Without it: require, where there are certificates or keys.",
        "off|allow|require",
    ),
    Setting(
        *("tls-certificates", "tls", _text, None),
        "A directory with server-cert.pem and server-key.pem.",
        "DIRECTORY",
    ),
    Setting(
        *("tls-verify-peer", "tls", _switch, False),
        "Take only clients with a certificate that ca-cert.pem of the directory has signed.",
    ),
    Setting(
        *("tls-psk", "tls", _text, None),
        "A file with a key for each user, as psktool writes it. Needs Python 3.13.",
        "FILE",
    ),
    Setting(
        *("allow", "limits", _network, ()),
        "Take TCP clients of this network only; several times: of each.",
        "NETWORK",
        many=True,
    ),
    Setting(
        *("allow-user", "limits", user_number, ()),
        "Take clients of this user only at Unix sockets; several times: of each.",
        "USER",
        many=True,
    ),
    Setting(
        *("allow-group", "limits", group_number, ()),
        "Take clients of this group only at Unix sockets; several times: of each.",
        "GROUP",
        many=True,
    ),
    Setting("clients", "limits", _count, 100, "At a time; others are refused.", "NUMBER"),
    Setting(
        *("requests", "limits", _count, 128),
        "In flight at a time of a client that is alone: each has an eighth for itself, which nobody else can "
        "take, and the rest is for all in turns.",
        "NUMBER",
    ),
    Setting(
        *("memory", "limits", _size, 64 << 20),
        "For the data of all clients: half of it shared out evenly among as many as there may be, the rest "
        "for all in turns.",
        "SIZE",
    ),
    Setting(
        "rate", "limits", _positive(_rate(1024)), None, "Bytes a second, of each client: 100M/s.", "RATE"
    ),
    Setting(
        *("operations", "limits", _positive(_rate(1000)), None),
        "Requests a second, of each client: 5K/s.",
        "RATE",
    ),
    Setting(
        *("patience", "limits", _seconds, 30.0),
        "For a handshake; for which a client may be behind the least rate; of silence until a peer in the "
        "network is taken for dead.",
        "DURATION",
    ),
    Setting(
        *("least-rate", "limits", _positive(_rate(1024)), 4096),
        "Bytes a second, of a client that is in the middle of sending or taking something.",
        "RATE",
    ),
    Setting(
        *("idle", "limits", _seconds, None),
        "Send away clients that have asked for nothing for so long.",
        "DURATION",
    ),
    Setting(
        *("drain", "limits", _seconds, 10.0),
        "For finishing and answering what is in flight when the server ends.",
        "DURATION",
    ),
    Setting(
        *("when-lost", "limits", _one_of("end", "reconnect"), "end"),
        "What to do when a device is lost: end with status 1, or open it again when it can be, and refuse "
        "clients until then; see to it that what was behind it does nothing any more.",
        "end|reconnect",
    ),
    Setting("user", "process", _text, None, "Become this user when all is open and listens.", "USER"),
    Setting("group", "process", _text, None, "And this group. Without it, the user's.", "GROUP"),
    Setting(
        *("no-lock", "process", _switch, False),
        "Do not lock files and disks as QEMU does: others may have them open for writing, too.",
    ),
    Setting("metrics-port", "process", _port, None, "Serve metrics for Prometheus at this port.", "PORT"),
    Setting("metrics-address", "process", _text, "127.0.0.1", "And at this address.", "HOST"),
    Setting("json-log", "process", _switch, False, "Log lines of JSON."),
    Setting("verbose", "process", _switch, False, "Say who comes and why they go."),
    Setting(
        *("loop", "process", _one_of("auto", "asyncio", "uvloop"), "auto"),
        "Event loop; auto is uvloop if it is installed.",
        "auto|asyncio|uvloop",
    ),
)
BY_NAME = {setting.name: setting for setting in SETTINGS}

# --- exports ------------------------------------------------------------------------------------------------

EXPORT_KEYS: Mapping[str, Callable[[object], Any]] = {
    "device": _text,
    "description": _description,
    "read-only": _switch,
    "default": _switch,
}


@final
@dataclass(frozen=True, slots=True)
class ExportSettings:
    """One export, whose device is not open yet."""

    name: str
    address: str
    description: str = ""
    read_only: bool = False
    default: bool = False

    def device(self, *, lock: bool) -> Openable:
        """Not opened yet."""
        open_device = open_locked if lock else open_address
        return open_device(self.address, **({"read_only": True} if self.read_only else {}))


# --- all of it ----------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class Settings:
    """What the program was told, as a whole."""

    exports: tuple[ExportSettings, ...]
    values: Mapping[str, Any]

    @classmethod
    def of(cls, exports: Sequence[ExportSettings], given: Mapping[str, Any]) -> "Settings":
        values = {setting.name: given.get(setting.name, setting.default) for setting in SETTINGS}
        if values["group"] is not None and values["user"] is None:
            raise OptionError("group is the group of another user: name that, too, with user")
        return cls(tuple(exports), values)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def policy(self) -> Policy:
        rate = None
        if self["rate"] is not None or self["operations"] is not None:
            rate = Rate(bytes=self["rate"], operations=self["operations"])
        return Policy(
            **{name: self[name] for name in ("clients", "requests", "memory", "patience", "idle", "drain")},
            least_rate=self["least-rate"],
            when_lost=self["when-lost"],
            rate=rate,
            networks=self["allow"] or None,
            users=frozenset(self["allow-user"]) or None,
            groups=frozenset(self["allow-group"]) or None,
        )

    def tls(self) -> Tls | None:
        """Read from its files now."""
        certificates, keys = self["tls-certificates"], self["tls-psk"]
        mode = self["tls"] or ("require" if certificates or keys else "off")
        if self["tls-verify-peer"] and (mode != "require" or not certificates):
            raise OptionError(  # clients without any certificate would be let in
                "tls-verify-peer needs tls-certificates, and TLS that is required;"
                f" tls is {mode}{', with keys' if keys else ''}"
            )
        if mode == "off":
            return None
        required = mode == "require"
        if certificates and keys:
            raise OptionError("tls-certificates and tls-psk: either is possible, not both")
        if certificates:
            verify = self["tls-verify-peer"]
            return Tls.from_certificates(certificates, verify_clients=verify, required=required)
        if keys:
            return Tls.from_keys(keys, required=required)
        raise OptionError(f"tls is {mode}, which needs tls-certificates or tls-psk")


def read_file(path: str) -> tuple[list[ExportSettings], dict[str, Any]]:
    """The exports and the settings of a TOML file.

    Raises:
        OptionError: it is no TOML, or something in it is unknown or does not fit; where.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        whole: dict[str, object] = tomllib.loads(text)
    except OSError as error:
        raise OptionError(f"{path}: {error.strerror}", errno=error.errno) from None
    except ValueError as error:  # of UTF-8, of TOML
        raise OptionError(f"{path}: {error}") from None
    except RecursionError:
        raise OptionError(f"{path}: it is nested too deeply") from None
    sections = {setting.section: None for setting in SETTINGS}
    _refuse_unknown(whole, [*sections, "exports"], path)
    values: dict[str, Any] = {}
    for section in sections:
        names = [setting.name for setting in SETTINGS if setting.section == section]
        table = _table(whole.get(section, {}), f"{path}: [{section}]")
        _refuse_unknown(table, names, f"{path}: [{section}]")
        for name, given in table.items():
            values[name] = BY_NAME[name].value(given, f"{path}: [{section}] {name}")
    exports: list[ExportSettings] = []
    for name, given in _table(whole.get("exports", {}), f"{path}: [exports]").items():
        where = f"{path}: [exports.{name}]" if name else f'{path}: [exports.""]'
        exports.append(_export(name, _table(given, where), where))
    if len(defaults := [export.name for export in exports if export.default]) > 1:
        raise OptionError(f"{path}: [exports] has several that are default: {', '.join(defaults)}")
    return exports, values


def _export(name: str, table: Mapping[str, object], where: str) -> ExportSettings:
    _refuse_unknown(table, EXPORT_KEYS, where)
    if "device" not in table:
        raise OptionError(f"{where} needs a device")
    found: dict[str, Any] = {}
    for key, given in table.items():
        try:
            found[key.replace("-", "_")] = EXPORT_KEYS[key](given)
        except ValueError as error:
            raise OptionError(f"{where} {key} must be {error}, not {given!r}") from None
    for what, text in ("name", name), ("description", found.get("description", "")):
        try:
            refuse_text(what, text)
        except OptionError as error:
            raise OptionError(f"{where}: {error.message}") from None
    return ExportSettings(name, found.pop("device"), **found)


def _table(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise OptionError(f"{where} must be a table, not {value!r}")
    return cast(dict[str, object], value)


def _refuse_unknown(
    table: Mapping[str, object], known: "Sequence[str] | Mapping[str, object]", where: str
) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            question = f" Did you mean {near[0]}?" if near else ""
            raise OptionError(f"{where} has no {key!r}; there are {', '.join(known)}.{question}")
