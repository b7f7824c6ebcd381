"""Figures of systems with what can be said about them: from the rows of their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lightning_rag.comparison.runs import Run, System
from lightning_rag.comparison.statistics import (
    Floats,
    Interval,
    Resampled,
    SeedsInterval,
    Sums,
    bca_interval,
    resample,
    seeds_interval,
)
from lightning_rag.errors import DataError
from lightning_rag.files import Json
from lightning_rag.metrics.counts import Aggregation, Count, classes, columns, figure

# A figure in metrics.json is a float32; counts that say something else are not those of its test.
ROUNDING = 1e-4
# Heads of the columns of both intervals, and what the heads mean.
ENDS = ("low", "high", "low, seeds too", "high, seeds too")


@dataclass(frozen=True)
class Estimate:
    """A figure of a system, or a difference of such figures.

    Args:
        value: the mean over the seeds.
        seeds: the figure of each seed.
        deviation: the standard deviation over the seeds; None with one seed.
        queries: its interval over other queries, with these trained models.
        training: its interval over other seeds and other queries; None with one seed.
    """

    value: float
    seeds: tuple[float, ...]
    deviation: float | None
    queries: Interval | None
    training: SeedsInterval | None

    @property
    def ends(self) -> tuple[float | None, ...]:
        """Return the ends of both intervals, in the order of `ENDS`."""
        both = (self.queries, self.training)
        return tuple(end for one in both for end in ((one.low, one.high) if one else (None, None)))


@dataclass(frozen=True)
class Measured:
    """A metric of S systems with G seeds each, resampled.

    Args:
        metric: its name.
        names: of the S systems.
        seeds: the G seeds.
        sums: what the Q queries that count add, for S G runs, system by system.
        resampled: the figures of these runs.
        confidence: of all intervals.
    """

    metric: str
    names: tuple[str, ...]
    seeds: tuple[int, ...]
    sums: Sums
    resampled: Resampled
    confidence: float

    @property
    def queries(self) -> int:
        """Return Q."""
        return len(self.resampled.jackknife)

    def runs(self, name: str) -> list[int]:
        """Return the places of a system's runs in `sums`, by seed."""
        start = self.names.index(name) * len(self.seeds)
        return list(range(start, start + len(self.seeds)))

    def contrast(self, weights: Mapping[str, float]) -> Estimate:
        """Return a weighted sum of systems' figures, seed by seed, on the same resamples.

        Args:
            weights: of systems; {a: 1} is the figure of a, {a: 1, b: -1} a difference.
        """
        point, bootstrap = self._weighted(self.resampled.point, weights), self._drawn(weights)
        several = len(self.seeds) > 1
        return Estimate(
            value=float(point.mean()),
            seeds=tuple(point.tolist()),
            deviation=float(point.std(ddof=1)) if several else None,
            queries=bca_interval(
                float(point.mean()),
                bootstrap.mean(axis=1),
                self.jackknife(weights),
                self.confidence,
            ),
            training=seeds_interval(point, bootstrap, self.confidence),
        )

    def jackknife(self, weights: Mapping[str, float]) -> Floats:
        """Return the weighted sum, mean over the seeds, without one query each, (Q,)."""
        without: Floats = self._weighted(self.resampled.jackknife, weights).mean(axis=1)
        return without

    def _drawn(self, weights: Mapping[str, float]) -> Floats:
        return self._weighted(self.resampled.bootstrap, weights)

    def _weighted(self, figures: Floats, weights: Mapping[str, float]) -> Floats:
        """Return (…, G) of (…, S G)."""
        found = np.zeros((*figures.shape[:-1], len(self.seeds)))
        for name, weight in weights.items():
            found += weight * figures[..., self.runs(name)]
        return found


def intervals_note(confidence: float, seeds: int) -> str:
    """Return what the columns of `ENDS` hold, for a table's note."""
    said = (
        f"Intervals of {100 * confidence:.4g} % confidence. low, high: these trained models on "
        "other queries (BCa bootstrap over the test queries). "
    )
    if seeds < 2:
        return said + "With one seed nothing can be said about other seeds."
    return said + (
        "Seeds too: the methods trained once more, on other queries (cluster bootstrap over seeds "
        "and queries, Student's t for the seeds' part). “–”: nothing varies."
    )


def measurable(systems: Sequence[System]) -> tuple[str, ...]:
    """Return the metrics that all runs have with what single queries add to them, in order."""
    runs = [run for system in systems for run in system.runs]
    return tuple(
        name
        for name in _aggregations(runs[0])
        if all(name in _aggregations(run) and name in run.test for run in runs)
    )


def measure(
    systems: Sequence[System],
    metrics: Sequence[str],
    *,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Measured]:
    """Resample metrics of systems: all of them at once, on the same resamples.

    Args:
        systems: with equal seeds, their rows in one order (`comparable.aligned`).
        metrics: some of `measurable(systems)`.
        resamples: of the bootstrap.
        confidence: of the intervals.
        seed: of the draws.

    Raises:
        DataError: rows whose counts are damaged, or are not those of the figures in metrics.json.
    """
    found = {metric: sums_of(systems, metric) for metric in metrics}
    # Metrics that other queries count for are resampled over those queries.
    sizes: dict[int, list[str]] = {}
    for metric, sums in found.items():
        sizes.setdefault(sums.values.shape[1], []).append(metric)
    resampled: dict[str, Resampled] = {}
    for names in sizes.values():
        drawn = resample([found[name] for name in names], resamples, seed)
        resampled.update(zip(names, drawn, strict=True))
    return {
        metric: Measured(
            metric,
            tuple(system.name for system in systems),
            systems[0].seeds,
            sums,
            resampled[metric],
            confidence,
        )
        for metric, sums in found.items()
    }


def sums_of(systems: Sequence[System], metric: str) -> Sums:
    """Return what each query adds to a metric, in every run; queries that count in none left out.

    Raises:
        DataError: as `measure`.
    """
    runs = [run for system in systems for run in system.runs]
    counts = [counts_of(run, metric) for run in runs]
    counting = [
        place
        for place, added in enumerate(zip(*counts, strict=True))
        if any(one is not None for one in added)
    ]
    if not counting:
        raise DataError(
            f"{runs[0].folder / 'predictions.jsonl'}: no query says what it adds to {metric}"
        )
    values = _values(runs, metric, [[rows[place] for place in counting] for rows in counts])
    sums = Sums(values, partial(figure, aggregation_of(runs[0], metric)))
    for run, value in zip(runs, sums.finish(sums.totals()), strict=True):
        if not abs(value - run.test[metric]) <= ROUNDING * max(1.0, abs(run.test[metric])):
            raise DataError(
                f"{run.folder}: metrics.json says {metric} = {run.test[metric]:.6g}, but the rows "
                f"of predictions.jsonl add up to {value:.6g}: the two are not of one test; test "
                "the run again"
            )
    return sums


def counts_of(run: Run, metric: str) -> list[Count]:
    """Return what each query adds to a metric, None where it does not count.

    Raises:
        DataError: a row's counts are no object.
    """
    found: list[Count] = []
    for number, row in enumerate(run.rows, 1):
        counts = row.get("counts")
        if not isinstance(counts, Mapping):
            path = run.folder / "predictions.jsonl"
            raise DataError(f"{path}: row {number}: counts: expected an object, got {counts!r}")
        found.append(cast(Count, counts.get(metric)))
    return found


def aggregation_of(run: Run, metric: str) -> Aggregation:
    """Return how a metric comes out of the counts.

    Raises:
        DataError: summary.json does not say it in a way that this version understands.
    """
    try:
        return Aggregation.from_json(_aggregations(run)[metric])
    except (ValueError, TypeError) as error:
        path = run.folder / "summary.json"
        raise DataError(f"{path}: metrics.aggregations.{metric}: {error}") from error


def _aggregations(run: Run) -> Mapping[str, Json]:
    metrics = run.summary.get("metrics")
    found = metrics.get("aggregations") if isinstance(metrics, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _values(
    runs: Sequence[Run], metric: str, counts: Sequence[Sequence[Count]]
) -> NDArray[np.float32]:
    """Return (R, Q, d), the same columns for all runs."""
    aggregation = aggregation_of(runs[0], metric)
    # One row more names the classes of all runs: each gets its columns where nothing is of it too.
    named = {name: (0, 0, 0) for rows in counts for name in classes(rows)}
    further: list[Count] = [] if aggregation.kind == "mean" else [named]
    found = []
    for run, rows in zip(runs, counts, strict=True):
        path = run.folder / "predictions.jsonl"
        try:
            values = columns(aggregation, [*rows, *further])[: len(rows)]
        except (TypeError, ValueError) as error:
            raise DataError(f"{path} is damaged: counts of {metric}: {error}") from error
        if not np.isfinite(values).all():
            raise DataError(f"{path} is damaged: counts of {metric}: expected finite numbers")
        found.append(values.astype(np.float32))
    return np.stack(found)
