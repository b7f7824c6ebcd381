"""What a report is made of: sections of sentences, tables, plots and cards, without any markup.

The writers (HTML, Markdown, CSV, LaTeX, JSON, TensorBoard) all read these, so that every form of
the report says the same. Text is plain text: the writers escape it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from matplotlib.figure import Figure

Cell = str | int | float | None
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True)
class Table:
    """Numbers with a head.

    Args:
        name: the stem of its files, unlike all others of a report; small letters, digits, - and _.
        title: what it shows, above it.
        columns: the head, one text a column.
        rows: as many cells as columns each. None = there is no such number, shown as "–". A float
            is shown rounded, and written in full to CSV and JSON.
        note: what a reader needs to understand it, below it.
        digits: digits behind the point of floats that are shown, fewer in columns with large ones
            (`tables.digits_of`); huge and tiny ones are shown with their first digits.
        bold: (row, column) of cells to stress, counted from 0.

    Raises:
        ValueError: a name that is no file stem; a row of another length than `columns`.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    digits: int = 3
    bold: frozenset[tuple[int, int]] = frozenset()

    def __post_init__(self) -> None:
        _check_name(self.name)
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.name}: row {number} has {len(row)} cells, "
                    f"but there are {len(self.columns)} columns"
                )


@dataclass(frozen=True)
class Plot:
    """A picture.

    Args:
        name: the stem of its file, unlike all others of a report.
        title: what it shows, above it.
        alt: what is to be seen, in words, for those who do not see it.
        figure: made by `matplotlib.figure.Figure(...)`, not by pyplot, whose figures are global.
            White paper, dark ink: the page sets it on a light card in the dark too.
        table: the name of the table that holds its numbers, "" = none.

    Raises:
        ValueError: a name that is no file stem, or no `alt`.
    """

    name: str
    title: str
    alt: str
    figure: Figure
    table: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not self.alt.strip():
            raise ValueError(f"plot {self.name}: alt must say what is to be seen")


@dataclass(frozen=True)
class Card:
    """One example: a title, and named texts below it, such as ("query", "Who wrote …").

    Args:
        title: the example's name, for example the id of its query.
        fields: (name, text) in order; a text may have several lines.
    """

    title: str
    fields: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Args:
        name: its anchor, unlike all others of a report.
        title: its heading.
        paragraphs: sentences above the tables.
        tables: shown in order, after the plots.
        plots: shown in order.
        cards: shown in order, after the tables.
        summary: sentences for the summary at the top of the report, the most important first: what
            a reader in a hurry must know of this section. Most sections have none.

    Raises:
        ValueError: a name that is no anchor.
    """

    name: str
    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    cards: tuple[Card, ...] = ()
    summary: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_name(self.name)


@dataclass(frozen=True)
class Report:
    """Everything that the writers write.

    Args:
        title: its heading.
        facts: (name, text) of what is compared, below the heading.
        notes: what a reader must be warned of, such as systems that predict the same.
        sections: its parts, in order.

    Raises:
        ValueError: two sections, or two tables or plots, of one name.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    sections: tuple[Section, ...]

    def __post_init__(self) -> None:
        for what, names in (
            ("sections", [section.name for section in self.sections]),
            ("tables", [table.name for table in self.tables]),
            ("plots", [plot.name for section in self.sections for plot in section.plots]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what}: each name may occur once, got twice: {twice}")

    @property
    def tables(self) -> tuple[Table, ...]:
        """Return the tables of all sections, in order."""
        return tuple(table for section in self.sections for table in section.tables)

    @property
    def summary(self) -> tuple[str, ...]:
        """Return what the sections say for the top of the report, in order."""
        return tuple(sentence for section in self.sections for sentence in section.summary)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} must be small letters, digits, - and _: it names a file")
