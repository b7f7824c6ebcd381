"""What every task does: text for the models, answers from their output, relevance, metrics."""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torchmetrics import Metric, MetricCollection

from lightning_rag.errors import UserError
from lightning_rag.metrics.retrieval import NDCG, Recall, ReciprocalRank, Success
from lightning_rag.tasks.keywords import Tags
from lightning_rag.types import Instance, Passage, Rendered

UNREADABLE = ("C", "Z")  # Unicode's classes of control characters and of white space


class Task(ABC):
    """Renders instances and passages to text, reads outputs, knows what is relevant.

    Attributes:
        monitor: the metric of `metrics` that model selection maximises.
        slots: names of the spans at which a retriever embeds an instance one by one; () where a
            text has none and is embedded whole.
    """

    monitor: str = "f1"
    slots: tuple[str, ...] = ()

    @abstractmethod
    def prepare(self, labels: Sequence[str], wording: Mapping[str, str] | None = None) -> None:
        """Take the data set's labels; called once, before anything else.

        Args:
            labels: all labels in a fixed order, () where answers are free text.
            wording: label -> text, where the data set brings its own.

        Raises:
            UserError: labels and the task's arguments do not fit.
        """

    def check_answers(self, instances: Iterable[Instance]) -> None:
        """Check the gold answers of a split; called once for each, after `prepare`.

        Args:
            instances: the split; those without an answer (to predict on) pass.

        Raises:
            UserError: an answer without a character that a tokeniser keeps; the message names the
                instance.
        """
        for instance in instances:
            for answer in instance.answers:
                if is_blank(answer):
                    raise UserError(
                        f"instance {instance.id!r} has the answer {answer!r}; legal: answers with "
                        "a character that is neither white space nor a control character"
                    )

    @abstractmethod
    def query(self, instance: Instance) -> Rendered:
        """Return what a retriever reads of a query; the label is never in it."""

    @abstractmethod
    def key(self, passage: Passage) -> Rendered:
        """Return what a retriever reads of a passage.

        A demonstration's label is not in it, except where labels are what the task retrieves by
        (`InformationExtraction`).
        """

    def labelled_key(self, passage: Passage, separator: str) -> Rendered:
        """Return what a retriever of labelled instances reads of one.

        It is the key, then the separator, then the verbalised label with the range "label" (ETRAG,
        arXiv 2406.03790: sentence, separator token, target sentence). A plain passage has no label
        and stays as `key` renders it.

        Args:
            passage: the instance as a passage.
            separator: what stands between the two, such as the encoder's separator token.
        """
        return self.key(passage)

    def tagged_query(self, instance: Instance, tags: Tags) -> Rendered:
        """Return what a reward model reads of a query: with its answer, and keywords tagged.

        A task whose facts have no places in the text has nothing to tag: it is the query, a space
        and the target (RUIE, arXiv 2409.11673: the reward model alone reads the gold answer).

        Args:
            instance: the query.
            tags: how the gold mentions are tagged.

        Raises:
            ValueError: the instance has no answer.
        """
        query = self.query(instance)
        return Rendered(f"{query.text} {self.target(instance)}", query.spans)

    def tagged_key(self, passage: Passage, tags: Tags) -> Rendered:
        """Return what a reward model and its student read of a passage, keywords tagged.

        A demonstration is shown with its label, a plain passage as `key` renders it.

        Args:
            passage: the passage.
            tags: how the gold mentions are tagged.
        """
        return self.labelled_key(passage, " ")

    @abstractmethod
    def source(self, instance: Instance) -> Rendered:
        """Return what the generator reads of the query itself."""

    @abstractmethod
    def passage(self, passage: Passage, *, with_label: bool = True) -> Rendered:
        """Return a passage as it stands in the generator's input.

        Args:
            passage: the passage.
            with_label: for a demonstration, end with its verbalised label.

        Raises:
            ValueError: a label is asked for and the passage has none.
        """

    @abstractmethod
    def target(self, instance: Instance) -> str:
        """Return the text that the generator learns to write.

        Raises:
            ValueError: the instance has no answer.
        """

    @abstractmethod
    def options(self, instance: Instance) -> tuple[str, ...] | None:
        """Return the allowed answers, or None where the answer is free text."""

    @abstractmethod
    def option_target(self, instance: Instance, answer: str) -> str:
        """Return the text that stands for one allowed answer."""

    @abstractmethod
    def parse(self, output: str, instance: Instance) -> str:
        """Return the answer that a generated text stands for.

        An output that stands for no allowed answer comes back as it is; metrics count it as wrong.
        """

    @abstractmethod
    def matches(self, instance: Instance, passage: Passage) -> bool:
        """Whether a passage helps with an instance, judged by their contents."""

    @abstractmethod
    def matching_rows(
        self, instances: Sequence[Instance], passages: Sequence[Passage]
    ) -> list[NDArray[np.int64]]:
        """Return, for each instance, the ascending rows of the passages that `matches` accepts."""

    @abstractmethod
    def metrics(self, ks: Sequence[int]) -> MetricCollection:
        """Return fresh metrics; every one has `update(predictions, batch)`.

        Args:
            ks: the cut-offs of the retrieval metrics, each 1 or more.
        """

    def relevant(self, instance: Instance, passage: Passage) -> bool:
        """Whether a passage is relevant: by the instance's ids if it has some, else `matches`."""
        if instance.relevant:
            return passage.id in instance.relevant
        return self.matches(instance, passage)

    def relevant_rows(
        self,
        instances: Sequence[Instance],
        passages: Sequence[Passage],
        *,
        matching: Sequence[NDArray[np.int64]] | None = None,
    ) -> list[NDArray[np.int64]]:
        """Return, for each instance, the ascending rows of its relevant passages.

        Equal to asking `relevant` for every pair, in time that grows with the sum of the sizes and
        not with their product. Instances may share one array, so the arrays are read-only.

        Args:
            instances: the queries.
            passages: all passages of the store.
            matching: what `matching_rows` returns for both, where that is known already.
        """
        by_id: dict[str, list[int]] = {n: [] for instance in instances for n in instance.relevant}
        if by_id:
            for row, passage in enumerate(passages):
                if passage.id in by_id:
                    by_id[passage.id].append(row)
        if matching is None:
            judged = [instance for instance in instances if not instance.relevant]
            by_contents = iter(self.matching_rows(judged, passages) if judged else ())
        else:
            pairs = zip(instances, matching, strict=True)
            by_contents = iter([rows for instance, rows in pairs if not instance.relevant])
        return [
            as_rows(row for name in set(instance.relevant) for row in by_id[name])
            if instance.relevant
            else next(by_contents)
            for instance in instances
        ]


def as_rows(rows: Iterable[int]) -> NDArray[np.int64]:
    """Return `rows` in ascending order as a read-only array, (R,)."""
    array = np.array(sorted(rows), dtype=np.int64)
    array.flags.writeable = False
    return array


def is_blank(text: str) -> bool:
    """Whether a text is empty or has nothing but white space and control characters.

    Tokenisers drop these, so a model can neither read nor write such a text.
    """
    return all(unicodedata.category(character)[0] in UNREADABLE for character in text)


def retrieval_metrics(ks: Sequence[int]) -> dict[str, Metric]:
    """Return the retrieval metrics that all tasks share.

    Args:
        ks: cut-offs. Recall and success at each, nDCG at the largest; () leaves MRR alone.

    Raises:
        UserError: a cut-off below 1.
    """
    if any(k < 1 for k in ks):
        raise UserError(f"cut-offs of the retrieval metrics are {list(ks)}; legal: 1 or more")
    found: dict[str, Metric] = {}
    for k in ks:
        found[f"recall@{k}"] = Recall(k)
        found[f"success@{k}"] = Success(k)
    found["mrr"] = ReciprocalRank()
    if ks:
        found[f"ndcg@{max(ks)}"] = NDCG(max(ks))
    return found


def collect(metrics: dict[str, Metric]) -> MetricCollection:
    """Return the metrics as one collection.

    Without compute groups: torchmetrics merges metrics whose states happen to be equal after the
    first update (recall@1 and success@1, for instance), and keeps only one of them up to date.
    """
    return MetricCollection(dict(metrics), compute_groups=False)
