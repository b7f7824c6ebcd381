r"""Files of how much a model prefers each candidate of a query, to compute them elsewhere.

A file is UTF-8 with one JSON object a line, one line for each training query; where its name ends
in .gz it is packed:

```
{"query": "q1", "passages": ["p7", "p3"], "scores": [-0.25, -1.5]}
```

`query` is the id of a training query, `passages` are ids of candidates of it in any order, `scores`
their preferences in the same order: any finite numbers, larger is better; RUIE's are the mean
log-likelihood of the answer's tokens given that one demonstration. Candidates that are not named
were not scored. Other fields are not read.

`write_requests` (the command `request`) writes the same lines for another program to
score, with `prompts` and a `target` instead of `scores`; the program adds the scores, and may leave
the rest as it is.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_rag.data.datamodule import QuerySet
from lightning_rag.data.readers.jsonl import Record, json_lines
from lightning_rag.data.store import PassageStore
from lightning_rag.errors import DataError
from lightning_rag.files import Json
from lightning_rag.tasks.base import Task
from lightning_rag.types import Passage, Rendered

BEYOND = 2.0**128 - 2.0**103  # the least number that float32 rounds to infinity


def read_preferences(path: Path, queries: QuerySet, store: PassageStore) -> Tensor:
    """Read the preferences of a file.

    Args:
        path: the file.
        queries: Q queries with their N candidates.
        store: the passage store.

    Returns:
        (Q, N) float32, aligned with the candidates; NaN = not scored, or padding.

    Raises:
        DataError: naming file and line: a query that is none of these or came before, a passage
            that is no candidate of its query or came before, a score that is no finite number,
            more or fewer scores than passages; or naming the file: queries without a line.
    """
    rows = {instance.id: row for row, instance in enumerate(queries.instances)}
    found = np.full(queries.candidates.ids.shape, np.nan, dtype=np.float32)
    places: dict[int, str] = {}  # of the lines, by the row of their query
    for record in json_lines(path):
        name = record.identity("query")
        if name not in rows:
            raise record.error(f"field 'query' names {name!r}; legal: the {len(rows)} queries")
        row = rows[name]
        if row in places:
            raise record.error(
                f"the query {name!r} has a line already, {places[row]}; legal: one line a query"
            )
        places[row] = record.where
        columns = _columns(record, queries.candidates.ids[row].tolist(), store)
        found[row, columns] = _scores(record, len(columns))
    missing = [instance.id for row, instance in enumerate(queries.instances) if row not in places]
    if missing:
        raise DataError(
            f"{path}: no line for {len(missing)} of {len(rows)} queries, such as "
            f"{', '.join(map(repr, missing[:5]))}; legal: a line for each of them"
        )
    return torch.from_numpy(found)


def write_preferences(path: Path, queries: QuerySet, store: PassageStore, scores: Tensor) -> None:
    """Write preferences; `read_preferences` returns them to the bit.

    Args:
        path: the file, replaced in one piece.
        queries: Q queries with their N candidates.
        store: the passage store.
        scores: (Q, N) float, not finite = not scored, which is left out.

    Raises:
        ValueError: scores of another shape.
    """
    table = scores.detach().float().cpu().numpy()
    _check_shape(table.shape, queries)

    def lines() -> Iterator[dict[str, Json]]:
        for row, instance in enumerate(queries.instances):
            scored = np.isfinite(table[row]) & (queries.candidates.ids[row] >= 0)
            yield {
                "query": instance.id,
                "passages": [store[int(i)].id for i in queries.candidates.ids[row][scored]],
                # The shortest decimals that are this number in float32.
                "scores": [float(str(score)) for score in table[row][scored]],
            }

    _write_lines(path, lines())


def write_requests(
    path: Path,
    queries: QuerySet,
    store: PassageStore,
    task: Task,
    wanted: Tensor | None = None,
    answer_cue: str = "Answer:",
) -> None:
    """Write what another program needs to score candidates: preferences without the scores.

    A line has `query`, `passages`, `prompts` (one for each passage: what a decoder-only generator
    reads without chat template, special tokens aside) and `target`, which follows each of them and
    begins with its space. The score is the mean log-probability of the tokens of the target and of
    the end of the sequence.

    Args:
        path: the file, replaced in one piece.
        queries: Q queries with their N candidates, which all have answers.
        store: the passage store.
        task: renders them.
        wanted: (Q, N) bool, the candidates that shall be scored; None = all.
        answer_cue: what stands between query and answer where the task has no cue of its own
            (`generator.answer_cue`).

    Raises:
        ValueError: `wanted` of another shape, or a query without answer.
    """
    ids = queries.candidates.ids
    chosen = np.ones(ids.shape, dtype=bool) if wanted is None else wanted.cpu().numpy()
    _check_shape(chosen.shape, queries)

    def lines() -> Iterator[dict[str, Json]]:
        for row, instance in enumerate(queries.instances):
            passages = [store[int(i)] for i in ids[row][chosen[row] & (ids[row] >= 0)]]
            source = task.source(instance)
            shown = [_shown(task, passage) for passage in passages]
            yield {
                "query": instance.id,
                "passages": [passage.id for passage in passages],
                "prompts": [prompt_text(source, passage, answer_cue) for passage in shown],
                "target": f" {task.target(instance)}",
            }

    _write_lines(path, lines())


def prompt_text(query: Rendered, passage: Rendered, answer_cue: str) -> str:
    """Return the text that a decoder-only generator reads of a query and one passage.

    Args:
        query: the query; its range "lead" comes before the passage, and its range "cue" takes the
            place of the answer cue.
        passage: the passage.
        answer_cue: what is put on the last line otherwise.
    """
    _, lead = query.spans.get("lead", (0, 0))
    end = "" if "cue" in query.spans else f"\n{answer_cue}"
    return f"{query.text[:lead]}{passage.text}\n{query.text[lead:]}{end}"


def _shown(task: Task, passage: Passage) -> Rendered:
    return task.passage(passage, with_label=passage.instance is not None)


def _columns(record: Record, candidates: list[int], store: PassageStore) -> list[int]:
    """Return the columns of the passages of a line among the candidates of its query."""
    column_of = {row: column for column, row in enumerate(candidates)}
    record.value("passages", "a list of ids")
    columns: dict[int, None] = {}
    for name in record.identities("passages"):
        row = store.row(name) if name in store else -1
        if row < 0 or row not in column_of:
            known = "no passage of the store" if row < 0 else "another passage of the store"
            raise record.error(
                f"'passages' names {name!r}, {known}; legal: the candidates of the query"
            )
        if column_of[row] in columns:
            raise record.error(f"'passages' names {name!r} twice; legal: each passage once")
        columns[column_of[row]] = None
    return list(columns)


def _scores(record: Record, count: int) -> list[float]:
    """Return the scores of a line, which must be `count` finite numbers."""
    legal = "a list of finite numbers, one for each passage"
    values = record.value("scores", legal)
    if not isinstance(values, list):
        raise record.mismatch("scores", values, legal)
    if len(values) != count:
        raise record.error(f"{len(values)} 'scores' for {count} 'passages'; legal: {legal}")
    for number, value in enumerate(values, start=1):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) < BEYOND:  # NaN is in no order
            raise record.error(f"number {number} of 'scores' is {value!r:.80}; legal: {legal}")
    return values


def _check_shape(shape: tuple[int, ...], queries: QuerySet) -> None:
    if shape != queries.candidates.ids.shape:
        raise ValueError(f"expected {queries.candidates.ids.shape}, as the candidates, got {shape}")


def _write_lines(path: Path, rows: Iterable[Mapping[str, Json]]) -> None:
    """Write one JSON object a line, packed where the name ends in .gz, in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        packed = path.suffix == ".gz"  # without a time: the same content is the same file
        out = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) if packed else file
        for row in rows:
            out.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        out.close()
    os.replace(temporary, path)
