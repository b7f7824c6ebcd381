"""How good each system is: means over seeds with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from matplotlib.figure import Figure

from lightning_rag.comparison.cost import SMALLER_IS_BETTER
from lightning_rag.comparison.measured import ENDS, Estimate, Measured, intervals_note
from lightning_rag.comparison.runs import System
from lightning_rag.comparison.section import Cell, Plot, Section, Table
from lightning_rag.comparison.style import INK, MUTED, PAPER, SIZE, SMALL, canvas, looks, name_rows

# With 30 a BCa interval of 95 % holds in 87 to 95 % of the cases, with 100 in 93 to 95
# (experiments/results/compare.md).
FEW_QUERIES = 100
COLUMNS = ("mean", *ENDS, "SD over seeds")


def section(systems: Sequence[System], measured: Mapping[str, Measured], metric: str) -> Section:
    """Return the figures of all systems.

    Args:
        systems: what is compared.
        measured: the metrics that have counts, resampled.
        metric: the one that systems are compared by, one of `measured`.
    """
    main = measured[metric]
    estimates = [main.contrast({name: 1.0}) for name in main.names]
    rows: list[tuple[Cell, ...]] = [
        (name, *_row(estimate), *(estimate.seeds if len(main.seeds) > 1 else ()))
        for name, estimate in zip(main.names, estimates, strict=True)
    ]
    seeds = tuple(f"seed {seed}" for seed in main.seeds) if len(main.seeds) > 1 else ()
    table = Table(
        "quality",
        f"Test {metric}, over {main.queries:,} queries",
        ("system", *COLUMNS, *seeds),
        tuple(rows),
        intervals_note(main.confidence, len(main.seeds)),
        bold=frozenset((row, 1) for row in _best(metric, estimates)),
    )
    tables = [table]
    others = _others(systems, measured, metric)
    if others:
        note = "A metric without intervals does not say what single queries add to it."
        title = "The other metrics"
        tables.append(Table("quality_metrics", title, ("metric", "system", *COLUMNS), others, note))
    plot = Plot(
        "quality",
        f"Test {metric} and how sure it is",
        _words(main, estimates),
        _figure(main, estimates),
        table.name,
    )
    return Section(
        "quality",
        "Quality",
        _paragraphs(main),
        tuple(tables),
        (plot,),
        summary=(_summary(main, estimates),),
    )


def percent(confidence: float) -> str:
    """Return a confidence as a reader knows it, "95 %"."""
    return f"{100 * confidence:.4g} %"


def signed(value: float) -> str:
    """Return a difference with its sign, as −0.012."""
    return f"{value:+.3f}".replace("-", "−")


def _row(estimate: Estimate) -> tuple[Cell, ...]:
    """Return the cells of `COLUMNS`."""
    return (estimate.value, *estimate.ends, estimate.deviation)


def _others(
    systems: Sequence[System], measured: Mapping[str, Measured], metric: str
) -> tuple[tuple[Cell, ...], ...]:
    """Return the rows of all metrics but the main one and those of single tasks and labels."""
    names = dict.fromkeys(name for system in systems for name in system.runs[0].test)
    rows: list[tuple[Cell, ...]] = []
    for name in names:
        if name == metric or "/" in name:
            continue
        for system in systems:
            if name in measured:
                estimate = measured[name].contrast({system.name: 1.0})
            elif all(name in run.test for run in system.runs):
                estimate = _plain([run.test[name] for run in system.runs])
            else:
                continue
            rows.append((name, system.name, *_row(estimate)))
    return tuple(rows)


def _plain(values: Sequence[float]) -> Estimate:
    deviation = stdev(values) if len(values) > 1 else None
    return Estimate(mean(values), tuple(values), deviation, None, None)


def _best(metric: str, estimates: Sequence[Estimate]) -> list[int]:
    """Return the places of the best means: the highest, or where less is better the lowest."""
    values = [one.value for one in estimates]
    wanted = min(values) if metric in SMALLER_IS_BETTER else max(values)
    return [place for place, value in enumerate(values) if value == wanted]


def _paragraphs(measured: Measured) -> tuple[str, ...]:
    seeds = len(measured.seeds)
    small = (
        (
            f"There are {measured.queries} queries only. The intervals over queries are then too "
            "narrow, those of a macro F1 with rare classes most of all.",
        )
        if measured.queries < FEW_QUERIES
        else ()
    )
    if seeds < 2:
        return (
            "There is one seed, so the spread over seeds and the interval over queries and seeds "
            "cannot be given. The intervals say how much the figures of these trained models would "
            "change on other test queries, not how much training once more would change them.",
            *small,
        )
    few = (
        f" With {seeds} seeds it is wide, because so few say little about their spread."
        if seeds < 5
        else ""
    )
    return (
        "There are two intervals. The narrower one says how much the figures of these trained "
        "models would change on other test queries. The wider one says where the method would come "
        f"out if it was trained with other seeds too.{few} Who asks which method is better needs "
        "the second.",
        *small,
    )


def _summary(measured: Measured, estimates: Sequence[Estimate]) -> str:
    best = [measured.names[place] for place in _best(measured.metric, estimates)]
    estimate = estimates[measured.names.index(best[0])]
    which = "Lowest" if measured.metric in SMALLER_IS_BETTER else "Highest"
    said = f"{which} {measured.metric}: {' and '.join(best)}, {estimate.value:.3f}"
    sure = percent(measured.confidence)
    if estimate.training is not None:
        interval = estimate.training
        return (
            said + f" ({sure}, over queries and seeds: {interval.low:.3f} to {interval.high:.3f})."
        )
    if estimate.queries is not None:
        queries = estimate.queries
        return said + f" ({sure}, over queries: {queries.low:.3f} to {queries.high:.3f})."
    return said + "."


def _words(measured: Measured, estimates: Sequence[Estimate]) -> str:
    said = "; ".join(
        f"{name} {estimate.value:.3f}"
        for name, estimate in zip(measured.names, estimates, strict=True)
    )
    return f"Means of {measured.metric} with the seeds' figures and the intervals: {said}."


def _figure(measured: Measured, estimates: Sequence[Estimate]) -> Figure:
    """Draw a row a system: the mean, the seeds, a thick and a thin interval."""
    names = measured.names
    styles = looks(names)
    figure, (ax,) = canvas(7.0, 1.1 + 0.36 * len(names))
    for row, (name, estimate) in enumerate(zip(names, estimates, strict=True)):
        look = styles[name]
        if estimate.training is not None:
            ends = [estimate.training.low, estimate.training.high]
            ax.plot(ends, [row, row], color=look.colour, linewidth=1.0)
        if estimate.queries is not None:
            ends = [estimate.queries.low, estimate.queries.high]
            ax.plot(ends, [row, row], color=look.colour, linewidth=4.0, alpha=0.45)
        if len(estimate.seeds) > 1:
            heights = [row + 0.26] * len(estimate.seeds)
            ax.plot(estimate.seeds, heights, "|", markersize=5, color=MUTED)
        ax.plot(
            [estimate.value],
            [row],
            marker=look.marker,
            markersize=6,
            color=look.colour,
            markeredgecolor=PAPER,
        )
    name_rows(ax, names, styles)
    key = "thick: other queries"
    if len(measured.seeds) > 1:
        key += "; thin: other queries and seeds; ticks below: the seeds"
    ax.set_xlabel(measured.metric, fontsize=SIZE, color=INK)
    ax.set_title(key, loc="left", fontsize=SMALL, color=MUTED)
    return figure
