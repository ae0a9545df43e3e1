"""The text-driven door: a driver's name and its options, as in command lines and configuration files."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import cast

from ._properties import PROPERTIES
from .device import Device
from .drivers import CLASSES
from .errors import OptionError

__all__ = ["open"]

WORDS: Mapping[str, bool] = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
NUMBER = re.compile(r"(?P<digits>\d+|0x[0-9a-f]+)\s*((?P<unit>[kmgt])(ib?)?)?", re.ASCII | re.IGNORECASE)


def open(driver_name: str, **properties: object) -> Device:
    """A device of the named driver, not opened yet: ``async with aioblk.open("io_uring", path=...) as dev``.

    *driver_name* is libblkio's ("io_uring", "virtio-blk-vhost-user", ...). The properties are the options of
    the driver's class, with underscores or dashes. A value may also be text: "true" or "off" for a switch;
    "512", "0x200" or, in powers of 1024, "64K" or "1GiB" for a number.

    Raises OptionError for an unknown driver or property, with the valid ones, and for a value that does not
    fit.
    """
    driver = _choose(driver_name, CLASSES, "driver")
    make = cast(Callable[..., Device], CLASSES[driver])  # a subclass: its parameters are its own
    parameters = inspect.signature(make).parameters
    options: dict[str, object] = {}
    for name, value in properties.items():
        option = _choose(name, parameters, "property", driver)
        if option in options:
            raise OptionError(f"property {option} is given twice", driver=driver)
        options[option] = _parse(driver, option, value) if isinstance(value, str) else value
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise OptionError(f"property {name} is needed", driver=driver)
    return make(**options)


def _choose(name: str, choice: Iterable[str], what: str, driver: str | None = None) -> str:
    """The one of *choice* that *name* spells, be it with dashes or underscores."""
    spellings = {_normal(valid): valid for valid in choice}
    if (normal := _normal(name)) in spellings:
        return spellings[normal]
    near = [spellings[match] for match in difflib.get_close_matches(normal, spellings)]
    question = f" Did you mean {' or '.join(near)}?" if near else ""
    raise OptionError(
        f"no {what} {name!r}; there are {', '.join(spellings.values())}.{question}", driver=driver
    )


def _normal(name: str) -> str:
    return name.lower().replace("-", "_")


def _parse(driver: str, option: str, text: str) -> object:
    """The value of an option from its text, in the type that libblkio's property of that name has."""
    known = PROPERTIES.get(option.replace("_", "-"))
    match known.kind if known is not None else "int":
        case "bool":
            if text.lower() not in WORDS:
                raise OptionError(f"{option} must be true or false, not {text!r}", driver=driver)
            return WORDS[text.lower()]
        case "str":
            return text
        case _:
            number = NUMBER.fullmatch(text.strip())
            if number is None:
                raise OptionError(f"{option} must be a number (512, 64K), not {text!r}", driver=driver)
            power = " kmgt".index((number["unit"] or " ").lower())
            return int(number["digits"], 16 if "x" in number["digits"].lower() else 10) * 1024**power
