"""What runs will probably cost: what finished runs of the same data and method have cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lightning_rag.files import Json
from lightning_rag.sweep.plan import PlannedRun
from lightning_rag.sweep.state import read


@dataclass(frozen=True)
class Cost:
    """What a run costs, all phases and the test together.

    Args:
        seconds: in training, estimates, refreshes and evaluation, on the machine that it was on.
        flops: estimated floating-point operations.
    """

    seconds: float
    flops: float


@dataclass(frozen=True)
class Known:
    """A finished run, and what it has cost."""

    method: str
    data: str
    fraction: float
    variant: str
    trained: bool
    cost: Cost


def finished(runs: Path) -> list[Known]:
    """Return the finished runs below a folder, with what they have cost."""
    found = []
    for path in sorted(runs.glob("*/*/*/*/seed=*/summary.json")):
        summary = read(path)
        data, phases = summary.get("data"), summary.get("cost")
        if not isinstance(data, Mapping) or not isinstance(phases, Mapping) or not phases:
            continue
        known = Known(
            method=str(summary.get("method")),
            data=str(data.get("name")),
            fraction=float(cast(float, data.get("fraction", 1.0))),
            variant=path.parent.parent.name,
            trained="fit" in summary,
            cost=_total(cast(Mapping[str, Mapping[str, Json]], phases)),
        )
        found.append(known)
    return found


def estimate(run: PlannedRun, known: Sequence[Known]) -> Cost | None:
    """Return the median cost of the runs that are most like one; None = nothing is known.

    These are the runs of the same method on the same share of the same data: those of the same
    variant if there are any.
    """
    like = [
        one
        for one in known
        if (one.method, one.data, one.fraction, one.trained)
        == (run.method, run.data, run.fraction, run.train)
    ]
    like = [one for one in like if one.variant == run.system] or like
    if not like:
        return None
    return Cost(
        statistics.median(one.cost.seconds for one in like),
        statistics.median(one.cost.flops for one in like),
    )


def _total(phases: Mapping[str, Mapping[str, Json]]) -> Cost:
    return Cost(
        _sum(value for book in phases.values() for key, value in book.items() if "seconds/" in key),
        _sum(book.get("flops", 0.0) for book in phases.values()),
    )


def _sum(values: Iterable[Json]) -> float:
    return sum(float(value) for value in values if isinstance(value, int | float))


def in_words(cost: Cost | None) -> str:
    """Return a cost for people."""
    if cost is None:
        return "unknown"
    return f"{duration(cost.seconds)}, {cost.flops:.2g} FLOPs"


def duration(seconds: float) -> str:
    """Return a time for people: 43 s, 12 min, 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
