"""The pictures of retrieval: figures before and after, moves of the first relevant passage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lightning_rag.comparison.style import (
    INK,
    MUTED,
    PAPER,
    SMALL,
    Look,
    canvas,
    head,
    key,
    name_rows,
)

MOVE_COLOURS = {
    "found": ("#0b4f8a", "found"),
    "up": ("#5b9bd0", "moved up"),
    "same": ("#d0d5db", "same rank"),
    "down": ("#e8a06b", "moved down"),
    "lost": ("#a8460b", "lost"),
    "neither": ("#f0f1f3", "in neither order"),
}


def before_after_figure(
    figures: Sequence[str],
    sides: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]],
    styles: Mapping[str, Look],
) -> Figure:
    """Draw a line from a ring to a mark for every system, a panel for every figure.

    Args:
        figures: their names.
        sides: of each system, the figures in the first stage's order and in the method's.
        styles: the look of each system.
    """
    names = list(sides)
    height = 0.27 * len(names) + 1.0
    figure, axes = canvas(10.5, max(height, 1.9), columns=len(figures), share_y=True)
    for ax, figure_name in zip(axes, figures, strict=True):
        for row, name in enumerate(names):
            old, new = (side[figure_name] for side in sides[name])
            look = styles[name]
            ax.plot([old, new], [row, row], color=look.colour, linewidth=2.2, alpha=0.45)
            ax.plot(
                [old], [row], "o", markersize=6.5, color=MUTED, markerfacecolor=PAPER, zorder=2.5
            )
            ax.plot([new], [row], look.marker, markersize=5, color=look.colour, zorder=2.6)
            change = f"{new - old:+.3f}".replace("-", "−")
            ax.annotate(
                change if abs(new - old) >= 0.0005 else "same",
                (1.0, row),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=SMALL,
                color=INK if abs(new - old) >= 0.0005 else MUTED,
                va="center",
            )
        head(ax, figure_name)
        ax.margins(x=0.08)
        ax.xaxis.set_major_locator(MaxNLocator(3))
    name_rows(axes[0], names)
    for ax in axes[1:]:
        ax.grid(False, axis="y")
    return figure


def moves_figure(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the shares of queries by what became of the first relevant passage.

    Args:
        shares: of each system: {move: share of the queries}.
    """
    figure, (ax,) = canvas(8.5, 0.3 * len(shares) + 1.0)
    for row, moves in enumerate(shares.values()):
        left = 0.0
        for move, (colour, _) in MOVE_COLOURS.items():
            share = moves.get(move, 0.0)
            ax.barh(row, share, left=left, height=0.66, color=colour, edgecolor=PAPER, linewidth=1)
            if share >= 0.04:
                dark = move in ("found", "lost")
                ax.text(
                    left + share / 2,
                    row,
                    f"{share:.0%}",
                    ha="center",
                    va="center",
                    fontsize=SMALL,
                    color=PAPER if dark else INK,
                )
            left += share
    name_rows(ax, list(shares))
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_xlabel("share of the queries", fontsize=SMALL, color=MUTED)
    key(ax, [MOVE_COLOURS[m] for m in MOVE_COLOURS if any(s.get(m) for s in shares.values())])
    return figure
