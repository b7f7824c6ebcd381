"""How plots look: a colour and a mark for every system, quiet axes, direct labels.

Plots are on white paper with dark ink, because they are also read in dark pages, in Markdown and in
print. A system has the same colour and mark in every plot of a report, and colour is never the only
thing that tells two systems apart.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation

# From the palettes of Okabe and Ito (2008), Tol (2021) and Petroff (2021), those that stand off
# white paper (contrast 3 or more) and off one another for people who see no red or no green.
PALETTE = ("#0072b2", "#d55e00", "#117733", "#cc79a7", "#332288", "#6b3d00", "#656364")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")  # 8 beside 7 colours: 56 different looks
PAPER = "#ffffff"
INK = "#24292f"
MUTED = "#656d76"  # what is read second: ticks, notes
FAINT = "#e3e6ea"  # grid lines

SIZE = 9.0  # points, of text
SMALL = 7.5


@dataclass(frozen=True)
class Look:
    """How a system is drawn: matplotlib's colour and marker."""

    colour: str
    marker: str


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Return a look for each name, unlike all others' as long as there are at most 56 names.

    A name asks for the colour that its hash points to and takes the next free one, names in
    alphabetical order. So the order in which systems are given does not matter, and a name mostly
    keeps its colour from report to report. Eight names or more share colours, not looks.
    """
    found: dict[str, Look] = {}
    free = list(range(len(PALETTE)))
    for number, name in enumerate(sorted(set(names))):
        if not free:
            free = list(range(len(PALETTE)))
        wanted = int.from_bytes(sha256(name.encode()).digest()[:4], "big") % len(PALETTE)
        slot = min(free, key=lambda place: (place - wanted) % len(PALETTE))
        free.remove(slot)
        # Within a round of the palette colours differ, from one round to the next the marks do.
        turn = number // len(PALETTE)
        found[name] = Look(PALETTE[slot], MARKERS[(slot + turn) % len(MARKERS)])
    return {name: found[name] for name in names}


def canvas(
    width: float,
    height: float,
    columns: int = 1,
    rows: int = 1,
    *,
    widths: Sequence[float] | None = None,
    share_x: bool = False,
    share_y: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, row by row, dressed: no frame, faint grid, small grey ticks.

    Args:
        width: inches.
        height: inches.
        columns: panels beside each other.
        rows: panels below each other.
        widths: of the columns, as shares; equal when absent.
        share_x: whether all panels have one horizontal scale.
        share_y: whether all panels have one vertical scale.
    """
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)
    panels = figure.subplots(
        rows, columns, sharex=share_x, sharey=share_y, squeeze=False, width_ratios=widths
    )
    axes: list[Axes] = list(panels.flat)
    for ax in axes:
        dress(ax)
    return figure, axes


def dress(ax: Axes) -> None:
    """Take the frame off, and let grid and ticks step back behind the data."""
    ax.set_facecolor("none")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(MUTED)
    ax.spines["bottom"].set_linewidth(0.6)
    ax.grid(True, color=FAINT, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(colors=MUTED, labelsize=SMALL, length=0, which="both")
    ax.xaxis.label.set(color=INK, fontsize=SIZE)
    ax.yaxis.label.set(color=INK, fontsize=SIZE)


def head(ax: Axes, text: str) -> None:
    """Write a panel's heading, at its left edge."""
    ax.set_title(text, loc="left", fontsize=SIZE, color=INK, pad=6)


def name_rows(ax: Axes, names: Sequence[str], styles: Mapping[str, Look] | None = None) -> None:
    """Give a horizontal chart one row a name, the first at the top, named in the name's colour."""
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_yticks(range(len(names)), names)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", labelsize=SIZE, labelcolor=INK)
    for label, name in zip(ax.get_yticklabels(), names, strict=True):
        label.set_color(INK if styles is None else styles[name].colour)


def key(ax: Axes, entries: Sequence[tuple[str, str]]) -> None:
    """Write what colours stand for in one line above a panel: (colour, meaning) in order."""
    ax.legend(
        handles=[Patch(color=colour, label=meaning) for colour, meaning in entries],
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=max(len(entries), 1),
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        handlelength=0.9,
        handleheight=0.9,
        columnspacing=1.4,
    )


def name_beside(
    ax: Axes, names: Sequence[str], ys: Sequence[float], styles: Mapping[str, Look]
) -> None:
    """Write each name right of a panel at its height, moved apart, with a thin line to its place.

    To be called when the panel's scale stands; it is widened where the names need more.

    Args:
        ax: the panel, the last of its row.
        names: what is written.
        ys: heights, in data.
        styles: the look of each name.
    """
    figure = ax.get_figure(root=True)
    if figure is None or not names:
        return
    low, high = ax.get_ylim()
    lines = (figure.get_figheight() - 0.9) * 72 / (SIZE * 1.35)  # of text that fit
    gap = (high - low) / max(lines, len(names))
    places = spread(ys, gap)
    ax.set_ylim(min(low, min(places) - gap / 2), max(high, max(places) + gap / 2))
    for name, y, place in zip(names, ys, places, strict=True):
        look = styles[name]
        for shift, text in ((15, ""), (24, name)):
            ax.annotate(
                text,
                (1.0, y),
                xycoords=("axes fraction", "data"),
                xytext=(shift, place),
                textcoords=("offset points", "data"),
                va="center",
                fontsize=SIZE,
                color=INK,
                arrowprops=None
                if text
                else {"arrowstyle": "-", "color": look.colour, "linewidth": 0.7, "shrinkA": 0},
            )
        ax.plot(
            [1.0],
            [place],
            marker=look.marker,
            markersize=5,
            color=look.colour,
            transform=ax.get_yaxis_transform()
            + ScaledTranslation(16 / 72, 0, figure.dpi_scale_trans),
            clip_on=False,
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move places as little as needed (least squares) so that neighbours are `gap` apart.

    For labels beside the ends of lines. Places that would touch become a block around their mean,
    blocks that would touch merge: the pool-adjacent-violators algorithm for the places less the
    gaps below them.

    Args:
        places: in any order; equal ones keep theirs.
        gap: least distance, not negative.

    Returns:
        As many places, in the order of `places`.

    Raises:
        ValueError: a negative gap.
    """
    if gap < 0:
        raise ValueError(f"gap: expected 0 or more, got {gap}")
    order = sorted(range(len(places)), key=lambda i: places[i])
    blocks: list[tuple[float, int]] = []  # sum and number of the places less their gaps
    for rank, i in enumerate(order):
        total, size = places[i] - rank * gap, 1
        while blocks and blocks[-1][0] / blocks[-1][1] >= total / size:
            before, others = blocks.pop()
            total, size = total + before, size + others
        blocks.append((total, size))
    moved = [0.0] * len(places)
    rank = 0
    for total, size in blocks:
        for _ in range(size):
            moved[order[rank]] = total / size + rank * gap
            rank += 1
    return moved


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element: text as text, the same bytes for the same figure.

    Text stays text (small, can be searched and read aloud) in whatever sans-serif font the reader
    has; `DejaVu Sans`, in which it is measured, is a wide one.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lightning_rag"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
