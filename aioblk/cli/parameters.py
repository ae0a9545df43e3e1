"""Sizes and devices as arguments. What cannot be read is a usage error, which says what could."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, final

import click

from ..addresses import Openable, parse_rate, parse_size
from ..addresses import open as open_address
from ..errors import OptionError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["Opener", "device_argument", "rate", "size"]

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


def rate(text: str) -> float:
    """Bytes a second, for ``type=rate``."""
    return _read(parse_rate, text)


@final
@dataclass(frozen=True, slots=True)
class Opener:
    """A device that was named, as often as it is wanted; what comes out is entered with ``async with``."""

    address: str

    def __call__(self, **properties: object) -> Openable:
        """With properties beside those of the address, which they must not contradict."""
        return open_address(self.address, **properties)

    def locked(self, **properties: object) -> Openable:
        """The same; where others could use it at the same time and it can be locked, it is. What an address
        says of that counts more."""
        try:
            return self(lock="auto", **properties)
        except OptionError:  # it is told again, if it is of anything else
            return self(**properties)


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
