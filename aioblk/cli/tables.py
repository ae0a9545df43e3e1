"""What was found, as tables for people."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .._device.holders import Holder
from .description import Description
from .machine import Check, Machine
from .text import of_size

__all__ = ["console", "show_description", "show_machine", "table"]

WIDE = 160  # columns of what is no terminal
MOST_HOLDERS = 10  # lines

_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "fails": "[red]no[/]"}

_SIZES = {
    "request_alignment",
    "optimal_io_alignment",
    "optimal_io_size",
    "buf_alignment",
    "optimal_buf_alignment",
    "max_segment_len",
    "max_transfer",
    "max_write_zeroes_len",
    "max_discard_len",
    "discard_alignment",
    "discard_alignment_offset",
    "mem_region_alignment",
}
_ZERO_IS_ANY = {"max_segment_len", "max_transfer", "max_write_zeroes_len", "max_discard_len"}
_ZERO_IS_UNKNOWN = {"optimal_io_size"}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """It would end the process; the program does, with a status of its own."""
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """A terminal, or whatever is in its place: there nothing is coloured, and lines may be long."""
    made = _Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = WIDE
    return made


def table(*headings: str, title: str | None = None) -> Table:
    """Without lines but below the headings; numbers are to be right-aligned by who adds them."""
    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, show_edge=False)
    for heading in headings:
        made.add_column(heading, overflow="fold")
    return made


# --- the machine --------------------------------------------------------------------------------------------


def show_machine(machine: Machine, out: Console) -> None:
    libblkio = f"libblkio {machine.libblkio or 'of a version that is not known'}"
    out.print(
        f"[bold]aioblk {machine.aioblk}[/], {libblkio}, Linux {machine.kernel}, Python {machine.python}\n"
    )
    drivers = table("driver", "here", "what was found")
    for state in machine.drivers:
        troubles = [check for check in state.checks if check.state != "ok"]
        shown = troubles or [check for check in state.checks if check.state == "ok"]
        rows = [_check(check) for check in shown] + [escape(device) for device in state.devices]
        usable = "[green]yes[/]" if state.usable else "[red]no[/]"
        drivers.add_row(state.driver, usable, "\n".join(rows))
        drivers.add_row("", "", "")
    out.print(drivers)
    common = table("of the process", "", "")
    for check in machine.common:
        common.add_row(check.name, _MARKS[check.state], _check(check))
    out.print(common)


def _check(check: Check) -> str:
    remedy = f"\n  [dim]remedy:[/] {escape(check.remedy)}" if check.remedy and check.state != "ok" else ""
    return escape(check.found) + remedy


# --- a device -----------------------------------------------------------------------------------------------


def show_description(found: Description, out: Console) -> None:
    facts = table("", "")
    facts.show_header = False
    for name, value in _facts(found):
        facts.add_row(f"[bold]{name}[/]", value)
    out.print(facts)
    if found.partitions:
        out.print()
        out.print(_partition_table(found))
    if found.limits:
        out.print()
        out.print(_limits_table(found.limits))


def _facts(found: Description) -> Iterable[tuple[str, str]]:
    yield "device", escape(found.address)
    yield "driver", found.driver
    if (file := found.file) is not None:
        size = (
            ""
            if file.size is None
            else f", {_bytes(file.size)}, of which {of_size(file.allocated)} take space"
        )
        yield file.kind, escape(f"{file.path} ({file.whose}){size}")
    if found.capacity is not None:
        yield "capacity", _bytes(found.capacity)
    if found.read_only is not None:
        yield "writable", "no" if found.read_only else "yes"
    if (extents := found.extents) is not None and extents.holes:
        more = "" if extents.complete else ", and more"
        pieces = "piece" if extents.pieces == 1 else "pieces"
        what = f"{of_size(extents.data)} of data, {of_size(extents.holes)} of holes"
        yield "holds", f"{what}, in {extents.pieces} {pieces}{more}"
    if (zones := found.zones) is not None:
        states = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in zones.states.items())
        limits = f"{zones.max_open or 'any number'} open, {zones.max_active or 'any number'} active at a time"
        yield "zones", f"{zones.count} of {of_size(zones.size)}: {states}; {limits}"
    if found.capacity is not None:
        names = [f"{each.name} (at {each.offset})" for each in found.signatures]
        yield "recognised", escape(_lines(names)) if names else "nothing"
    if found.partition_error:
        yield "partitions", f"[red]{escape(found.partition_error)}[/]"
    if found.file is not None:
        yield "in use", escape(_holders(found.holders))
    for remedy in found.remedies:
        yield "remedy", escape(remedy)


def _lines(things: Sequence[str]) -> str:
    return "\n".join(things)


def _holders(holders: Sequence[Holder]) -> str:
    more = len(holders) - MOST_HOLDERS
    shown = [holder.who for holder in holders[:MOST_HOLDERS]] + ([f"and {more} more"] if more > 0 else [])
    return _lines(shown) or "no"


def _bytes(size: int) -> str:
    return f"{of_size(size)} ({size} bytes)" if size >= 1024 else f"{size} bytes"


def _partition_table(found: Description) -> Table:
    shown = table("partition", "offset", "size", "type", "name", "uuid")
    for each in found.partitions:
        shown.add_row(
            str(each.number),
            of_size(each.offset),
            of_size(each.length),
            each.type,
            escape(each.name),
            each.uuid,
        )
    return shown


def _limits_table(limits: dict[str, Any]) -> Table:
    shown = table("limit", "")
    for name, value in limits.items():
        shown.add_row(name.replace("_", "-"), _limit(name, value))
    return shown


def _limit(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    assert isinstance(value, int)
    if name in _ZERO_IS_ANY and not value:
        return "any"
    if name in _ZERO_IS_UNKNOWN and not value:
        return "not known"
    if value >= 1 << 62:
        return "any"
    return of_size(value) if name in _SIZES else str(value)
