"""Addresses: what to open, read from text and written as text."""

import os
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, cast, final

from .._libblkio.properties import IO_URING, VFIO_PCI
from ..drivers import CLASSES
from ..errors import OptionError
from ._escapes import escape, readable, refused, shown, unescape
from ._layers import LAYERS
from ._named import NBD_SCHEMES, Named, choose, find_named, spells_driver
from ._values import has_text, read_value, write_value

__all__ = ["Address", "parse_address", "place_properties", "read_address"]

MOST_LAYERS = 16

_HEAD = re.compile(r"[^/:,]*(?=[:,])")
_LIKE_LAYER = re.compile(r"[A-Za-z][\w-]*,[A-Za-z][\w-]*=")
_LIKE_OPTIONS = re.compile(r"\?(?P<options>[A-Za-z][\w-]*=.*)", re.DOTALL)
_PCI = re.compile(r"(?P<domain>[0-9a-f]{4}:)?(?P<rest>[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", re.IGNORECASE)
_PCI_DIRECTORY = "/sys/bus/pci/devices/"
_NBD = re.compile(r"//(?P<authority>[^/?]*)(?P<export>/[^?]*)?(?:\?(?P<query>.*))?", re.DOTALL)
_OF_URI = {"socket", "tls-type", "tls-hostname", "tls-verify-peer"}  # the others are the client's options
_OF_LIBNBD = {"tls-psk-file": "tls-psk"}  # as URIs of other programs have it


@final
@dataclass(frozen=True, slots=True)
class Address:
    """What to open: a driver with its options, or a layer with its own over another address.

    ``str()`` gives text that opens the same, but for options that no text can stand for, as a context for
    TLS. Two are equal if they say the same.
    """

    name: str
    """The driver's, as io_uring; the layer's, as slice; or nbd."""
    options: Mapping[str, object]
    """By their names, which have underscores: path or, of nbd, uri among them."""
    base: "Address | None" = None
    """What a layer lies over."""

    def __post_init__(self) -> None:
        """Raises:
        OptionError: there is no such driver or layer, it has not these options, or cannot lie over *base*.
        """
        named = _called(self.name)
        for option in self.options:
            if option not in named.options:
                choose(str(option), named.options, "property", self.name)
                raise OptionError(f"property {option!r} must be spelled as in Python", driver=self.name)
        if named.kind == "nbd" and "uri" not in self.options:
            raise OptionError("property uri is needed", driver=self.name)
        if (named.kind == "layer") is not isinstance(self.base, Address):
            rule = "a layer lies over an address" if named.kind == "layer" else "a driver lies over nothing"
            raise OptionError(f"{rule}, not over {reprlib.repr(self.base)}", driver=self.name)
        below, layers = self.base, 0
        while below is not None:
            below, layers = below.base, layers + 1
        if layers > MOST_LAYERS:
            raise OptionError(f"no more than {MOST_LAYERS} layers lie over a device", driver=self.name)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        if self.base is not None:
            return f"{self.name}{''.join(f',{text}' for text in self._options(',:'))}:{self.base}"
        if self.name == "nbd":
            uri = str(self.options["uri"])
            texts = [text for text in self._options("&#") if not text.startswith("uri=")]
            return uri + "".join(
                f"{'&' if number or '?' in uri else '?'}{text}" for number, text in enumerate(texts)
            )
        query = "&".join(text for text in self._options("&") if not text.startswith("path="))
        return f"{self.name}:{self._path()}{query and f'?{query}'}"

    def _path(self) -> str:
        path = str(self.options.get("path", ""))
        if self.name == VFIO_PCI and _PCI.fullmatch(path.removeprefix(_PCI_DIRECTORY)):
            path = path.removeprefix(_PCI_DIRECTORY)
        return escape(path, "?")

    def _options(self, special: str) -> list[str]:
        return [
            f"{name.replace('_', '-')}={escape(write_value(value), special)}"
            for name, value in self.options.items()
            if has_text(value)
        ]


def parse_address(address: str | os.PathLike[str] | Address, **properties: object) -> Address:
    """What an address says::

        address = aioblk.parse_address("slice,offset=1M,length=1G:io_uring:disk.img?direct=on")
        assert address.name == "slice" and address.options == {"offset": 1 << 20, "length": 1 << 30}
        assert str(address.base) == "io_uring:disk.img?direct=on"

    Text is a path, which io_uring opens; ``DRIVER:PATH?OPTION=VALUE&...``; an NBD URI; or
    ``LAYER,OPTION=VALUE,...:ADDRESS``. A path object is a path, whatever characters it has. Options beside
    the address are those of :func:`open`. Nothing is opened, looked for or asked.

    Raises:
        OptionError: it means nothing; the error has the address (without a password), the place and the rule.
    """
    found = read_address(address, properties)
    for new in place_properties(found, properties.items()):
        found = _with_property(found, new)
    return found


def read_address(address: object, beside: Iterable[str]) -> Address:
    """What an address says by itself. *beside*: the names of what is given beside it."""
    if isinstance(address, Address):
        return address
    if isinstance(address, str):
        address = readable(address)
        return _parse_named(address, beside) or _parse(address, address, 0, MOST_LAYERS)
    if isinstance(address, os.PathLike):
        return Address(IO_URING, {"path": readable(os.fsdecode(cast(os.PathLike[str], address)))})
    raise OptionError(f"an address must be text or a path object, not {address!r}")


def _parse_named(text: str, beside: Iterable[str]) -> Address | None:
    """The older form: a driver's name alone, and all else beside it."""
    if driver := spells_driver(text):
        return Address(driver, {})
    if text in LAYERS:
        rule = f"{text} lies over another device: {text}:ADDRESS; a file of that name is ./{text}"
        raise refused(text, rule)
    if {"path", "fd"}.intersection(beside) and not set("/:,").intersection(text):
        choose(text, CLASSES, "driver")
    return None


def _called(name: object) -> Named:
    """What is called exactly so."""
    named = find_named(name) if isinstance(name, str) else None
    if named is None or named.name != name:
        raise OptionError(f"the name of an address is a driver's, a layer's or nbd, not {name!r}")
    return named


# --- from text ----------------------------------------------------------------------------------------------


def _parse(whole: str, text: str, at: int, layers_left: int) -> Address:
    """*text*, which begins at character *at* of the *whole*."""
    before = _HEAD.match(text)
    head = None if before is None else before[0]
    if head is None or (text[len(head)] == "," and not (_is_known(head) or _LIKE_LAYER.match(text))):
        return _parse_path(whole, text, at)
    try:
        named = find_named(head)
    except OptionError as error:
        rule = f"{error.message} A path with a colon in its first part begins with ./"
        if _PCI.fullmatch(text):
            rule = f"a PCI device is named with its driver: {VFIO_PCI}:{text}"
        raise refused(whole, rule, at=at, piece=head) from None
    if named.kind == "layer":
        return _parse_layer(whole, named, text, at, layers_left)
    if text[len(head)] == ",":
        rule = f"options of {named.name} stand behind its path: {named.name}:PATH?OPTION=VALUE&OPTION=VALUE"
        raise refused(whole, rule, at=at, piece=text.partition(":")[0], named=named.name)
    if named.kind == "nbd":
        return _parse_nbd(whole, named, text, at)
    return _parse_driver(whole, named, text, at)


def _is_known(head: str) -> bool:
    try:
        find_named(head)
    except OptionError:
        return False
    return True


def _parse_path(whole: str, path: str, at: int) -> Address:
    """A path is taken as it is."""
    if not path:
        raise refused(whole, "an address is needed: a path, DRIVER:PATH or LAYER:ADDRESS", at=at)
    if path == "-":
        raise refused(
            whole, "standard input is no block device; a file of that name is ./-", at=at, piece=path
        )
    if options := _LIKE_OPTIONS.search(path):
        file = path[: options.start()]
        raise refused(
            whole,
            f"a path alone has no options; with options it is io_uring:{escape(file, '?')}"
            f"?{options['options']}, and a file of that name io_uring:{escape(path, '?')}",
            at=at + options.start(),
            piece=options[0],
        )
    return Address(IO_URING, {"path": path})


def _parse_layer(whole: str, named: Named, text: str, at: int, layers_left: int) -> Address:
    head, colon, rest = text.partition(":")
    if not colon:
        rule = f"{named.name} lies over another device: {shown(head)}:ADDRESS"
        raise refused(whole, rule, at=at, piece=text, named=named.name)
    if not layers_left:
        raise refused(whole, f"no more than {MOST_LAYERS} layers lie over a device", at=at, piece=head)
    _, comma, options = head.partition(",")
    start = at + len(head) - len(options)
    found = _parse_options(whole, named, options.split(",") if comma else [], start)
    return Address(named.name, found, _parse(whole, rest, at + len(head) + 1, layers_left - 1))


def _parse_driver(whole: str, named: Named, text: str, at: int) -> Address:
    head, _, rest = text.partition(":")
    path, question, query = rest.partition("?")
    start = at + len(head) + 1
    path = _unescape(whole, path, start, named)
    if named.name == VFIO_PCI and (device := _PCI.fullmatch(path)):
        path = f"{_PCI_DIRECTORY}{device['domain'] or '0000:'}{device['rest']}"
    options = _parse_options(whole, named, query.split("&") if question else [], at + len(text) - len(query))
    if path and "path" in options:
        raise refused(whole, "path is given twice", named=named.name)
    return Address(named.name, {"path": path, **options} if path else options)


def _parse_nbd(whole: str, named: Named, text: str, at: int) -> Address:
    head, _, rest = text.partition(":")
    scheme = head.lower()
    parts = _NBD.fullmatch(rest)
    if parts is None or scheme not in NBD_SCHEMES:
        rule = "NBD has URIs: nbd://HOST:PORT/EXPORT, or nbd+unix:///EXPORT?socket=PATH"
        raise refused(whole, rule, at=at, piece=text, named="nbd")
    if ":" in parts["authority"].rpartition("@")[0]:
        rule = "NBD has no passwords; keys of TLS are in a file: ?tls-psk-file=PATH"
        raise refused(whole, rule, named="nbd")
    query = [] if parts["query"] is None else parts["query"].split("&")
    ours = [piece for piece in query if not _is_of_uri(piece)]
    theirs = [piece for piece in query if _is_of_uri(piece)]
    for piece in (parts["authority"], parts["export"] or "", *theirs):
        _unescape(whole, piece, at + text.index(piece), named)
    names = {piece.partition("=")[0] for piece in theirs}
    if scheme.endswith("+unix") and ("socket" not in names or parts["authority"]):
        rule = f"{scheme} has its socket behind the name of the export: {scheme}:///EXPORT?socket=PATH"
        raise refused(whole, rule, at=at, piece=text, named="nbd")
    if not scheme.endswith("+unix") and not parts["authority"]:
        raise refused(whole, f"a host is needed: {scheme}://HOST:PORT/EXPORT", at=at, piece=text, named="nbd")
    options = _parse_options(whole, named, ours, at + len(text) - len(parts["query"] or ""))
    uri = f"{scheme}://{parts['authority']}{parts['export'] or ''}{'?' if theirs else ''}{'&'.join(theirs)}"
    return Address("nbd", {"uri": uri, **options})


def _is_of_uri(piece: str) -> bool:
    name = piece.partition("=")[0]
    return name in _OF_URI or name.startswith("x-")


def _parse_options(whole: str, named: Named, pieces: list[str], at: int) -> dict[str, object]:
    options: dict[str, object] = {}
    for piece in pieces:
        name, equals, value = piece.partition("=")
        if not equals or not name:
            rule = f"{shown(piece)!r} is not of the form OPTION=VALUE"
            raise refused(whole, rule, at=at, piece=piece, named=named.name)
        try:
            name = _OF_LIBNBD.get(name, name) if named.kind == "nbd" else name
            option = choose(name, (each for each in named.options if each != "uri"), "property")
            if option in options:
                raise OptionError(f"property {option} is given twice")
            text = _unescape(whole, value, at + len(name) + 1, named)
            options[option] = read_value(option, named.options[option], text)
        except OptionError as error:
            if error.operation == "address":
                raise
            rule = f"{error}{_whose_it_is(named, name)}"
            raise refused(whole, rule, at=at, piece=piece, named=named.name) from None
        at += len(piece) + 1
    return options


def _whose_it_is(named: Named, name: str) -> str:
    """Options of a layer are given to the device below as easily."""
    layers = [layer for layer in LAYERS if named.option(name) is None and find_named(layer).option(name)]
    return f" Options of a layer stand before its colon: {layers[0]},{name}=VALUE:ADDRESS" if layers else ""


def _unescape(whole: str, text: str, at: int, named: Named) -> str:
    return unescape(
        text, lambda place, piece, rule: refused(whole, rule, at=at + place, piece=piece, named=named.name)
    )


# --- beside an address --------------------------------------------------------------------------------------


class Property(NamedTuple):
    """What is said beside an address: whose it is, in its type."""

    depth: int
    """How many layers lie over its owner."""
    owner: str
    option: str
    value: object


def place_properties(address: Address, properties: Iterable[tuple[str, object]]) -> list[Property]:
    """To whom they belong: each to the outermost that has it. OptionError: nobody has it, or it is given
    twice."""
    placed: list[Property] = []
    for name, value in properties:
        new = _place(address, name, value)
        if any((new.depth, new.option) == (old.depth, old.option) for old in placed):
            raise OptionError(f"property {new.option} is given twice", driver=new.owner)
        placed.append(new)
    return placed


def _place(address: Address, name: str, value: object) -> Property:
    depth = 0
    named = find_named(address.name)
    while (option := named.option(name)) is None and address.base is not None:
        address, depth = address.base, depth + 1
        named = find_named(address.name)
    option = option or choose(name, named.options, "property", address.name)
    try:
        return Property(depth, named.name, option, read_value(option, named.options[option], value))
    except OptionError as error:
        error.driver = named.name
        raise


def _with_property(address: Address, new: Property, depth: int = 0) -> Address:
    if depth < new.depth:
        assert address.base is not None
        return replace(address, base=_with_property(address.base, new, depth + 1))
    if address.options.get(new.option, new.value) != new.value:
        there, beside = write_value(address.options[new.option]), write_value(new.value)
        raise OptionError(
            f"{new.option} is {there} in the address, and {beside} is asked for",
            driver=address.name,
            operation="address",
            filename=shown(str(address)),
        )
    return replace(address, options={**address.options, new.option: new.value})
