"""Retrieval before and after training: what was found, what moved, what it collapsed to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from lightning_rag.comparison.curves import Curve, curve_figure
from lightning_rag.comparison.rankings import (
    MOVES,
    PERSISTENCE,
    Move,
    collapse,
    first_hit,
    moved,
    overlap_at_k,
    overlaps,
    rank_biased_overlap,
    recall_at_k,
    reciprocal_rank,
    success_at_k,
)
from lightning_rag.comparison.retrieval_figures import before_after_figure, moves_figure
from lightning_rag.comparison.runs import Run, System
from lightning_rag.comparison.section import Cell, Plot, Section, Table
from lightning_rag.comparison.style import Look, looks
from lightning_rag.errors import DataError
from lightning_rag.files import Json

DEPTHS = (1, 5)  # of the figures, where a configuration does not say `data.retrieval_ks`
STALE = "overlap@"  # how the figures of a stale index begin
# A passage for so many of the queries, and so many times as often as by chance, is a collapse.
COLLAPSED, BY_CHANCE = 0.5, 5.0
SAME = 1 - 1e-9  # rank-biased overlap of an order and itself, but for rounding


@dataclass(frozen=True)
class Found:
    """What a run's retrieval did over all test queries.

    Args:
        before: figure -> value in the first stage's order.
        after: the same in the method's order.
        overlap: depth -> overlap@k of the two orders.
        rbo: their rank-biased overlap.
        moves: share of the queries whose first relevant passage moved so.
        shown: passages that a query had in the end, mean.
        unique: how many different passages these were.
        stored: how many the store holds.
        favourite: share of the queries that had the most retrieved one.
        agreement: share of these passages that are relevant; None if that is not recorded.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    overlap: Mapping[int, float]
    rbo: float
    moves: Mapping[str, float]
    shown: float
    unique: int
    stored: int
    favourite: float
    agreement: float | None


def section(systems: Sequence[System]) -> Section | None:
    """Return what retrieval did; None if no system retrieves.

    Args:
        systems: what is compared.
    """
    depths = _depths(systems)
    found: dict[str, list[Found]] = {}
    for system in systems:
        measured = [measure(run, depths) for run in system.runs]
        kept = [one for one in measured if one is not None]
        if kept:
            found[system.name] = kept
    if not found:
        return None
    styles = looks([system.name for system in systems])
    figures = _figures(depths)
    tables = [_quality_table(found, figures), _moves_table(found, depths), _collapse_table(found)]
    plots = [_before_after_plot(found, figures, styles)]
    moving = [name for name, runs in found.items() if _rbo(runs) < SAME]
    if moving:
        plots.append(_moves_plot({name: _moves(found[name]) for name in moving}))
    stale = _staleness(systems)
    if stale:
        tables.append(_stale_table(stale))
        plots.append(_stale_plot(stale, styles))
    said = tuple(_paragraphs(systems, found))
    warnings = tuple(_collapses(found))
    return Section(
        "retrieval", "Retrieval", said + warnings, tuple(tables), tuple(plots), summary=warnings
    )


def measure(run: Run, depths: Sequence[int]) -> Found | None:
    """Return what a run's retrieval did; None if it retrieved nothing for any query.

    Args:
        run: a run whose rows hold both orders.
        depths: numbers of ranks to measure at.

    Raises:
        DataError: an order that has a passage twice.
    """
    rows = [row for row in run.rows if row.get("ranked")]
    if not rows:
        return None
    size, figures = len(run.rows), _measures(depths)
    # A query without any passage counts as one for which nothing was found.
    orders = {
        side: {
            name: sum(of(_flags(row, f"{key}_relevant"), _count(row)) for row in run.rows) / size
            for name, of in figures.items()
        }
        for side, key in (("before", "first_stage"), ("after", "ranked"))
    }
    overlap, rbo, moves = dict.fromkeys(depths, 0.0), 0.0, Counter[Move]()
    for row in rows:
        first, ranked = _ids(row, "first_stage"), _ids(row, "ranked")
        hits = (first_hit(_flags(row, f"{key}_relevant")) for key in ("first_stage", "ranked"))
        moves[moved(*hits)] += 1
        if not first:
            continue  # no passage in common
        try:
            counts = overlaps(first, ranked)
        except ValueError as error:
            raise DataError(f"{run.folder}: query {row['id']}: {error}") from error
        rbo += rank_biased_overlap(counts, min(len(first), len(ranked)))
        for depth in depths:
            overlap[depth] += overlap_at_k(counts, depth)
    chosen = [_ids(row, "retrieved") for row in run.rows]
    unique, favourite = collapse(chosen)
    return Found(
        before=orders["before"],
        after=orders["after"],
        overlap={depth: total / len(rows) for depth, total in overlap.items()},
        rbo=rbo / len(rows),
        moves={move: moves[move] / len(rows) for move in MOVES},
        shown=sum(map(len, chosen)) / size,
        unique=unique,
        stored=_stored(run),
        favourite=favourite,
        agreement=_agreement(run.rows),
    )


def _measures(depths: Sequence[int]) -> dict[str, Callable[[Sequence[int], int], float]]:
    """Return the figures by name, functions of an order's relevance and the relevant passages.

    A function to make each, since a loop's variable would be shared by all of them.
    """

    def success(k: int) -> Callable[[Sequence[int], int], float]:
        return lambda flags, relevant: success_at_k(flags, k)

    def recall(k: int) -> Callable[[Sequence[int], int], float]:
        return lambda flags, relevant: recall_at_k(flags, relevant, k)

    return {
        **{f"success@{k}": success(k) for k in depths},
        f"recall@{depths[-1]}": recall(depths[-1]),
        "mrr": lambda flags, relevant: reciprocal_rank(flags),
    }


def _figures(depths: Sequence[int]) -> list[str]:
    return list(_measures(depths))


def _depths(systems: Sequence[System]) -> tuple[int, ...]:
    """Return the least and the largest depth that the runs were evaluated at."""
    for system in systems:
        data = system.runs[0].config.get("data")
        given = data.get("retrieval_ks") if isinstance(data, Mapping) else None
        if isinstance(given, list) and given:
            depths = sorted(int(k) for k in given if isinstance(k, int))
            return tuple(dict.fromkeys((depths[0], depths[-1])))
    return DEPTHS


def _ids(row: Mapping[str, Json], key: str) -> list[str]:
    return [str(passage) for passage in cast(list[Json], row.get(key) or [])]


def _flags(row: Mapping[str, Json], key: str) -> list[int]:
    return cast(list[int], row.get(key) or [])


def _count(row: Mapping[str, Json]) -> int:
    return int(cast(int, row.get("relevant") or 0))


def _stored(run: Run) -> int:
    data = run.summary.get("data")
    return int(cast(int, data.get("store_size", 0))) if isinstance(data, Mapping) else 0


def _agreement(rows: Sequence[Mapping[str, Json]]) -> float | None:
    """Return the share of chosen passages that are relevant, of those whose relevance is known."""
    hits = known = 0
    for row in rows:
        flags = dict(zip(_ids(row, "ranked"), _flags(row, "ranked_relevant"), strict=True))
        chosen = [flags[passage] for passage in _ids(row, "retrieved") if passage in flags]
        hits += sum(chosen)
        known += len(chosen)
    return hits / known if known else None


def _mean(runs: Sequence[Found], of: Callable[[Found], float]) -> float:
    """Return the mean over the seeds."""
    return sum(map(of, runs)) / len(runs)


def _moves(runs: Sequence[Found]) -> dict[str, float]:
    return {move: sum(run.moves[move] for run in runs) / len(runs) for move in MOVES}


def _rbo(runs: Sequence[Found]) -> float:
    return _mean(runs, lambda run: run.rbo)


def _sides(runs: Sequence[Found]) -> tuple[dict[str, float], dict[str, float]]:
    """Return each figure before and after, mean over the seeds."""
    before, after = (
        {name: sum(side[name] for side in sides) / len(sides) for name in sides[0]}
        for sides in ([run.before for run in runs], [run.after for run in runs])
    )
    return before, after


def _paragraphs(systems: Sequence[System], found: Mapping[str, Sequence[Found]]) -> list[str]:
    said = [
        "“Before” is the order of the first stage, “after” that of the method, both as far as they "
        "were recorded: 50 passages at most, and no more than the method was offered. So mrr and "
        "moves of methods that were offered different numbers do not compare. A query for which no "
        "relevant passage was found counts with 0. All figures are means over queries, then over "
        "seeds."
    ]
    same = [name for name, runs in found.items() if _rbo(runs) >= SAME]
    if same:
        said.append(f"These keep the order of their first stage: {', '.join(same)}.")
    none = [system.name for system in systems if system.name not in found]
    if none:
        said.append(f"These retrieve nothing: {', '.join(none)}.")
    return said


def _collapses(found: Mapping[str, Sequence[Found]]) -> Iterator[str]:
    for name, runs in found.items():
        favourite = _mean(runs, lambda run: run.favourite)
        chance = _mean(runs, lambda run: run.shown / max(run.stored, 1))
        if favourite >= max(COLLAPSED, BY_CHANCE * chance):
            yield (
                f"The retrieval of {name} collapsed: one passage is retrieved for "
                f"{favourite:.0%} of the queries."
            )


def _before_after_plot(
    found: Mapping[str, Sequence[Found]], figures: Sequence[str], styles: Mapping[str, Look]
) -> Plot:
    sides = {name: _sides(runs) for name, runs in found.items()}
    return Plot(
        "retrieval",
        "Before and after: the first stage's order and the method's",
        "For each system and figure a ring for the first stage's order and a mark for the "
        "method's own; the numbers stand in the table.",
        before_after_figure(figures, sides, styles),
        "retrieval",
    )


def _moves_plot(shares: Mapping[str, Mapping[str, float]]) -> Plot:
    return Plot(
        "retrieval_moves",
        "Where the first relevant passage went",
        "Stacked bars of the shares of queries whose first relevant passage was found, moved up, "
        "stayed, moved down or was lost; the numbers stand in the table.",
        moves_figure(shares),
        "retrieval_moves",
    )


def _stale_plot(
    stale: Mapping[str, Sequence[tuple[str, Curve]]], styles: Mapping[str, Look]
) -> Plot:
    curves = {name: [curve for _, curve in seeds] for name, seeds in stale.items()}
    return Plot(
        "staleness",
        "How far a stale index was off",
        "Lines of the overlap of the passages found with the stale and with the new index, over "
        "the steps at which it was made anew.",
        curve_figure(curves, styles, "step", "overlap with the new index"),
        "staleness",
    )


def _quality_table(found: Mapping[str, Sequence[Found]], figures: Sequence[str]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, runs in found.items():
        before, after = _sides(runs)
        rows.append((name, *(side[f] for f in figures for side in (before, after))))
    columns = [f"{figure} {side}" for figure in figures for side in ("before", "after")]
    return Table(
        name="retrieval",
        title="Relevant passages found, before and after",
        columns=("system", *columns),
        rows=tuple(rows),
        note="What is relevant, the task says. success@k: a relevant passage among the first k; "
        "recall@k: the share of all relevant ones; mrr: mean reciprocal rank of the first.",
    )


def _moves_table(found: Mapping[str, Sequence[Found]], depths: Sequence[int]) -> Table:
    return Table(
        name="retrieval_moves",
        title="How far the order left the first stage's",
        columns=("system", *(f"overlap@{k}" for k in depths), "rank-biased overlap", *MOVES),
        rows=tuple(
            (
                name,
                *(sum(run.overlap[k] for run in runs) / len(runs) for k in depths),
                _rbo(runs),
                *_moves(runs).values(),
            )
            for name, runs in found.items()
        ),
        note=f"Rank-biased overlap: Webber et al. 2010, extrapolated, p = {PERSISTENCE}: 1 is the "
        "same order, 0 no passage in common. A method that ranks fewer than k stays below 1 "
        "in overlap@k. The last columns are shares of queries by what became of the first "
        "relevant passage: found where the first stage has none, moved up, same rank, moved down, "
        "lost, in neither order.",
    )


def _collapse_table(found: Mapping[str, Sequence[Found]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, runs in found.items():
        known = [run.agreement for run in runs if run.agreement is not None]
        rows.append(
            (
                name,
                _mean(runs, lambda run: run.shown),
                round(_mean(runs, lambda run: run.unique)),
                _mean(runs, lambda run: run.unique / run.stored) if runs[0].stored else None,
                _mean(runs, lambda run: run.favourite),
                sum(known) / len(known) if known else None,
            )
        )
    return Table(
        name="retrieval_passages",
        title="The passages that queries had in the end",
        columns=(
            "system",
            "passages a query",
            "different passages",
            "share of the store",
            "queries with the most retrieved one",
            "relevant",
        ),
        rows=tuple(rows),
        note="A retriever that collapsed gives most queries the same few passages. “relevant” is "
        "the share of the passages that agree with the query, in its label where the task has any.",
    )


def _staleness(systems: Sequence[System]) -> dict[str, list[tuple[str, Curve]]]:
    """Return for each system with an index the overlaps of each seed, with what they are called."""
    found: dict[str, list[tuple[str, Curve]]] = {}
    for system in systems:
        for run in system.runs:
            points = cast(list[Mapping[str, Json]], run.summary.get("staleness") or [])
            names = [name for point in points for name in point if name.startswith(STALE)]
            curve = [
                (float(cast(float, point["step"])), float(cast(float, point[names[0]])))
                for point in points
                if names and point.get(names[0]) is not None
            ]
            if curve:
                found.setdefault(system.name, []).append((names[0], curve))
    return found


def _stale_table(stale: Mapping[str, Sequence[tuple[str, Curve]]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, seeds in stale.items():
        values = [value for _, curve in seeds for _, value in curve]
        rows.append(
            (
                name,
                seeds[0][0],
                round(len(values) / len(seeds)),
                sum(values) / len(values),
                min(values),
                sum(curve[-1][1] for _, curve in seeds) / len(seeds),
            )
        )
    return Table(
        name="staleness",
        title="Staleness of the index",
        columns=("system", "figure", "refreshes", "mean", "least", "last"),
        rows=tuple(rows),
        note="Before the store is encoded again: the share of the first k passages that the stale "
        "and the new index have in common for some training queries. 1 = it was not stale.",
    )
