"""One data module for every method: the same splits, passage store and candidates for all."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader  # type: ignore[import-untyped]
from torchmetrics import MetricCollection

from lightning_rag.data.cache import cached
from lightning_rag.data.candidates import Candidates, FirstStage, SearchRequest
from lightning_rag.data.keeping import Keeping, make_store, read_data
from lightning_rag.data.keys import Keys, sampled
from lightning_rag.data.readers.base import Reader
from lightning_rag.data.sampler import EpochOrder
from lightning_rag.data.scope import Scope, among, scoped, without
from lightning_rag.data.splits import Splits, ids_hash, read_ids, subset
from lightning_rag.data.store import PassageStore, check_no_leak, exclusions
from lightning_rag.errors import UserError
from lightning_rag.files import Json
from lightning_rag.functional.processes import own_slice, wait_for_all
from lightning_rag.tasks.base import Task
from lightning_rag.types import Instance, RagBatch

log = logging.getLogger(__name__)

SplitName = Literal["train", "validation", "test"]


@dataclass
class QuerySet:
    """The queries of one split with their candidates and what is known to be relevant."""

    instances: tuple[Instance, ...]
    candidates: Candidates  # ids and scores, (Q, N)
    # Rows of the store for each query, ascending. Queries may share an array, which can be as long
    # as the store: what a query must not retrieve is taken out when its batch is made.
    relevant: Sequence[NDArray[np.int64]]
    answers: Sequence[NDArray[np.int64]]  # those that the task's `matches` accepts
    excluded: Sequence[NDArray[np.int64]]  # rows that each query must never retrieve

    def batch(self, rows: Sequence[int], *, idle: bool = False) -> RagBatch:
        """Return the queries `rows` as one batch; an `idle` one counts for nothing."""
        ids = self.candidates.ids[list(rows)]
        excluded = [self.excluded[row] for row in rows]
        pairs = list(zip(rows, excluded, strict=True))
        relevant = [without(self.relevant[row], gone) for row, gone in pairs]
        answers = [
            found if self.answers[row] is self.relevant[row] else without(self.answers[row], gone)
            for (row, gone), found in zip(pairs, relevant, strict=True)
        ]
        relevance = np.stack([among(*pair) for pair in zip(ids, relevant, strict=True)])
        return RagBatch(
            rows=torch.tensor(list(rows), dtype=torch.long),
            instances=[self.instances[row] for row in rows],
            candidate_ids=torch.from_numpy(ids),
            candidate_scores=torch.from_numpy(self.candidates.scores[list(rows)]),
            relevance=torch.from_numpy(relevance.astype(np.float32)),
            relevant_rows=[torch.from_numpy(found) for found in relevant],
            answer_rows=[torch.from_numpy(found) for found in answers],
            excluded_rows=[torch.tensor(gone) for gone in excluded],  # copies: queries share them
            idle=idle,
        )

    def share(self, rows: Sequence[int], rank: int, world: int) -> RagBatch:
        """Return what process `rank` of `world` gets of the batch of the queries `rows`.

        Equal shares, as far as can be, of queries in a row. Where there are fewer queries than
        processes, some have none: they take part in the step with the first of them, and `idle`.
        """
        own = rows[own_slice(len(rows), rank, world)]
        return self.batch(own) if own else self.batch(rows[:1], idle=True)


class _Rows(Dataset[int]):
    """The row numbers of a split; the collate function turns a list of them into a batch."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> int:
        return row


class RagDataModule(LightningDataModule):
    """Splits, passage store and first-stage candidates of one data set.

    Args:
        reader: reads the data set.
        task: renders its instances, parses answers, owns the metrics.
        first_stage: the retriever that offers `num_candidates` passages for every query.
        root: folder of the data sets; default from the environment variable LIGHTNING_RAG_DATA.
        name: name of the data set in the run's path.
        num_candidates: N, candidates for each query; a query that may not get so many has fewer.
        train_scope: whether training queries may retrieve demonstrations of "any" task of the
            training data or of the "same_task" only. Where the data are one task, as all but
            unified information extraction, both are the same. RUIE trains on any (its first stage
            ranks the demonstrations of all tasks), but the others are never the best.
        scope: the same for validation and test queries.
        fraction: share of the training instances that is used (low-resource regime), in (0, 1].
        ids_file: instead of `fraction`: the ids of the training instances to use, one a line.
        validation_size: use at most so many validation instances (drawn by seed); None = all.
        test_size: the same for test; a figure from part of a test set is no test result.
        batch_size: queries in a training batch, of all processes together; it must be divisible by
            their number.
        eval_batch_size: queries in a validation or test batch, of all processes together.
        bucket_by_length: put training queries of similar length into one batch.
        retrieval_ks: the cut-offs of the retrieval metrics.
        predict_split: the split that `predict` answers.
        cache_dir: folder of the candidates and embeddings that were computed before.
        seed: seed of splits, order and random retrieval; the command line's `seed_everything`.
        store: where passages and their index are: in "memory", or on "disk" (in `cache_dir`, mapped
            into memory), for more than memory can hold; None = on disk where the file of the
            passages is larger than 1 GiB and its reader can leave them there.
    """

    def __init__(
        self,
        reader: Reader,
        task: Task,
        first_stage: FirstStage,
        root: str | None = None,
        name: str = "data",
        num_candidates: int = 20,
        train_scope: Scope = "same_task",
        scope: Scope = "same_task",
        fraction: float = 1.0,
        ids_file: str | None = None,
        validation_size: int | None = None,
        test_size: int | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        bucket_by_length: bool = True,
        retrieval_ks: tuple[int, ...] = (1, 5),
        predict_split: SplitName = "test",
        cache_dir: str = ".cache/lightning_rag",
        seed: int = 0,
        store: Keeping | None = None,
    ) -> None:
        super().__init__()
        for argument, value in (
            ("num_candidates", num_candidates),
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size),
        ):
            if value < 1:
                raise UserError(f"data.{argument} is {value}; legal: 1 or more")
        self.reader = reader
        self.task = task
        self.first_stage = first_stage
        chosen = root or os.environ.get("LIGHTNING_RAG_DATA")
        self.root = Path(chosen).expanduser() if chosen else None
        self.name = name
        self.num_candidates = num_candidates
        self.train_scope = train_scope
        self.scope = scope
        self.fraction = fraction
        self.ids_file = ids_file
        self.limits = {"validation": validation_size, "test": test_size}
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.bucket_by_length = bucket_by_length
        self.retrieval_ks = retrieval_ks
        self.predict_split = predict_split
        self.cache_dir = Path(cache_dir).expanduser()
        self.seed = seed
        self.keeping = store
        self._splits: Splits | None = None
        self._store: PassageStore | None = None
        self._queries: dict[SplitName, QuerySet] = {}
        self.same_text_in_store = 0

    @property
    def splits(self) -> Splits:
        """The instances of each split, in the regime that was asked for."""
        if self._splits is None:
            raise RuntimeError("RagDataModule.splits before setup()")
        return self._splits

    @property
    def store(self) -> PassageStore:
        """The passages that can be retrieved."""
        if self._store is None:
            raise RuntimeError("RagDataModule.store before setup()")
        return self._store

    def setup(self, stage: str | None = None) -> None:
        """Read the data set, cut the regime, build the store; candidates come when asked for."""
        if self._splits is not None:
            return
        splits, corpus = read_data(self.reader, self.root, self.seed, self.keeping)
        if not splits.train:
            raise UserError(f"the train split of data set {self.name!r} is empty")
        foreign = [instance.id for instance in splits.train if instance.held_out]
        if foreign:
            raise UserError(
                f"{len(foreign)} training queries of data set {self.name!r} are of a held-out "
                f"task, first {foreign[0]!r}; legal: none"
            )
        train = self._regime(splits.train)
        held_out = {
            "validation": self._limited(splits.validation, "validation"),
            "test": self._limited(splits.test, "test"),
        }
        self._splits = Splits(
            train=train,
            validation=held_out["validation"],
            test=held_out["test"],
            passages=() if self.keeping == "disk" else splits.passages,  # else twice in memory
            labels=splits.labels,
            wording=splits.wording,
        )
        self.task.prepare(splits.labels, splits.wording)
        for instances in (train, *held_out.values()):
            self.task.check_answers(instances)
        rank, _ = self.place
        if rank:
            wait_for_all()  # the first writes what goes to disk
        self._store = make_store(
            replace(splits, train=train), corpus, self.keeping, self.cache_dir / "stores"
        )
        if not rank:
            wait_for_all()
        self._keys = Keys(self._store.passages, self.task.key)
        self.same_text_in_store = check_no_leak(self._store, held_out)

    def _regime(self, train: tuple[Instance, ...]) -> tuple[Instance, ...]:
        if self.ids_file is not None:
            return subset(train, ids=read_ids(Path(self.ids_file)), seed=self.seed)
        return subset(train, fraction=self.fraction, seed=self.seed)

    def _limited(self, instances: tuple[Instance, ...], split: SplitName) -> tuple[Instance, ...]:
        limit = self.limits[split]
        if limit is None or limit >= len(instances):
            return instances
        if limit < 1:
            raise UserError(f"data.{split}_size is {limit}; legal: 1 or more")
        return subset(instances, fraction=limit / len(instances), seed=self.seed)

    def queries(self, split: SplitName) -> QuerySet:
        """Return the queries of a split with their candidates, computed once and kept on disk.

        Of several processes all have to ask; the first computes, the others then read.
        """
        if split not in self._queries:
            rank, _ = self.place
            if rank:
                wait_for_all()
            self._queries[split] = self._retrieve(split)
            if not rank:
                wait_for_all()
        return self._queries[split]

    def _retrieve(self, split: SplitName) -> QuerySet:
        instances: tuple[Instance, ...] = getattr(self.splits, split)
        store = self.store
        answers = self.task.matching_rows(instances, store.passages)
        relevant = self.task.relevant_rows(instances, store.passages, matching=answers)
        training = split == "train"
        exclude = scoped(
            instances,
            store,
            exclusions(instances, store)
            if training
            else [np.empty(0, dtype=np.int64)] * len(instances),
            scope=self.train_scope if training else self.scope,
            training=training,
        )
        request = SearchRequest(
            queries=[self.task.query(instance).text for instance in instances],
            keys=self._keys if store.on_disk else list(self._keys),
            count=self.num_candidates,
            exclude=exclude,
            relevant=relevant,
            seed=self.seed,
            folder=self.cache_dir / "stores" if store.on_disk else None,
        )
        key = {**self.first_stage.fingerprint(), **request.fingerprint()}

        def search() -> dict[str, NDArray[np.generic]]:
            log.info("candidates of %d %s queries: %s", len(instances), split, key["first_stage"])
            found = self.first_stage.search(request)
            return {"ids": found.ids, "scores": found.scores}

        arrays = cached(self.cache_dir / "candidates", key, search)
        candidates = Candidates(
            ids=arrays["ids"].astype(np.int64), scores=arrays["scores"].astype(np.float32)
        )
        self._warn_of_nothing(split, instances, candidates)
        return QuerySet(instances, candidates, relevant, answers, exclude)

    def _warn_of_nothing(
        self, split: SplitName, instances: Sequence[Instance], candidates: Candidates
    ) -> None:
        lonely = [i.task for i, ids in zip(instances, candidates.ids, strict=True) if ids[0] < 0]
        if lonely:
            log.warning(
                "%d %s queries may retrieve nothing: the passage store has no demonstration for "
                "them of their task (%s)",
                *(len(lonely), split, ", ".join(sorted(set(lonely)))),
            )

    def corpus(self) -> list[str]:
        """Texts that a model from scratch learns its vocabulary from: training data and store."""
        task, train = self.task, self.splits.train
        texts = [task.source(instance).text for instance in train]
        texts += [task.target(instance) for instance in train]
        # All of a store in memory: samples are for those that need not fit into it.
        texts += sampled(self._keys) if self.store.on_disk else self._keys
        # Few training instances need not show every allowed answer.
        allowed = self.splits.labels or task.options(train[0]) or ()
        texts += [task.option_target(train[0], answer) for answer in allowed]
        return texts

    def metrics(self) -> MetricCollection:
        """Return fresh metrics of the task."""
        return self.task.metrics(tuple(k for k in self.retrieval_ks if k <= self.num_candidates))

    def summary(self) -> dict[str, Json]:
        """Return what identifies the data of a run, for its summary file."""
        splits = self.splits
        sizes: dict[str, Json] = {
            split: {"size": len(instances), "ids": ids_hash(instances)}
            for split, instances in (
                ("train", splits.train),
                ("validation", splits.validation),
                ("test", splits.test),
            )
        }
        return {
            "name": self.name,
            "fraction": self.fraction,
            "store_size": len(self.store),
            "store": self.store.fingerprint,
            "first_stage": dict(self.first_stage.fingerprint()),
            "num_candidates": self.num_candidates,
            "same_text_in_store": self.same_text_in_store,
            **sizes,
        }

    @property
    def place(self) -> tuple[int, int]:
        """This process's rank, and the number of processes."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def train_dataloader(self) -> StatefulDataLoader:
        """Training queries, in the order of (seed, epoch); each process gets its part of a batch.

        Raises:
            UserError: a batch cannot be shared out equally.
        """
        _, world = self.place
        if self.batch_size % world:
            raise UserError(
                f"data.batch_size is {self.batch_size}, to be shared by {world} processes; legal: "
                f"a multiple of {world}"
            )
        instances = self.splits.train
        lengths = [len(i.text) for i in instances] if self.bucket_by_length else None
        order = EpochOrder(
            len(instances), seed=self.seed, batch_size=self.batch_size, lengths=lengths
        )
        if self.trainer is not None:
            # Within an epoch a resumed loader skips rows before Lightning tells it the epoch.
            order.set_epoch(self.trainer.current_epoch)
        return self._loader("train", self.batch_size, order)

    def estimate_dataloader(self) -> StatefulDataLoader:
        """Every training query once, in order, all in each process: what an estimate pass reads."""
        return self._loader("train", self.eval_batch_size, shared=False)

    def whole_dataloader(self, split: SplitName) -> StatefulDataLoader:
        """The queries of a split, in order, all in each process."""
        return self._loader(split, self.eval_batch_size, shared=False)

    def val_dataloader(self) -> StatefulDataLoader:
        """Validation queries, in order; each process gets its part of a batch."""
        return self._loader("validation", self.eval_batch_size)

    def test_dataloader(self) -> StatefulDataLoader:
        """Test queries, in order; each process gets its part of a batch."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> StatefulDataLoader:
        """Queries of `predict_split`, in order; each process gets its part of a batch."""
        return self._loader(self.predict_split, self.eval_batch_size)

    def _loader(
        self,
        split: SplitName,
        batch_size: int,
        sampler: EpochOrder | None = None,
        *,
        shared: bool = True,
    ) -> StatefulDataLoader:
        queries = self.queries(split)
        if not queries.instances:
            raise UserError(f"the {split} split of data set {self.name!r} is empty")
        rank, world = self.place if shared else (0, 1)
        # All processes count the same whole batches, and only the queries of the own part are
        # looked up: so the loader's place in an epoch, which a checkpoint keeps, is that of any
        # number of processes.
        return StatefulDataLoader(
            _Rows(len(queries.instances)),
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=partial(queries.share, rank=rank, world=world),
            num_workers=0,  # backbones tokenise; a batch here is a few look-ups
        )
