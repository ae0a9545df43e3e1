"""Sizes, times, rates and devices as arguments. What cannot be read is a usage error that says what could."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast, final

import click

from ..addresses import Address, Openable, open_locked, parse_address, parse_duration, parse_rate, parse_size
from ..addresses import open as open_address
from ..errors import OptionError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["Opener", "Whole", "device_argument", "duration", "rate", "size"]

T = TypeVar("T")
Decorated = TypeVar("Decorated", bound=Callable[..., Any] | click.Command)


def _read(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except OptionError as error:
        raise click.BadParameter(str(error)) from None


def size(text: str) -> int:
    """A number of bytes, for ``type=size``."""
    return _read(parse_size, text)


class Whole(click.IntRange):
    """A whole number within bounds, in words that are not click's."""

    name = "whole number"


def rate(text: str) -> float:
    """Bytes a second, for ``type=rate``."""
    return _read(parse_rate, text)


def duration(text: str) -> float:
    """Seconds, for ``type=duration``."""
    return _read(parse_duration, text)


@final
@dataclass(frozen=True, slots=True)
class Opener:
    """A device that was named, as often as it is wanted; what comes out is entered with ``async with``."""

    address: str

    def __call__(self, **properties: object) -> Openable:
        """With properties beside those of the address, which they must not contradict."""
        return open_address(self.address, **properties)

    def locked(self, **properties: Any) -> Openable:
        """The same, with files and block devices locked while open, unless the address says otherwise."""
        return open_locked(self.address, **properties)

    @property
    def innermost(self) -> Address:
        """What it opens, below all layers."""
        found = parse_address(self.address)
        while found.base is not None:
            found = found.base
        return found

    @property
    def path(self) -> str | None:
        """The file, device node or socket that is opened; None: there is none."""
        return cast("str | None", self.innermost.options.get("path"))

    def __str__(self) -> str:
        return self.address


def device(text: str) -> Opener:
    """The address of a device, for ``type=device``. Whether there is one is found out when it is opened."""
    opener = Opener(text)
    _read(lambda _: opener(), text)
    return opener


def device_argument(name: str = "device", **attributes: Any) -> Callable[[Decorated], Decorated]:
    """An argument that is a device's address, given to the command as an :class:`Opener`."""
    return click.argument(name, type=device, shell_complete=_files, **attributes)


def _files(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]
