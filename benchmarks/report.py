"""RESULTS.md: written from the published runs alone, so that no figure in it was typed by a person."""

import json
from pathlib import Path

from benchmarks.model import Run
from benchmarks.paths import RESULTS, ROOT
from benchmarks.pictures import draw
from benchmarks.tables import footnotes, grids, markdown

PAGE = ROOT / "benchmarks" / "RESULTS.md"
INTRODUCTION = """# Results

Figures of real runs, written by `./run bench report` from the JSON in [results](results). Every section names
the command that repeats it and the machine it ran on. Each sample comes from a process of its own, contenders
take turns (A B C A B C), and a ratio compares two samples of the same round: single absolute figures vary by
a fifth from minute to minute, ratios much less. "One await each" means as many tasks as the depth, each
awaiting one operation at a time.
"""


def publish(run: Run, name: str) -> None:
    """Keep a run under a name and write the page anew."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(run.to_json(), indent=1) + "\n")
    draw(run, RESULTS / f"{name}.svg")
    write_page()


def write_page() -> None:
    sections = [section(path) for path in sorted(RESULTS.glob("*.json"))]
    PAGE.write_text("\n\n".join([INTRODUCTION.strip(), *sections]) + "\n")


def section(path: Path) -> str:
    run = Run.from_json(json.loads(path.read_text()))
    parts = [f"## {run.title}", f"`{run.command}`, {run.date}"]
    if path.with_suffix(".svg").exists():
        parts.append(f"![throughput and latency against queue depth](results/{path.stem}.svg)")
    parts += [markdown(grid) for grid in grids(run)]
    parts.append("\n".join(f"- {note}" for note in footnotes(run)))
    return "\n\n".join(parts)
