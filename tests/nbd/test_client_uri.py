"""Where an export is: the URIs that the NBD client understands, and those that it refuses."""

import pytest

import aioblk
from aioblk import OptionError
from aioblk.nbd._client.uri import NbdUri


@pytest.mark.parametrize(
    ("text", "tls", "address", "export"),
    [
        ("nbd://host", False, ("host", 10809), ""),
        ("nbd://host/", False, ("host", 10809), ""),
        ("nbd://host:1/a/b%20c", False, ("host", 1), "a/b c"),
        ("nbds://[::1]:5/%C3%A9", True, ("::1", 5), "é"),
        ("nbd+unix:///?socket=/run/nbd.sock", False, "/run/nbd.sock", ""),
        ("nbd+unix:///x?socket=relative%2Fone", False, "relative/one", "x"),
        ("nbds+unix:///x?socket=%00abstract", True, b"\0abstract", "x"),
        ("nbd+unix:///?socket=/s&x-mine=1", False, "/s", ""),
        ("nbd+unix:///?socket=/%FF", False, "/\udcff", ""),
        ("nbd+unix:///?socket=/\udcff", False, "/\udcff", ""),
    ],
)
def test_uris_are_understood(text: str, address: object, export: str, *, tls: bool) -> None:
    uri = NbdUri.parse(text)
    assert (uri.tls, uri.address, uri.export) == (tls, address, export)
    assert aioblk.Nbd(text).uri == text


def test_parameters_of_tls() -> None:
    uri = NbdUri.parse("nbds://alice@host/?tls-type=x509&tls-hostname=other&tls-verify-peer=0")
    assert (uri.user, uri.tls_type, uri.tls_hostname, uri.tls_verify_peer) == (
        "alice",
        "x509",
        "other",
        False,
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "does not begin with nbd, nbds, nbd.unix, nbds.unix"),
        ("/dev/nbd0", "does not begin with"),
        ("http://host", "does not begin with"),
        ("nbd://", "names no host"),
        ("nbd://host:port", "is not a URI"),
        ("nbd://host:70000", "is not a URI"),
        ("nbd://host:0", "port 0"),
        ("nbd://host/#x", "fragment"),
        ("nbd://host/%FF", "must be UTF-8"),
        ("nbd://host/\udcff", "must be UTF-8"),
        ("nbd://host/%00", "no zeroes"),
        ("nbd://host/a\tb", "has a tab or the end of a line"),
        ("nbd://ho\nst/", "has a tab or the end of a line"),
        ("nbd://host/" + "n" * 4097, "at most 4096 bytes"),
        ("nbd+unix:///", "names no socket"),
        ("nbd+unix://export?socket=/s", "three slashes"),
        ("nbd+unix:///?socket=/s&socket=/t", "socket twice"),
        ("nbd+unix:///?socket=/" + "s" * 107, "107 bytes.*has 108"),
        ("nbd+unix:///?socket=/s%00", "must not contain zeroes"),
        ("nbd://host?sokcet=/s", "the parameter 'sokcet'; there are socket,"),
        ("nbd://host?tls-verify-peer=1", "is without TLS, which nbds://"),
        ("nbds://host?tls-type=ssl", "tls-type must be x509, psk, anon, not 'ssl'"),
        ("nbds://host?tls-verify-peer=no", "must be 0 or 1, not 'no'"),
        ("nbds://host?tls-type=anon", "not offered by Python"),
        ("nbds://host?tls-type=psk", "name its file with tls_psk"),
    ],
)
def test_what_is_wrong_with_a_uri_is_said(text: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        aioblk.Nbd(text)


def test_what_is_no_text_is_no_uri() -> None:
    with pytest.raises(OptionError, match=r"a URI such as nbd://host:10809/export .* is needed, not None"):
        aioblk.Nbd(None)  # type: ignore[arg-type]
