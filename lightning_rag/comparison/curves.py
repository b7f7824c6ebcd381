"""Learning curves: the validation metric over the steps of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_rag.comparison.cost import SMALLER_IS_BETTER
from lightning_rag.comparison.runs import Run, System
from lightning_rag.comparison.section import Cell, Plot, Section, Table
from lightning_rag.comparison.style import (
    MUTED,
    SMALL,
    Look,
    canvas,
    head,
    looks,
    name_beside,
)

Curve = list[tuple[float, float]]  # (step, value), ascending
Best = Callable[[Iterable[float]], float]

TOGETHER = 6  # up to so many systems share a panel; more have one each
ACROSS = 4


def section(systems: Sequence[System], metric: str) -> Section | None:
    """Return the curves of the validation metric; None if no system was validated by it.

    Args:
        systems: what is compared.
        metric: the metric; points of phases that are judged by another are left out.
    """
    found = {
        system.name: curves
        for system in systems
        if (curves := [c for c in (_curve(run, metric) for run in system.runs) if c])
    }
    if not found:
        return None
    absent = [system.name for system in systems if system.name not in found]
    best: Best = min if metric in SMALLER_IS_BETTER else max
    validated = [system for system in systems if system.name in found]
    rows = [_row(system, found[system.name], metric, best) for system in validated]
    table = Table(
        name="curves",
        title=f"Validation {metric} in training",
        columns=("system", "validations", "first", "best", "at step", "last", f"test {metric}"),
        rows=tuple(rows),
        note="Means over the seeds; “best” and its step are those of each seed's best validation.",
    )
    said = [
        "Thin lines are seeds, bold lines their mean over the validations that all seeds have, "
        "with a mark at the best of it. Steps are optimiser steps. The test set has no part in it."
    ]
    if absent:
        said.append(f"Never validated by {metric}: {', '.join(absent)}.")
    plot = Plot(
        "curves",
        f"Validation {metric} over steps",
        "Lines of each system: " + "; ".join(f"{row[0]} ends at {row[5]:.3f}" for row in rows),
        curve_figure(
            found,
            looks([system.name for system in systems]),
            "step",
            f"validation {metric}",
            best=best,
        ),
        table.name,
    )
    return Section("curves", "Learning curves", tuple(said), (table,), (plot,))


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean of curves at the steps that all of them have."""
    values = [dict(curve) for curve in curves]
    common = sorted(set.intersection(*(set(value) for value in values))) if values else []
    return [(step, sum(value[step] for value in values) / len(values)) for step in common]


def curve_figure(
    curves: Mapping[str, Sequence[Curve]],
    styles: Mapping[str, Look],
    x_name: str,
    y_name: str,
    *,
    best: Best = max,
) -> Figure:
    """Draw curves of systems: all in one panel, or one panel each before the others in grey.

    Args:
        curves: of each system, of each seed; no empty ones.
        styles: the look of each system.
        x_name: what the horizontal axis shows.
        y_name: what the vertical axis shows.
        best: the function that chooses the value that is marked, `max` or `min`.
    """
    if len(curves) <= TOGETHER:
        figure, (ax,) = canvas(8.5, 3.6)
        _together(ax, curves, styles, best)
        ax.set_ylabel(y_name)
        ax.set_xlabel(x_name, fontsize=SMALL, color=MUTED)
        return figure
    rows = -(-len(curves) // ACROSS)
    figure, axes = canvas(
        10.5, 1.75 * rows + 0.5, columns=ACROSS, rows=rows, share_x=True, share_y=True
    )
    for ax, name in zip(axes, curves, strict=False):
        for other in curves:
            _line(ax, mean_curve(curves[other]), "#d5d9de", 0.9)
        _seeds_and_mean(ax, curves[name], styles[name], best)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        head(ax, name)
    for ax in axes[len(curves) :]:
        ax.set_visible(False)
    figure.supylabel(y_name, fontsize=SMALL, color=MUTED)
    figure.supxlabel(x_name, fontsize=SMALL, color=MUTED)
    return figure


def _curve(run: Run, metric: str) -> Curve:
    """Return a run's validations by `metric`, the last one of each step."""
    points = {
        float(step): float(value)
        for point in run.validation
        if isinstance(step := point.get("step"), int | float)
        and isinstance(value := point.get(metric), int | float)
    }
    return sorted(points.items())


def _row(system: System, curves: Sequence[Curve], metric: str, best: Best) -> tuple[Cell, ...]:
    points = [_best(curve, best) for curve in curves]
    return (
        system.name,
        round(_mean([len(curve) for curve in curves])),
        _mean([curve[0][1] for curve in curves]),
        _mean([value for _, value in points]),
        ", ".join(f"{step:.0f}" for step, _ in points),
        _mean([curve[-1][1] for curve in curves]),
        _mean([run.test[metric] for run in system.runs]),
    )


def _best(curve: Curve, best: Best) -> tuple[float, float]:
    """Return the first point with the best value."""
    wanted = best(value for _, value in curve)
    return next(point for point in curve if point[1] == wanted)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _together(
    ax: Axes, curves: Mapping[str, Sequence[Curve]], styles: Mapping[str, Look], best: Best
) -> None:
    for name in curves:
        _seeds_and_mean(ax, curves[name], styles[name], best)
    ends = {name: (mean_curve(seeds) or seeds[0])[-1] for name, seeds in curves.items()}
    last = max(step for step, _ in ends.values())
    for name, (step, value) in ends.items():
        if step < last:  # a dotted line to its name
            colour = styles[name].colour
            ax.plot([step, last], [value, value], ":", color=colour, linewidth=0.8, alpha=0.7)
    ax.set_xlim(right=last)
    name_beside(ax, list(ends), [value for _, value in ends.values()], styles)


def _seeds_and_mean(ax: Axes, seeds: Sequence[Curve], look: Look, best: Best) -> None:
    for curve in seeds:
        _line(ax, curve, look.colour, 0.8, alpha=0.35)
    mean = mean_curve(seeds)
    _line(ax, mean, look.colour, 2.0)
    if mean:
        ax.plot(
            *_best(mean, best), marker=look.marker, color=look.colour, markersize=6, clip_on=False
        )


def _line(ax: Axes, curve: Curve, colour: str, width: float, alpha: float = 1.0) -> None:
    ax.plot(
        [step for step, _ in curve],
        [value for _, value in curve],
        color=colour,
        linewidth=width,
        alpha=alpha,
        solid_capstyle="round",
    )
