"""The report as Markdown, as GitHub shows it; its plots lie beside it in `plots/`."""

from __future__ import annotations

import re
from html import escape

from lightning_rag.comparison.section import Card, Plot, Report, Section, Table
from lightning_rag.comparison.tables import digits_of, is_number, shown

# What would be markup: emphasis, code, links, tables, struck-out text, mathematics.
SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
# What is markup at the beginning of a line alone: headings, lists, rules; "1." and "1)".
LEADING = re.compile(r"^(\d*)([#+=-]|(?<=\d)[.)](?=\s|$))")


def as_markdown(report: Report) -> str:
    """Return the whole report."""
    parts = [f"# {escaped(report.title)}"]
    parts.append("\n".join(f"- **{escaped(n)}**: {escaped(text)}" for n, text in report.facts))
    parts += [f"> **Note.** {escaped(note)}" for note in report.notes]
    if report.summary:
        parts.append("## Summary")
        parts.append("\n".join(f"- {escaped(sentence)}" for sentence in report.summary))
    for section in report.sections:
        parts += _section(section)
    return "\n\n".join(part for part in parts if part) + "\n"


def table_markdown(table: Table) -> str:
    """Return a table without its title: head, rows, and the note below."""
    numbers = [is_number(table, column) for column in range(len(table.columns))]
    lines = [
        _row([escaped(column) for column in table.columns]),
        _row(["---:" if number else ":---" for number in numbers]),
    ]
    digits = [digits_of(table, column) for column in range(len(table.columns))]
    for number, row in enumerate(table.rows):
        cells = [escaped(shown(cell, digits[i])) for i, cell in enumerate(row)]
        lines.append(
            _row([f"**{c}**" if (number, i) in table.bold else c for i, c in enumerate(cells)])
        )
    return "\n".join(lines) + (f"\n\n{escaped(table.note)}" if table.note else "")


def card_markdown(card: Card) -> str:
    """Return a card: its title as a heading, its texts as a list."""
    fields = [f"- **{escaped(name)}**: {escaped(text)}" for name, text in card.fields]
    return "\n".join([f"### {escaped(card.title)}", "", *fields])


def escaped(text: str) -> str:
    """Return a text that Markdown shows as it is; line breaks become `<br>`."""
    lines = [
        LEADING.sub(r"\1\\\2", SPECIAL.sub(r"\\\1", escape(line.strip(), quote=False)))
        for line in text.splitlines()
    ]
    return "<br>".join(lines)


def _section(section: Section) -> list[str]:
    parts = [f"## {escaped(section.title)}", *map(escaped, section.paragraphs)]
    for plot in section.plots:
        parts += [f"### {escaped(plot.title)}", _plot(plot)]
    for table in section.tables:
        parts += [f"### {escaped(table.title)}", table_markdown(table)]
    return parts + [card_markdown(card) for card in section.cards]


def _plot(plot: Plot) -> str:
    return f"![{escaped(plot.alt)}](plots/{plot.name}.svg)"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
