"""The report as one HTML page that needs nothing else: no network, no scripts, no other files."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from lightning_rag.comparison.section import Report, Table
from lightning_rag.comparison.tables import digits_of, is_number, shown

TEMPLATE = "report.html.j2"
FOLD_FROM = 24  # a table of more rows is closed at first: readers look for what comes after it


def as_html(report: Report, svgs: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        report: what it says. Whatever comes from data is escaped by the template's engine.
        svgs: each plot by name, as `style.svg` returns it. They are inlined as images, not as
            markup: nothing in them can run.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    source = files("lightning_rag.comparison").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report,
        images={name: _data_uri(svg) for name, svg in svgs.items()},
        titles={table.name for table in report.tables},
        shown=shown,
        layouts={table.name: _layout(table) for table in report.tables},
        fold_from=FOLD_FROM,
    )


def _layout(table: Table) -> list[tuple[bool, int]]:
    """Return for each column whether it holds numbers, and with how many digits they are shown."""
    return [(is_number(table, i), digits_of(table, i)) for i in range(len(table.columns))]


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")
