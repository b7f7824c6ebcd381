"""Where systems are good: the F1 of every relation, type or data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from lightning_rag.comparison.measured import aggregation_of, counts_of, measurable
from lightning_rag.comparison.runs import System
from lightning_rag.comparison.section import Cell, Plot, Section, Table
from lightning_rag.comparison.statistics import Floats
from lightning_rag.comparison.style import INK, PAPER, SIZE, SMALL, canvas
from lightning_rag.metrics.counts import Count

DRAWN = 60  # classes in the picture; the table has them all


@dataclass(frozen=True)
class ByClass:
    """The F1 of every class.

    Args:
        classes: their names.
        gold: (C,) how often each is to be found.
        f1: (C, S) of each system, mean over its runs.
    """

    classes: tuple[str, ...]
    gold: tuple[int, ...]
    f1: Floats


def by_class(systems: Sequence[System], metric: str) -> ByClass:
    """Return the F1 of the classes of a metric that is an F1, the most frequent ones first."""
    names: dict[str, None] = {}
    sums: list[list[Mapping[str, list[int]]]] = []
    for system in systems:
        sums.append([_summed(counts_of(run, metric)) for run in system.runs])
        names.update(dict.fromkeys(name for run in sums[-1] for name in run if name))
    gold = {
        name: max(run.get(name, [0, 0, 0])[2] for runs in sums for run in runs) for name in names
    }
    order = sorted(names, key=lambda name: (-gold[name], name))
    f1 = np.array(
        [[np.mean([_f1(run.get(name)) for run in runs]) for runs in sums] for name in order]
    ).reshape(len(order), len(systems))
    return ByClass(tuple(order), tuple(gold[name] for name in order), f1)


def section(systems: Sequence[System], metric: str) -> Section | None:
    """Return the F1 by class; None where no metric is an F1 over two classes or more, as in QA.

    Args:
        systems: what is compared.
        metric: the one that systems are compared by; if it has no classes, another F1 is taken.
    """
    found = None
    for name in _candidates(systems, metric):
        parts = by_class(systems, name)
        if len(parts.classes) > 1:
            found = name, parts
            break
    if found is None:
        return None
    name, parts = found
    tables = [_table("per_class", f"{name} by class, mean over the seeds", systems, parts)]
    inner = [one for one in measurable(systems) if one.startswith(f"{name}/")]
    labels = _labels(systems, name, [one for one in inner if one.count("/") == 1])
    if labels.classes:
        title = f"{name} by data set and label, mean over the seeds"
        tables.append(_table("per_label", title, systems, labels))
    plot = Plot(
        "per_class",
        f"{name} by class",
        f"A matrix of the F1 of {min(len(parts.classes), DRAWN)} classes for each system.",
        _figure(systems, parts),
        "per_class",
    )
    return Section(
        "per_class",
        "Relations, types, data sets",
        (
            "The F1 of each class, the most frequent first. A class with few gold cases says "
            "little: no interval is given, and no difference of a single class is tested.",
        ),
        tuple(tables),
        (plot,),
    )


def _candidates(systems: Sequence[System], metric: str) -> list[str]:
    """Return the F1 metrics, the main one first; those of single tasks and labels are no choice."""
    run = systems[0].runs[0]
    names = [metric, *(name for name in measurable(systems) if "/" not in name and name != metric)]
    return [name for name in names if aggregation_of(run, name).kind == "f1"]


def _labels(systems: Sequence[System], metric: str, names: Sequence[str]) -> ByClass:
    """Return the labels within data sets, named "data set / label"."""
    parts = [(name.removeprefix(f"{metric}/"), by_class(systems, name)) for name in names]
    f1 = [part.f1 for _, part in parts if part.classes]
    return ByClass(
        tuple(f"{task} / {label}" for task, part in parts for label in part.classes),
        tuple(gold for _, part in parts for gold in part.gold),
        np.concatenate(f1) if f1 else np.empty((0, len(systems))),
    )


def _summed(counts: Sequence[Count]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row in counts:
        for name, added in row.items() if isinstance(row, Mapping) else ():
            total = found.setdefault(name, [0, 0, 0])
            for place, number in enumerate(added):
                total[place] += number
    return found


def _f1(counts: Sequence[int] | None) -> float:
    correct, predicted, gold = counts or (0, 0, 0)
    return 2 * correct / (predicted + gold) if predicted + gold else 0.0


def _table(name: str, title: str, systems: Sequence[System], parts: ByClass) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (label, gold, *figures)
        for label, gold, figures in zip(parts.classes, parts.gold, parts.f1.tolist(), strict=True)
    ]
    best = frozenset(
        (row, 2 + column)
        for row, figures in enumerate(parts.f1)
        for column in np.flatnonzero(figures == figures.max()).tolist()
        if figures.max() > figures.min()
    )
    columns = ("class", "gold", *(system.name for system in systems))
    note = "gold: how often the class is to be found in the test set."
    return Table(name, title, columns, tuple(rows), note, bold=best)


def _figure(systems: Sequence[System], parts: ByClass) -> Figure:
    names, f1 = parts.classes[:DRAWN], parts.f1[:DRAWN]
    size = (3.2 + 0.62 * len(systems), 1.6 + 0.24 * len(names))
    figure, (ax,) = canvas(*size)
    ax.imshow(f1, cmap="Blues", vmin=0, vmax=1.6, aspect="auto")  # light enough for dark text
    for row, figures in enumerate(f1.tolist()):
        for column, value in enumerate(figures):
            ax.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=SMALL, color=INK
            )
    labels = [system.name for system in systems]
    ax.set_xticks(range(len(labels)), labels, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(labelsize=SIZE, labelcolor=INK)
    ax.grid(False)
    ax.set_facecolor(PAPER)
    return figure
