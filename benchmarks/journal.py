"""What is measured is written at once, so that a run that was broken off can go on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.model import Record, Run, record_from_json


class Journal:
    """A file with the run's facts on its first line and a record on each of the others.

    Every line is written and flushed by itself: a run that ends in its midst loses one sample at most.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, run: Run, settings: dict[str, Any]) -> None:
        """Begin anew, with what was measured already, if anything."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        facts = {**run.to_json(), "records": []}
        lines = [{"settings": settings, "run": facts}, *(asdict(record) for record in run.records)]
        self._path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def add(self, record: Record) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")

    def resume(self, settings: dict[str, Any]) -> Run:
        """The run so far.

        Raises:
            SystemExit: there is none, or it was begun with other settings.
        """
        if not self._path.exists():
            raise SystemExit(f"bench: nothing to resume: there is no {self._path}")
        head, *rest = self._path.read_text().splitlines()
        begun = json.loads(head)
        for name, value in settings.items():
            was = begun["settings"].get(name)
            if was != value:
                raise SystemExit(f"bench: cannot resume: --{name} is {value}, and was {was} when it began")
        run = Run.from_json(begun["run"])
        for line in rest:
            try:
                run.records.append(record_from_json(json.loads(line)))
            except ValueError:  # the line that was being written when the run ended
                break
        return run

    def end(self) -> None:
        self._path.unlink(missing_ok=True)
