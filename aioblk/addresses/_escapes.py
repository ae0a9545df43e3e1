"""Characters that mean something in an address, and how they are written where they do not."""

import re
from collections.abc import Callable

from ..errors import OptionError

__all__ = ["escape", "readable", "refused", "shown", "unescape"]

LONGEST_SHOWN = 200  # characters of an address in an error

_ESCAPE = re.compile(r"%(?P<digits>[0-9A-Fa-f]{2})?")
_PASSWORD = re.compile(r"(?P<before>//[^/?@:]*:)[^/?]*@")


def escape(text: str, special: str) -> str:
    """*text* with % and what is *special* as %XX, and whatever a terminal would not show."""
    return "".join(
        "".join(f"%{byte:02X}" for byte in _bytes(character))
        if character in special or character == "%" or not character.isprintable()
        else character
        for character in text
    )


def unescape(text: str, refuse: Callable[[int, str, str], OptionError]) -> str:
    """What was escaped. *refuse* makes an error of where in *text*, what is there, and a rule.

    Bytes that are no UTF-8 become what ``os.fsdecode()`` makes of them.
    """
    if "%" not in text:
        return text
    found = bytearray()
    at = 0
    for escaped in _ESCAPE.finditer(text):
        if escaped["digits"] is None:
            piece = text[escaped.start() : escaped.start() + 3]
            raise refuse(escaped.start(), piece, "% begins an escape of two hex digits; a % itself is %25")
        found += _bytes(text[at : escaped.start()])
        found.append(int(escaped["digits"], 16))
        at = escaped.end()
    found += _bytes(text[at:])
    return found.decode("utf-8", "surrogateescape")


def readable(text: str) -> str:
    """The same, with what is UTF-8 as such where it came in escapes of single bytes. OptionError: it has
    surrogates that stand for no byte, of which no name can be made."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        rule = "it stands for no character, and for no byte of a file's name"
        raise refused(text, rule, at=error.start, piece=text[error.start : error.end]) from None


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")  # it is no file's name; nothing will be found there


def shown(text: str) -> str:
    """An address as errors show it: without a password, and not all of a long one."""
    text = _PASSWORD.sub(r"\g<before>***@", text)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def refused(
    whole: str, rule: str, *, at: int | None = None, piece: str = "", named: str | None = None
) -> OptionError:
    """What is wrong with the address *whole*, and where in it: at which character, from 1 on.

    A rule may have parts of the address in it: what a terminal would not show is %XX there.
    """
    rule = "".join(each if each.isprintable() else escape(each, "") for each in rule)
    where = "" if at is None else f"at character {at + 1}, {shown(piece)!r}: "
    return OptionError(f"{where}{rule}", driver=named, operation="address", filename=shown(whole))
