"""What a report says, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lightning_rag.comparison import (
    cost,
    curves,
    differences,
    examples,
    factorial,
    manifest,
    pairs,
    per_class,
    quality,
    retrieval,
)
from lightning_rag.comparison.comparable import one_test_set
from lightning_rag.comparison.measured import measurable, measure
from lightning_rag.comparison.runs import System
from lightning_rag.comparison.section import Report, Section
from lightning_rag.errors import UserError

ONE_SEED = (
    "There is one seed only ({seed}). So nothing can be said about how much the figures change "
    "from seed to seed, and every interval and test holds for these trained models alone: to say "
    "whether a method is better, train it with other seeds too, three in all or more."
)


@dataclass(frozen=True)
class Settings:
    """How a comparison is made.

    Args:
        metric: the metric that systems are compared by; None = the one that their task selects
            models by.
        resamples: of each bootstrap and each test.
        confidence: of all intervals; the tests' level is 1 - confidence.
        seed: of the resampling.
        examples: queries that the report shows.

    Raises:
        UserError: a number that is not legal.
    """

    metric: str | None = None
    resamples: int = 10_000
    confidence: float = 0.95
    seed: int = 0
    examples: int = 20

    def __post_init__(self) -> None:
        for name, value, least in (
            ("resamples", self.resamples, 1),
            ("seed", self.seed, 0),
            ("examples", self.examples, 0),
        ):
            if value < least:
                raise UserError(f"{name}: {value} came; legal: {least} or more")
        if not 0 < self.confidence < 1:
            raise UserError(
                f"confidence: {self.confidence} came; legal: a number between 0 and 1, as 0.95"
            )


def build(compared: Sequence[System], notes: Sequence[str], settings: Settings) -> Report:
    """Return the report of systems that `aligned` returned.

    Args:
        compared: with equal seeds, their rows in one order.
        notes: what a reader must be warned of.
        settings: how the comparison is made.

    Raises:
        UserError: a metric that not all runs have.
    """
    metric = _metric(compared, settings.metric)
    first, seeds = compared[0].runs[0], compared[0].seeds
    if len(seeds) == 1:
        notes = [*notes, ONE_SEED.format(seed=seeds[0])]
    facts = (
        ("data", f"{first.data}, {len(first.rows):,} test queries"),
        ("task", str(first.summary.get("task"))),
        ("systems", ", ".join(system.name for system in compared)),
        ("seeds", ", ".join(map(str, seeds))),
        ("metric", metric),
        (
            "statistics",
            f"{100 * settings.confidence:.4g} % confidence, {settings.resamples:,} resamples, "
            f"seed {settings.seed}",
        ),
    )
    sections = _sections(compared, metric, settings)
    return Report(f"Comparison on {first.data}", facts, tuple(notes), tuple(sections))


def _sections(compared: Sequence[System], metric: str, settings: Settings) -> Iterator[Section]:
    """Yield the parts that have something to say about these systems."""
    # Figures of single tasks and labels have "/" in their names; per_class has them.
    others = [name for name in measurable(compared) if "/" not in name and name != metric]
    measured = measure(
        compared,
        [metric, *others],
        resamples=settings.resamples,
        confidence=settings.confidence,
        seed=settings.seed,
    )
    # Queries of different seeds that are not the same ones cannot be shown as one.
    shown = compared
    if not one_test_set(compared):
        shown = [System(system.name, system.runs[:1]) for system in compared]
    for part in (
        quality.section(compared, measured, metric),
        pairs.section(measured, metric, settings.resamples, settings.seed),
        factorial.section(compared, measured[metric]),
        cost.section(compared, metric),
        retrieval.section(compared),
        per_class.section(compared, metric),
        curves.section(compared, metric),
        examples.section(shown, metric, settings.examples),
        differences.section(compared),
        manifest.section(compared),
    ):
        if part is not None:
            yield part


def _metric(compared: Sequence[System], wanted: str | None) -> str:
    """Return the metric that systems are compared by: one that all have, with counts."""
    described = compared[0].runs[0].summary["metrics"]
    monitor = described.get("monitor") if isinstance(described, Mapping) else None
    legal = measurable(compared)
    name = wanted if wanted is not None else str(monitor)
    if name not in legal:
        raise UserError(
            f"metric: {name} is not among the metrics that all runs have with what single queries "
            f"add to them; legal: {', '.join(legal) or 'none, test the runs again'}"
        )
    return name
