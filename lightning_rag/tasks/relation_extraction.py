"""Relation extraction: which relation of a closed list holds between two mentions of a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torchmetrics import Metric, MetricCollection

from lightning_rag.errors import UserError
from lightning_rag.metrics.relation import RelationAccuracy, SemEval2010F1, TacredF1
from lightning_rag.tasks import constraints
from lightning_rag.tasks.base import Task, as_rows, collect, retrieval_metrics
from lightning_rag.tasks.labels import RETACRED, SEMEVAL2010, TACRED, Wording
from lightning_rag.tasks.marking import Markers, bare, marked, mention_texts, mentions, paired
from lightning_rag.tasks.wording import LabelFinder, choose_wording, fill
from lightning_rag.types import Instance, Passage, Rendered

LABEL_LEAD = " Relation: "  # between a demonstration's sentence and its label


class RelationExtraction(Task):
    """Classification of the pair (head, tail), written as text (SuRE, arXiv 2205.09837).

    Args:
        wording: the words of the labels: "semeval2010", "tacred" (TACREV too), "retacred", "fewrel"
            (the names that its reader brings), the path of a JSON file {label: text}, or None: what
            the data set brings, else the labels themselves, prettified.
        target: what the generator writes: "label", a short phrase; "clause", a sentence that names
            both mentions, as SuRE and ETRAG do.
        markers: how the mentions are marked for the generator (`marking.marked`).
        scorer: the figure called f1: "tacred", micro-F1 without the negative label; "semeval2010",
            the official macro-F1 with direction; "accuracy", none, and accuracy selects models.
        negative_label: the label that says that no relation holds, None where there is none; the
            scorer "tacred" leaves it out, the type constraints always allow it.
        type_constraints: offer only the labels that the two entity types allow (TACRED, TACREV,
            Re-TACRED); a pair of types that the table lacks allows all.
        retrieval_text: what retrievers read: the bare "sentence", as RAG4RE does (arXiv 2404.13397:
            entities do not enter the embedding), or the "marked" one, as ETRAG does.
        demonstration_text: what the generator reads of a demonstration before its label: the
            "marked" sentence as of a query, the bare "sentence", or its two "mentions" alone.
    """

    slots = ("head", "tail", "label")

    def __init__(
        self,
        *,
        wording: str | None = None,
        target: Literal["label", "clause"] = "label",
        markers: Markers = "punctuation",
        scorer: Literal["semeval2010", "tacred", "accuracy"] = "tacred",
        negative_label: str | None = "no_relation",
        type_constraints: bool = False,
        retrieval_text: Literal["sentence", "marked"] = "sentence",
        demonstration_text: Literal["marked", "sentence", "mentions"] = "marked",
    ) -> None:
        for name, value, legal in (
            ("target", target, ("label", "clause")),
            ("markers", markers, ("punctuation", "tags", "clauses", "none")),
            ("scorer", scorer, ("semeval2010", "tacred", "accuracy")),
            ("retrieval_text", retrieval_text, ("sentence", "marked")),
            ("demonstration_text", demonstration_text, ("marked", "sentence", "mentions")),
        ):
            if value not in legal:
                raise UserError(f"task.{name} is {value!r}; legal: {', '.join(legal)}")
        self.wording = wording
        self.target_form = target
        self.markers: Markers = markers
        self.scorer = scorer
        self.negative_label = negative_label
        self.type_constraints = type_constraints
        self.retrieval_text = retrieval_text
        self.demonstration_text = demonstration_text
        self.monitor = "accuracy" if scorer == "accuracy" else "f1"
        self.labels: tuple[str, ...] = ()
        self._words: dict[str, Wording] = {}
        self._phrases = LabelFinder(())
        self._allowed: dict[tuple[str, str], tuple[str, ...]] = {}

    def prepare(self, labels: Sequence[str], wording: Mapping[str, str] | None = None) -> None:
        """Take the labels; find their words and, where asked for, the type constraints.

        Raises:
            UserError: no labels, the same label twice, a label without words, a scorer, negative
                label or type constraints that do not fit the labels.
        """
        self._check_labels(labels)
        self.labels = tuple(labels)
        self._words = choose_wording(labels, self.wording, wording or {})
        phrases = [(words.phrase, label) for label, words in self._words.items()]
        texts = {phrase for phrase, _ in phrases}
        # a label's own name stands for it too, unless it is the words of another label
        self._phrases = LabelFinder(
            phrases + [(label, label) for label in labels if label not in texts]
        )
        self._allowed = self._constraints() if self.type_constraints else {}

    def _check_labels(self, labels: Sequence[str]) -> None:
        if not labels:
            raise UserError("relation extraction came without labels; legal: one or more")
        twice = sorted({label for label in labels if list(labels).count(label) > 1})
        if twice:
            raise UserError(f"labels {twice} occur twice; legal: each label once")
        negative = self.negative_label
        if self.scorer == "tacred" and negative is not None and negative not in labels:
            raise UserError(
                f"task.negative_label is {negative!r}, which the data set lacks; legal: "
                f"{', '.join(labels)}, or null where no label says that there is no relation"
            )
        foreign = [label for label in labels if label not in SEMEVAL2010]
        if self.scorer == "semeval2010" and foreign:
            raise UserError(
                f"task.scorer is 'semeval2010' and a label is {foreign[0]!r}; legal: "
                f"{', '.join(SEMEVAL2010)}"
            )

    def _constraints(self) -> dict[tuple[str, str], tuple[str, ...]]:
        for known, table in ((TACRED, constraints.TACRED), (RETACRED, constraints.RETACRED)):
            if set(self.labels) <= set(known):
                return {
                    pair: tuple(
                        name for name in self.labels if name in allowed | {self.negative_label}
                    )
                    for pair, allowed in table.items()
                }
        foreign = [name for name in self.labels if name not in {**TACRED, **RETACRED}]
        raise UserError(
            "task.type_constraints is true, which needs the labels of TACRED or of Re-TACRED; came "
            f"{foreign[0]!r}"
            if foreign
            else "task.type_constraints is true and the labels mix those of TACRED and Re-TACRED; "
            "legal: one of the two"
        )

    def query(self, instance: Instance) -> Rendered:
        """Return the sentence, bare or marked, with the ranges "head" and "tail"."""
        if self.retrieval_text == "sentence":
            return bare(instance)
        return marked(instance, self.markers)

    def key(self, passage: Passage) -> Rendered:
        """Return the demonstration's sentence as `query` renders it, or a plain passage's text."""
        return Rendered(passage.text) if passage.instance is None else self.query(passage.instance)

    def labelled_key(self, passage: Passage, separator: str) -> Rendered:
        """Return the demonstration as `query` renders it, the separator and its label's words.

        The ranges are "head", "tail" and "label"; a plain passage is its text, without ranges.

        Raises:
            ValueError: the demonstration has no label.
        """
        if passage.instance is None:
            return Rendered(passage.text)
        return self._labelled(self.query(passage.instance), separator, passage.instance)

    def source(self, instance: Instance) -> Rendered:
        """Return the marked sentence with the ranges "head" and "tail"."""
        return marked(instance, self.markers)

    def passage(self, passage: Passage, *, with_label: bool = True) -> Rendered:
        """Return the demonstration, with its label's words and their range "label"."""
        if passage.instance is None:
            if with_label:
                raise ValueError(f"passage {passage.id!r} is no demonstration: it has no label")
            return Rendered(passage.text)
        sentence = self._demonstration(passage.instance)
        return self._labelled(sentence, LABEL_LEAD, passage.instance) if with_label else sentence

    def _labelled(self, sentence: Rendered, between: str, instance: Instance) -> Rendered:
        """Return the sentence, `between` and the words of the gold label, the range "label"."""
        words = self.target(instance)
        start = len(sentence.text) + len(between)
        return Rendered(
            sentence.text + between + words,
            {**sentence.spans, "label": (start, start + len(words))},
        )

    def _demonstration(self, instance: Instance) -> Rendered:
        if self.demonstration_text == "marked":
            return marked(instance, self.markers)
        if self.demonstration_text == "sentence":
            return bare(instance)
        return paired(instance)

    def target(self, instance: Instance) -> str:
        """Return the words of the gold label."""
        if not instance.answers:
            raise ValueError(f"instance {instance.id!r} has no label")
        return self.option_target(instance, instance.answers[0])

    def options(self, instance: Instance) -> tuple[str, ...]:
        """Return the labels that the types of head and tail allow, in the data set's order."""
        self._check_prepared()
        if not self._allowed:
            return self.labels
        head, tail = (span.type.upper().replace(" ", "_") for span in mentions(instance))
        return self._allowed.get((head, tail)) or self.labels

    def option_target(self, instance: Instance, answer: str) -> str:
        """Return the words of one label.

        Raises:
            UserError: an unknown label.
        """
        self._check_prepared()
        words = self._words.get(answer)
        if words is None:
            raise UserError(
                f"instance {instance.id!r}: label {answer!r} is unknown; legal: "
                f"{', '.join(self.labels)}"
            )
        if self.target_form == "label":
            return words.phrase
        return fill(words.clause, *mention_texts(instance))

    def parse(self, output: str, instance: Instance) -> str:
        """Return the label whose words, clause or name the output is, else the output itself."""
        self._check_prepared()
        label = self._phrases.find(output)
        if label is None and instance.head is not None and instance.tail is not None:
            named = mention_texts(instance)
            clauses = ((fill(w.clause, *named), name) for name, w in self._words.items())
            label = LabelFinder(clauses).find(output)
        return output if label is None else label

    def matches(self, instance: Instance, passage: Passage) -> bool:
        """Whether the passage is a demonstration of the instance's label."""
        gold = instance.answers[:1]
        return bool(gold) and passage.instance is not None and passage.instance.answers[:1] == gold

    def matching_rows(
        self, instances: Sequence[Instance], passages: Sequence[Passage]
    ) -> list[NDArray[np.int64]]:
        """Group the rows by label once; instances of one label share one array."""
        by_label: dict[str, list[int]] = {}
        for row, passage in enumerate(passages):
            if passage.instance is not None and passage.instance.answers:
                by_label.setdefault(passage.instance.answers[0], []).append(row)
        grouped = {label: as_rows(rows) for label, rows in by_label.items()}
        nothing = as_rows(())
        return [
            grouped.get(instance.answers[0], nothing) if instance.answers else nothing
            for instance in instances
        ]

    def metrics(self, ks: Sequence[int]) -> MetricCollection:
        """Return f1 (under "tacred" with precision and recall), accuracy, invalid_rate, retrieval.

        With scorer "accuracy" there is no f1.
        """
        self._check_prepared()
        found: dict[str, Metric] = {"accuracy": RelationAccuracy(self.labels)}
        if self.scorer == "semeval2010":
            found["f1"] = SemEval2010F1()
        elif self.scorer == "tacred":
            found["f1"] = TacredF1(self.negative_label, self.labels)
        return collect({**found, **retrieval_metrics(ks)})

    def _check_prepared(self) -> None:
        if not self.labels:
            raise RuntimeError("RelationExtraction.prepare(labels) must come first")
