"""Queries about which systems disagree most, with what each answered and retrieved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import cast

import numpy as np
from numpy.typing import NDArray

from lightning_rag.comparison.runs import Run, System
from lightning_rag.comparison.section import Card, Cell, Section, Table
from lightning_rag.files import Json

PASSAGES = 5  # shown of each system
LONGEST = 1500  # characters of a query that are shown
LONGEST_PASSAGE = 300
RIGHT = 0.5  # a score above this is right


def section(systems: Sequence[System], metric: str, examples: int) -> Section | None:
    """Return the queries that divide the systems most; None if there is nothing to disagree about.

    Args:
        systems: what is compared: equal seeds, and the row of a query at the same place in all
            runs.
        metric: by whose counts an answer is right or wrong.
        examples: how many queries are shown, 0 or more.
    """
    if len(systems) < 2:
        return None
    by_seed = np.array([_scores(system, metric) for system in systems])  # (systems, seeds, queries)
    scores = by_seed.mean(axis=1)  # (systems, queries)
    places = most_divided(scores, [str(row["id"]) for row in systems[0].runs[0].rows])
    cards = [_card(systems, metric, by_seed[:, :, place], place) for place in places[:examples]]
    judged = int(np.isfinite(scores).all(axis=0).sum())
    seed = systems[0].runs[0].seed
    said = [
        f"The systems' scores differ for {len(places):,} of {judged:,} queries. Shown are "
        f"{len(cards)}, those with the largest variance of the score over the systems; of equal "
        "ones every way in which the systems divide comes in turn, and the choice is by a hash of "
        f"the id. A score is what the query adds to {metric}, mean over the seeds; answers and "
        f"passages are those of seed {seed}. ✓ marks passages that the task calls relevant."
    ]
    return Section(
        "examples",
        "Where the systems disagree",
        tuple(said),
        (_agreement_table(systems, scores),),
        cards=tuple(cards),
    )


def score(count: Json) -> float:
    """Return how right a single query is, in [0, 1], from what it adds to a metric.

    A number is its own score. Of {class: [correct, predicted, gold]} it is the F1 of the sums: 1
    where nothing was to be predicted and nothing was. NaN for a query that does not count.
    """
    if count is None:
        return float("nan")
    if not isinstance(count, Mapping):
        return float(cast(float, count))
    counts = cast(Mapping[str, Sequence[int]], count).values()
    correct, either = 0, 0
    for right, predicted, gold in counts:
        correct += right
        either += predicted + gold
    return 2 * correct / either if either else 1.0


def most_divided(scores: NDArray[np.float64], ids: Sequence[str]) -> list[int]:
    """Return the places of the queries whose scores differ, the most divided first.

    The measure is the variance over the systems. Queries of equal variance are many where scores
    are 0 and 1: of these each way in which the systems divide comes in turn, and within one way the
    order is that of a hash of the ids, so that neighbours in the data set, which are often alike,
    do not stand together.

    Args:
        scores: (systems, queries), NaN where a query does not count.
        ids: of the queries.
    """
    variance = scores.var(axis=0).round(9)  # NaN where any system's is
    order = sorted(
        np.flatnonzero(variance > 0).tolist(), key=lambda i: sha256(ids[i].encode()).digest()
    )
    turn: dict[int, int] = {}
    seen: Counter[bytes] = Counter()
    for place in order:
        division = scores[:, place].round(9).tobytes()
        turn[place] = seen[division]
        seen[division] += 1
    return sorted(order, key=lambda place: (-variance[place], turn[place]))


def _scores(system: System, metric: str) -> list[list[float]]:
    """Return the score of each query with each seed, (seeds, queries)."""
    return [
        [score(cast(Mapping[str, Json], row["counts"]).get(metric)) for row in run.rows]
        for run in system.runs
    ]


def _agreement_table(systems: Sequence[System], scores: NDArray[np.float64]) -> Table:
    right = scores[:, np.isfinite(scores).all(axis=0)] > RIGHT  # (systems, queries)
    number = right.sum(axis=0)
    rows: list[tuple[Cell, ...]] = [
        (
            system.name,
            int(right[s].sum()),
            int((right[s] & (number == 1)).sum()),
            int((~right[s] & (number == len(systems) - 1)).sum()),
        )
        for s, system in enumerate(systems)
    ]
    return Table(
        name="agreement",
        title="Who is right where others are not",
        columns=("system", "right", "alone right", "alone wrong"),
        rows=tuple(rows),
        note=f"Queries, of {right.shape[1]:,}; a query is right if its score, mean over the seeds, "
        f"is above {RIGHT}. All systems are right for {int((number == len(systems)).sum()):,}, "
        f"none for {int((number == 0).sum()):,}.",
    )


def _card(systems: Sequence[System], metric: str, scores: NDArray[np.float64], place: int) -> Card:
    """Show a query; systems with the same answer, judgement and passages share a field.

    Args:
        systems: what is compared.
        metric: by which is judged.
        scores: (systems, seeds) of the query.
        place: the query's, in the rows.
    """
    row = systems[0].runs[0].rows[place]
    target = " | ".join(map(str, cast(list[Json], row["target"])))
    fields = [("query", _cut(str(row.get("text", "")), LONGEST)), ("target", target)]
    together: dict[str, list[str]] = {}
    for system, values in zip(systems, scores, strict=True):
        run = system.runs[0]
        lines = [
            str(run.rows[place]["prediction"]) or "(no answer)",
            _judgement(values, metric),
            *_passages(run, place),
        ]
        together.setdefault("\n".join(lines), []).append(system.name)
    fields += [(", ".join(names), text) for text, names in together.items()]
    return Card(f"{row['id']}: {_cut(target, 80)}", tuple(fields))


def _judgement(values: NDArray[np.float64], metric: str) -> str:
    """Say how right a system is, given its scores with each seed."""
    if not np.isin(values, (0.0, 1.0)).all():
        score_of = f"{metric} {values.mean():.2f}"
        return score_of if len(values) == 1 else f"{score_of}, mean over the seeds"
    if len(values) == 1:
        return "right" if values[0] else "wrong"
    return f"right with {int(values.sum())} of {len(values)} seeds"


def _passages(run: Run, place: int) -> list[str]:
    row = run.rows[place]
    ids = [str(passage) for passage in cast(list[Json], row["retrieved"])]
    relevant = dict(
        zip(
            map(str, cast(list[Json], row.get("ranked") or [])),
            cast(list[int], row.get("ranked_relevant") or []),
            strict=True,
        )
    )
    lines = [
        f"{number}. {'✓ ' if relevant.get(id_) else ''}"
        f"{_cut(run.passages.get(id_, id_), LONGEST_PASSAGE)}"
        for number, id_ in enumerate(ids[:PASSAGES], 1)
    ]
    if len(ids) > PASSAGES:
        lines.append(f"… and {len(ids) - PASSAGES} more")
    return lines


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"
