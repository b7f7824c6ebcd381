"""Relation extraction: which relation of a closed list holds between two mentions of a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torchmetrics import Metric, MetricCollection

from lightning_rag.errors import UserError
from lightning_rag.metrics.relation import (
    SEMEVAL2010_LABELS,
    PublishedF1,
    RelationAccuracy,
    Repaired,
    RepairedRate,
    SemEval2010F1,
    TacredF1,
)
from lightning_rag.tasks import constraints
from lightning_rag.tasks.base import Task, as_rows, collect, retrieval_metrics
from lightning_rag.tasks.instruction import (
    EXAMPLE_LABEL,
    HEAD_AND_TAIL,
    TAGGED,
    exemplified,
    instructed,
)
from lightning_rag.tasks.keywords import Tags, place
from lightning_rag.tasks.labels import RETACRED, SEMEVAL2010, TACRED, Wording
from lightning_rag.tasks.marking import (
    Markers,
    bare,
    marked,
    mention_texts,
    mentions,
    paired,
    type_words,
)
from lightning_rag.tasks.refinement import refine_decoder_only, refine_sequence_to_sequence
from lightning_rag.tasks.wording import LabelFinder, choose_wording, fill
from lightning_rag.types import Instance, Passage, Rendered

LABEL_LEAD = " Relation: "  # between a demonstration's sentence and its label


class RelationExtraction(Task):
    """Classification of the pair (head, tail), written as text (SuRE, arXiv 2205.09837).

    Args:
        wording: the words of the labels: "semeval2010", "tacred" (TACREV too), "retacred", "fewrel"
            (the names that its reader brings), "names" (the labels as they are), the path of a JSON
            file {label: text}, or None: what the data set brings, else the labels themselves,
            prettified.
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
        prompt: how the generator is asked: "plain", the marked sentence alone, for models that are
            trained; "instruction", with question, entities and the list of all labels' words, as
            RAG4RE does (`instruction`), for models that follow instructions. With the latter
            `markers` "none" is the bare sentence, and a demonstration is shown as an example.
        refinement: how generated text is read: "none", tolerantly (`parse`); else by the published
            rules of RAG4RE alone (`refinement`), which ask for the wording "names":
            "sequence_to_sequence" for encoder-decoders, "decoder_only" for Llama and its kind.
            Then the metric repaired_rate tells how many answers the rules turned into a label.
        published_metrics: add the figures of RAG4RE's tables, which are not comparable to the
            scorer's: negative_f1 with precision and recall, of the negative class; under the
            scorer "semeval2010" micro19_f1 with precision and recall, of all 19 labels.
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
        prompt: Literal["plain", "instruction"] = "plain",
        refinement: Literal["none", "sequence_to_sequence", "decoder_only"] = "none",
        published_metrics: bool = False,
    ) -> None:
        for name, value, legal in (
            ("target", target, ("label", "clause")),
            ("markers", markers, ("punctuation", "tags", "clauses", "none")),
            ("scorer", scorer, ("semeval2010", "tacred", "accuracy")),
            ("retrieval_text", retrieval_text, ("sentence", "marked")),
            ("demonstration_text", demonstration_text, ("marked", "sentence", "mentions")),
            ("prompt", prompt, ("plain", "instruction")),
            ("refinement", refinement, ("none", "sequence_to_sequence", "decoder_only")),
        ):
            if value not in legal:
                raise UserError(f"task.{name} is {value!r}; legal: {', '.join(legal)}")
        if prompt == "instruction" and target == "clause":
            raise UserError(
                "task.prompt is 'instruction', which asks for a relation type, and task.target is "
                "'clause'; legal: target 'label', or prompt 'plain'"
            )
        self.wording = wording
        self.target_form = target
        self.markers: Markers = markers
        self.scorer = scorer
        self.negative_label = negative_label
        self.type_constraints = type_constraints
        self.retrieval_text = retrieval_text
        self.demonstration_text = demonstration_text
        self.prompt = prompt
        self.refinement = refinement
        self.published_metrics = published_metrics
        self.monitor = "accuracy" if scorer == "accuracy" else "f1"
        self.labels: tuple[str, ...] = ()
        self._words: dict[str, Wording] = {}
        self._listed: list[str] = []  # the labels' words as an instruction lists them
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
        self._listed = sorted(words.phrase for words in self._words.values())
        self._check_refinement()
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
        if self.published_metrics and negative is None:
            raise UserError(
                "task.published_metrics is true, which needs a negative label, and "
                "task.negative_label is null; legal: the label that says that there is no relation"
            )
        needed = self.scorer == "tacred" or self.published_metrics
        if needed and negative is not None and negative not in labels:
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

    def _check_refinement(self) -> None:
        """Refuse labels that the rules of refinement do not know when they see them."""
        if self.refinement == "none":
            return
        for label, words in self._words.items():
            if self.target_form != "label" or words.phrase != label or " " in label:
                wrong = f"label {label!r} is written {words.phrase!r}"
                raise UserError(
                    f"task.refinement is {self.refinement!r}, which reads labels as they are, "
                    f"and {wrong if self.target_form == 'label' else 'task.target is clause'}; "
                    "legal: task.wording 'names', task.target 'label', labels without spaces"
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

    def tagged_query(self, instance: Instance, tags: Tags) -> Rendered:
        """Return the sentence with head and tail as keywords, and the words of its label.

        "typed" writes the entity types, where there are some. Without tags it is `query` and the
        words. The ranges are "head", "tail" (tags included) and "label".

        Raises:
            ValueError: the instance has no label.
        """
        if tags == "none":
            return self._labelled(self.query(instance), " ", instance)
        spans = [(span.start, span.end, type_words(span)) for span in mentions(instance)]
        text, (head, tail) = place(instance.text, spans, tags)
        return self._labelled(Rendered(text, {"head": head, "tail": tail}), " ", instance)

    def tagged_key(self, passage: Passage, tags: Tags) -> Rendered:
        """Return a demonstration as `tagged_query` returns it, or a plain passage's text.

        Raises:
            ValueError: the demonstration has no label.
        """
        if passage.instance is None:
            return Rendered(passage.text)
        return self.tagged_query(passage.instance, tags)

    def source(self, instance: Instance) -> Rendered:
        """Return the marked sentence, or the whole instruction, with ranges "head" and "tail"."""
        if self.prompt == "plain":
            return marked(instance, self.markers)
        self._check_prepared()
        roles = TAGGED if self.markers == "tags" else HEAD_AND_TAIL
        return instructed(self._sentence(instance), instance, self._listed, roles)

    def _sentence(self, instance: Instance) -> Rendered:
        """Return the marked sentence; an instruction asks its question elsewhere."""
        if self.prompt == "instruction" and self.markers == "none":
            return bare(instance)
        return marked(instance, self.markers)

    def passage(self, passage: Passage, *, with_label: bool = True) -> Rendered:
        """Return the demonstration, with its label's words and their range "label"."""
        if passage.instance is None:
            if with_label:
                raise ValueError(f"passage {passage.id!r} is no demonstration: it has no label")
            return Rendered(passage.text)
        sentence, lead = self._demonstration(passage.instance), LABEL_LEAD
        if self.prompt == "instruction":
            sentence, lead = exemplified(sentence), EXAMPLE_LABEL
        return self._labelled(sentence, lead, passage.instance) if with_label else sentence

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
            return self._sentence(instance)
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
        """Return the label whose words, clause or name the output is, else the output itself.

        With `refinement` the published rules decide instead, and a label that is not the very
        output is a `Repaired` one.
        """
        self._check_prepared()
        if self.refinement != "none":
            return self._refined(output, instance)
        label = self._phrases.find(output)
        if label is None and instance.head is not None and instance.tail is not None:
            named = mention_texts(instance)
            clauses = ((fill(w.clause, *named), name) for name, w in self._words.items())
            label = LabelFinder(clauses).find(output)
        return output if label is None else label

    def _refined(self, output: str, instance: Instance) -> str:
        subject = "" if instance.head is None else instance.head.type
        if self.refinement == "sequence_to_sequence":
            label = refine_sequence_to_sequence(output, self.labels, subject)
        else:
            label = refine_decoder_only(output, self.labels, subject)
        if label not in self._words:
            return output
        return label if label == output.strip() else Repaired(label)

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

        With scorer "accuracy" there is no f1. `refinement` and `published_metrics` add theirs.
        """
        self._check_prepared()
        found: dict[str, Metric] = {"accuracy": RelationAccuracy(self.labels)}
        if self.scorer == "semeval2010":
            found["f1"] = SemEval2010F1()
        elif self.scorer == "tacred":
            found["f1"] = TacredF1(self.negative_label, self.labels)
        if self.refinement != "none":
            found["repaired"] = RepairedRate()
        if self.published_metrics and self.negative_label is not None:
            found["negative"] = PublishedF1("negative", [self.negative_label])
            if self.scorer == "semeval2010":
                found["micro19"] = PublishedF1("micro19", SEMEVAL2010_LABELS)
        return collect({**found, **retrieval_metrics(ks)})

    def _check_prepared(self) -> None:
        if not self.labels:
            raise RuntimeError("RelationExtraction.prepare(labels) must come first")
