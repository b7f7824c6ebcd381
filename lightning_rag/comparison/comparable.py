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

OWN_QUERIES = (
    "Each seed has test queries of its own. Systems are compared seed by seed, on equal queries; "
    "the spread over seeds is also that of the test sets."
)


def check(systems: Sequence[System]) -> tuple[str, ...]:
    """Refuse runs that do not belong together.

    All runs must be of the same data, task and metrics, with equally many test queries; runs of
    equal seeds must have been tested on the same queries, with the same passage store. (Runs of
    different seeds may have different ones: in a low-resource regime the seed draws the training
    records, which are the store, and made-up data are drawn from it as a whole.)

    Returns:
        What a reader must be warned of: systems whose answers are equal, to the letter; seeds with
        test queries of their own.

    Raises:
        UserError: no runs; runs that do not belong together, or one run twice; names both folders.
        DataError: the predictions are not of the test queries that the others have.
    """
    runs = [run for system in systems for run in system.runs]
    if not runs:
        raise UserError("runs: there is nothing to compare")
    first_of_seed: dict[int, Run] = {}
    for run in runs:
        _same_metrics(runs[0], run)
        _same_queries(first_of_seed.setdefault(run.seed, run), run)
    for one, other in combinations(runs, 2):
        ours, theirs = one.summary.get("configuration"), other.summary.get("configuration")
        if ours and ours == theirs:  # versions before the hash have none
            raise UserError(
                f"runs: {one.folder} and {other.folder} are identical runs: they have the same "
                "configuration; give one of them alone"
            )
    notes = list(_alike(systems))
    if not one_test_set(systems):
        notes.append(OWN_QUERIES)
    return tuple(notes)


def one_test_set(systems: Sequence[System]) -> bool:
    """Return whether all seeds were tested on the same queries (for equal seeds `check` saw it)."""
    by_seed = {run.seed: run for system in systems for run in system.runs}
    asked = [
        {str(row["id"]): (row["target"], row.get("text")) for row in run.rows}
        for run in by_seed.values()
    ]
    return all(queries == asked[0] for queries in asked)


def aligned(systems: Sequence[System]) -> tuple[list[System], tuple[str, ...]]:
    """Return the systems with the seeds that all of them have, and their rows in one order.

    Returns:
        The systems, the row of a query at the same place in all runs (of all seeds, or where each
        seed has queries of its own, of that seed); and what a reader must be told of runs that
        were left out.

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
    orders = _orders(systems[0])
    found, left_out = [], []
    for system in systems:
        kept = tuple(_in_order(run, orders[run.seed]) for run in system.runs if run.seed in seeds)
        found.append(System(system.name, kept))
        missing = [str(seed) for seed in system.seeds if seed not in seeds]
        if missing:
            left_out.append(f"{system.name} (seed {', '.join(missing)})")
    if not left_out:
        return found, ()
    note = "Runs of seeds that not all systems have were left out: " + "; ".join(left_out) + "."
    return found, (note,)


def _same_metrics(one: Run, other: Run) -> None:
    """Refuse a run that was tested in another way than the first."""
    _equal(one, other, "data set", lambda run: run.data)
    _equal(one, other, "task", lambda run: run.summary.get("task"))
    _equal(one, other, "number of test queries", lambda run: len(run.rows))
    _equal(one, other, "version of the metrics", lambda run: _at(run.summary, "metrics", "version"))
    ours = _mapping(_at(one.summary, "metrics", "aggregations"))
    theirs = _mapping(_at(other.summary, "metrics", "aggregations"))
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name] != theirs[name]:
            raise _apart(one, other, f"metric {name}", ours[name], theirs[name])


def _same_queries(one: Run, other: Run) -> None:
    """Refuse a run that was tested on something else than the first of its seed."""
    _equal(one, other, "list of test queries", lambda run: _at(run.summary, "data", "test", "ids"))
    _equal(one, other, "passage store", lambda run: _at(run.summary, "data", "store"))
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


def _orders(system: System) -> dict[int, list[str]]:
    """Return the ids of each seed's queries, in the first seed's order where it has the same."""
    found: dict[int, list[str]] = {}
    first = [str(row["id"]) for row in system.runs[0].rows]
    for run in system.runs:
        own = [str(row["id"]) for row in run.rows]
        found[run.seed] = first if set(own) == set(first) else own
    return found


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
