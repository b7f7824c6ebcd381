"""`compare`: finished runs in, one report out, in every form that it is read in."""

from __future__ import annotations

import gc
import logging
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lightning_rag
from lightning_rag.comparison import tensorboard
from lightning_rag.comparison.comparable import aligned, check
from lightning_rag.comparison.markdown import as_markdown
from lightning_rag.comparison.page import as_html
from lightning_rag.comparison.report import Settings, build
from lightning_rag.comparison.runs import Run, System, find, read, systems
from lightning_rag.comparison.section import Report, Table
from lightning_rag.comparison.style import svg
from lightning_rag.comparison.tables import as_csv, as_latex, as_text
from lightning_rag.errors import DataError, UserError
from lightning_rag.files import Json, write_json, write_text

log = logging.getLogger(__name__)

PAGE = "report.html"
# What a report's folder holds: a new report replaces these, and nothing else.
PARTS = (PAGE, "report.md", "comparison.json", "tables", "plots", "tensorboard")


def compare(
    paths: Iterable[Path | str],
    output: Path | str,
    *,
    metric: str | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
    examples: int = 20,
) -> Path:
    """Compare finished runs, write the report, and print its main table.

    Args:
        paths: folders of runs, or folders above them.
        output: a new or empty folder, or one with a former report, which is replaced. It will hold
            `report.html`, `report.md`, `comparison.json`, `tables/` (CSV and LaTeX), `plots/` (SVG)
            and `tensorboard/`.
        metric: as in `Settings`, like all that follow.
        resamples: of each bootstrap and each test.
        confidence: of all intervals.
        seed: of the resampling.
        examples: queries that the report shows.

    Returns:
        The page, `output / "report.html"`.

    Raises:
        UserError: there is nothing to compare; runs that do not belong together; an output that
            holds something else; a metric that not all runs have; a number that is not legal.
        DataError: runs that are unfinished or damaged: all of them are named.
    """
    settings = Settings(metric, resamples, confidence, seed, examples)
    output = Path(output)
    _check_output(output)
    with _collector_at_rest():
        compared, notes = _belonging(_read_all(find(paths)))
        gc.freeze()
        report = build(compared, notes, settings)
        write(report, output)
    _announce(report, output)
    return output / PAGE


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Keep the garbage collector from the rows: millions of objects, none of them garbage.

    Walking through them again and again takes twice as long as reading them, and statsmodels asks
    for a full collection whenever it corrects p values (hence `gc.freeze` when all is read).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def write(report: Report, output: Path) -> None:
    """Write a report in every form, in place of a former one.

    Everything is written beside the folder first, and its parts put in place when all are there:
    what cannot be written costs no former report.
    """
    svgs = {plot.name: svg(plot.figure) for part in report.sections for plot in part.plots}
    temporary = output.absolute().with_name(f".{output.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        write_text(temporary / PAGE, as_html(report, svgs))
        write_text(temporary / "report.md", as_markdown(report))
        write_json(temporary / "comparison.json", as_json(report))
        for table in report.tables:
            write_text(temporary / "tables" / f"{table.name}.csv", as_csv(table))
            write_text(temporary / "tables" / f"{table.name}.tex", as_latex(table))
        for name, text in svgs.items():
            write_text(temporary / "plots" / f"{name}.svg", text)
        tensorboard.write(report, temporary / "tensorboard")
        output.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            _replace(temporary / part, output / part)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def as_json(report: Report) -> dict[str, Json]:
    """Return all that a report says; numbers in full, those that JSON does not have as null."""
    return {
        "lightning_rag": lightning_rag.__version__,
        "title": report.title,
        "facts": dict(report.facts),
        "notes": list(report.notes),
        "summary": list(report.summary),
        "sections": [
            {
                "name": section.name,
                "title": section.title,
                "paragraphs": list(section.paragraphs),
                "tables": [_table_json(table) for table in section.tables],
                "plots": [
                    {"name": plot.name, "title": plot.title, "alt": plot.alt, "table": plot.table}
                    for plot in section.plots
                ],
                "cards": [
                    {"title": card.title, "fields": [list(field) for field in card.fields]}
                    for card in section.cards
                ],
            }
            for section in report.sections
        ],
    }


def _table_json(table: Table) -> dict[str, Json]:
    rows: list[Json] = [
        [None if isinstance(c, float) and not math.isfinite(c) else c for c in row]
        for row in table.rows
    ]
    columns: list[Json] = list(table.columns)
    return {
        "name": table.name,
        "title": table.title,
        "columns": columns,
        "rows": rows,
        "note": table.note,
    }


def _replace(new: Path, old: Path) -> None:
    if old.is_dir():
        shutil.rmtree(old)
    if new.exists():
        os.replace(new, old)
    else:  # a report without plots has no folder of them
        old.unlink(missing_ok=True)


def _check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"output: {output} is a file; legal: a folder")
    if not output.exists() or (output / "comparison.json").exists():
        return
    if any(output.iterdir()):
        raise UserError(
            f"output: {output} is not empty and holds no report; legal: a new folder, an empty "
            "one, or one with a former report, which is replaced"
        )


def _read_all(folders: Sequence[Path]) -> list[Run]:
    """Read runs; a mistake in one does not hide those in others."""
    runs, mistakes = [], []
    for folder in folders:
        try:
            runs.append(read(folder))
        except DataError as error:
            mistakes.append(str(error))
    if len(mistakes) == 1:
        raise DataError(mistakes[0])
    if mistakes:
        raise DataError(f"{len(mistakes)} runs cannot be compared:\n" + "\n".join(mistakes))
    return runs


def _belonging(runs: Sequence[Run]) -> tuple[list[System], tuple[str, ...]]:
    """Return the systems of runs that belong together, and what a reader must be warned of."""
    grouped = systems(runs)
    alike = check(grouped)
    compared, left_out = aligned(grouped)
    for note in (*alike, *left_out):
        log.warning("%s", note)
    return compared, (*alike, *left_out)


def _announce(report: Report, output: Path) -> None:
    """Print what a reader wants to know before opening the page."""
    print(report.title)
    if report.tables:
        print(f"\n{report.tables[0].title}\n\n{as_text(report.tables[0])}")
    if report.summary:
        print("\n" + "\n".join(f"- {sentence}" for sentence in report.summary))
    print(f"\n{output / PAGE} (beside it: {', '.join(PARTS[1:])})")
