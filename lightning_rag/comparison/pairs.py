"""Every pair of systems: how far apart they are, and whether that could be chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from lightning_rag.comparison.measured import ENDS, Estimate, Measured, intervals_note
from lightning_rag.comparison.quality import signed
from lightning_rag.comparison.section import Cell, Plot, Section, Table
from lightning_rag.comparison.statistics import (
    LEAST_P,
    corrected,
    detectable_difference,
    effect_size,
    mcnemar_test,
    swap_test,
)
from lightning_rag.comparison.style import INK, MUTED, PAPER, SIZE, SMALL, canvas

NONE = "no measurable difference"
FEW = (
    " With {} seeds it finds only large and steady differences: one that it does not find may "
    "still be there."
)
SHOWN = 12  # pairs that a sentence of the summary names; the table has all
EXACT = ("exact_match", "accuracy")  # shares of right answers


@dataclass(frozen=True)
class Pair:
    """Two systems on the same queries.

    Args:
        first: the name of one.
        second: the name of the other.
        difference: the figure of the first less that of the second.
        p: of the swap test: these trained models on other queries.
        holm: p after Holm's correction for the number of pairs.
        benjamini_hochberg: p after that of Benjamini and Hochberg.
        training_p: of the test over seeds and queries; None with one seed.
        training_holm: the same after Holm's correction.
        effect: d_z; None where the queries do not vary.
        detectable: the smallest difference that such a test set shows with power 0.8.
        level: of the tests.
    """

    first: str
    second: str
    difference: Estimate
    p: float
    holm: float
    benjamini_hochberg: float
    training_p: float | None
    training_holm: float | None
    effect: float | None
    detectable: float | None
    level: float

    @property
    def measurable(self) -> bool:
        """Whether these trained models differ, after Holm's correction."""
        return self.holm < self.level

    @property
    def holds_over_seeds(self) -> bool:
        """Whether the methods differ: these models, and others that were trained once more."""
        certain = self.training_holm is not None and self.training_holm < self.level
        return self.measurable and certain

    @property
    def verdict(self) -> str:
        """Return what may be said, in words."""
        if not self.measurable:
            return NONE
        higher = self.first if self.difference.value > 0 else self.second
        if self.holds_over_seeds:
            return f"{higher} is higher"
        if self.training_holm is None:
            return f"{higher} is higher, with this seed"
        return f"{higher} is higher with these seeds; other seeds may differ"


def compared(measured: Measured, resamples: int, seed: int) -> tuple[Pair, ...]:
    """Test every pair of systems.

    Args:
        measured: a metric of the systems.
        resamples: of the swap test.
        seed: of its coins.
    """
    names = list(combinations(measured.names, 2))
    runs = [(measured.runs(first), measured.runs(second)) for first, second in names]
    p = swap_test(measured.sums, runs, resamples, seed).tolist()
    holm, benjamini_hochberg = corrected(p)
    weights = [{first: 1.0, second: -1.0} for first, second in names]
    differences = [measured.contrast(weight) for weight in weights]
    training = [_training_p(difference) for difference in differences]
    several = len(measured.seeds) > 1
    training_holm = corrected(training)[0] if several else training
    found = []
    for place, (first, second) in enumerate(names):
        jackknife = measured.jackknife(weights[place])
        found.append(
            Pair(
                first,
                second,
                differences[place],
                p[place],
                float(holm[place]),
                float(benjamini_hochberg[place]),
                training[place] if several else None,
                float(training_holm[place]) if several else None,
                effect_size(differences[place].value, jackknife),
                detectable_difference(jackknife, measured.confidence),
                1 - measured.confidence,
            )
        )
    return tuple(found)


def told(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Return which differences are real and which are not, in sentences that name the systems.

    One pair alone has been named by then. The largest differences come first.

    Args:
        pairs: of one metric.
    """
    if len(pairs) < 2:
        return ()
    order = sorted(pairs, key=lambda pair: -abs(pair.difference.value))
    several = pairs[0].training_holm is not None
    sure = [pair for pair in order if pair.holds_over_seeds]
    open_ = [pair for pair in order if pair.measurable and not pair.holds_over_seeds]
    alike = [pair for pair in order if not pair.measurable]
    open_head = (
        "Real with these seeds, not shown for other seeds" if several else "Real with this seed"
    )
    return tuple(
        _listed(title, found)
        for title, found in (
            ("Real, over other seeds too", sure),
            (open_head, open_),
            ("No measurable difference", alike),
        )
        if found
    )


def section(
    measured: Mapping[str, Measured], metric: str, resamples: int, seed: int
) -> Section | None:
    """Return every pair of systems, None with one system.

    Args:
        measured: the metrics that have counts.
        metric: the one that systems are compared by. Where its queries are not right or wrong, the
            test of McNemar is made with the first of `EXACT` that there is.
        resamples: of the swap test.
        seed: of its coins.
    """
    main = measured[metric]
    if len(main.names) < 2:
        return None
    pairs = compared(main, resamples, seed)
    tables = [_table(main, pairs, resamples)]
    coarse = _coarse(main, len(pairs), resamples)
    exact = [name for name in (metric, *EXACT) if name in measured]
    exact = [name for name in exact if _right_or_wrong(measured[name])]
    tables += [_mcnemar(measured[name]) for name in exact[:1]]
    plot = Plot(
        "pairs",
        f"Differences of {metric}, row less column",
        "A matrix of all differences. " + _counted(pairs),
        _figure(main, pairs),
        "pairs",
    )
    return Section(
        "pairs",
        "Is the difference real?",
        (*_paragraphs(main, pairs), *coarse),
        tuple(tables),
        (plot,),
        summary=(*coarse, _counted(pairs), *told(pairs)),
    )


def _listed(title: str, pairs: Sequence[Pair]) -> str:
    """Return a sentence that names pairs, the higher system first."""
    said = []
    for pair in pairs[:SHOWN]:
        ends = (
            (pair.first, pair.second) if pair.difference.value >= 0 else (pair.second, pair.first)
        )
        sign = ">" if pair.measurable else "and"
        said.append(f"{ends[0]} {sign} {ends[1]} ({abs(pair.difference.value):.3f})")
    more = f"; and {len(pairs) - SHOWN} pairs more" if len(pairs) > SHOWN else ""
    return f"{title}: {'; '.join(said)}{more}."


def _coarse(measured: Measured, pairs: int, resamples: int) -> tuple[str, ...]:
    """Say it where the draws are too few for any pair to pass, whatever its difference."""
    level = 1 - measured.confidence
    least = pairs / (resamples + 1)  # after Holm's correction
    if least < level:
        return ()
    return (
        f"With {resamples:,} draws the swap test cannot call any difference measurable: the "
        f"smallest p that it can show, after Holm's correction for {pairs:,} pair"
        f"{'s' if pairs > 1 else ''}, is {min(least, 1.0):.2g}. Give --resamples of "
        f"{math.ceil(pairs / level):,} or more.",
    )


def _training_p(difference: Estimate) -> float:
    """Return p over seeds and queries; where nothing varies, that of figures that hardly vary.

    So it is 1 for systems that are equal for every query and seed, and the least there is for two
    that differ by the same for each.
    """
    if difference.training is not None:
        return difference.training.p
    return LEAST_P if difference.deviation is not None and difference.value else 1.0


def _table(measured: Measured, pairs: Sequence[Pair], resamples: int) -> Table:
    several = len(measured.seeds) > 1
    columns = (
        "first",
        "second",
        "in words",
        f"difference of {measured.metric}",
        *ENDS[:2],
        "p",
        "p, Holm",
        "p, Benjamini–Hochberg",
        *((*ENDS[2:], "p over seeds", "p over seeds, Holm") if several else ()),
        "effect size d_z",
        "detectable difference",
    )
    return Table(
        "pairs",
        f"Every pair on the same {measured.queries:,} queries",
        columns,
        tuple(_row(pair, several) for pair in pairs),
        intervals_note(measured.confidence, len(measured.seeds))
        + f" p: paired swap test over the queries with {resamples:,} draws, two-sided, for these "
        "trained models"
        + ("; over seeds: for the methods trained once more" if several else "")
        + ". d_z: the difference in standard deviations of what single queries contribute to it. "
        "Detectable: the smallest true difference that this test set shows with power 0.8, in one "
        "pair alone, at these trained models.",
    )


def _row(pair: Pair, several: bool) -> tuple[Cell, ...]:
    ends = pair.difference.ends
    over_seeds: tuple[Cell, ...] = (*ends[2:], pair.training_p, pair.training_holm)
    return (
        pair.first,
        pair.second,
        pair.verdict,
        pair.difference.value,
        *ends[:2],
        pair.p,
        pair.holm,
        pair.benjamini_hochberg,
        *(over_seeds if several else ()),
        pair.effect,
        pair.detectable,
    )


def _right_or_wrong(measured: Measured) -> bool:
    """Whether a metric is a mean over queries that are all either right or wrong."""
    values = (
        measured.sums.values
    )  # (R, Q, d); a mean has d = 2, the number and 1 where there is one
    if values.shape[2] != 2:
        return False
    return bool((values[..., 1] == 1).all() and np.isin(values[..., 0], (0, 1)).all())


def _mcnemar(measured: Measured) -> Table:
    """Return the exact test of McNemar for every pair and seed."""
    values = measured.sums.values
    rows: list[tuple[Cell, ...]] = []
    for first, second in combinations(measured.names, 2):
        sides = zip(measured.seeds, measured.runs(first), measured.runs(second), strict=True)
        for seed, one, other in sides:
            found = mcnemar_test(values[one, :, 0] == 1, values[other, :, 0] == 1)
            rows.append((first, second, seed, *found))
    return Table(
        "mcnemar",
        f"Exact test of McNemar of {measured.metric}, seed by seed",
        ("first", "second", "seed", "only the first has it", "only the second has it", "p"),
        tuple(rows),
        f"The numbers are queries that add 1 to {measured.metric} for one of the two alone; p is "
        "two-sided and not corrected for the number of pairs.",
    )


def _paragraphs(measured: Measured, pairs: Sequence[Pair]) -> tuple[str, ...]:
    said = [
        "Two systems are tested on the same queries. The swap test asks whether these trained "
        "models differ by more than the choice of the queries explains."
    ]
    if len(pairs) > 1:
        level = f"{1 - measured.confidence:.2g}"
        said.append(
            "Holm's correction keeps the chance of any false difference among the "
            f"{len(pairs)} pairs below {level}."
        )
    if len(measured.seeds) > 1:
        said.append(
            "The test over seeds asks whether the methods would differ once more if they were "
            "trained with other seeds. Only what passes both is called a difference of methods."
            + (FEW.format(len(measured.seeds)) if len(measured.seeds) < 5 else "")
        )
    else:
        said.append(
            "There is one seed, so whether a difference is one of the methods or of this seed "
            "cannot be tested."
        )
    sizes = [pair.detectable for pair in pairs if pair.detectable is not None]
    if sizes:
        span = f"{min(sizes):.3f}" if len(sizes) == 1 else f"{min(sizes):.3f} to {max(sizes):.3f}"
        said.append(
            f"No measurable difference does not mean equal: the smallest true difference of two "
            "such trained models that this test set would show in four of five cases is "
            f"{span}, depending on the pair"
            + ("; after the correction for all pairs it takes more." if len(pairs) > 1 else ".")
        )
    return tuple(said)


def _counted(pairs: Sequence[Pair]) -> str:
    """Return how many pairs differ, in a sentence."""
    shown = sum(pair.measurable for pair in pairs)
    if len(pairs) == 1:
        return f"{pairs[0].first} and {pairs[0].second}: {pairs[0].verdict}."
    said = f"Of {len(pairs)} pairs, {shown or 'none'} differ{'s' if shown < 2 else ''} measurably "
    if not shown:
        return said + "on these queries."
    if pairs[0].training_holm is None:
        return said + "on these queries, with the one seed there is."
    holds = sum(pair.holds_over_seeds for pair in pairs)
    if holds == shown:
        return said + "on these queries, and over other seeds too."
    return said + f"on these queries; {holds or 'none'} of them over other seeds too."


def _figure(measured: Measured, pairs: Sequence[Pair]) -> Figure:
    """Draw the matrix of differences: ** holds over seeds, * with these models."""
    names = measured.names
    matrix = np.zeros((len(names), len(names)))
    marks = [["" for _ in names] for _ in names]
    for pair in pairs:
        row, column = names.index(pair.first), names.index(pair.second)
        matrix[row, column], matrix[column, row] = pair.difference.value, -pair.difference.value
        mark = "**" if pair.holds_over_seeds else "*" if pair.measurable else ""
        marks[row][column] = marks[column][row] = mark
    side = max(3.2, 1.6 + 0.62 * len(names))
    figure, (ax,) = canvas(side + 1.2, side)
    reach = max(1.6 * float(abs(matrix).max()), 1e-9)  # colours stay light enough for dark text
    ax.imshow(matrix, cmap="PuOr_r", norm=TwoSlopeNorm(0, -reach, reach), alpha=0.75)
    for row in range(len(names)):
        for column in range(len(names)):
            if row != column:
                text = f"{signed(matrix[row, column])}\n{marks[row][column]}"
                ax.text(column, row, text, ha="center", va="center", fontsize=SMALL, color=INK)
    ax.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(labelsize=SIZE, labelcolor=INK)
    ax.grid(False)
    ax.set_facecolor(PAPER)
    key = "* these models differ (Holm)"
    if len(measured.seeds) > 1:
        key += "; ** the methods do, over seeds too"
    ax.set_title(key, loc="left", fontsize=SMALL, color=MUTED)
    return figure
