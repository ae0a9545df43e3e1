"""RESULTS.md: written from the published runs alone, so that no figure in it was typed by a person."""

import json

from benchmarks import sheets
from benchmarks.model import Run
from benchmarks.paths import RESULTS, ROOT
from benchmarks.pictures import draw
from benchmarks.quote import quote
from benchmarks.tables import footnotes, grids, markdown

PAGE = ROOT / "benchmarks" / "RESULTS.md"
PICTURE = ROOT / "docs" / "performance.svg"
INTRODUCTION = """# Results

Figures of real runs, written by `./run bench report` from the JSON in [results](results). Every section names
the command that repeats it and the machine it ran on. Each sample comes from a process of its own, contenders
take turns (A B C A B C), and a ratio compares two samples of the same round: single absolute figures vary by
a fifth from minute to minute, ratios much less. "One await each" means as many tasks as the depth, each
awaiting one operation at a time.
"""


def publish(run: Run, name: str) -> None:
    """Keep a run under a name and write the pages anew."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(to_lines(run))
    draw(run, RESULTS / f"{name}.svg")
    write_pages()


def to_lines(run: Run) -> str:
    """JSON with a line for each record."""
    facts = run.to_json()
    records = ",\n".join(json.dumps(record) for record in facts.pop("records"))
    return f'{json.dumps(facts, indent=1)[:-2]},\n "records": [\n{records}\n ]\n}}\n'


def write_pages() -> None:
    """RESULTS.md, the quotations of other pages, and the picture among the documentation."""
    runs = {path.stem: Run.from_json(json.loads(path.read_text())) for path in sorted(RESULTS.glob("*.json"))}
    sections = [section(name, run) for name, run in runs.items()]
    sections += [sheet.section() for sheet in sheets.published()]
    PAGE.write_text("\n\n".join([INTRODUCTION.strip(), *sections]) + "\n")
    quote(runs)
    if "full" in runs:
        draw(runs["full"], PICTURE, case="cached-file", operation="read")


def section(name: str, run: Run) -> str:
    python = run.machine["Python"].removesuffix(", GIL")
    parts = [f"## {run.title} ({python})", f"`{run.command}`, {run.date}"]
    if (RESULTS / f"{name}.svg").exists():
        parts.append(f"![throughput and latency against queue depth](results/{name}.svg)")
    parts += [markdown(grid) for grid in grids(run)]
    parts.append("\n".join(f"- {note}" for note in footnotes(run)))
    return "\n\n".join(parts)
