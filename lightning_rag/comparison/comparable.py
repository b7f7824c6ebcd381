"""Whether runs belong together: equal data, equal metrics, and no run twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from hashlib import sha256
from itertools import combinations

from lightning_rag.comparison.runs import Run, System
from lightning_rag.errors import DataError, UserError
from lightning_rag.files import Json


def check(systems: Sequence[System]) -> tuple[str, ...]:
    """Refuse runs that do not belong together.

    All runs must have been tested on the same queries of the same data, by the same task and the
    same metrics; runs of equal seeds, with the same passage store. (Runs of different seeds may
    have different stores: in a low-resource regime the seed draws the training records.)

    Returns:
        What a reader must be warned of: systems whose answers are equal, to the letter.

    Raises:
        UserError: no runs; runs that do not belong together, or one run twice; names both folders.
        DataError: the predictions are not of the test queries that the others have.
    """
    runs = [run for system in systems for run in system.runs]
    if not runs:
        raise UserError("runs: there is nothing to compare")
    for run in runs[1:]:
        _same(runs[0], run)
    for one, other in combinations(runs, 2):
        if one.seed == other.seed:
            _equal(one, other, "passage store", lambda run: _at(run.summary, "data", "store"))
        ours, theirs = one.summary.get("configuration"), other.summary.get("configuration")
        if ours and ours == theirs:  # versions before the hash have none
            raise UserError(
                f"runs: {one.folder} and {other.folder} are identical runs: they have the same "
                "configuration; give one of them alone"
            )
    return tuple(_alike(systems))


def aligned(systems: Sequence[System]) -> tuple[list[System], tuple[str, ...]]:
    """Return the systems with the seeds that all of them have, and their rows in one order.

    Returns:
        The systems, the row of a query at the same place in all runs; and what a reader must be
        told of runs that were left out.

    Raises:
        UserError: there is no seed that all systems have.
    """
    seeds = reduce(lambda one, other: one & other, (set(system.seeds) for system in systems))
    if not seeds:
        had = "; ".join(f"{s.name}: {', '.join(map(str, s.seeds))}" for s in systems)
        raise UserError(
            f"runs: no seed is common to all systems, so nothing can be compared seed by seed "
            f"({had}); give runs of equal seeds"
        )
    order = [str(row["id"]) for row in systems[0].runs[0].rows]
    found, left_out = [], []
    for system in systems:
        kept = tuple(_in_order(run, order) for run in system.runs if run.seed in seeds)
        found.append(System(system.name, kept))
        missing = [str(seed) for seed in system.seeds if seed not in seeds]
        if missing:
            left_out.append(f"{system.name} (seed {', '.join(missing)})")
    if not left_out:
        return found, ()
    note = "Runs of seeds that not all systems have were left out: " + "; ".join(left_out) + "."
    return found, (note,)


def _same(one: Run, other: Run) -> None:
    """Refuse a run that was tested on something else than the first."""
    _equal(one, other, "data set", lambda run: run.data)
    _equal(one, other, "task", lambda run: run.summary.get("task"))
    _equal(one, other, "list of test queries", lambda run: _at(run.summary, "data", "test", "ids"))
    _equal(one, other, "version of the metrics", lambda run: _at(run.summary, "metrics", "version"))
    ours = _mapping(_at(one.summary, "metrics", "aggregations"))
    theirs = _mapping(_at(other.summary, "metrics", "aggregations"))
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name] != theirs[name]:
            raise _apart(one, other, f"metric {name}", ours[name], theirs[name])
    targets = {str(row["id"]): row["target"] for row in one.rows}
    for row in other.rows:
        if str(row["id"]) not in targets:
            raise DataError(
                f"{other.folder / 'predictions.jsonl'} is damaged: query {row['id']} is not among "
                f"those of {one.folder}, though summary.json says that the test queries are equal"
            )
        if row["target"] != targets[str(row["id"])]:
            wanted = targets[str(row["id"])]
            raise _apart(one, other, f"target of query {row['id']}", wanted, row["target"])


def _equal(one: Run, other: Run, what: str, of: Callable[[Run], Json]) -> None:
    if of(one) != of(other):
        raise _apart(one, other, what, of(one), of(other))


def _apart(one: Run, other: Run, what: str, ours: Json, theirs: Json) -> UserError:
    return UserError(
        f"runs: {one.folder} and {other.folder} do not belong together: the {what} differs: "
        f"{ours} and {theirs}"
    )


def _alike(systems: Sequence[System]) -> Iterator[str]:
    prints = {
        (system.name, run.seed): _fingerprint(run) for system in systems for run in system.runs
    }
    for one, other in combinations(systems, 2):
        seeds = [
            seed
            for seed in one.seeds
            if prints[one.name, seed] == prints.get((other.name, seed), b"")
        ]
        if seeds:
            which = f"seed {', '.join(map(str, seeds))}"
            yield (
                f"{one.name} and {other.name} give the same answers and retrieve the same "
                f"passages for every test query ({which}): what tells them apart has no effect, "
                "or one is a copy of the other."
            )


def _fingerprint(run: Run) -> bytes:
    """Return a hash of all answers and all that was retrieved, in the order of the ids."""
    said = sorted((str(row["id"]), repr((row["prediction"], row["retrieved"]))) for row in run.rows)
    return sha256(repr(said).encode()).digest()


def _in_order(run: Run, order: Sequence[str]) -> Run:
    rows = {str(row["id"]): row for row in run.rows}
    return replace(run, rows=[rows[id_] for id_ in order])


def _at(value: Json, *keys: str) -> Json:
    """Return what lies below nested keys, None where there is no such key."""
    for key in keys:
        value = _mapping(value).get(key)
    return value


def _mapping(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, Mapping) else {}
