"""The pictures of costs: a Pareto front for each measure, and bars by phase and kind of work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from lightning_rag.comparison.style import (
    INK,
    MUTED,
    PAPER,
    SMALL,
    Look,
    canvas,
    head,
    key,
    looks,
    name_beside,
    name_rows,
)

TITLES = ("training time", "training compute", "generator tokens", "peak memory")
# least value, size and name of each unit, the largest first
TIME = ((3 * 3600, 3600, "h"), (300, 60, "min"), (0, 1, "s"))
FLOPS = ((1e15, 1e15, "PFLOPs"), (1e12, 1e12, "TFLOPs"), (1e9, 1e9, "GFLOPs"), (0, 1e6, "MFLOPs"))
TOKENS = ((1e9, 1e9, "billions"), (1e6, 1e6, "millions"), (1e3, 1e3, "thousands"), (0, 1, "tokens"))
BYTES = ((0, 2**30, "GiB"),)
# Of work, not of systems: two strong colours for what learns, grey for what only looks.
KINDS = {
    "estimate": ("#b3541e", "estimate"),
    "train": ("#3b6ea5", "training steps"),
    "refresh": ("#6b5b95", "index refresh"),
    "evaluate": ("#c4cad1", "validation"),
}
WIDE = 12.0  # from this ratio of costs on a scale is logarithmic


def front_figure(
    names: Sequence[str],
    qualities: Sequence[float],
    measures: Sequence[tuple[float, float, float, float]],
    fronts: Sequence[Sequence[bool]],
    metric: str,
) -> Figure:
    """Draw quality against each cost.

    All panels have one vertical scale, so that one column of names serves them all.

    Args:
        names: the systems.
        qualities: of each system.
        measures: of each system: seconds, FLOPs, tokens, bytes.
        fronts: for each measure, which systems are on its front: filled, on a line.
        metric: what the quality is called.
    """
    figure, axes = canvas(10.5, max(3.0, 0.17 * len(names) + 1.2), columns=4, share_y=True)
    styles = looks(names)
    for m, (ax, units) in enumerate(zip(axes, (TIME, FLOPS, TOKENS, BYTES), strict=True)):
        costs = [measured[m] for measured in measures]
        size, unit = _unit(costs, units)
        xs = _cost_scale(ax, [cost / size for cost in costs])
        front = sorted((x, y) for x, y, on in zip(xs, qualities, fronts[m], strict=True) if on)
        ax.plot([x for x, _ in front], [y for _, y in front], color=MUTED, linewidth=0.9, zorder=1)
        for name, x, y, on in zip(names, xs, qualities, fronts[m], strict=True):
            _point(ax, styles[name], x, y, filled=on)
        head(ax, TITLES[m])
        ax.set_xlabel(unit, fontsize=SMALL, color=MUTED)
    axes[0].set_ylabel(metric)
    name_beside(axes[-1], names, qualities, styles)
    return figure


def phase_figure(
    names: Sequence[str],
    seconds: Sequence[Mapping[str, Mapping[str, float]]],
    query_milliseconds: Sequence[float],
) -> Figure:
    """Draw each system's seconds by phase and kind of work, and the time of one test query.

    Args:
        names: the systems.
        seconds: of each system: {phase: {kind of work: seconds}}, in the order in which they ran.
        query_milliseconds: of each system.
    """
    height = 0.3 * len(names) + 1.25
    figure, (bars, queries) = canvas(10.5, height, columns=2, widths=(2.6, 1), share_y=True)
    totals = [sum(sum(kinds.values()) for kinds in phases.values()) for phases in seconds]
    size, unit = _unit(totals, TIME)
    for row, phases in enumerate(seconds):
        left = 0.0
        for phase, kinds in phases.items():
            begin = left
            for kind, (colour, _) in KINDS.items():
                length = kinds.get(kind, 0.0) / size
                bars.barh(row, length, left=left, height=0.62, color=colour, linewidth=0)
                left += length
            # A phase ends with a gap, and bears its name if there is room.
            bars.plot([left, left], [row - 0.33, row + 0.33], color=PAPER, linewidth=1.6)
            if len(phases) > 1 and (left - begin) * size > 0.014 * len(phase) * max(totals):
                bars.text(begin, row - 0.34, f" {phase}", fontsize=6, color=MUTED, va="bottom")
    used = [
        k for k in KINDS if any(kinds.get(k) for phases in seconds for kinds in phases.values())
    ]
    key(bars, [KINDS[kind] for kind in used])
    bars.set_xlabel(f"training, {unit}", fontsize=SMALL, color=MUTED)
    queries.barh(range(len(names)), query_milliseconds, height=0.62, color=KINDS["evaluate"][0])
    for row, value in enumerate(query_milliseconds):
        queries.text(value, row, f" {value:,.3g}", fontsize=SMALL, color=INK, va="center")
    queries.set_xlim(0, max([*query_milliseconds, 1e-9]) * 1.2)
    queries.set_xlabel("one test query, ms", fontsize=SMALL, color=MUTED)
    queries.xaxis.set_major_locator(MaxNLocator(3))
    name_rows(bars, names)
    queries.grid(False, axis="y")
    return figure


def _unit(values: Sequence[float], units: Sequence[tuple[float, float, str]]) -> tuple[float, str]:
    """Return the size and name of the unit in which the largest value reads well."""
    largest = max(values, default=0.0)
    return next((size, name) for least, size, name in units if largest >= least)


def _point(ax: Axes, look: Look, x: float, y: float, *, filled: bool) -> None:
    ax.plot(
        [x],
        [y],
        marker=look.marker,
        color=look.colour,
        markerfacecolor=look.colour if filled else PAPER,
        markersize=6.5,
        markeredgewidth=1.3,
        linestyle="",
    )


def _cost_scale(ax: Axes, costs: Sequence[float]) -> list[float]:
    """Choose a scale, from 0 or logarithmic, and return where each cost stands on it.

    A cost of 0 has no place on a logarithmic scale: it stands left of the others, marked "0".
    """
    positive = [cost for cost in costs if cost > 0]
    plain = FuncFormatter(lambda value, _: f"{value:,.4g}")
    if not positive or max(positive) / min(positive) < WIDE:
        largest = max(positive, default=1.0)
        ax.set_xlim(-0.07 * largest, 1.12 * largest)
        ax.xaxis.set_major_formatter(plain)
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        return list(costs)
    low, high = min(positive), max(positive)
    free = len(positive) < len(costs)
    nothing = low / (high / low) ** 0.2
    ax.set_xscale("log")
    ax.set_xlim((nothing if free else low) / (high / low) ** 0.1, high * (high / low) ** 0.1)
    fine = high / low < 100
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if fine else (1.0,), numticks=6))
    ax.xaxis.set_major_formatter(plain)
    ax.xaxis.set_minor_locator(NullLocator())
    if free:
        ax.annotate(
            "0",
            (nothing, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -3.5),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=SMALL,
            color=MUTED,
        )
    return [cost if cost > 0 else nothing for cost in costs]
