"""The report's run in TensorBoard, read as TensorBoard reads it."""

from __future__ import annotations

import io
import re
import warnings
from html import unescape
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_rag.comparison.section import Card, Plot, Report, Section, Table
from lightning_rag.comparison.tensorboard import pixels, write

NASTY = r"<b>a|b</b> & *c* _d_ [e](f) `g` $h$ ~i~ \j =k"


def figure() -> Figure:
    """Two inches by one, its left half red."""
    figure = Figure(figsize=(2, 1), facecolor="white")
    axes = figure.add_axes((0, 0, 0.5, 1))
    axes.set_facecolor((1, 0, 0))
    axes.set_xticks([])
    axes.set_yticks([])
    return figure


@pytest.fixture
def report() -> Report:
    table = Table("means", "Means of it", ("system", NASTY), ((NASTY, 0.25), ("b", None)), note="n")
    quality = Section(
        "quality",
        "Quality",
        paragraphs=("First sentence.", NASTY),
        tables=(table,),
        plots=(Plot("dots", "Dots", "a red half", figure(), "means"),),
        summary=("b wins.",),
    )
    examples = Section("examples", "Examples", cards=(Card("q1", (("query", NASTY),)),))
    return Report("A title", (("data", "made up"),), ("Mind this.",), (quality, examples))


@pytest.fixture
def events(report: Report, tmp_path: Path) -> EventAccumulator:
    write(report, tmp_path / "board")
    found = EventAccumulator(str(tmp_path / "board"))
    found.Reload()
    return found


def page(events: EventAccumulator, tag: str) -> str:
    """A text as TensorBoard's page has it, in HTML."""
    with warnings.catch_warnings():
        # TensorBoard's copy of bleach warns of its own copy of html5lib.
        warnings.simplefilter("ignore", DeprecationWarning)
        from tensorboard.plugin_util import markdown_to_safe_html
    (event,) = events.Tensors(f"comparison/{tag}/text_summary")
    html: str = markdown_to_safe_html(event.tensor_proto.string_val[0])
    return html


def read(html: str) -> str:
    """What is to be read of it."""
    return unescape(re.sub("<[^>]*>", "", html.replace("<br>", "\n")))


def test_pages(events: EventAccumulator) -> None:
    paths = [tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"]]
    assert all(path.startswith("comparison/") for path in paths)
    tags = {path.removeprefix("comparison/") for path in paths}
    assert tags == {"report", "quality/about", "quality/means", "examples/cards"}
    assert events.Tags()["images"] == ["comparison/quality/dots"]


def test_what_stands_at_the_top(events: EventAccumulator) -> None:
    html = page(events, "report")
    assert "<h2>A title</h2>" in html
    assert "<li><strong>data</strong>: made up</li>" in html
    assert "<li>Mind this.</li>" in html
    assert "<li>b wins.</li>" in html


def test_a_table(events: EventAccumulator) -> None:
    html = page(events, "quality/means")
    assert "<strong>Means of it</strong>" in html
    rows = [re.findall(r"<t[dh].*?>(.*?)</t[dh]>", row) for row in html.split("<tr>")[1:]]
    assert [[read(cell) for cell in row] for row in rows] == [
        ["system", NASTY],
        [NASTY, "0.250"],
        ["b", "–"],
    ]
    assert html.rstrip().endswith("<p>n</p>")


def test_data_is_no_markup(events: EventAccumulator) -> None:
    assert f"query: {NASTY}" in read(page(events, "examples/cards"))
    assert read(page(events, "quality/about")) == f"First sentence.\n{NASTY}"
    for tag in ("quality/means", "quality/about", "examples/cards"):
        html = page(events, tag)
        assert "<b>" not in html
        assert "<em>" not in html
        assert "<a " not in html
        assert "<code>" not in html


def test_a_plot(events: EventAccumulator) -> None:
    (event,) = events.Images("comparison/quality/dots")
    image = imread(io.BytesIO(event.encoded_image_string), format="png")
    assert image.shape[:2] == (96, 192)
    assert image[48, 48, :3].tolist() == [1, 0, 0]
    assert image[48, 144, :3].tolist() == [1, 1, 1]


def test_the_figure_stays_as_it_is() -> None:
    drawn = figure()
    before = (drawn.dpi, *drawn.get_size_inches())
    pixels(drawn)
    assert (drawn.dpi, *drawn.get_size_inches()) == before


def test_a_report_of_nothing(tmp_path: Path) -> None:
    write(Report("Nothing", (), (), ()), tmp_path / "board")
    found = EventAccumulator(str(tmp_path / "board"))
    found.Reload()
    assert found.Tags()["tensors"] == ["comparison/report/text_summary"]
