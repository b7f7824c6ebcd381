"""A table's cells as text, and tables as CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable

from lightning_rag.comparison.section import Cell, Table

ABSENT = "–"
MINUS = "−"
LARGE = 1e6  # from here on a number is shown with three significant digits and a power of ten
PLAIN, RAISED = "0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"

# What LaTeX reads as something else, or what its standard fonts do not have.
LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "·": r"$\cdot$",
    MINUS: "$-$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "≠": r"$\neq$",
    "∞": r"$\infty$",
    "✓": r"$\surd$",
    "Δ": r"$\Delta$",
    "α": r"$\alpha$",
}


def shown(cell: Cell, digits: int = 3) -> str:
    """Return a cell as a reader sees it.

    Floats have `digits` digits behind the point; those from a million on, and those that would be
    rounded to 0, have three significant digits instead, so that neither FLOPs nor small p-values
    are lost.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ABSENT
    if isinstance(cell, str):
        return cell
    if isinstance(cell, float) and math.isinf(cell):
        return "∞" if cell > 0 else f"{MINUS}∞"
    if isinstance(cell, int):
        return _signed(f"{cell:,}" if abs(cell) >= 10_000 else str(cell))
    if cell == 0:
        return f"{0:.{digits}f}"  # without the sign of −0
    if abs(cell) < 0.5 * 10**-digits:
        rounded = _signed(f"{cell:.1g}")
        return _power(cell) if "e" in rounded else rounded
    if abs(cell) >= LARGE:
        return _power(cell)
    return _signed(f"{cell:,.{digits}f}" if abs(cell) >= 10_000 else f"{cell:.{digits}f}")


def _power(number: float) -> str:
    mantissa, _, exponent = f"{number:.2e}".partition("e")
    return _signed(f"{mantissa} × 10") + str(int(exponent)).translate(str.maketrans(PLAIN, RAISED))


def _signed(text: str) -> str:
    return text.replace("-", MINUS)


def digits_of(table: Table, column: int) -> int:
    """Return how many digits behind the point a column's floats are shown with.

    Those of the table where all are below 10, one less for each further digit before the point:
    seconds need no milliseconds beside minutes. None where all are whole, as means of counts are.
    """
    floats = [
        abs(cell)
        for cell in (row[column] for row in table.rows)
        if isinstance(cell, float) and math.isfinite(cell)
    ]
    largest = max(floats, default=0.0)
    if largest > 1 and all(value.is_integer() for value in floats):
        return 0
    before = math.floor(math.log10(largest)) if largest >= 10 else 0
    return max(0, table.digits - before)


def is_number(table: Table, column: int) -> bool:
    """Return whether a column holds numbers alone, or none at all: it is then set flush right."""
    return bool(table.rows) and not any(isinstance(row[column], str) for row in table.rows)


def as_csv(table: Table) -> str:
    """Return a table as CSV (RFC 4180, but lines end with a line feed).

    Nothing is rounded or escaped: a float reads back as the same float, None is an empty field.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(["" if cell is None else cell for cell in row] for row in table.rows)
    return text.getvalue()


def as_latex(table: Table) -> str:
    r"""Return a table as a LaTeX float that `\input` reads; needs the package booktabs."""
    align = "".join("r" if is_number(table, i) else "l" for i in range(len(table.columns)))
    lines = [
        r"% needs \usepackage{booktabs}, and UTF-8 (what LaTeX reads since 2018)",
        r"\begin{table}[tbp]",
        r"\centering",
        rf"\caption{{{escaped_latex(' '.join(f'{table.title}. {table.note}'.split()))}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
        _latex_row([escaped_latex(column) for column in table.columns]),
        r"\midrule",
    ]
    digits = [digits_of(table, column) for column in range(len(table.columns))]
    for number, row in enumerate(table.rows):
        cells = [escaped_latex(shown(cell, digits[i])) for i, cell in enumerate(row)]
        lines.append(
            _latex_row(
                rf"\textbf{{{cell}}}" if (number, column) in table.bold else cell
                for column, cell in enumerate(cells)
            )
        )
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _latex_row(cells: Iterable[str]) -> str:
    # A row that begins with "[" would be read as an argument of the \\ above it.
    return " & ".join("{}" + cell if cell.startswith("[") else cell for cell in cells) + r" \\"


def escaped_latex(text: str) -> str:
    """Return a text that LaTeX prints as it is; line breaks become spaces."""
    escaped = "".join(LATEX.get(character, character) for character in " ".join(text.split()))
    return re.sub(
        f"[{RAISED}]+",
        lambda found: f"$^{{{found.group().translate(str.maketrans(RAISED, PLAIN))}}}$",
        escaped,
    )


def as_text(table: Table) -> str:
    """Return head and rows for a terminal, columns below each other."""
    digits = [digits_of(table, column) for column in range(len(table.columns))]
    cells = [table.columns] + [
        tuple(" ".join(shown(cell, digits[i]).split()) for i, cell in enumerate(row))
        for row in table.rows
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    right = [is_number(table, i) for i in range(len(table.columns))]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)
