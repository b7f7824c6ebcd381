"""A teacher's lists of passages: what a selector learns first."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.splits import subset
from lightning_rag.data.teacher_lists import read_teacher_lists
from lightning_rag.errors import UserError
from lightning_rag.retrieval import lists
from lightning_rag.types import RagBatch


class Teacher:
    """Lists the candidates of training queries, best first.

    Args:
        name: the order of the "first_stage", "gold_first" = relevant candidates and then the others
            in that order, or a JSONL file of lists (`data/teacher_lists.py`).
        data: the training queries and the store.
        share: share of the training queries that there is a list for, drawn by seed.

    Raises:
        UserError: neither one of the names nor a file.
        DataError: a file that is not as it should be.
    """

    def __init__(self, name: str, data: RagDataModule, share: float) -> None:
        self.name = name
        self.store = data.store
        shown = subset(data.splits.train, fraction=share, seed=data.seed)
        self._shown = {instance.id for instance in shown}
        self._lists: list[list[int]] = []  # of a file: rows of the store for each query
        if name not in ("first_stage", "gold_first"):
            path = Path(name).expanduser()
            if not path.is_file():
                raise UserError(
                    f"model.teacher is {name!r}; legal: first_stage, gold_first, or a file of lists"
                )
            self._lists = read_teacher_lists(path, data.queries("train"), data.store)

    def columns(self, batch: RagBatch, row: int, k: int) -> Tensor:
        """Return the list of query `row`, (up to k,) columns of its candidates; () = no list."""
        if batch.instances[row].id not in self._shown:
            wanted = []
        elif self._lists:
            wanted = self._lists[int(batch.rows[row])]
        elif self.name == "gold_first":
            wanted = lists.gold_first(batch, row, self.store)
        else:
            wanted = lists.ranked(batch, row)
        ids = batch.candidate_ids[row].tolist()
        columns = [ids.index(passage) for passage in wanted if passage in ids]
        return torch.tensor(columns[:k], dtype=torch.long)
