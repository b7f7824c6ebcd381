"""Exact match and token F1 of short answers, as SQuAD v1.1, SQuAD v2.0, KILT and DRO compute them.

All compare a prediction with every accepted answer and keep the best value, after lower-casing and
dropping punctuation, articles and superfluous white space. They differ in three places:

==========  ===========  ============================  ====================================
variant     punctuation  two texts without any token   empty texts
==========  ===========  ============================  ====================================
SQuAD v1.1  deleted      exact match 1, F1 0           like any other
SQuAD v2.0  deleted      exact match 1, F1 1           empty answers dropped
KILT        deleted      exact match 1, F1 0           empty answers dropped, predictions 0
DRO's code  to a space   exact match 1, F1 0           like any other
==========  ===========  ============================  ====================================

So scores of different papers compare only under the same variant. `ExactMatch` and `TokenF1` name
theirs: "exact_match" and "f1" are SQuAD v1.1's, "kilt_f1" is KILT's, "dro_f1" that of DRO's code.

Questions with a closed list of answers, such as yes, no and maybe, have `MacroF1` instead.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_rag.metrics.base import CountedMetric, QueryMean, answered
from lightning_rag.metrics.counts import Aggregation, Count, aggregate, class_counts
from lightning_rag.types import Predictions, RagBatch

AnswerScore = Callable[[str, Sequence[str]], float]  # of a prediction and accepted answers

ARTICLES = re.compile(r"\b(a|an|the)\b")
DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
MACRO_F1 = Aggregation("f1", "macro")
PUNCTUATION_TO_SPACE = str.maketrans(dict.fromkeys(string.punctuation, " "))


def normalise(text: str) -> str:
    """Return `text` in lower case without ASCII punctuation, articles and superfluous white space.

    Source: `normalize_answer` of SQuAD's evaluate-v1.1.py (the same in v2.0 and in KILT).
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(DELETE_PUNCTUATION)).split())


def normalise_dro(text: str) -> str:
    """Return `text` as `normalise` does, but with a space in the place of each punctuation mark.

    Source: `normalize_answer` of mangopy/direct-rag-learning, src/utilize/metrics.py.
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION_TO_SPACE)).split())


def _overlap_f1(prediction: str, answer: str) -> float:
    """Return the F1 of the bags of tokens of two normalised texts; 0 without a common token."""
    predicted, gold = prediction.split(), answer.split()
    common = (Counter(predicted) & Counter(gold)).total()
    return 2 * common / (len(predicted) + len(gold)) if common else 0.0


def _require(answers: Sequence[str]) -> Sequence[str]:
    """Return `answers`, which must hold at least one and must not be a bare string."""
    if isinstance(answers, str) or not answers:
        raise ValueError(f"answers: expected a sequence of one or more texts, got {answers!r}")
    return answers


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction equals one of the answers after normalisation, else 0.

    Source: SQuAD v1.1 (Rajpurkar et al. 2016, section 6.1), evaluate-v1.1.py, here as a share.

    Args:
        prediction: the text to judge.
        answers: the accepted answers, at least one.

    Raises:
        ValueError: there is no answer.
    """
    return float(normalise(prediction) in [normalise(answer) for answer in _require(answers)])


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the best F1 of shared tokens between the prediction and one of the answers.

    Source: SQuAD v1.1 (Rajpurkar et al. 2016, section 6.1), evaluate-v1.1.py, here as a share.
    Two texts that normalise to nothing score 0, although they match exactly.

    Args:
        prediction: the text to judge.
        answers: the accepted answers, at least one.

    Raises:
        ValueError: there is no answer.
    """
    predicted = normalise(prediction)
    return max(_overlap_f1(predicted, normalise(answer)) for answer in _require(answers))


def _squad2_answers(answers: Sequence[str]) -> Sequence[str]:
    """Drop the answers that normalise to nothing; if none is left, the question is unanswerable."""
    return [answer for answer in _require(answers) if normalise(answer)] or [""]


def squad2_exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return exact match as SQuAD v2.0 computes it (`get_raw_scores` of evaluate-v2.0.py).

    Raises:
        ValueError: there is no answer; an unanswerable question has the answer "".
    """
    return exact_match(prediction, _squad2_answers(answers))


def squad2_token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return token F1 as SQuAD v2.0 computes it: as v1.1, but two empty texts score 1.

    Raises:
        ValueError: there is no answer; an unanswerable question has the answer "".
    """
    answers = _squad2_answers(answers)
    return token_f1(prediction, answers) if normalise(prediction) else exact_match("", answers)


def _kilt_answers(answers: Sequence[str]) -> Sequence[str]:
    """Strip the answers and drop the empty ones."""
    stripped = [answer.strip() for answer in _require(answers) if answer.strip()]
    if not stripped:
        raise ValueError(f"answers: KILT needs one that is not empty, got {answers!r}")
    return stripped


def kilt_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction is one of the answers, character for character, else 0.

    Source: `_calculate_metrics` of KILT's eval_downstream.py; white space around does not count.

    Raises:
        ValueError: no answer is left when the empty ones are dropped.
    """
    return float(prediction.strip() in _kilt_answers(answers)) if prediction.strip() else 0.0


def kilt_exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return exact match as KILT computes it: as SQuAD v1.1, an empty prediction scores 0.

    Raises:
        ValueError: no answer is left when the empty ones are dropped.
    """
    return exact_match(prediction, _kilt_answers(answers)) if prediction.strip() else 0.0


def kilt_token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return token F1 as KILT computes it: as SQuAD v1.1 on stripped, non-empty answers.

    Raises:
        ValueError: no answer is left when the empty ones are dropped.
    """
    return token_f1(prediction, _kilt_answers(answers)) if prediction.strip() else 0.0


def dro_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if one of the answers occurs in the prediction after DRO's normalisation, else 0.

    Source: `eval_acc` of the released DRO code; characters are compared, so "atre" is in "theatre".

    Raises:
        ValueError: there is no answer.
    """
    predicted = normalise_dro(prediction)
    return float(any(normalise_dro(answer) in predicted for answer in _require(answers)))


def dro_exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return exact match as the released DRO code computes it (`eval_em`).

    Raises:
        ValueError: there is no answer.
    """
    predicted = normalise_dro(prediction)
    return float(predicted in [normalise_dro(answer) for answer in _require(answers)])


def dro_token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return token F1 as the released DRO code computes it (`eval_f1`).

    Raises:
        ValueError: there is no answer.
    """
    predicted = normalise_dro(prediction)
    return max(_overlap_f1(predicted, normalise_dro(answer)) for answer in _require(answers))


def macro_f1(predictions: Sequence[str], targets: Sequence[str], answers: Sequence[str]) -> float:
    """Return the unweighted mean over the allowed answers of each one's F1.

    An answer that is neither predicted nor gold is left out of the mean. A prediction that is none
    of the allowed answers is a missed gold answer and nothing more; scikit-learn's `f1_score(...,
    average="macro")`, with which PubMedQA is scored (Jin et al. 2019, arXiv 1909.06146), would take
    it for one more class with F1 0. Without such predictions the two are equal.

    Args:
        predictions: one text for each query.
        targets: the gold answers, in the same order, each one of `answers`.
        answers: the allowed answers.

    Returns:
        The mean, in [0, 1]; 0 without any query.

    Raises:
        ValueError: the two lists differ in length, or a target is no allowed answer.
    """
    return aggregate(MACRO_F1, _answer_counts(predictions, targets, answers))


def _answer_counts(
    predictions: Sequence[str], targets: Sequence[str], answers: Sequence[str]
) -> list[Count]:
    """Count the allowed answers that each query has and is given."""
    if len(predictions) != len(targets):
        raise ValueError(
            f"predictions: expected {len(targets)}, as many as targets, got {len(predictions)}"
        )
    if foreign := set(targets).difference(answers):
        raise ValueError(f"targets: expected one of {list(answers)}, got {min(foreign)!r}")
    return [
        class_counts(
            prediction if prediction in answers else None, target, correct=prediction == target
        )
        for prediction, target in zip(predictions, targets, strict=True)
    ]


Scorer = Literal["squad", "kilt", "dro"]
# scorer -> what its figures' names begin with, exact match, token F1
SCORERS: Mapping[Scorer, tuple[str, AnswerScore, AnswerScore]] = {
    "squad": ("", exact_match, token_f1),
    "kilt": ("kilt_", kilt_exact_match, kilt_token_f1),
    "dro": ("dro_", dro_exact_match, dro_token_f1),
}


class ExactMatch(QueryMean):
    """Share of the predictions that equal an accepted answer.

    The name is "exact_match" for SQuAD v1.1, "kilt_exact_match" and "dro_exact_match" for the
    others.

    Args:
        scorer: whose normalisation.
    """

    def __init__(self, scorer: Scorer = "squad") -> None:
        lead, self.score, _ = SCORERS[scorer]
        super().__init__(f"{lead}exact_match")

    def values(self, predictions: Predictions, batch: RagBatch) -> Tensor:
        """Return the exact match of each query, (B,)."""
        pairs = answered(predictions, batch)
        return torch.tensor([self.score(text, answers) for text, answers in pairs])


class TokenF1(QueryMean):
    """Mean token F1 of the predictions against their best answer.

    The name is "f1" for SQuAD v1.1, "kilt_f1" and "dro_f1" for the others.

    Args:
        scorer: whose normalisation.
    """

    def __init__(self, scorer: Scorer = "squad") -> None:
        lead, _, self.score = SCORERS[scorer]
        super().__init__(f"{lead}f1")

    def values(self, predictions: Predictions, batch: RagBatch) -> Tensor:
        """Return the token F1 of each query, (B,)."""
        pairs = answered(predictions, batch)
        return torch.tensor([self.score(text, answers) for text, answers in pairs])


class MacroF1(CountedMetric):
    """Mean F1 over the allowed answers, "macro_f1" (`macro_f1`).

    Args:
        answers: the allowed answers.
    """

    def __init__(self, answers: Sequence[str]) -> None:
        super().__init__(["macro_f1"])
        self.answers = tuple(answers)

    def counts(self, predictions: Predictions, batch: RagBatch) -> dict[str, list[Count]]:
        """Return the answers that each query has and is given.

        Raises:
            ValueError: an instance has no allowed answer or the predictions do not fit the batch.
        """
        targets = [gold[0] for _, gold in answered(predictions, batch)]
        return {"macro_f1": _answer_counts(predictions.texts, targets, self.answers)}

    def aggregation(self, name: str) -> Aggregation:
        """Return that of the macro F1 over the answers that are predicted or gold."""
        return MACRO_F1
