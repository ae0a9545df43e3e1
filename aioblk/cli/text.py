"""Numbers as people read them."""

from collections.abc import Sequence

__all__ = ["in_words", "of_duration", "of_rate", "of_size", "of_wait"]


def of_size(size: int | None) -> str:
    """Bytes, in powers of 1024: 512 B, 64 KiB, 1.5 GiB. None: unlimited."""
    if size is None:
        return "unlimited"
    if abs(size) < 1024:
        return f"{size} B"
    power = min((abs(size).bit_length() - 1) // 10, 6)
    number = size / (1 << 10 * power)
    text = f"{number:.2f}".rstrip("0").rstrip(".") if number < 100 else f"{number:.0f}"
    return f"{text} {' KMGTPE'[power]}iB"


def of_rate(rate: float) -> str:
    """So many a second, in powers of 1000: 950, 12.3k, 1.25M."""
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if rate >= factor:
            return f"{_three(rate / factor)}{unit}"
    return _three(rate)


def of_duration(seconds: float) -> str:
    """12.3 us, 4.56 ms, 1.2 s."""
    for factor, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= factor:
            return f"{_three(seconds / factor)} {unit}"
    return f"{seconds * 1e9:.0f} ns" if seconds else "0"


def of_wait(seconds: float) -> str:
    """What people wait for: 0.35 s, 12 s, 4:05, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _three(number: float) -> str:
    """With three digits."""
    digits = 2 if number < 10 else 1 if number < 100 else 0
    return f"{number:.{digits}f}"


def in_words(things: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(things[:-1]), *things[-1:]]))
