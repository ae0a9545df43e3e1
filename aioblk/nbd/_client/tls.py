"""Who is trusted, and by what: the TLS context of a client."""

import os
import ssl
from functools import partial
from pathlib import Path
from typing import TypeAlias

from ...errors import OptionError, UnsupportedError
from .uri import DRIVER, NbdUri

__all__ = ["StrPath", "tls_context"]

StrPath: TypeAlias = str | os.PathLike[str]

AUTHORITY = "ca-cert.pem"  # these names are QEMU's and nbdkit's
CERTIFICATE, KEY = "client-cert.pem", "client-key.pem"
PSK = "keys.psk"
LONGEST_PSK = 64 << 10  # a file
CIPHERS_OF_KEYS = (
    "kECDHEPSK:kDHEPSK:!eNULL:!3DES:!AESCCM8"  # of TLS 1.2; plain "PSK" has some that encrypt nothing
)


def tls_context(
    uri: NbdUri,
    context: ssl.SSLContext | None,
    certificates: StrPath | None,
    psk: StrPath | None,
) -> ssl.SSLContext | None:
    """Of the options that a user has given; None: no TLS is used.

    Raises:
        OptionError: they contradict each other or the URI, or a file is not what it should be.
        UnsupportedError: this Python has no shared keys.
    """
    given = [
        name
        for name, value in (("tls", context), ("tls_certificates", certificates), ("tls_psk", psk))
        if value is not None
    ]
    if not uri.tls:
        if given:
            raise _wrong(
                f"{given[0]} is given, and {uri.text!r} is without TLS; write nbds:// or nbds+unix://, since"
                " what is with TLS only if the server likes can be made to be without by whoever is between"
            )
        return None
    if len(given) > 1:
        raise _wrong(f"{' and '.join(given)} exclude each other")
    if context is not None:
        if not isinstance(context, ssl.SSLContext):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise _wrong(f"tls must be an ssl.SSLContext, not {context!r:.100}")
        if context.check_hostname and _has_no_name(uri):
            raise _wrong(
                "a Unix socket has no name that the tls context could find in the certificate; add"
                f" tls-hostname=NAME to {uri.text!r}, or have check_hostname off"
            )
        return context
    if psk is not None or uri.tls_type == "psk":
        if psk is None:
            raise _wrong(f"{uri.text!r} wants a key that both sides share; name its file with tls_psk")
        return _psk_context(uri, psk)
    if uri.tls_type == "anon":
        raise _wrong("TLS without certificates and keys (tls-type=anon) is not offered by Python's OpenSSL")
    return _certificate_context(uri, certificates)


def _wrong(message: str) -> OptionError:
    return OptionError(message, driver=DRIVER, operation="open")


def _has_no_name(uri: NbdUri) -> bool:
    """Whether nobody knows whose certificate the server should have."""
    return not isinstance(uri.address, tuple) and uri.tls_hostname is None


def _certificate_context(uri: NbdUri, directory: StrPath | None) -> ssl.SSLContext:
    authority = None if directory is None else Path(directory) / AUTHORITY
    try:
        context = ssl.create_default_context(
            cafile=None if authority is None or not authority.exists() else str(authority)
        )
        if directory is not None:
            own = Path(directory) / CERTIFICATE, Path(directory) / KEY
            if own[0].exists():
                context.load_cert_chain(*map(str, own))
            elif authority is None or not authority.exists():
                raise _wrong(f"there is neither {AUTHORITY} nor {CERTIFICATE} in {str(directory)!r}")
    except OptionError:
        raise
    except OSError as error:  # ssl.SSLError is one
        raise _wrong(f"the certificates in {str(directory)!r} cannot be used: {error}") from None
    context.options |= ssl.OP_NO_RENEGOTIATION
    if not uri.tls_verify_peer:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif _has_no_name(uri):
        context.check_hostname = False
    return context


def _psk_context(uri: NbdUri, path: StrPath) -> ssl.SSLContext:
    user = uri.user or os.environ.get("USER") or "qemu"
    key = _key_of(user, path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    set_callback = getattr(context, "set_psk_client_callback", None)
    if set_callback is None:
        raise UnsupportedError(
            "a shared key (tls_psk) needs Python 3.13; use certificates", driver=DRIVER, operation="open"
        )
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # who has the key is who is trusted
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # servers of GnuTLS find 1.3's own only by its hash
    context.set_ciphers(CIPHERS_OF_KEYS)
    set_callback(partial(_identify, user, key))
    return context


def _identify(user: str, key: bytes, _hint: str | None) -> tuple[str, bytes]:
    return user, key


def _key_of(user: str, path: StrPath) -> bytes:
    """Of a file with lines NAME:KEY, the key in hexadecimal digits."""
    file = Path(path)
    if file.is_dir():
        file /= PSK
    try:
        with file.open(errors="replace") as lines:
            text = lines.read(LONGEST_PSK)
    except OSError as error:
        raise _wrong(f"tls_psk {str(file)!r} cannot be read: {error.strerror}") from None
    for line in text.splitlines():
        name, colon, digits = line.strip().rpartition(":")
        if colon and name == user:
            try:
                return bytes.fromhex(digits)
            except ValueError:
                raise _wrong(f"the key of {user!r} in {str(file)!r} is not hexadecimal") from None
    raise _wrong(
        f"{str(file)!r} has no key of {user!r}; write the name into the URI: nbds://NAME@host/export"
    )
