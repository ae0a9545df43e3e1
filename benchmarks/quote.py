"""What README.md and docs/performance.md quote of published runs, between marks that nobody sees."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.model import CASES, Run
from benchmarks.paths import ROOT
from benchmarks.summary import Summary, summarise
from benchmarks.tables import Grid, bars_grids, markdown

README = ROOT / "README.md"
PERFORMANCE = ROOT / "docs" / "performance.md"
BLOCK_SIZE = 4096
IN_README = ("aioblk-await", "aioblk-batch", "executor", "aiofiles", "aiofile", "turbofile-into")


def quote(runs: dict[str, Run]) -> None:
    """Write what is quoted of the runs, by name, where a page has a place for it."""
    for name, run in runs.items():
        replace(README, f"ratios of {name}", short(run))
        replace(PERFORMANCE, f"ratios of {name}", ratios(run))
        bars = [f"{source(run)}:", *map(markdown, bars_grids(run))]
        replace(PERFORMANCE, f"bars of {name}", "\n\n".join(bars))


def replace(page: Path, what: str, text: str) -> None:
    """Put the text between `<!-- WHAT -->` and `<!-- end -->`."""
    pattern = re.compile(rf"(<!-- {re.escape(what)} -->\n).*?(<!-- end -->)", re.DOTALL)
    page.write_text(pattern.sub(lambda marks: f"{marks[1]}\n{text}\n\n{marks[2]}", page.read_text()))


def source(run: Run) -> str:
    """The command that measures the same, when it did, and on what."""
    command = re.sub(r" --(publish|json) \S+| --resume", "", run.command)
    python, machine = run.machine["Python"].removesuffix(", GIL"), run.machine["processor"]
    return f"`{command}`, {run.date.split()[0]}, {python}, {machine}, {run.machine['kernel']}"


def short(run: Run) -> str:
    """A few rows: reads of a cached file."""
    grid = ratio_grid(run, "cached-file", [name for name in IN_README if name in run.labels])
    return f"{table(grid)}\n\n{source(run)}." if grid else ""


def ratios(run: Run) -> str:
    """Every contender in every sweep of reads over the depth."""
    found = [ratio_grid(run, case, list(run.labels)) for case in CASES]
    return "\n\n".join([f"{source(run)}:", *(markdown(grid) for grid in found if grid)])


def ratio_grid(run: Run, case: str, contenders: list[str]) -> Grid | None:
    """Throughput to the baseline's, at each depth."""
    summaries = summarise(run)
    cells = sorted(
        {
            cell
            for cell, _ in summaries
            if (cell.case, cell.operation, cell.block_size) == (case, "read", BLOCK_SIZE)
        },
        key=lambda cell: cell.depth,
    )
    rows = [
        [run.labels[name], *(ratio_text(summaries.get((cell, name))) for cell in cells)]
        for name in contenders
        if any((cell, name) in summaries for cell in cells)
    ]
    if not rows:
        return None
    title = f"Random 4 KiB reads, {CASES[case].title}: throughput, to that of {run.labels[run.baseline]}"
    return Grid(title, ["", *(f"depth {cell.depth}" for cell in cells)], rows)


def ratio_text(summary: Summary | None) -> str:
    if not summary or not summary.ratio:
        return "-"
    value = summary.ratio.median
    return f"{value:.3f}" if value < 0.02 else f"{value:.2f}"


def table(grid: Grid) -> str:
    """Without the title, which the page gives in its own words."""
    return markdown(grid).split("\n\n", 1)[1]
