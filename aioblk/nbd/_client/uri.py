"""Where an export is: nbd://host:port/export and the like (the protocol's doc/uri.md has the rules)."""

import os
from dataclasses import dataclass
from typing import TypeAlias, final
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from ...errors import OptionError

__all__ = ["DRIVER", "PORT", "NbdUri"]

DRIVER = "nbd"  # as errors name it
PORT = 10809
LONGEST_NAME = 4096  # bytes, says the protocol
LONGEST_SOCKET_PATH = 107

Address: TypeAlias = tuple[str, int] | str | bytes
"""Host and port, or a Unix socket's path, or its name in the abstract namespace, which begins with a zero."""

SCHEMES = {"nbd": (False, False), "nbds": (True, False), "nbd+unix": (False, True), "nbds+unix": (True, True)}
"""Whether it is with TLS, and whether it is a Unix socket."""

EXAMPLE = "nbd://host:10809/export or nbd+unix:///export?socket=PATH"
TLS_TYPES = ("x509", "psk", "anon")


@final
@dataclass(frozen=True, slots=True)
class NbdUri:
    """A URI that has been understood."""

    text: str
    tls: bool
    """Whether nothing is said but with TLS."""
    address: Address
    export: str
    user: str | None = None
    """The name that a key which both sides share goes by."""
    tls_type: str | None = None
    tls_hostname: str | None = None
    """Whose certificate the server must have, if it is not the host's."""
    tls_verify_peer: bool = True

    @classmethod
    def parse(cls, text: str) -> "NbdUri":
        """OptionError: it is none, with what is wrong."""
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise _wrong(f"a URI such as {EXAMPLE} is needed, not {text!r}")
        if any(letter in text for letter in "\t\r\n"):  # which would be left out, without a word
            raise _wrong(f"{text!r} has a tab or the end of a line in it; write it as %09, %0D or %0A")
        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise _wrong(f"{text!r} is not a URI: {error}") from None
        if parts.scheme not in SCHEMES:
            raise _wrong(f"{text!r} does not begin with {', '.join(SCHEMES)}, as {EXAMPLE} does")
        if parts.fragment:
            raise _wrong(
                f"{text!r} has a fragment, behind #, which means nothing; write %23 for a # in a name"
            )
        tls, unix = SCHEMES[parts.scheme]
        query = _query(text, parts.query)
        if unix:
            address: Address = _socket(text, query.pop("socket", None), parts.netloc)
        else:
            if not host:
                raise _wrong(f"{text!r} names no host, as nbd://localhost does")
            if port == 0:
                raise _wrong(f"{text!r} has the port 0, which nobody can listen at")
            address = unquote(host), PORT if port is None else port
        return cls(
            text,
            tls,
            address,
            _export(text, parts.path),
            None if parts.username is None else unquote(parts.username),
            *_tls(text, tls, query),
        )

    @property
    def server(self) -> str:
        """The server alone, for people."""
        if isinstance(self.address, tuple):
            host, port = self.address
            return f"{f'[{host}]' if ':' in host else host}:{port}"
        return os.fsdecode(self.address).replace("\0", "@", 1)


def _wrong(message: str) -> OptionError:
    return OptionError(message, driver=DRIVER, operation="open")


def _query(text: str, query: str) -> dict[str, bytes]:
    """Its parameters, of which each has a meaning, or is an experiment of somebody's (x-)."""
    found: dict[str, bytes] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        name = unquote(name)
        if name in found:
            raise _wrong(f"{text!r} has {name} twice")
        if name not in ("socket", "tls-type", "tls-hostname", "tls-verify-peer") and not name.startswith(
            "x-"
        ):
            raise _wrong(
                f"{text!r} has the parameter {name!r}; there are socket, tls-type, tls-hostname and"
                " tls-verify-peer"
            )
        found[name] = unquote_to_bytes(os.fsencode(value))
    return found


def _socket(text: str, path: bytes | None, netloc: str) -> str | bytes:
    if not path:
        raise _wrong(f"{text!r} names no socket, as nbd+unix:///export?socket=PATH does")
    if netloc.rpartition("@")[2]:
        raise _wrong(
            f"{text!r} names a host, and a Unix socket has none: write three slashes, as in {EXAMPLE}"
        )
    if b"\0" in path[1:]:
        raise _wrong(f"the socket's path must not contain zeroes, as that of {text!r} does")
    if len(path) > LONGEST_SOCKET_PATH:
        raise _wrong(
            f"the socket's path must not be longer than {LONGEST_SOCKET_PATH} bytes, which is all that its"
            f" address has room for; that of {text!r} has {len(path)}"
        )
    return path if path[0] == 0 else os.fsdecode(path)


def _export(text: str, path: str) -> str:
    try:
        name = unquote(path.removeprefix("/"), errors="strict")
        size = len(name.encode())
    except UnicodeError:
        raise _wrong(f"the export's name must be UTF-8, unlike that of {text!r}") from None
    if "\0" in name or size > LONGEST_NAME:
        raise _wrong(
            f"an export's name has no zeroes, and at most {LONGEST_NAME} bytes, unlike that of {text[:100]!r}"
        )
    return name


def _tls(text: str, tls: bool, query: dict[str, bytes]) -> tuple[str | None, str | None, bool]:
    """tls-type, tls-hostname, tls-verify-peer."""
    given = [name for name in query if name.startswith("tls-")]
    if given and not tls:
        raise _wrong(f"{text!r} has {given[0]} and is without TLS, which nbds:// and nbds+unix:// are with")
    words = {name: query[name].decode(errors="replace") for name in given}
    kind, verify = words.get("tls-type"), words.get("tls-verify-peer", "1")
    if kind is not None and kind not in TLS_TYPES:
        raise _wrong(f"tls-type must be {', '.join(TLS_TYPES)}, not {kind!r}")
    if verify not in ("0", "1"):
        raise _wrong(f"tls-verify-peer must be 0 or 1, not {verify!r}")
    return kind, words.get("tls-hostname") or None, verify == "1"


def uri_of(address: Address, export: str, *, tls: bool = False) -> str:
    """The other way round."""
    scheme, name = "nbds" if tls else "nbd", quote(export, safe="")
    if isinstance(address, tuple):
        host, port = address
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/{name}"
    return f"{scheme}+unix:///{name}?socket={quote(address)}"
