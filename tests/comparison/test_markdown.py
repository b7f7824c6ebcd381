"""Markdown that shows what was given, whatever the data hold."""

from __future__ import annotations

from matplotlib.figure import Figure

from lightning_rag.comparison.markdown import as_markdown, escaped, table_markdown
from lightning_rag.comparison.section import Card, Plot, Report, Section, Table


def test_markup_in_data_is_text():
    assert escaped("a|b `c` *d* _e_ [f](g)") == r"a\|b \`c\` \*d\* \_e\_ \[f\](g)"
    assert escaped("<script>alert('&')</script>") == "&lt;script&gt;alert('&amp;')&lt;/script&gt;"
    assert escaped("one\ntwo") == "one<br>two"


def test_markup_at_the_beginning_of_a_line_is_text():
    assert escaped("# no heading") == r"\# no heading"
    assert escaped("- no list") == r"\- no list"
    assert escaped("1. no list") == "1\\. no list"
    assert escaped("a - b # c 1. d") == "a - b # c 1. d"
    assert escaped("> no quotation") == "&gt; no quotation"


def test_a_table_has_head_alignment_and_note():
    table = Table(
        name="t",
        title="T",
        columns=("system", "f1"),
        rows=(("a|b", 0.5), ("c", 0.25)),
        note="Not *all*.",
        bold=frozenset({(0, 1)}),
    )
    assert table_markdown(table) == (
        "| system | f1 |\n| :--- | ---: |\n| a\\|b | **0.500** |\n| c | 0.250 |\n\nNot \\*all\\*."
    )


def test_the_report_has_all_its_parts_in_order():
    section = Section(
        name="quality",
        title="Quality",
        paragraphs=("Means over seeds.",),
        tables=(Table("t", "A table", ("x",), ((1,),)),),
        plots=(Plot("p", "A plot", "Two bars, the left one higher.", Figure(), table="t"),),
        cards=(Card("q1", (("query", "who?"),)),),
        summary=("The difference is real.",),
    )
    text = as_markdown(Report("Comparison", (("data", "books"),), ("Beware.",), (section,)))
    parts = [
        "# Comparison",
        "- **data**: books",
        "> **Note.** Beware.",
        "- The difference is real.",
        "## Quality",
        "Means over seeds.",
        "![Two bars, the left one higher.](plots/p.svg)",
        "### A table",
        "| x |",
        "### q1",
        "- **query**: who?",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
