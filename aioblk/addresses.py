"""The text-driven door: a driver's name and its options, as in command lines and configuration files."""

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias, cast

from ._device.device import Device
from ._libblkio.properties import PROPERTIES
from .drivers import CLASSES
from .errors import OptionError

__all__ = ["open", "parse_properties", "parse_size"]

WORDS: Mapping[str, bool] = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
SECONDS = {"connect_timeout", "lost_after", "reconnect_for"}
NUMBER = re.compile(r"(?P<digits>\d+|0x[0-9a-f]+)\s*((?P<unit>[kmgt])(ib?)?)?", re.ASCII | re.IGNORECASE)


def open(driver_name: str, **properties: object) -> Device:
    """A device of the named driver, not opened yet: ``async with aioblk.open("io_uring", path=...) as dev``.

    *driver_name* is libblkio's ("io_uring", "virtio-blk-vhost-user", ...). The properties are the options of
    the driver's class, with underscores or dashes. A value may also be text, as in :func:`parse_properties`.

    Raises:
        OptionError: an unknown driver or property, with the valid ones, or a value that does not fit.
    """
    driver, make, parameters = _find(driver_name)
    options = _options(driver, parameters, properties.items())
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise OptionError(f"property {name} is needed", driver=driver)
    return make(**options)


def parse_properties(driver_name: str, arguments: Iterable[str]) -> dict[str, object]:
    """The options in a command line's ``PROPERTY=VALUE`` arguments, for :func:`open` or the driver's class::

        driver, *arguments = "io_uring path=disk.img direct=true num-entries=1K".split()
        properties = aioblk.parse_properties(driver, arguments)
        assert properties == {"path": "disk.img", "direct": True, "num_entries": 1024}
        device = aioblk.open(driver, **properties)

    Each value gets the type of its property: text as it is; true, yes, on, 1 or false, no, off, 0; seconds
    with or without a fraction, or none; a number as :func:`parse_size` reads it. Names have dashes, as in
    libblkio, or underscores.

    Raises:
        OptionError: an argument is not of that form, or as by :func:`open`. Whether the values fit together
            is found out by :func:`open`.
    """
    driver, _make, parameters = _find(driver_name)
    pairs: list[tuple[str, object]] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals or not name:
            raise OptionError(
                f"{argument!r} is not of the form PROPERTY=VALUE, as path=disk.img is", driver=driver
            )
        pairs.append((name, value))
    return _options(driver, parameters, pairs)


def parse_size(text: str) -> int:
    """A number of bytes from text: 512, 0x200 or, in powers of 1024, 64k, 64K, 64KB, 64KiB, up to T.

    Raises:
        OptionError: it is none.
    """
    number = NUMBER.fullmatch(text.strip())
    if number is None:
        raise OptionError(f"{text!r} is not a size such as 512, 64K or 1GiB")
    digits, unit = number["digits"].lower(), (number["unit"] or " ").lower()
    return int(digits, 16 if "x" in digits else 10) << 10 * " kmgt".index(unit)


Parameters: TypeAlias = Mapping[str, inspect.Parameter]


def _find(driver_name: str) -> tuple[str, Callable[..., Device], Parameters]:
    """The driver's proper name, its class, and the options that the class takes."""
    driver = _choose(driver_name, CLASSES, "driver")
    make = cast(Callable[..., Device], CLASSES[driver])  # a subclass: its parameters are its own
    return driver, make, inspect.signature(make).parameters


def _options(
    driver: str, parameters: Parameters, properties: Iterable[tuple[str, object]]
) -> dict[str, object]:
    """Each option under its own name, with a value of its type."""
    options: dict[str, object] = {}
    for name, value in properties:
        option = _choose(name, parameters, "property", driver)
        if option in options:
            raise OptionError(f"property {option} is given twice", driver=driver)
        options[option] = _parse(driver, option, value) if isinstance(value, str) else value
    return options


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
    if option in SECONDS:
        try:
            return None if text.lower() == "none" else float(text)
        except ValueError:
            raise OptionError(f"{option} must be a number of seconds, not {text!r}", driver=driver) from None
    match known.kind if known is not None else "int":
        case "bool":
            if text.lower() not in WORDS:
                raise OptionError(f"{option} must be true or false, not {text!r}", driver=driver)
            return WORDS[text.lower()]
        case "str":
            return text
        case _:
            try:
                return parse_size(text)
            except OptionError:
                raise OptionError(
                    f"{option} must be a number (512, 64K), not {text!r}", driver=driver
                ) from None
