"""Ranges, as HTTP has them (RFC 9110, section 14), and parts of a device."""

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import NamedTuple, Self

from .problems import ProblemError

MOST_RANGES = 64
"""Of one request. More is an attack, or would be served better by several requests."""

NUMBER = r"(\d{1,19})"  # no device has more bytes; and int() takes long for long ones
SPECIFIER = re.compile(rf"{NUMBER}?-{NUMBER}?", re.ASCII)
CONTENT_RANGE = re.compile(rf"bytes {NUMBER}-{NUMBER}/(?:{NUMBER}|\*)", re.ASCII | re.IGNORECASE)


class Part(NamedTuple):
    """A stretch of bytes."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length

    @classmethod
    def between(cls, offset: int, end: int) -> Self:
        return cls(offset, end - offset)

    def moved(self, by: int) -> "Part":
        return Part(self.offset + by, self.length)

    def pieces(self, size: int) -> Iterator["Part"]:
        """Itself, cut at multiples of *size*: all but the first and the last are whole blocks."""
        offset = self.offset
        while offset < self.end:
            end = min(self.end, offset - offset % size + size)
            yield Part.between(offset, end)
            offset = end


def parse_range(text: str, size: int) -> list[Part] | None:
    """What a Range header asks for of *size* bytes, in its order; None if it is to be ignored.

    Ranges that overlap or touch are made one, so that nobody is sent anything twice.

    Raises:
        ProblemError: 416, nothing of it can be had, or it is nothing that a program would ask for.
    """
    unit, equals, rest = text.partition("=")
    if unit.strip().lower() != "bytes" or not equals:
        return None
    specifiers = [stripped for specifier in rest.split(",") if (stripped := specifier.strip(" \t"))]
    if len(specifiers) > MOST_RANGES:
        detail = f"{len(specifiers)} ranges at once are too many, {MOST_RANGES} may be asked for"
        raise unsatisfiable(detail, size)
    parts = [part for specifier in specifiers if (part := _parse_specifier(specifier, size)).length]
    if not parts:
        raise unsatisfiable(f"there are {size} bytes, and nothing of {rest[:100]!r}", size)
    return _coalesce(parts)


def _parse_specifier(text: str, size: int) -> Part:
    """Empty where there is nothing of it."""
    found = SPECIFIER.fullmatch(text)
    if found is None or text == "-":
        raise unsatisfiable(f"{text[:100]!r} is not a range such as 0-99, 100- or -50", size)
    first, last = found.groups()
    if first is None:
        return Part.between(max(0, size - int(last)), size)
    if last is not None and int(last) < int(first):
        raise unsatisfiable(f"{text[:100]!r} ends before it begins", size)
    end = size if last is None else min(int(last) + 1, size)
    return Part.between(int(first), max(end, int(first)))


def _coalesce(parts: list[Part]) -> list[Part]:
    """Each is where the first of those stood that it is made of."""
    joined: list[tuple[int, Part]] = []
    for place, part in sorted(enumerate(parts), key=lambda each: each[1]):
        if joined and part.offset <= joined[-1][1].end:
            before, other = joined[-1]
            joined[-1] = (min(before, place), Part.between(other.offset, max(other.end, part.end)))
        else:
            joined.append((place, part))
    return [part for _, part in sorted(joined)]


def parse_content_range(text: str, size: int) -> Part:
    """Which of *size* bytes a body is meant for.

    Raises:
        ProblemError: 400, it is no range; 416, it is not one of these bytes.
    """
    found = CONTENT_RANGE.fullmatch(text.strip())
    if found is None:
        raise ProblemError(
            HTTPStatus.BAD_REQUEST, f"Content-Range {text[:100]!r} is not of the form 'bytes 0-99/*'"
        )
    first, last = int(found[1]), int(found[2])
    if last < first or (found[3] is not None and int(found[3]) <= last):
        raise ProblemError(HTTPStatus.BAD_REQUEST, f"Content-Range {text[:100]!r} contradicts itself")
    return within(Part.between(first, last + 1), size)


def within(part: Part, size: int) -> Part:
    """The part, if it is one of *size* bytes."""
    if part.end > size:
        raise unsatisfiable(
            f"bytes {part.offset} to {part.end} are not within the {size} that there are", size
        )
    return part


def unsatisfiable(detail: str, size: int) -> ProblemError:
    return ProblemError(
        HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, detail, headers={"Content-Range": f"bytes */{size}"}
    )
