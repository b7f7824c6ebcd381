"""Rankings by a teacher, from a file: what a selector learns first."""

from __future__ import annotations

from pathlib import Path

from lightning_rag.data.datamodule import QuerySet
from lightning_rag.data.readers.jsonl import Record, json_lines
from lightning_rag.data.store import PassageStore
from lightning_rag.errors import DataError


def read_teacher_lists(path: Path, queries: QuerySet, store: PassageStore) -> list[list[int]]:
    r"""Read the teacher's list of every query.

    The file is UTF-8 with one JSON object a line; passages come best first:

    ```
    {"id": "q1", "passages": ["p7", "p3"]}
    ```

    Lists of other queries are ignored.

    Args:
        path: the file.
        queries: Q queries with their candidates.
        store: the passage store.

    Returns:
        for each query the rows of its list in the store.

    Raises:
        DataError: naming file and line: a passage that is no candidate of the query, a passage or a
            query that occurs twice; or a query without a list.
    """
    rows = {instance.id: row for row, instance in enumerate(queries.instances)}
    found: dict[int, list[int]] = {}
    for record in json_lines(path):
        row = rows.get(record.identity())
        if row is None:
            continue
        if row in found:
            raise record.error(f"a second list for the query {record.identity()!r}; legal: one")
        found[row] = _rows(record, set(queries.candidates.ids[row].tolist()), store)
    missing = [instance.id for row, instance in enumerate(queries.instances) if row not in found]
    if missing:
        raise DataError(
            f"{path}: no list for {len(missing)} of {len(rows)} training queries, such as "
            f"{', '.join(map(repr, missing[:5]))}; legal: a line for each of them"
        )
    return [found[row] for row in range(len(rows))]


def _rows(record: Record, candidates: set[int], store: PassageStore) -> list[int]:
    """Return the rows of the passages of a list, which must be candidates of its query."""
    rows: list[int] = []
    for name in record.identities("passages"):
        row = store.row(name) if name in store else -1
        if row < 0 or row not in candidates:
            known = "no passage of the store" if row < 0 else "another passage of the store"
            raise record.error(
                f"'passages' names {name!r}, {known}; legal: the candidates of the query"
            )
        if row in rows:
            raise record.error(f"'passages' names {name!r} twice; legal: each passage once")
        rows.append(row)
    if not rows:
        raise record.error("'passages' is empty or missing; legal: at least one passage")
    return rows
