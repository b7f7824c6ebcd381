"""Scores of relation classification: the official scorers of TACRED and SemEval-2010 Task 8.

Beside them, under other names, stand the figures of the published RAG4RE tables, which are not
comparable to the official ones (docs/published_metric.md).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypedDict

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_rag.metrics.base import answered
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
# label -> row of its relation, whatever the direction; Other has none
_RELATION_OF = {label: row // 2 for row, label in enumerate(SEMEVAL2010_LABELS[:-1])}


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
) -> tuple[int, int, int]:
    """Count the correct, predicted and gold relations; None predicts nothing."""
    _check_lengths(predictions, targets)
    pairs = list(zip(predictions, targets, strict=True))
    return (
        sum(prediction == target != negative for prediction, target in pairs),
        sum(prediction not in (None, negative) for prediction, _ in pairs),
        sum(target != negative for _, target in pairs),
    )


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
    return _micro_scores(*_micro_counts(predictions, targets, no_relation))


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
    return _published_scores(*_label_counts(predictions, targets, labels))


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
) -> tuple[int, int, int]:
    """Count the correct, predicted and gold ones of `labels`."""
    _check_lengths(predictions, targets)
    pairs = zip(predictions, targets, strict=True)
    return (
        sum(prediction == target and target in labels for prediction, target in pairs),
        sum(prediction in labels for prediction in predictions),
        sum(target in labels for target in targets),
    )


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


def _semeval2010_counts(predictions: Sequence[str], targets: Sequence[str]) -> list[list[int]]:
    """Count for each relation, both directions together: correct, predicted, gold; (9, 3)."""
    _check_lengths(predictions, targets)
    counts = [[0, 0, 0] for _ in SEMEVAL2010_RELATIONS]
    for prediction, target in zip(predictions, targets, strict=True):
        if target not in SEMEVAL2010_LABELS:
            raise ValueError(
                f"targets: expected a label of SemEval-2010 Task 8 with its direction, as "
                f"{SEMEVAL2010_LABELS[0]!r}, or 'Other', got {target!r}"
            )
        if prediction in _RELATION_OF:
            counts[_RELATION_OF[prediction]][1] += 1
        if target in _RELATION_OF:
            counts[_RELATION_OF[target]][0] += prediction == target
            counts[_RELATION_OF[target]][2] += 1
    return counts


def _semeval2010_scores(counts: list[list[int]]) -> SemEval2010Scores:
    """Return the scores of the relations that the key holds, and their mean F1."""
    per_relation: dict[str, PrecisionRecallF1] = {}
    for relation, (correct, predicted, gold) in zip(SEMEVAL2010_RELATIONS, counts, strict=True):
        if gold:
            per_relation[relation] = {
                "precision": correct / predicted if predicted else 0.0,
                "recall": correct / gold,
                "f1": 2 * correct / (predicted + gold),
            }
    total = sum(scores["f1"] for scores in per_relation.values())
    return {"f1": total / max(len(per_relation), 1), "per_relation": per_relation}


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
    return _semeval2010_scores(_semeval2010_counts(predictions, targets))


class TacredF1(Metric):
    """Micro "precision", "recall" and "f1" over all labels but the negative one (`tacred_f1`).

    An answer that is none of the labels predicts nothing, as the negative label does;
    `RelationAccuracy` tells how many there are.

    Args:
        negative_label: the label that is no relation; None counts all labels, so that recall is
            accuracy and precision the share of correct ones among valid answers.
        labels: all labels of the task.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    counts: Tensor  # (3,) correct, predicted, gold

    def __init__(self, negative_label: str | None, labels: Sequence[str]) -> None:
        super().__init__()
        self.negative_label = negative_label
        self.labels = frozenset(labels)
        self.add_state("counts", torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Predictions, batch: RagBatch) -> None:
        """Count the queries of a batch.

        Raises:
            ValueError: an instance has no label or the predictions do not fit the batch.
        """
        pairs = answered(predictions, batch)
        answers = [text if text in self.labels else None for text, _ in pairs]
        counts = _micro_counts(answers, [gold[0] for _, gold in pairs], self.negative_label)
        self.counts = self.counts + torch.tensor(counts, device=self.device)

    def compute(self) -> dict[str, Tensor]:
        """Return the three scores."""
        correct, predicted, gold = self.counts.tolist()
        scores = _micro_scores(correct, predicted, gold)
        return {
            "precision": torch.tensor(scores["precision"], device=self.device),
            "recall": torch.tensor(scores["recall"], device=self.device),
            "f1": torch.tensor(scores["f1"], device=self.device),
        }


class SemEval2010F1(Metric):
    """The official "f1" of SemEval-2010 Task 8 (`semeval2010_f1`)."""

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    relation_counts: Tensor  # (9, 3) correct, predicted, gold

    def __init__(self) -> None:
        super().__init__()
        zeros = torch.zeros(len(SEMEVAL2010_RELATIONS), 3, dtype=torch.long)
        self.add_state("relation_counts", zeros, dist_reduce_fx="sum")

    def update(self, predictions: Predictions, batch: RagBatch) -> None:
        """Count the queries of a batch.

        Raises:
            ValueError: an instance has no label of this task or the predictions do not fit.
        """
        targets = [gold[0] for _, gold in answered(predictions, batch)]
        counts = _semeval2010_counts(predictions.texts, targets)
        self.relation_counts = self.relation_counts + torch.tensor(counts, device=self.device)

    def compute(self) -> dict[str, Tensor]:
        """Return the macro F1."""
        scores = _semeval2010_scores(self.relation_counts.tolist())
        return {"f1": torch.tensor(scores["f1"], device=self.device)}


class PublishedF1(Metric):
    """Micro "<name>_precision", "<name>_recall" and "<name>_f1" over some labels (`micro_f1`).

    With the negative label alone they are the figures of RAG4RE's tables for TACRED and its
    relabelled versions, with all 19 labels those for SemEval-2010 Task 8.

    Args:
        name: what the logged names begin with.
        labels: the labels that count.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    label_counts: Tensor  # (3,) correct, predicted, gold

    def __init__(self, name: str, labels: Collection[str]) -> None:
        super().__init__()
        self.name = name
        self.labels = frozenset(labels)
        self.add_state("label_counts", torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Predictions, batch: RagBatch) -> None:
        """Count the queries of a batch.

        Raises:
            ValueError: an instance has no label or the predictions do not fit the batch.
        """
        targets = [gold[0] for _, gold in answered(predictions, batch)]
        counts = _label_counts(predictions.texts, targets, self.labels)
        self.label_counts = self.label_counts + torch.tensor(counts, device=self.device)

    def compute(self) -> dict[str, Tensor]:
        """Return the three scores."""
        correct, predicted, gold = self.label_counts.tolist()
        scores = _published_scores(correct, predicted, gold)
        return {
            f"{self.name}_precision": torch.tensor(scores["precision"], device=self.device),
            f"{self.name}_recall": torch.tensor(scores["recall"], device=self.device),
            f"{self.name}_f1": torch.tensor(scores["f1"], device=self.device),
        }


class RepairedRate(Metric):
    """The share of answers that refinement turned into a label, "repaired_rate" (`Repaired`).

    What it could not turn into one is counted by `RelationAccuracy` as "invalid_rate".
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    repaired_counts: Tensor  # (2,) repaired, all

    def __init__(self) -> None:
        super().__init__()
        self.add_state("repaired_counts", torch.zeros(2, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Predictions, batch: RagBatch) -> None:
        """Count the queries of a batch, labelled or not."""
        repaired = sum(isinstance(text, Repaired) for text in predictions.texts)
        counts = torch.tensor([repaired, len(predictions.texts)], device=self.device)
        self.repaired_counts = self.repaired_counts + counts

    def compute(self) -> dict[str, Tensor]:
        """Return the share, 0 when there was no query."""
        repaired, total = self.repaired_counts
        return {"repaired_rate": repaired / total.clamp(min=1)}


class RelationAccuracy(Metric):
    """The shares of correct predictions, "accuracy", and of those no label, "invalid_rate".

    Args:
        labels: all labels of the task.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    answer_counts: Tensor  # (3,) correct, invalid, all

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = frozenset(labels)
        self.add_state("answer_counts", torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Predictions, batch: RagBatch) -> None:
        """Count the queries of a batch.

        Raises:
            ValueError: an instance has no label or the predictions do not fit the batch.
        """
        pairs = answered(predictions, batch)
        correct = sum(text == gold[0] for text, gold in pairs)
        invalid = sum(text not in self.labels for text, _ in pairs)
        counts = torch.tensor([correct, invalid, len(pairs)], device=self.device)
        self.answer_counts = self.answer_counts + counts

    def compute(self) -> dict[str, Tensor]:
        """Return the two shares, 0 when there was no query."""
        correct, invalid, total = self.answer_counts
        return {
            "accuracy": correct / total.clamp(min=1),
            "invalid_rate": invalid / total.clamp(min=1),
        }
