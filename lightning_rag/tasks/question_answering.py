"""Question answering with short answers, over passages."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torchmetrics import MetricCollection

from lightning_rag.errors import UserError
from lightning_rag.metrics.text import ExactMatch, TokenF1
from lightning_rag.tasks.base import Task, as_rows, collect, retrieval_metrics
from lightning_rag.types import Instance, Passage, Rendered

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
    """A question, passages to read, a short answer in free text.

    A passage is known to be relevant by the instance's ids or, where it has none, because an answer
    stands in its title or text. The latter means little for answers such as "yes": data sets that
    have them should give ids.
    """

    monitor = "f1"

    def prepare(self, labels: Sequence[str], wording: Mapping[str, str] | None = None) -> None:
        """Check that the data set has no labels.

        Raises:
            UserError: it has some.
        """
        if labels:
            raise UserError(
                f"question answering has free answers, and the data set has the labels "
                f"{', '.join(labels)}; legal: a task with labels, such as RelationExtraction"
            )

    def query(self, instance: Instance) -> Rendered:
        """Return the question."""
        return Rendered(instance.text)

    def key(self, passage: Passage) -> Rendered:
        """Return "title. text"."""
        return Rendered(f"{passage.title}. {passage.text}" if passage.title else passage.text)

    def source(self, instance: Instance) -> Rendered:
        """Return the question."""
        return Rendered(instance.text)

    def passage(self, passage: Passage, *, with_label: bool = True) -> Rendered:
        """Return "title: text"; such a passage has no label, whatever `with_label` says."""
        return Rendered(f"{passage.title}: {passage.text}" if passage.title else passage.text)

    def target(self, instance: Instance) -> str:
        """Return the first accepted answer."""
        if not instance.answers:
            raise ValueError(f"instance {instance.id!r} has no answer")
        return instance.answers[0]

    def options(self, instance: Instance) -> None:
        """Return None: answers are free text."""
        return None

    def option_target(self, instance: Instance, answer: str) -> str:
        """Return the answer itself."""
        return answer

    def parse(self, output: str, instance: Instance) -> str:
        """Return the output with single spaces."""
        return " ".join(output.split())

    def matches(self, instance: Instance, passage: Passage) -> bool:
        """Whether the words of an answer stand in a row in the passage's title or text."""
        fields = [normalised_words(passage.title), normalised_words(passage.text)]
        answers = [normalised_words(answer) for answer in instance.answers]
        return any(answer and answer in field for answer in answers for field in fields)

    def matching_rows(
        self, instances: Sequence[Instance], passages: Sequence[Passage]
    ) -> list[NDArray[np.int64]]:
        """Look every answer up among the passages that have its rarest word."""
        answers = [
            {words for answer in instance.answers if (words := normalised_words(answer))}
            for instance in instances
        ]
        needed = {word for group in answers for answer in group for word in answer.split()}
        haystack: list[str] = []
        rows_of: dict[str, list[int]] = {}
        for row, passage in enumerate(passages):
            # a line break, which is no word, keeps an answer from running over from title to text
            words = f"{normalised_words(passage.title)}\n{normalised_words(passage.text)}"
            haystack.append(words)
            for word in needed.intersection(words.split()):
                rows_of.setdefault(word, []).append(row)

        found: dict[str, list[int]] = {}
        for answer in set().union(*answers):
            rarest = min((rows_of.get(word, []) for word in answer.split()), key=len)
            found[answer] = [row for row in rarest if answer in haystack[row]]
        return [as_rows({row for answer in group for row in found[answer]}) for group in answers]

    def metrics(self, ks: Sequence[int]) -> MetricCollection:
        """Return exact_match, f1 and the retrieval metrics."""
        return collect(
            {"exact_match": ExactMatch(), "f1": TokenF1(), **retrieval_metrics(ks)},
        )
