"""Question answering with short answers, over passages."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torchmetrics import Metric, MetricCollection

from lightning_rag.errors import UserError
from lightning_rag.metrics.relation import RelationAccuracy
from lightning_rag.metrics.retrieval import AnswerRecall
from lightning_rag.metrics.text import SCORERS, ExactMatch, MacroF1, Scorer, TokenF1
from lightning_rag.tasks.base import Task, collect, is_blank, retrieval_metrics
from lightning_rag.tasks.wording import LabelFinder
from lightning_rag.types import Instance, Passage, Rendered

INSTRUCTION = (
    "Answer the question below. Passages may come with it: use those that help, ignore the others."
)
SHORT_ANSWER = "Give the shortest answer that is complete, a few words, and nothing else."

SAMPLE = 2000  # passages that word frequencies are counted in
_WORDS = re.compile(r"\w+")


def normalised_words(text: str) -> str:
    """Return the words of a text, without case and accents, each between two spaces.

    One answer is in a passage if its words stand in the passage's in a row, as in DPR's has_answer
    (Karpukhin et al. 2020, arXiv 2004.04906); a plain `in` on these strings decides that, because
    both begin and end with a space. A text without words gives "".
    """
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    words = _WORDS.findall(text.casefold())
    return f" {' '.join(words)} " if words else ""


class QuestionAnswering(Task):
    """A question, passages to read, a short answer: free text, or one of a closed list.

    A passage is known to be relevant by the instance's ids or, where it has none, because an answer
    stands in its title or text. The latter means little for answers such as "yes": data sets that
    have them should give ids.

    Args:
        scorers: the exact match and token F1 that are reported: "squad", exact_match and f1, as
            SQuAD v1.1 computes them; "kilt", kilt_exact_match and kilt_f1; "dro", dro_exact_match
            and dro_f1, as DRO's released code does (`metrics.text` has the differences). The F1 of
            the first one selects models.
        answers: all answers there are, for questions such as PubMedQA's: "yes", "no" and "maybe",
            in quotes, because a bare yes is a truth value in YAML. None for free text. Decoding by
            options chooses from a closed list; accuracy, invalid_rate and macro_f1 then take the
            place of the scorers' figures, and accuracy selects models. Every instance has exactly
            one of the answers.
        prompt: how the generator is asked: "plain", the question alone, for models that are
            trained; "instruction", after what to do with the passages and how to answer, for models
            that follow instructions. The passages stand where the generator puts them, before or
            after it, so the words fit both. Numbering them is the method's part (`Dro`).

    Raises:
        UserError: an argument outside what is legal.
    """

    def __init__(
        self,
        *,
        scorers: tuple[Scorer, ...] = ("squad", "kilt"),
        answers: list[str] | None = None,
        prompt: Literal["plain", "instruction"] = "plain",
    ) -> None:
        if not scorers or not set(scorers) <= set(SCORERS) or len(set(scorers)) < len(scorers):
            raise UserError(
                f"task.scorers is {list(scorers)}; legal: one or more of {', '.join(SCORERS)}, "
                "each once"
            )
        if prompt not in ("plain", "instruction"):
            raise UserError(f"task.prompt is {prompt!r}; legal: plain, instruction")
        if answers is not None:
            _check_closed(answers)
        self.scorers = tuple(scorers)
        self.answers = None if answers is None else tuple(answers)
        self.prompt = prompt
        self.monitor = f"{SCORERS[scorers[0]][0]}f1" if answers is None else "accuracy"
        self._finder = LabelFinder((answer, answer) for answer in answers or ())

    def prepare(self, labels: Sequence[str], wording: Mapping[str, str] | None = None) -> None:
        """Check that the data set has no labels.

        Raises:
            UserError: it has some.
        """
        if labels:
            raise UserError(
                f"question answering has no labels, and the data set has {', '.join(labels)}; "
                "legal: a task with labels, such as RelationExtraction; the answers of questions "
                "with a closed list of them are task.answers"
            )

    def check_answers(self, instances: Iterable[Instance]) -> None:
        """Check that no answer is blank and, with a closed list, that each instance has one of it.

        Raises:
            UserError: an instance's answers are others; the message names it.
        """
        checked = list(instances)
        super().check_answers(checked)
        if self.answers is None:
            return
        for instance in checked:
            if instance.answers and (
                len(instance.answers) > 1 or instance.answers[0] not in self.answers
            ):
                raise UserError(
                    f"instance {instance.id!r} has the answers {list(instance.answers)}; legal: "
                    f"exactly one of task.answers, {', '.join(self.answers)}"
                )

    def query(self, instance: Instance) -> Rendered:
        """Return the question."""
        return Rendered(instance.text)

    def key(self, passage: Passage) -> Rendered:
        """Return "title. text"."""
        return Rendered(f"{passage.title}. {passage.text}" if passage.title else passage.text)

    def source(self, instance: Instance) -> Rendered:
        """Return the question, or the instruction with the range "task" and the question."""
        if self.prompt == "plain":
            return Rendered(instance.text)
        if self.answers is None:
            form = SHORT_ANSWER
        else:
            form = f"Answer with exactly one of these: {', '.join(self.answers)}."
        lead = f"{INSTRUCTION} {form}\nQuestion: "
        return Rendered(lead + instance.text, {"task": (0, len(lead))})

    def passage(self, passage: Passage, *, with_label: bool = True) -> Rendered:
        """Return "title: text"; such a passage has no label, whatever `with_label` says."""
        return Rendered(f"{passage.title}: {passage.text}" if passage.title else passage.text)

    def target(self, instance: Instance) -> str:
        """Return the first accepted answer.

        Raises:
            ValueError: the instance has no answer.
            UserError: it is one that `check_answers` refuses.
        """
        if not instance.answers:
            raise ValueError(f"instance {instance.id!r} has no answer")
        self.check_answers([instance])
        return instance.answers[0]

    def options(self, instance: Instance) -> tuple[str, ...] | None:
        """Return the closed list of answers, or None where they are free text."""
        return self.answers

    def option_target(self, instance: Instance, answer: str) -> str:
        """Return the answer itself."""
        return answer

    def parse(self, output: str, instance: Instance) -> str:
        """Return the output with single spaces; with a closed list the answer that it stands for.

        An output that stands for none comes back with single spaces.
        """
        text = " ".join(output.split())
        return self._finder.find(text) or text

    def matches(self, instance: Instance, passage: Passage) -> bool:
        """Whether the words of an answer stand in a row in the passage's title or text."""
        fields = [normalised_words(passage.title), normalised_words(passage.text)]
        answers = [normalised_words(answer) for answer in instance.answers]
        return any(answer and answer in field for answer in answers for field in fields)

    def matching_rows(
        self, instances: Sequence[Instance], passages: Sequence[Passage]
    ) -> list[NDArray[np.int64]]:
        """Look in each passage, in one pass, for the answers whose rarest word it has."""
        answers = [
            frozenset(words for answer in instance.answers if (words := normalised_words(answer)))
            for instance in instances
        ]
        wanted = sorted(set().union(*answers))
        by_word = _by_rarest_word(wanted, passages[:: max(1, len(passages) // SAMPLE)])
        rows = {answer: array("q") for answer in wanted}
        for row, passage in enumerate(passages):
            text = _both_fields(passage)
            for word in by_word.keys() & set(text.split()):
                for answer in by_word[word]:
                    if answer in text:
                        rows[answer].append(row)
        found = {answer: np.array(rows[answer], dtype=np.int64) for answer in wanted}
        # instances with equal answers share an array: those of a frequent one are long
        united = {group: _united([found[answer] for answer in group]) for group in answers}
        return [united[group] for group in answers]

    def metrics(self, ks: Sequence[int]) -> MetricCollection:
        """Return the scorers' figures, answer_recall at each k, and the retrieval metrics.

        A closed list has accuracy, invalid_rate and macro_f1 instead, and no answer_recall: that a
        passage has the word "no" says nothing.
        """
        found: dict[str, Metric] = retrieval_metrics(ks)
        if self.answers is not None:
            found["accuracy"] = RelationAccuracy(self.answers)
            found["macro_f1"] = MacroF1(self.answers)
            return collect(found)
        for scorer in self.scorers:
            for metric in (ExactMatch(scorer), TokenF1(scorer)):
                found[metric.name] = metric
        for k in ks:
            found[f"answer_recall@{k}"] = AnswerRecall(k)
        return collect(found)


def _both_fields(passage: Passage) -> str:
    """Return the words of title and text; an answer cannot run over from the one to the other."""
    # a line break, which is no word, stands between
    return f"{normalised_words(passage.title)}\n{normalised_words(passage.text)}"


def _by_rarest_word(
    answers: Sequence[str], sample: Sequence[Passage]
) -> Mapping[str, Sequence[str]]:
    """Return the answers under that of their words which the fewest passages of a sample have.

    A passage is compared with the answers under its own words only: were it with those under a word
    such as "the", that would be most of them, in most passages.
    """
    needed = {word for answer in answers for word in answer.split()}
    frequency: Counter[str] = Counter()
    for passage in sample:
        frequency.update(needed.intersection(_both_fields(passage).split()))
    under: dict[str, list[str]] = {}
    for answer in answers:
        under.setdefault(min(answer.split(), key=lambda word: frequency[word]), []).append(answer)
    return under


def _united(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the rows that are in one of several ascending arrays, as a read-only one, (R,)."""
    nothing = np.empty(0, dtype=np.int64)
    rows = parts[0] if len(parts) == 1 else np.unique(np.concatenate([nothing, *parts]))
    rows.flags.writeable = False
    return rows


def _check_closed(answers: Sequence[str]) -> None:
    """Refuse a closed list without a choice, with a blank answer or with the same one twice."""
    forms = {" ".join(answer.split()).casefold() for answer in answers}
    if len(answers) < 2 or len(forms) < len(answers) or any(map(is_blank, answers)):
        raise UserError(
            f"task.answers is {list(answers)}; legal: null, or two or more answers, none of them "
            "blank and no two equal but for case and white space"
        )
