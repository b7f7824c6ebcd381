"""What each query must never retrieve: itself, its copies, and what lies outside its scope."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from lightning_rag.data.cache import hash_rows, hash_texts
from lightning_rag.data.store import PassageStore
from lightning_rag.types import Instance

Scope = Literal["any", "same_task"]
"""Whether a query may retrieve demonstrations of other tasks than its own."""

Rows = NDArray[np.int64]


class ScopedRows(Sequence[Rows]):
    """For each of Q queries the ascending rows that it must not get, joined when asked for.

    A query's own rows are few. What lies outside its scope is most of a store of many tasks, but
    the same for all queries of a task, so it is kept once: Q joined arrays would be Q times as long
    as the store.

    Args:
        own: Q ascending arrays, what each query must not get whatever its scope.
        scope: (Q,) number of each query's scope.
        outside: for each scope the ascending rows outside it.
    """

    def __init__(self, own: Sequence[Rows], scope: Sequence[int], outside: Sequence[Rows]) -> None:
        if len(own) != len(scope):
            raise ValueError(f"{len(own)} queries have {len(scope)} scopes; legal: one each")
        self.own = own
        self._scope = list(scope)
        self._outside = list(outside)

    def __len__(self) -> int:
        return len(self.own)

    @overload
    def __getitem__(self, query: int) -> Rows: ...
    @overload
    def __getitem__(self, query: slice) -> ScopedRows: ...
    def __getitem__(self, query: int | slice) -> Rows | ScopedRows:
        if isinstance(query, slice):
            return ScopedRows(self.own[query], self._scope[query], self._outside)
        outside = self._outside[self._scope[query]]
        more = without(self.own[query], outside)
        return np.insert(outside, np.searchsorted(outside, more), more) if len(more) else outside

    def hash(self) -> str:
        """Return the SHA-256 of all rows, in time that does not grow with Q times the store."""
        scopes = ",".join(map(str, self._scope))
        return hash_texts([hash_rows(self.own), scopes, hash_rows(self._outside)])


def scoped(
    queries: Sequence[Instance],
    store: PassageStore,
    own: Sequence[Rows],
    *,
    scope: Scope,
    training: bool,
) -> Sequence[Rows]:
    """Return what each query must never retrieve.

    Plain passages belong to no task and are in every scope.

    Args:
        queries: Q instances.
        store: the passage store.
        own: for each query the ascending rows that it must not get whatever its scope.
        scope: "same_task" leaves out the demonstrations of other tasks than the query's.
        training: whether these are training queries, which never get a demonstration of a
            held-out task: nothing is learned about it.

    Returns:
        Q ascending arrays; `own` as it is where no scope leaves anything out, as in a store of one
        task.
    """
    if store.on_disk:
        return own
    demonstrations = [passage.instance for passage in store.passages]
    # A scope is known by its task, "" where tasks do not matter.
    wanted = [query.task if scope == "same_task" else "" for query in queries]
    numbers = {task: number for number, task in enumerate(dict.fromkeys(wanted))}
    held_out = np.array([training and d is not None and d.held_out for d in demonstrations])
    outside = []
    for task in numbers:
        other = [scope == "same_task" and d is not None and d.task != task for d in demonstrations]
        outside.append(np.flatnonzero(held_out | np.array(other)))
    if not any(len(rows) for rows in outside):
        return own
    for rows in outside:
        rows.flags.writeable = False
    return ScopedRows(own, [numbers[task] for task in wanted], outside)


def among(rows: Rows, listed: Rows) -> NDArray[np.bool_]:
    """Say which rows are listed, in time that hardly grows with the list.

    Args:
        rows: of any shape and order.
        listed: (L,) ascending.
    """
    if not len(listed):
        return np.zeros(rows.shape, dtype=np.bool_)
    places = np.minimum(np.searchsorted(listed, rows), len(listed) - 1)
    return np.equal(listed[places], rows)


def without(rows: Rows, gone: Rows) -> Rows:
    """Return a copy of ascending `rows` without those of ascending `gone`."""
    return rows[~among(rows, gone)]
