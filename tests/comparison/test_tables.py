"""Cells as text; CSV that reads back exactly; LaTeX that prints what was given."""

from __future__ import annotations

import csv
import io
import math

import pytest

from lightning_rag.comparison.section import Table
from lightning_rag.comparison.tables import (
    as_csv,
    as_latex,
    as_text,
    digits_of,
    escaped_latex,
    shown,
)


def table(**changes: object) -> Table:
    fields: dict[str, object] = {
        "name": "quality",
        "title": "Quality",
        "columns": ("system", "f1", "seeds"),
        "rows": (("rag4re", 0.1 + 0.2, 3), ("a_b & c", None, 10)),
    }
    return Table(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        ("-1", "-1"),  # a text stays as it is
        (0, "0"),
        (-7, "−7"),
        (2717, "2717"),
        (39_395_898, "39,395,898"),
        (0.0, "0.000"),
        (-0.0, "0.000"),
        (0.5, "0.500"),
        (-0.1234, "−0.123"),
        (0.0004, "0.0004"),
        (-0.0004, "−0.0004"),
        (1 / 10_001, "0.0001"),  # the smallest p of 10,000 resamples
        (0.00002, "2.00 × 10⁻⁵"),
        (12345.678, "12,345.678"),
        (4_662_214_916_544.0, "4.66 × 10¹²"),
    ],
)
def test_a_cell_is_shown_readably(cell, text):
    assert shown(cell) == text


def test_digits_are_those_of_the_table():
    assert shown(0.123456, 1) == "0.1"
    assert shown(2.5, 0) == "2"


@pytest.mark.parametrize(
    ("cells", "digits"),
    [
        ((0.5, 0.25), 3),
        ((1.0, 0.0), 3),  # shares, though all are whole
        ((9.99, 0.1), 3),
        ((10.5, 0.1), 2),
        ((431.2, -0.5), 1),
        ((1541.5, 2.0), 0),
        ((123456.5,), 0),
        ((12.0, 386.0), 0),  # means of counts
        ((None, math.nan, math.inf, 7, "text"), 3),
        ((None, -20.5), 2),
    ],
)
def test_a_column_of_large_floats_has_fewer_digits(cells, digits):
    one = table(columns=("x",), rows=tuple((cell,) for cell in cells))
    assert digits_of(one, 0) == digits


def test_csv_reads_back_exactly():
    hard = ('say "x", y;\nz', "=1+1", " – ", "<script>", "ä")
    numbers = (0.1 + 0.2, 1e-300, 4662214916544.0, -0.0, 1 / 3)
    one = table(
        columns=("text", "number", "count", "none"),
        rows=tuple((t, n, 2**60, None) for t, n in zip(hard, numbers, strict=True)),
    )
    rows = list(csv.reader(io.StringIO(as_csv(one))))
    assert rows[0] == ["text", "number", "count", "none"]
    for (text, number, count, none), t, n in zip(rows[1:], hard, numbers, strict=True):
        assert text == t
        assert float(number) == n
        assert math.copysign(1, float(number)) == math.copysign(1, n)
        assert int(count) == 2**60
        assert none == ""


def test_latex_escapes_what_latex_would_read():
    assert escaped_latex(r"100% of $x_1$ & #2 {a} ~ ^ \n") == (
        r"100\% of \$x\_1\$ \& \#2 \{a\} \textasciitilde{} \textasciicircum{} \textbackslash{}n"
    )
    assert escaped_latex("a\nb  c") == "a b c"
    assert escaped_latex("4.66 × 10⁻¹²") == r"4.66 $\times$ 10$^{-12}$"
    assert escaped_latex("−0.5 – x<y|z>") == (r"$-$0.5 -- x\textless{}y\textbar{}z\textgreater{}")


def test_a_latex_table_has_its_parts():
    text = as_latex(table(note="Of 50 % only.", bold=frozenset({(0, 1)})))
    assert r"\usepackage{booktabs}" in text.splitlines()[0]
    assert r"\caption{Quality. Of 50 \% only.}" in text
    assert r"\label{tab:quality}" in text
    assert r"\begin{tabular}{lrr}" in text
    assert r"rag4re & \textbf{0.300} & 3 \\" in text
    assert r"a\_b \& c & -- & 10 \\" in text
    assert text.count("{") == text.count("}")


def test_a_latex_row_may_begin_with_a_bracket():
    # After \\ LaTeX would take [0.1, 0.2] for a length.
    text = as_latex(table(columns=("interval",), rows=(("[0.1, 0.2]",), ("[0.2, 0.3]",))))
    assert r"{}[0.2, 0.3] \\" in text


def test_text_has_its_columns_below_each_other():
    lines = as_text(table()).splitlines()
    assert lines[0] == "system      f1  seeds"
    assert lines[1] == "rag4re   0.300      3"
    assert lines[2] == "a_b & c      –     10"
