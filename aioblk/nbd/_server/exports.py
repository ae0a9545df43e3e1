"""The exports of a server by name; they come and go while it runs."""

import errno
from collections.abc import Iterator
from typing import final

from ...errors import OptionError, UsageError
from .export import ServedExport

LONGEST_NAME = 4096  # bytes, says the protocol; descriptions, too


def refuse_text(what: str, text: str) -> None:
    """Refuse a name or a description that no client could be told.

    Raises:
        OptionError: it is no UTF-8, has more than 4096 bytes, or a zero among them.
    """
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise OptionError(f"{what} must be UTF-8, not {text!r}") from None
    if len(encoded) > LONGEST_NAME:
        raise OptionError(f"{what} must have at most {LONGEST_NAME} bytes, not {len(encoded)}")
    if 0 in encoded:
        raise OptionError(f"{what} must have no zero byte, as {text!r} has")


@final
class Exports:
    """What clients may choose from, in the order in which it was added."""

    def __init__(self) -> None:
        self._by_name: dict[str, ServedExport] = {}
        self._default: ServedExport | None = None

    def add(self, export: ServedExport, *, default: bool = False) -> None:
        """Offer it from now on. The default one is also had by clients that name none.

        Raises:
            UsageError: the name is in use, or there is a default one already.
        """
        self.refuse_if_taken(export.name, default=default)
        self._by_name[export.name] = export
        if default:
            self._default = export

    def refuse_if_taken(self, name: str, *, default: bool) -> None:
        """UsageError: the name is in use, or there is a default one already."""
        if name in self._by_name:
            raise UsageError(
                f"the name {name!r} is in use by another export; remove that first, or choose another",
                errno=errno.EEXIST,
                operation="add",
            )
        if default and self._default is not None:
            raise UsageError(
                f"{self._default.name!r} is the default export already; remove it first",
                errno=errno.EEXIST,
                operation="add",
            )

    def remove(self, name: str) -> ServedExport:
        """Offer it no more. Who has chosen it is not touched.

        Raises:
            UsageError: there is none of that name.
        """
        export = self.named(name)
        del self._by_name[name]
        if self._default is export:
            self._default = None
        return export

    def named(self, name: str) -> ServedExport:
        """UsageError: there is none of that name."""
        if (export := self._by_name.get(name)) is None:
            raise UsageError(f"there is no export {name!r}{self._others()}", errno=errno.ENOENT)
        return export

    def find(self, name: str) -> ServedExport | None:
        """What a client that asks for *name* gets: without a name, the one that has none, or the default."""
        export = self._by_name.get(name)
        return self._default if export is None and not name else export

    def _others(self) -> str:
        return f"; there are {', '.join(map(repr, self._by_name))}" if self._by_name else ""

    def __iter__(self) -> Iterator[ServedExport]:
        return iter(list(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name
