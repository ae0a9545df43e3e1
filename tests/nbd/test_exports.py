"""Exports come and go by name, and clients find what there is."""

import re

import pytest

from aioblk import OptionError, UsageError
from aioblk.nbd._server.backend import Backend
from aioblk.nbd._server.export import Export, ServedExport
from aioblk.nbd._server.exports import Exports, refuse_text
from aioblk.testing import MemoryDevice


async def served(name: str) -> ServedExport:
    async with MemoryDevice(1 << 20) as device:
        return ServedExport(Export(device, name), Backend(device), memoryview(bytearray(4096)))


async def test_exports_are_found_by_name_and_listed_in_the_order_in_which_they_came() -> None:
    exports = Exports()
    disk, tape = await served("disk"), await served("tape")
    exports.add(disk)
    exports.add(tape)
    assert list(exports) == [disk, tape]
    assert exports.find("tape") is tape
    assert exports.find("") is None
    assert exports.remove("disk") is disk
    assert exports.find("disk") is None
    assert "disk" not in exports
    assert len(exports) == 1


async def test_who_names_none_gets_the_one_without_a_name_or_else_the_default() -> None:
    exports = Exports()
    disk, nameless = await served("disk"), await served("")
    exports.add(disk, default=True)
    assert exports.find("") is disk
    exports.add(nameless)
    assert exports.find("") is nameless
    exports.remove("")
    assert exports.find("") is disk
    exports.remove("disk")
    assert exports.find("") is None


async def test_a_name_in_use_a_second_default_and_an_unknown_name_are_refused() -> None:
    exports = Exports()
    exports.add(await served("disk"), default=True)
    with pytest.raises(UsageError, match="'disk' is in use"):
        exports.add(await served("disk"))
    with pytest.raises(UsageError, match="'disk' is the default export already"):
        exports.add(await served("tape"), default=True)
    with pytest.raises(UsageError, match="no export 'tape'; there are 'disk'"):
        exports.remove("tape")
    assert [export.name for export in exports] == ["disk"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x" * 4097, "the name must have at most 4096 bytes, not 4097"),
        ("ä" * 2049, "the name must have at most 4096 bytes, not 4098"),
        ("\udcff", "the name must be UTF-8"),
        ("a\0b", "the name must have no zero byte"),
    ],
)
def test_names_that_no_client_could_be_told_are_refused(text: str, words: str) -> None:
    with pytest.raises(OptionError, match=re.escape(words)):
        refuse_text("the name", text)
    refuse_text("the name", "x" * 4096)
