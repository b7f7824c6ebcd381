"""The report as one more run in TensorBoard: its plots as images, its tables as text."""

from __future__ import annotations

import io
import re
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.image import imread
from numpy import ndarray
from torch.utils.tensorboard.writer import SummaryWriter

from lightning_rag.comparison.markdown import card_markdown, escaped, table_markdown
from lightning_rag.comparison.section import Report, Section

DPI = 96  # so that a page of usual width shows a figure at its own size
# What `escaped` writes for GitHub, and TensorBoard's Markdown does not know as an escape.
UNKNOWN = re.compile(r"\\([~$=])")


def write(report: Report, folder: Path) -> None:
    """Write the report into `folder`, which TensorBoard shows as a run of the folder's name.

    The images page has `comparison/<section>/<plot>`. The text page has `comparison/report`, what
    stands at the top, and of each section `comparison/<section>/about`, `…/<table>` and `…/cards`,
    as far as it has them.

    Args:
        report: what is written.
        folder: a new folder, or one without events of TensorBoard.
    """
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("comparison/report", _shown(_front(report)))
        for section in report.sections:
            for name, text in _texts(section).items():
                writer.add_text(f"comparison/{section.name}/{name}", _shown(text))
            for plot in section.plots:
                name = f"comparison/{section.name}/{plot.name}"
                writer.add_image(name, pixels(plot.figure), dataformats="HWC")


def pixels(figure: Figure) -> ndarray:
    """Return a figure as colours in [0, 1], (H, W, 4); the figure stays as it is."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    buffer.seek(0)
    image: ndarray = imread(buffer, format="png")
    return image


def _front(report: Report) -> str:
    facts = [f"**{escaped(name)}**: {escaped(text)}" for name, text in report.facts]
    parts = (
        ("##", report.title, facts),
        ("###", "Notes", [escaped(note) for note in report.notes]),
        ("###", "Summary", [escaped(sentence) for sentence in report.summary]),
    )
    blocks = [
        f"{mark} {escaped(title)}\n\n" + "\n".join(f"- {line}" for line in lines)
        for mark, title, lines in parts
        if lines or mark == "##"
    ]
    return "\n\n".join(blocks)


def _texts(section: Section) -> dict[str, str]:
    """Return a section's texts by name, as Markdown."""
    texts = {}
    if section.paragraphs:
        texts["about"] = "\n\n".join(map(escaped, section.paragraphs))
    for table in section.tables:
        texts[table.name] = f"**{escaped(table.title)}**\n\n{table_markdown(table)}"
    if section.cards:
        texts["cards"] = "\n\n".join(map(card_markdown, section.cards))
    return texts


def _shown(markdown: str) -> str:
    return UNKNOWN.sub(r"\1", markdown)
