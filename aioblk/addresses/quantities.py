"""Sizes, times and rates as people write them."""

import re

from ..errors import OptionError

__all__ = ["parse_duration", "parse_rate", "parse_size"]

LONGEST_TIME = 1e9  # seconds: 31 years

_DECIMAL = r"(?P<whole>\d{1,20})(?:\.(?P<fraction>\d{1,20}))?"
_UNIT = r"\s*(?:(?P<unit>[kmgtpe])(?:i?b)?|i?b)?"
_FLAGS = re.ASCII | re.IGNORECASE
_SIZE = re.compile(rf"(?:0x(?P<hex>[0-9a-f]{{1,16}})|{_DECIMAL}){_UNIT}", _FLAGS)
_RATE = re.compile(rf"{_DECIMAL}{_UNIT}\s*(?:/\s*(?P<per>[a-z]+))?", _FLAGS)
_STEP = re.compile(r"(?P<number>\d{1,20}(?:\.\d{1,20})?)\s*(?P<unit>[a-zµμ]+)\s*", _FLAGS)
_NUMBER = re.compile(r"\d{1,20}(?:\.\d{1,20})?", _FLAGS)

_SECONDS = {
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    "ms": 1e-3,
    **dict.fromkeys(("us", "µs", "μs"), 1e-6),
    "ns": 1e-9,
}


def parse_size(text: str) -> int:
    """A number of bytes from text: 512, 0x200, 1.5G or, in powers of 1024, 64k, 64K, 64KB, 64KiB, up to E.

    MB and MiB mean the same, 1048576 bytes, as they do for QEMU: what devices have are powers of two.

    Raises:
        OptionError: it is none, or has a fraction that is no whole number of bytes.
    """
    number = _SIZE.fullmatch(_stripped(text))
    if number is None:
        raise OptionError(f"{_shown(text)} is not a size such as 512, 64K or 1.5GiB")
    shift = _shift(number, 10)
    if number["hex"]:
        size = int(number["hex"], 16) << shift
    else:
        fraction = number["fraction"] or ""
        size, rest = divmod(int(number["whole"] + fraction) << shift, 10 ** len(fraction))
        if rest:
            raise OptionError(
                f"{_shown(text)} is no whole number of bytes; the next ones are {size} and {size + 1}"
            )
    return size


def parse_duration(text: str) -> float:
    """Seconds from text: 30, 0.5, 30s, 250ms, 1h30m, 1.5h; units are d, h, m or min, s, ms, us and ns.

    Raises:
        OptionError: it is none, or the units are not in this order, each once at most.
    """
    stripped = _stripped(text)
    if _NUMBER.fullmatch(stripped):
        return _bounded(text, float(stripped))
    seconds, last, at = 0.0, 2 * 86400.0, 0
    while step := _STEP.match(stripped, at):
        scale = _SECONDS.get(step["unit"].lower(), last)
        if scale >= last:
            break
        seconds, last, at = seconds + float(step["number"]) * scale, scale, step.end()
    if at == 0 or at < len(stripped):
        raise OptionError(f"{_shown(text)} is not a time such as 30s, 250ms or 1h30m")
    return _bounded(text, seconds)


def parse_rate(text: str, *, kilo: int = 1024) -> float:
    """So much a second, from text: 100M/s, 1.5G/min, 500/s; without /s, /min, /h or /d it is a second.

    ``kilo`` is what K stands for: 1024 for bytes, as with :func:`parse_size`; give 1000 for operations.

    Raises:
        OptionError: it is none. Rates in bits, such as 1Gbit/s, are not understood: divide by eight.
    """
    number = _RATE.fullmatch(_stripped(text))
    per = None if number is None else _SECONDS.get((number["per"] or "s").lower())
    if number is None or per is None or per < 1:
        raise OptionError(f"{_shown(text)} is not a rate such as 100M/s, 1.5G/min or 500")
    power = _shift(number, 1)
    amount = float(f"{number['whole']}.{number['fraction'] or 0}")
    return float(amount * kilo**power / per)


def _stripped(text: object) -> str:
    if not isinstance(text, str):
        raise OptionError(f"text is needed, such as '64K' or '30s', not {text!r}")
    return text.strip()


def _shift(number: re.Match[str], each: int) -> int:
    return each * " kmgtpe".index((number["unit"] or " ").lower())


def _bounded(text: str, seconds: float) -> float:
    if seconds > LONGEST_TIME:
        raise OptionError(f"{_shown(text)} is too long: no time is longer than {LONGEST_TIME:g} seconds")
    return seconds


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
