"""Out-of-distribution evaluation: trained on one relation data set, tested on another."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lightning_rag.data.readers.base import Reader
from lightning_rag.data.readers.checks import check_label
from lightning_rag.data.readers.jsonl import json_document
from lightning_rag.data.splits import Splits
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Instance

log = logging.getLogger(__name__)

_LEGAL = (
    'legal: a label of the training data, {"exchanged": label}, '
    '{"in_order": [label, label]}, or null'
)


@dataclass(frozen=True)
class Counterpart:
    """What becomes of a label whose head is written before its tail, and after it."""

    head_first: str
    tail_first: str
    exchange_head_first: bool = False  # head and tail exchange their roles
    exchange_tail_first: bool = False

    def applied(self, instance: Instance) -> Instance:
        """Return the instance with its new label and roles."""
        head, tail = instance.head, instance.tail
        assert head is not None
        assert tail is not None
        behind = tail.start < head.start
        if self.exchange_tail_first if behind else self.exchange_head_first:
            head, tail = tail, head
        label = self.tail_first if behind else self.head_first
        return replace(instance, answers=(label,), head=head, tail=tail)


class Transfer(Reader):
    """The training and validation data of one relation data set, the test data of another.

    Labels, their words and the passage store are those of the training data, so a checkpoint that
    was trained on them can be tested, and retrieves the demonstrations that it was trained with:

    ```
    python -m lightning_rag.cli test --config RUN/config.yaml \
        --config configs/transfer/semeval2010_on_fewrel.yaml \
        --ckpt_path RUN/checkpoints/best.ckpt
    ```

    The label map is a JSON object {label of the test data: counterpart}. A counterpart is

    - a label of the training data: head and tail stay what they are;
    - {"exchanged": label}: head and tail exchange their roles, for the inverse of a relation;
    - {"in_order": [label, label]}, for training data whose head is always written first, such as
      SemEval-2010 Task 8: the label where the head is written first, and the label where the tail
      is, which then becomes the head;
    - null, or the label is not in the file at all: there is none.

    Instances without a counterpart are left out, and counted in the log by label. So figures are
    those of a part of the test data, among all labels of the training data. Ids get "other/" in
    front, for both data sets may count from 1.

    Args:
        trained: reads the data that the model was trained on, with the arguments of that training.
        tested: reads the data whose test split is used; its other splits are not.
        label_map: the JSON file, absolute or relative to the working directory.
        part: the "test" split of `tested`, or "all" of its splits.
    """

    def __init__(
        self,
        trained: Reader,
        tested: Reader,
        label_map: str,
        part: Literal["test", "all"] = "test",
    ) -> None:
        self.trained = trained
        self.tested = tested
        self.label_map = label_map
        self.part = part

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read both data sets and give the test instances labels of the training data."""
        trained, tested = self.trained.read(root, seed), self.tested.read(root, seed)
        instances = tested.test
        if self.part == "all":
            instances = tested.train + tested.validation + tested.test
        labels = [_label(instance) for instance in instances]
        path = Path(self.label_map).expanduser()
        counterparts = _counterparts(path, tested.labels, trained.labels)
        mapped = tuple(
            replace(counterparts[label].applied(instance), id=f"other/{instance.id}")
            for label, instance in zip(labels, instances, strict=True)
            if label in counterparts
        )
        left_out = Counter(label for label in labels if label not in counterparts)
        if not mapped:
            raise DataError(
                f"{path}: none of the {len(instances)} test instances has a label with a "
                f"counterpart; their labels: {', '.join(left_out) or 'none'}"
            )
        _report(path, len(mapped), left_out)
        return replace(trained, test=mapped)


def _label(instance: Instance) -> str:
    if instance.head is None or instance.tail is None or len(instance.answers) != 1:
        raise UserError(
            f"instance {instance.id!r} is not a pair of entities with a label; legal: the records "
            "of a relation extraction data set"
        )
    return instance.answers[0]


def _report(path: Path, kept: int, left_out: Counter[str]) -> None:
    """Say how much of the test data is tested."""
    if not left_out:
        log.info("tested on all %d instances of other data", kept)
        return
    log.warning(
        "tested on %d instances of other data; %d are left out, whose labels have no counterpart "
        "in %s: %s",
        *(kept, left_out.total(), path),
        ", ".join(f"{label} ({count})" for label, count in sorted(left_out.items())),
    )


def _counterparts(
    path: Path, tested: Sequence[str], trained: Sequence[str]
) -> Mapping[str, Counterpart]:
    """Read a label map: label of the test data -> its counterpart, if it has one."""
    document = json_document(path)
    if not isinstance(document, dict) or not document:
        raise DataError(f"{path}: legal: a JSON object of label of the test data: its counterpart")
    found = {}
    for label, value in document.items():
        where = f"{path}: key {label!r}"
        check_label(where, label, tested)
        if value is not None:
            found[label] = _counterpart(where, value, trained)
    return found


def _counterpart(where: str, value: object, labels: Sequence[str]) -> Counterpart:
    match value:
        case str() as label:
            made = Counterpart(label, label)
        case {"exchanged": str() as label, **others} if not others:
            made = Counterpart(label, label, True, True)
        case {"in_order": [str() as first, str() as second], **others} if not others:
            made = Counterpart(first, second, exchange_tail_first=True)
        case _:
            raise DataError(f"{where} is {value!r}; {_LEGAL}")
    for label in (made.head_first, made.tail_first):
        check_label(where, label, labels)
    return made
