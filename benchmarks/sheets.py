"""Sheets: what a command has measured that has a table of its own, beside the runs of the contenders."""

from __future__ import annotations

import datetime
import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from benchmarks import machine, tables
from benchmarks.paths import RESULTS

SHEETS = RESULTS / "sheets"
"""Published ones, by their names."""


@dataclass(frozen=True)
class Sheet:
    title: str
    command: str
    date: str
    machine: dict[str, str]
    grid: tables.Grid
    notes: list[str]

    @classmethod
    def begin(cls, title: str) -> Sheet:
        """Without figures yet: of the machine as it is now, and the command that runs."""
        return cls(
            title=title,
            command=" ".join(["./run bench", *_without_names_of_files(sys.argv[1:])]),
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            machine=machine.describe(sys.executable),
            grid=tables.Grid("", [], []),
            notes=[],
        )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Sheet:
        return cls(**{**data, "grid": tables.Grid(**data["grid"])})

    def show(self, console: Console) -> None:
        tables.show_grid(self.grid, console)
        for note in self.notes:
            console.print(note, style="dim", highlight=False, markup=False, soft_wrap=True)

    def publish(self, name: str) -> None:
        SHEETS.mkdir(parents=True, exist_ok=True)
        (SHEETS / f"{name}.json").write_text(json.dumps(asdict(self), indent=1) + "\n")

    def section(self) -> str:
        """For RESULTS.md."""
        facts = "; ".join(f"{name}: {value}" for name, value in self.machine.items())
        notes = "\n".join(f"- {note}" for note in (*self.notes, facts))
        return "\n\n".join(
            [f"## {self.title}", f"`{self.command}`, {self.date}", tables.markdown(self.grid), notes]
        )


def published() -> list[Sheet]:
    return [Sheet.from_json(json.loads(path.read_text())) for path in sorted(SHEETS.glob("*.json"))]


def _without_names_of_files(arguments: list[str]) -> list[str]:
    """What was measured, and not where it was kept."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in ("--publish", "--json", "--directory"):
            skip = True
        else:
            kept.append(argument)
    return kept
