"""TLS of an NBD server: certificates, keys that are shared, and what clients have to do."""

import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Self, final

from ...errors import OptionError, UnsupportedError

CIPHERS_OF_KEYS = "kECDHEPSK:kDHEPSK:!eNULL:!3DES:!AESCCM8"  # of TLS 1.2
LONGEST_KEY = 256  # bytes; with longer ones handshakes fail, and nobody could tell why


@final
@dataclass(frozen=True)
class Tls:
    """How a :class:`Server` does TLS. Any context of the standard library's will do; the functions make those
    of files as other NBD programs have them."""

    context: ssl.SSLContext
    """With the server's certificate or keys."""
    required: bool = True
    """Refuse everything before TLS. Otherwise each client may choose."""

    @classmethod
    def from_certificates(
        cls, directory: str | PathLike[str], *, verify_clients: bool = False, required: bool = True
    ) -> Self:
        """With ``server-cert.pem`` and ``server-key.pem``, by which clients know the server.

        With *verify_clients* they have to show certificates that ``ca-cert.pem`` there has signed.

        Raises:
            OptionError: a file is missing, or is not what it should be.
        """
        context = _context()
        where = Path(directory)
        certificate, key, authority = (
            where / name for name in ("server-cert.pem", "server-key.pem", "ca-cert.pem")
        )
        needed = (certificate, key, authority) if verify_clients else (certificate, key)
        for path in needed:
            _refuse_unless_readable(path)
        try:
            context.load_cert_chain(certificate, key, _ask_nobody)
        except ssl.SSLError as error:
            raise OptionError(
                f"no certificate and its key: {certificate}, {key}: {error.reason or error}", driver="nbd"
            ) from None
        if verify_clients:
            try:
                context.load_verify_locations(authority)
            except ssl.SSLError as error:
                raise OptionError(
                    f"no certificate of an authority: {authority}: {error.reason or error}", driver="nbd"
                ) from None
            context.verify_mode = ssl.CERT_REQUIRED
        return cls(context, required)

    @classmethod
    def from_keys(cls, file: str | PathLike[str], *, required: bool = True) -> Self:
        """With keys that are shared with the clients: a line for each user, ``name:key in hexadecimal``, as
        ``psktool`` writes them. Needs Python 3.13.

        Raises:
            OptionError: the file is missing, or a line is something else.
            UnsupportedError: this Python has no such keys.
        """
        context = _context()
        set_callback: Callable[[Callable[[str | None], bytes]], None] | None
        set_callback = getattr(context, "set_psk_server_callback", None)
        if set_callback is None:
            raise UnsupportedError(
                "keys that are shared with clients (TLS-PSK) need Python 3.13; use certificates", driver="nbd"
            )
        keys = read_keys(file)

        def key_of(user: str | None) -> bytes:
            return keys.get(user or "", b"")  # nothing: the client is refused

        set_callback(key_of)
        context.set_ciphers(CIPHERS_OF_KEYS)
        return cls(context, required)


def read_keys(file: str | PathLike[str]) -> Mapping[str, bytes]:
    """The keys of a file, by user."""
    path = Path(fspath(file))
    _refuse_unless_readable(path)
    keys: dict[str, bytes] = {}
    for number, line in enumerate(path.read_text(errors="surrogateescape").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, _, text = line.strip().rpartition(":")
        try:
            key = bytes.fromhex(text)
        except ValueError:
            key = b""
        if not user or not key:
            raise OptionError(f"{path}, line {number}: not user:key, the key in hexadecimal", driver="nbd")
        if len(key) > LONGEST_KEY:
            text = f"{path}, line {number}: a key has at most {LONGEST_KEY} bytes, not {len(key)}"
            raise OptionError(text, driver="nbd")
        if user in keys:
            raise OptionError(f"{path}, line {number}: {user!r} has a key already", driver="nbd")
        keys[user] = key
    if not keys:
        raise OptionError(f"{path}: there are no keys in it", driver="nbd")
    return keys


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0  # nobody comes back with one: a session takes as long as a disk is used
    return context


def _ask_nobody() -> str:
    """The password of an encrypted key, for which OpenSSL would ask at the terminal, and wait."""
    raise OptionError(
        "the key is encrypted; decrypt it into a file that only the server can read", driver="nbd"
    )


def _refuse_unless_readable(path: Path) -> None:
    try:
        with open(path, "rb", opener=_open_at_once):
            pass
    except (OSError, ValueError) as error:  # ValueError: it has a zero byte
        words = error.strerror if isinstance(error, OSError) else error
        raise OptionError(f"{path}: {words}", driver="nbd") from None


def _open_at_once(path: str, flags: int) -> int:
    """Also what nobody writes to."""
    return os.open(path, flags | os.O_NONBLOCK)
