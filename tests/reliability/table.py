"""What was seen, as a table: on a terminal, and in docs/reliability.md."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .row import DOCS, Fault

PAGE = DOCS / "reliability.md"
BEGIN, END = "<!-- table of ./run faults -->", "<!-- end of the table -->"


@dataclass(frozen=True)
class Outcome:
    fault: Fault
    kept: bool
    seen: str
    """What was seen or, where the promise is broken, why."""
    seconds: float


def show(outcomes: Sequence[Outcome], console: Console) -> None:
    table = Table(box=SIMPLE_HEAD, show_lines=True)
    for head in ("fault", "promised", "seen"):
        table.add_column(head, overflow="fold", ratio=1)
    table.add_column("", no_wrap=True)
    for outcome in outcomes:
        fault = outcome.fault
        table.add_row(
            f"[bold]{fault.name}[/bold]\n{escape(fault.words)}",
            f"{escape(fault.promised)}\n[dim]docs/{fault.link}[/dim]",
            escape(outcome.seen),
            f"{'[green]kept[/green]' if outcome.kept else '[red]BROKEN[/red]'}\n{outcome.seconds:.1f} s",
        )
    console.print(table)


def markdown(outcomes: Sequence[Outcome]) -> str:
    lines = ["| fault | what fails | promised | seen |", "|---|---|---|---|"]
    lines += [
        f"| `{outcome.fault.name}` | {outcome.fault.words} | [{outcome.fault.promised}]({outcome.fault.link})"
        f" | {outcome.seen} |"
        for outcome in outcomes
    ]
    return "\n".join(lines)


def publish(outcomes: Sequence[Outcome], how: str) -> None:
    """Put it in the place of the table that the page has, below the line that says how it was made."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{how}\n\n{markdown(outcomes)}\n\n{END}{after}")
