"""Scores of relation classification: the official scorers of TACRED and SemEval-2010 Task 8.

Beside them, under other names, stand the figures of the published RAG4RE tables, which are not
comparable to the official ones (docs/published_metric.md).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from lightning_rag.metrics.base import CountedMetric, answered
from lightning_rag.metrics.counts import (
    MICRO_F1,
    Aggregation,
    Count,
    aggregate,
    class_counts,
    classes,
    columns,
)
from lightning_rag.types import Predictions, RagBatch

SEMEVAL2010_RELATIONS = (
    "Cause-Effect",
    "Component-Whole",
    "Content-Container",
    "Entity-Destination",
    "Entity-Origin",
    "Instrument-Agency",
    "Member-Collection",
    "Message-Topic",
    "Product-Producer",
)
SEMEVAL2010_LABELS = (
    *(f"{name}({order})" for name in SEMEVAL2010_RELATIONS for order in ("e1,e2", "e2,e1")),
    "Other",
)
# label -> its relation, whatever the direction; Other has none
_RELATION_OF = {label: label.partition("(")[0] for label in SEMEVAL2010_LABELS[:-1]}
SEMEVAL2010_F1 = Aggregation("f1", "macro", over="gold")


class Repaired(str):
    """A label that rules of refinement made of an output that was not just this label.

    It is equal to the label and stands for it everywhere; `RepairedRate` counts it.
    """

    __slots__ = ()


class PrecisionRecallF1(TypedDict):
    """Three shares in [0, 1]."""

    precision: float
    recall: float
    f1: float


class SemEval2010Scores(TypedDict):
    """The official score and what it is the mean of."""

    f1: float
    per_relation: dict[str, PrecisionRecallF1]


def _check_lengths(predictions: Sequence[str | None], targets: Sequence[str]) -> None:
    """Refuse lists that cannot be paired."""
    if len(predictions) != len(targets):
        raise ValueError(
            f"predictions: expected {len(targets)}, as many as targets, got {len(predictions)}"
        )


def _micro_counts(
    predictions: Sequence[str | None], targets: Sequence[str], negative: str | None
) -> list[Count]:
    """Count the labels of each record but the negative one; None predicts nothing."""
    _check_lengths(predictions, targets)
    return [
        class_counts(
            None if prediction == negative else prediction,
            None if target == negative else target,
            correct=prediction == target,
        )
        for prediction, target in zip(predictions, targets, strict=True)
    ]


def _sums(rows: Sequence[Count]) -> tuple[int, int, int]:
    """Return the correct, predicted and gold ones of all records and classes."""
    correct, predicted, gold = columns(MICRO_F1, rows).sum(axis=0).tolist()
    return int(correct), int(predicted), int(gold)


def _micro_scores(correct: int, predicted: int, gold: int) -> PrecisionRecallF1:
    """Divide the counts with the conventions of TACRED's scorer."""
    precision = correct / predicted if predicted else 1.0
    recall = correct / gold if gold else 0.0
    total = precision + recall
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / total if total else 0.0,
    }


def tacred_f1(
    predictions: Sequence[str], targets: Sequence[str], *, no_relation: str = "no_relation"
) -> PrecisionRecallF1:
    """Return micro precision, recall and F1 over all relations but the negative one.

    Source: Zhang et al. 2017; `score` of yuhaozhang/tacred-relation, utils/scorer.py. As there,
    precision is 1 when no relation is predicted, recall 0 when there is none to find, and every
    prediction other than `no_relation` counts as a relation, also a string that is no label.

    Relations: `TacredF1` knows the labels and takes an answer that is none of them for no answer.

    Args:
        predictions: one label for each record.
        targets: the gold labels, in the same order.
        no_relation: the negative label.

    Raises:
        ValueError: the two lists differ in length.
    """
    return _micro_scores(*_sums(_micro_counts(predictions, targets, no_relation)))


def micro_f1(
    predictions: Sequence[str], targets: Sequence[str], labels: Collection[str]
) -> PrecisionRecallF1:
    """Return micro precision, recall and F1 over the listed labels.

    Over all 19 labels of SemEval-2010 Task 8, Other among them, it is the figure of RAG4RE's tables
    for that data set: recall is the accuracy, precision the share of correct ones among the
    predictions that are labels. Source: `precision_recall_fscore_support(labels=..., average=
    "micro")` of scikit-learn, as sefeoglu/RAG4RE calls it (src/evaluation/results_analysis.py).

    Args:
        predictions: one text for each record; it counts as predicted where it is one of `labels`.
        targets: the gold labels, in the same order.
        labels: those that count.

    Returns:
        The three scores, each 0 where its denominator is.

    Raises:
        ValueError: the two lists differ in length.
    """
    return _published_scores(*_sums(_label_counts(predictions, targets, labels)))


def negative_class_f1(
    predictions: Sequence[str], targets: Sequence[str], *, negative: str = "no_relation"
) -> PrecisionRecallF1:
    """Return precision, recall and F1 of the negative class: how well "no relation" is told.

    It is the figure of RAG4RE's tables for TACRED, TACREV and Re-TACRED (arXiv 2404.13397, and very
    likely 2406.14745), because the released code cuts labels to the text after their colon and then
    scores the full names, of which only `no_relation` is left. It says nothing about relations: who
    always predicts the negative class has .88 on TACRED's test set, and 0 by `tacred_f1`.

    Args:
        predictions: one text for each record.
        targets: the gold labels, in the same order.
        negative: the label that is no relation.

    Returns:
        The three scores, each 0 where its denominator is.

    Raises:
        ValueError: the two lists differ in length.
    """
    return micro_f1(predictions, targets, (negative,))


def _label_counts(
    predictions: Sequence[str], targets: Sequence[str], labels: Collection[str]
) -> list[Count]:
    """Count those labels of each record that are among `labels`."""
    _check_lengths(predictions, targets)
    return [
        class_counts(
            prediction if prediction in labels else None,
            target if target in labels else None,
            correct=prediction == target,
        )
        for prediction, target in zip(predictions, targets, strict=True)
    ]


def _published_scores(correct: int, predicted: int, gold: int) -> PrecisionRecallF1:
    """Divide the counts with scikit-learn's conventions: 0 where there is nothing to divide by."""
    return {
        "precision": correct / predicted if predicted else 0.0,
        "recall": correct / gold if gold else 0.0,
        "f1": 2 * correct / (predicted + gold) if predicted + gold else 0.0,
    }


def accuracy(predictions: Sequence[str], targets: Sequence[str]) -> float:
    """Return the share of equal labels, 0 for empty lists.

    Raises:
        ValueError: the two lists differ in length.
    """
    _check_lengths(predictions, targets)
    correct = sum(p == t for p, t in zip(predictions, targets, strict=True))
    return correct / len(targets) if targets else 0.0


def _semeval2010_counts(predictions: Sequence[str], targets: Sequence[str]) -> list[Count]:
    """Count the relations of each record, both directions together."""
    _check_lengths(predictions, targets)
    for target in targets:
        if target not in SEMEVAL2010_LABELS:
            raise ValueError(
                f"targets: expected a label of SemEval-2010 Task 8 with its direction, as "
                f"{SEMEVAL2010_LABELS[0]!r}, or 'Other', got {target!r}"
            )
    return [
        class_counts(
            _RELATION_OF.get(prediction), _RELATION_OF.get(target), correct=prediction == target
        )
        for prediction, target in zip(predictions, targets, strict=True)
    ]


def semeval2010_f1(predictions: Sequence[str], targets: Sequence[str]) -> SemEval2010Scores:
    """Return the official score: macro F1 over the nine relations, directions taken into account.

    A prediction is correct when relation and direction are; one with the wrong direction counts as
    predicted and as missed. Other is no relation and enters as a wrong prediction only. Relations
    absent from the key are left out of the mean.
    Source: Hendrickx et al. 2010, section 4; semeval2010_task8_scorer-v1.2.pl, its last evaluation.

    The script dies on a prediction that is no label, on an empty prediction file and on a key
    without any relation. Here such a prediction counts as Other, as the script's own rule for
    a record without prediction has it, and the two degenerate inputs score 0.

    Args:
        predictions: one label for each record, such as "Cause-Effect(e2,e1)" or "Other".
        targets: the gold labels, in the same order.

    Returns:
        "f1", and under "per_relation" the three scores of each relation in the key; all in [0, 1].

    Raises:
        ValueError: the two lists differ in length or a target is none of the 19 labels.
    """
    rows = _semeval2010_counts(predictions, targets)
    sums = columns(SEMEVAL2010_F1, rows).sum(axis=0).reshape(-1, 4)[:, :3].astype(int)  # (C, 3)
    of_class = dict(zip(classes(rows), sums.tolist(), strict=True))
    return {
        "f1": aggregate(SEMEVAL2010_F1, rows),
        "per_relation": {
            relation: _published_scores(*of_class[relation])
            for relation in SEMEVAL2010_RELATIONS
            if of_class.get(relation, [0, 0, 0])[2]
        },
    }


class TacredF1(CountedMetric):
    """Micro "precision", "recall" and "f1" over all labels but the negative one (`tacred_f1`).

    An answer that is none of the labels predicts nothing, as the negative label does;
    `RelationAccuracy` tells how many there are. The counts are those of f1.

    Args:
        negative_label: the label that is no relation; None counts all labels, so that recall is
            accuracy and precision the share of correct ones among valid answers.
        labels: all labels of the task.
    """

    def __init__(self, negative_label: str | None, labels: Sequence[str]) -> None:
        super().__init__(["f1"])
        self.negative_label = negative_label
        self.labels = frozenset(labels)

    def counts(self, predictions: Predictions, batch: RagBatch) -> dict[str, list[Count]]:
        """Return the relations that each query has and is given.

        Raises:
            ValueError: an instance has no label or the predictions do not fit the batch.
        """
        pairs = answered(predictions, batch)
        answers = [text if text in self.labels else None for text, _ in pairs]
        targets = [gold[0] for _, gold in pairs]
        return {"f1": _micro_counts(answers, targets, self.negative_label)}

    def aggregation(self, name: str) -> Aggregation:
        """Return that of a micro F1: TACRED's conventions change precision and recall alone."""
        return MICRO_F1

    def compute(self) -> dict[str, Tensor]:
        """Return the three scores."""
        return _named("", _micro_scores(*_sums(self.rows()["f1"])), self.device)


class SemEval2010F1(CountedMetric):
    """The official "f1" of SemEval-2010 Task 8 (`semeval2010_f1`)."""

    def __init__(self) -> None:
        super().__init__(["f1"])

    def counts(self, predictions: Predictions, batch: RagBatch) -> dict[str, list[Count]]:
        """Return the relations that each query has and is given.

        Raises:
            ValueError: an instance has no label of this task or the predictions do not fit.
        """
        targets = [gold[0] for _, gold in answered(predictions, batch)]
        return {"f1": _semeval2010_counts(predictions.texts, targets)}

    def aggregation(self, name: str) -> Aggregation:
        """Return that of the macro F1 over the relations in the key."""
        return SEMEVAL2010_F1


class PublishedF1(CountedMetric):
    """Micro "<name>_precision", "<name>_recall" and "<name>_f1" over some labels (`micro_f1`).

    With the negative label alone they are the figures of RAG4RE's tables for TACRED and its
    relabelled versions, with all 19 labels those for SemEval-2010 Task 8. The counts are those of
    the F1.

    Args:
        name: what the logged names begin with.
        labels: the labels that count.
    """

    def __init__(self, name: str, labels: Collection[str]) -> None:
        super().__init__([f"{name}_f1"])
        self.name = name
        self.labels = frozenset(labels)

    def counts(self, predictions: Predictions, batch: RagBatch) -> dict[str, list[Count]]:
        """Return the labels that each query has and is given.

        Raises:
            ValueError: an instance has no label or the predictions do not fit the batch.
        """
        targets = [gold[0] for _, gold in answered(predictions, batch)]
        return {f"{self.name}_f1": _label_counts(predictions.texts, targets, self.labels)}

    def aggregation(self, name: str) -> Aggregation:
        """Return that of a micro F1."""
        return MICRO_F1

    def compute(self) -> dict[str, Tensor]:
        """Return the three scores."""
        scores = _published_scores(*_sums(self.rows()[f"{self.name}_f1"]))
        return _named(f"{self.name}_", scores, self.device)


def _named(lead: str, scores: PrecisionRecallF1, device: torch.device) -> dict[str, Tensor]:
    """Return the three scores under their logged names."""
    return {
        f"{lead}precision": torch.tensor(scores["precision"], device=device),
        f"{lead}recall": torch.tensor(scores["recall"], device=device),
        f"{lead}f1": torch.tensor(scores["f1"], device=device),
    }


class RepairedRate(CountedMetric):
    """The share of answers that refinement turned into a label, "repaired_rate" (`Repaired`).

    What it could not turn into one is counted by `RelationAccuracy` as "invalid_rate".
    """

    higher_is_better = None

    def __init__(self) -> None:
        super().__init__(["repaired_rate"])

    def counts(self, predictions: Predictions, batch: RagBatch) -> dict[str, list[Count]]:
        """Return for each query, labelled or not, whether its answer was repaired."""
        return {"repaired_rate": [int(isinstance(text, Repaired)) for text in predictions.texts]}


class RelationAccuracy(CountedMetric):
    """The shares of correct predictions, "accuracy", and of those no label, "invalid_rate".

    Args:
        labels: all labels of the task.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__(["accuracy", "invalid_rate"])
        self.labels = frozenset(labels)

    def counts(self, predictions: Predictions, batch: RagBatch) -> dict[str, list[Count]]:
        """Return for each query whether its answer is right, and whether it is no label.

        Raises:
            ValueError: an instance has no label or the predictions do not fit the batch.
        """
        pairs = answered(predictions, batch)
        return {
            "accuracy": [int(text == gold[0]) for text, gold in pairs],
            "invalid_rate": [int(text not in self.labels) for text, _ in pairs],
        }
