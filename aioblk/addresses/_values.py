"""Values of options, from text and as text."""

import os
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias, cast

from ..errors import OptionError
from .quantities import parse_duration, parse_rate, parse_size

__all__ = ["Kind", "Option", "has_text", "read_value", "write_value"]

Kind: TypeAlias = Literal["flag", "number", "seconds", "rate", "operations", "text", "texts", "object"]

_WORDS: Mapping[str, bool] = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


class Option(NamedTuple):
    """An option of what an address names."""

    kind: Kind
    is_needed: bool = False
    words: tuple[str, ...] = ()
    """What it may be besides."""


def read_value(name: str, option: Option, value: object) -> object:
    """The value of an option in its type, from text; whatever is no text is left to its owner to check.

    Raises:
        OptionError: the text means nothing, with the option's name and what would.
    """
    if isinstance(value, os.PathLike):
        return os.fspath(cast(os.PathLike[str], value))
    if not isinstance(value, str) or option.kind == "text" or value in option.words:
        return value
    try:
        match option.kind:
            case "flag":
                return _WORDS[value.lower()]
            case "number":
                return parse_size(value)
            case "seconds":
                return None if value.lower() == "none" else parse_duration(value)
            case "rate":
                return parse_rate(value)
            case "operations":
                return parse_rate(value, kilo=1000)
            case "texts":
                return tuple(value.split(","))
            case "object":
                raise KeyError
    except (KeyError, OptionError) as error:
        what = " or ".join((*option.words, _EXPECTED[option.kind]))
        why = f": {error}" if isinstance(error, OptionError) and " is not " not in str(error) else ""
        shown = value if len(value) <= 60 else f"{value[:57]}..."
        raise OptionError(f"{name} must be {what}, not {shown!r}{why}") from None


_EXPECTED = {
    "flag": "true or false",
    "number": "a number (512, 64K)",
    "seconds": "a number of seconds or a time (30, 250ms, 1h30m)",
    "rate": "a rate (100M/s)",
    "operations": "a rate (500, 5K/s)",
    "object": "given by a program: it cannot be text",
}


def has_text(value: object) -> bool:
    """Whether the value can be written."""
    return value is None or isinstance(value, bool | int | float | str | tuple)


def write_value(value: object) -> str:
    """Text that :func:`read_value` makes the same value of."""
    if isinstance(value, tuple):
        return ",".join(map(str, cast(tuple[object, ...], value)))
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        from decimal import Decimal

        text = format(Decimal(repr(value)), "f")
        return text.removesuffix(".0")
    return str(value)
