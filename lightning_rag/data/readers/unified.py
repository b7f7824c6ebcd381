"""Several extraction data sets as one: tasks to train on, and held-out tasks to be tested on."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lightning_rag.data.readers.base import Reader
from lightning_rag.data.splits import Splits, normalise, subset
from lightning_rag.errors import UserError
from lightning_rag.types import Instance, Passage

log = logging.getLogger(__name__)

SHOWN = 5  # ids named in a message


class UnifiedExtraction(Reader):
    """Data sets for unified information extraction (RUIE, arXiv 2409.11673).

    Training queries and validation come from the held-in sets, test queries from all of them. The
    passage store has the training records of all sets: those of held-out sets are what their test
    queries retrieve, so "held out" means tasks that nothing was trained on, not tasks without
    examples. Training queries never get them (`data.train_scope`).

    The limits keep a run on a CPU within hours; each draws by seed, and a set of several tasks
    keeps their shares. RUIE has at most 10,000 training queries a set, all test queries, and all
    training records in its store.

    Args:
        held_in: name -> reader of a data set; each instance names its task.
        held_out: the same for the held-out sets; may be empty.
        max_train: training queries of each held-in set; None for all.
        max_demonstrations: training records of each set that the store has; None for all. Training
            queries are drawn from them.
        max_validation: validation queries of each held-in set; None for all.
        max_test: test queries of each set; None for all.
        overlaps: what becomes of training records of held-in sets whose text is in a held-out set,
            up to case and white space: "error", or "drop" to leave them out.

    Raises:
        UserError: a name or a task in both lists, no held-in set, or a limit below 1.
    """

    def __init__(
        self,
        held_in: dict[str, Reader],
        held_out: dict[str, Reader],
        max_train: int | None = 2000,
        max_demonstrations: int | None = None,
        max_validation: int | None = 100,
        max_test: int | None = 200,
        overlaps: Literal["error", "drop"] = "error",
    ) -> None:
        for name, limit in (
            ("max_train", max_train),
            ("max_demonstrations", max_demonstrations),
            ("max_validation", max_validation),
            ("max_test", max_test),
        ):
            if limit is not None and limit < 1:
                raise UserError(f"{name} is {limit}; legal: 1 or more, or null")
        if not held_in:
            raise UserError("held_in is {}; legal: at least one data set")
        both = sorted(set(held_in) & set(held_out))
        if both:
            raise UserError(
                f"data set {both[0]!r} is in held_in and in held_out; legal: whole sets, in one"
            )
        if overlaps not in ("error", "drop"):
            raise UserError(f"overlaps is {overlaps!r}; legal: error, drop")
        self.held_in = held_in
        self.held_out = held_out
        self.max_train = max_train
        self.max_demonstrations = max_demonstrations
        self.max_validation = max_validation
        self.max_test = max_test
        self.overlaps = overlaps

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read every set, cut it to the limits, and put them together."""
        held_in = {name: _read(name, reader, root, seed) for name, reader in self.held_in.items()}
        held_out = {
            name: _held_out(_read(name, reader, root, seed))
            for name, reader in self.held_out.items()
        }
        _check_tasks({**held_in, **held_out})
        unseen = {
            normalise(i.text)
            for splits in held_out.values()
            for i in (*splits.train, *splits.validation, *splits.test)
        }
        found: dict[str, list[Instance]] = {"train": [], "validation": [], "test": []}
        store: list[Instance] = []
        for name, splits in {**held_in, **held_out}.items():
            pool = splits.train
            if name in held_in:
                pool = self._apart(name, pool, unseen)
            shown = _limited(pool, self.max_demonstrations, seed)
            store += shown
            if name in held_in:
                found["train"] += _limited(shown, self.max_train, seed)
                found["validation"] += _limited(splits.validation, self.max_validation, seed)
            found["test"] += _limited(splits.test, self.max_test, seed)
        _log_sizes(found, store)
        return Splits(
            train=tuple(found["train"]),
            validation=tuple(found["validation"]),
            test=tuple(found["test"]),
            passages=tuple(Passage(id=i.id, text=i.text, instance=i) for i in store),
        )

    def _apart(
        self, name: str, train: tuple[Instance, ...], unseen: set[str]
    ) -> tuple[Instance, ...]:
        """Return the training records of a held-in set that no held-out set has."""
        shared = [i.id for i in train if normalise(i.text) in unseen]
        if not shared:
            return train
        listed = ", ".join(shared[:SHOWN])
        if self.overlaps == "error":
            raise UserError(
                f"{len(shared)} training records of held-in set {name!r} have the text of a record "
                f"of a held-out set: {listed}; legal: none, or overlaps=drop to leave them out"
            )
        log.info(
            "%s: %d training records left out, their text is in a held-out set: %s",
            *(name, len(shared), listed),
        )
        gone = set(shared)
        return tuple(i for i in train if i.id not in gone)


def _read(name: str, reader: Reader, root: Path | None, seed: int) -> Splits:
    """Read one set.

    Raises:
        UserError: it is not for extraction, or has a passage store of its own.
    """
    splits = reader.read(root, seed)
    instances = (*splits.train, *splits.validation, *splits.test)
    if splits.passages or not all(i.task and i.extraction is not None for i in instances):
        raise UserError(
            f"data set {name!r} has records without task and schema, or a passage store of its "
            "own; legal: readers of extraction data sets, whose training records are the store"
        )
    return splits


def _held_out(splits: Splits) -> Splits:
    train, validation, test = (
        tuple(replace(instance, held_out=True) for instance in part)
        for part in (splits.train, splits.validation, splits.test)
    )
    return Splits(train, validation, test)


def _check_tasks(sets: Mapping[str, Splits]) -> None:
    """Check that no two sets have a task in common."""
    owner: dict[str, str] = {}
    for name, splits in sets.items():
        for task in {i.task for i in (*splits.train, *splits.validation, *splits.test)}:
            if task in owner:
                raise UserError(
                    f"data sets {owner[task]!r} and {name!r} both have the task {task!r}; legal: "
                    "each task in one data set"
                )
            owner[task] = name


def _limited(instances: tuple[Instance, ...], limit: int | None, seed: int) -> tuple[Instance, ...]:
    if limit is None or limit >= len(instances):
        return instances
    return subset(instances, fraction=limit / len(instances), seed=seed)


def _log_sizes(found: Mapping[str, Sequence[Instance]], store: Sequence[Instance]) -> None:
    counts = {split: Counter(i.task for i in part) for split, part in found.items()}
    shown = Counter(i.task for i in store)
    for task in dict.fromkeys([i.task for i in (*store, *found["test"])]):
        sizes = [counts[split][task] for split in ("train", "validation", "test")]
        log.info("%s: %d demonstrations; %d / %d / %d queries", task, shown[task], *sizes)
