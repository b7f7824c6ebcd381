"""The page: well-formed, escaped, without anything from elsewhere, readable by machines."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from lightning_rag.comparison.page import FOLD_FROM, as_html
from lightning_rag.comparison.section import Card, Plot, Report, Section, Table

VOID = {"meta", "img", "br", "hr", "link", "input"}
NASTY = "<script>alert('x')</script> & \"quoted\" <img src=x onerror=y>"
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><text>label</text></svg>'


class Page(HTMLParser):
    """What of a page the tests ask about; raises for an element that is not closed."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # innermost element, text
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def report(text: str = "plain") -> Report:
    tables = (
        Table("t", text, (text, "f1"), ((text, 0.5), ("b", None)), text, bold=frozenset({(0, 1)})),
        Table("empty", "Nothing", ("x",), ()),
    )
    plots = (Plot("p", text, text, Figure(), table="t"), Plot("other", "P", "Seen.", Figure()))
    cards = (Card(text, ((text, text), ("two lines", "a\nb"))), Card("second", ()))
    section = Section("quality", text, (text,), tables, plots, cards, (text,))
    return Report(text, ((text, text),), (text,), (section, Section("last", "Last")))


def page(text: str = "plain") -> tuple[str, Page]:
    source = as_html(report(text), {"p": SVG, "other": SVG})
    return source, Page(source)


def test_the_page_is_well_formed():
    source, found = page()
    assert source.startswith("<!doctype html>")
    assert found.all("html") == [{"lang": "en"}]
    assert len(found.all("h1")) == 1


def test_data_are_escaped_wherever_they_stand():
    source, found = page(NASTY)
    assert found.all("script") == []
    assert "<script" not in source
    assert len(found.all("img")) == 2  # the plots alone
    # title, h1, contents, fact, note, summary, section, paragraph, plot, table, cells, card
    assert sum(text == NASTY for _, text in found.texts) == 17
    assert found.all("img")[0]["alt"] == NASTY


def test_nothing_comes_from_elsewhere():
    source, found = page()
    for _, attributes in found.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "action", "data"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:image/svg+xml;base64,")), address
    assert found.all("link") == []
    assert "@import" not in source
    assert "url(" not in source
    assert not re.search(r"https?://", source)
    policy = next(m for m in found.all("meta") if "http-equiv" in m)["content"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_plots_are_inlined_with_words_for_those_who_do_not_see_them():
    _, found = page()
    images = found.all("img")
    for image in images:
        assert base64.b64decode(str(image["src"]).partition(",")[2]).decode() == SVG
    assert [image["alt"] for image in images] == ["plain", "Seen."]


def test_tables_have_heads_and_captions():
    _, found = page()
    scopes = [head["scope"] for head in found.all("th")]
    assert scopes == ["col", "col", "row", "row", "col"]
    assert [text for tag, text in found.texts if tag == "caption"] == ["plain", "Nothing"]
    assert [text for tag, text in found.texts if tag == "td"] == ["–"]
    assert [text for tag, text in found.texts if tag == "strong"] == ["0.500"]


def test_long_tables_are_folded_and_lose_nothing():
    rows = tuple((f"row {n}", n) for n in range(FOLD_FROM + 1))
    tables = (Table("long", "Long", ("a", "b"), rows), Table("fits", "Fits", ("a",), rows[:0]))
    found = Page(as_html(Report("R", (), (), (Section("s", "S", tables=tables),)), {}))
    assert [text for tag, text in found.texts if tag == "summary"] == ["Long (25 rows)"]
    assert len(found.all("details")) == 1
    assert [text for tag, text in found.texts if tag == "th"][2:-1] == [row[0] for row in rows]


def test_the_head_of_a_summary_is_stressed():
    sentences = ("Real: a > b.", "One sentence.", f"{'x' * 60}: late colon.")
    section = Section("s", "S", summary=sentences)
    found = Page(as_html(Report("R", (), (), (section,)), {}))
    assert [text for tag, text in found.texts if tag == "strong"] == ["Real:"]
    said = [text for tag, text in found.texts if tag == "li"]
    assert said == ["a > b.", "One sentence.", f"{'x' * 60}: late colon."]


def test_links_lead_somewhere():
    _, found = page()
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(link["href"]) for link in found.all("a")]
    assert {"#summary", "#quality", "#last", "#content", "#table-t"} == set(links)
    assert {link[1:] for link in links} <= set(ids)
    for _, attributes in found.elements:
        assert attributes.get("aria-labelledby", ids[0]) in ids


def test_light_and_dark():
    source, _ = page()
    assert '<meta name="color-scheme" content="light dark">' in source
    assert "@media (prefers-color-scheme: dark)" in source


@pytest.mark.parametrize("style", ["--ink", "--soft", "--link", "--mark"])
def test_text_stands_off_its_paper_in_light_and_dark(style):
    source, _ = page()
    for scheme in (source, source[source.index("prefers-color-scheme: dark") :]):
        papers = [re.search(rf"{p}: (#\w+)", scheme)[1] for p in ("--paper", "--faint")]
        colour = re.search(rf"{style}: (#\w+)", scheme)[1]
        for paper in papers:
            assert contrast(colour, paper) >= 4.5  # WCAG 2.2, success criterion 1.4.3


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_report_without_a_summary_has_none():
    source = as_html(Report("R", (), (), (Section("a", "A"),)), {})
    assert 'id="summary"' not in source
    assert "#summary" not in source
