"""Unified information extraction: entities, relations, events and their arguments, as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torchmetrics import Metric, MetricCollection

from lightning_rag.errors import UserError
from lightning_rag.metrics.spans import ExtractionF1, clean_facts, says_nothing
from lightning_rag.tasks.base import Task, as_rows, collect, is_blank, retrieval_metrics
from lightning_rag.tasks.keywords import Tags
from lightning_rag.tasks.records import (
    CUE,
    NOTHING,
    fact_text,
    instruction,
    join,
    record,
    spell_labels,
)
from lightning_rag.types import Extraction, Fact, Instance, Passage, Rendered

MENTIONS: Mapping[str, int] = {"entities": 1, "relations": 2, "events": 1, "arguments": 1}


def linearize(extraction: Extraction) -> str:
    """Return the gold facts as text, in their order: the answer of an instance.

    `type: mention` of each, a relation's `type: head, tail`, with "; " between them; "None" where
    there is nothing to extract (RUIE, arXiv 2409.11673; released code).
    """
    return "; ".join(f"{fact.type}: {fact_text(fact)}" for fact in extraction.facts) or NOTHING


class InformationExtraction(Task):
    """What a text says, of what a schema asks for (RUIE, arXiv 2409.11673).

    Every query and demonstration is a record of four lines (`records`). As RUIE does, the passages
    that retrievers read have their answers: BM25, an untrained encoder and a trained one all search
    labelled demonstrations. A query never has its own.

    Args:
        prompt: how the generator is asked: "plain", the record alone, for models that are trained;
            "instruction", after what the kind of extraction asks for, for models that follow
            instructions. In a decoder-only prompt the instruction comes first, then the
            demonstrations, each with an empty line behind it, then the query.
        keyword_places: where keyword tags stand: "exact", or as the "released" code finds mentions
            (`keywords.locate`).
        per_type: add the scores of every label of every task, `f1/<task>/<label>` and so on. Data
            sets with many labels make these hundreds of figures.
    """

    def __init__(
        self,
        *,
        prompt: Literal["plain", "instruction"] = "plain",
        keyword_places: Literal["exact", "released"] = "exact",
        per_type: bool = False,
    ) -> None:
        for name, value, legal in (
            ("prompt", prompt, ("plain", "instruction")),
            ("keyword_places", keyword_places, ("exact", "released")),
        ):
            if value not in legal:
                raise UserError(f"task.{name} is {value!r}; legal: {', '.join(legal)}")
        self.prompt = prompt
        self.keyword_places = keyword_places
        self.per_type = per_type

    def prepare(self, labels: Sequence[str], wording: Mapping[str, str] | None = None) -> None:
        """Check that the data set has no labels of its own: each instance brings its schema.

        Raises:
            UserError: it has some.
        """
        if labels:
            raise UserError(
                f"information extraction takes the labels of each instance's schema, and the data "
                f"set has its own: {', '.join(labels[:6])}; legal: a data set that is read for "
                "extraction, or the task RelationExtraction"
            )

    def check_answers(self, instances: Iterable[Instance]) -> None:
        """Check what is asked and the gold facts of a split.

        Raises:
            UserError: an instance without schema; a label that is blank, stands twice or has a ";"
                or a line break, which separate facts; a fact that is not in the schema, has the
                wrong number of mentions or a blank one; arguments without an event's trigger, or a
                trigger without arguments; an answer that is not the facts' text. The message names
                the instance.
        """
        checked = list(instances)
        super().check_answers(checked)
        sound: set[tuple[str, ...]] = set()  # schemas: most instances share a few
        for instance in checked:
            extraction = _asked(instance)
            if extraction.schema not in sound:
                _check_schema(instance, extraction.schema)
                sound.add(extraction.schema)
            _check_facts(instance, extraction)

    def query(self, instance: Instance) -> Rendered:
        """Return the record without its output, as a demonstration's but for the answer."""
        return record(instance.text, _asked(instance))

    def key(self, passage: Passage) -> Rendered:
        """Return the record with its output: RUIE's retrievers read labelled demonstrations.

        A plain passage is its text, and an unlabelled instance a record without output.
        """
        if passage.instance is None:
            return Rendered(passage.text)
        if not passage.instance.answers:
            return self.query(passage.instance)
        return _anchored(join(self.query(passage.instance), passage.instance.answers[0]))

    def labelled_key(self, passage: Passage, separator: str) -> Rendered:
        """Return the record, the separator and the answer with the range "label".

        With one space as separator it is the text of `key`. A plain passage is its text.

        Raises:
            ValueError: the demonstration has no answer.
        """
        if passage.instance is None:
            return Rendered(passage.text)
        return join(self.query(passage.instance), self.target(passage.instance), separator)

    def tagged_query(self, instance: Instance, tags: Tags) -> Rendered:
        """Return the record with its keywords tagged and its answer: what a reward model reads.

        Raises:
            ValueError: the instance has no answer.
        """
        parity = self.keyword_places == "released"
        query = record(instance.text, _asked(instance), tags, parity=parity)
        return _anchored(join(query, self.target(instance)))

    def tagged_key(self, passage: Passage, tags: Tags) -> Rendered:
        """Return a demonstration as `tagged_query` returns it; a plain passage is its text.

        Raises:
            ValueError: the demonstration has no answer.
        """
        if passage.instance is None:
            return Rendered(passage.text)
        return self.tagged_query(passage.instance, tags)

    def source(self, instance: Instance) -> Rendered:
        """Return the record without output, or the instruction, range "lead", and the record.

        The range "cue" is the record's `Output:`, which the answer follows.
        """
        query = record(instance.text, _asked(instance))
        if self.prompt == "plain":
            return query
        lead = instruction(_asked(instance).kind)
        start, end = query.spans["cue"]
        spans = {"lead": (0, len(lead)), "cue": (start + len(lead), end + len(lead))}
        return Rendered(lead + query.text, spans)

    def passage(self, passage: Passage, *, with_label: bool = True) -> Rendered:
        """Return the demonstration's record, untagged, its answer being the range "label".

        Raises:
            ValueError: a label is asked for and the passage has none.
        """
        if passage.instance is None:
            if with_label:
                raise ValueError(f"passage {passage.id!r} is no demonstration: it has no label")
            return Rendered(passage.text)
        query = record(passage.instance.text, _asked(passage.instance))
        shown = Rendered(query.text)
        if with_label:
            answered = join(query, self.target(passage.instance))
            shown = Rendered(answered.text, {"label": answered.spans["label"]})
        if self.prompt == "plain":
            return shown
        return Rendered(shown.text + "\n", shown.spans)  # an empty line before what follows

    def target(self, instance: Instance) -> str:
        """Return the gold facts as text.

        Raises:
            ValueError: the instance has no answer.
        """
        if not instance.answers:
            raise ValueError(f"instance {instance.id!r} has no answer")
        return instance.answers[0]

    def options(self, instance: Instance) -> tuple[str, ...] | None:
        """Return None: answers are free text."""
        return None

    def option_target(self, instance: Instance, answer: str) -> str:
        """Return the answer itself."""
        return answer

    def parse(self, output: str, instance: Instance) -> str:
        """Return the part of a generated text that answers, without the cue and white space around.

        Parts have empty lines between them. It is the first from which a fact of the schema can be
        read or that says that there is none, else the last one. So neither an introduction hides an
        answer nor a further record that a model without instructions goes on with. The released
        code takes the last part, and stops most models at the first empty line. Labels come back as
        the schema spells them (`records.spell_labels`); names as they were written, so that the
        official scorer misses those in which a tokeniser lost a space.
        """
        extraction = _asked(instance)
        parts = [part.strip().removeprefix(CUE).strip() for part in _parts(output)]
        for part in parts:
            if says_nothing(part) or clean_facts(part, extraction.schema, extraction.kind):
                return spell_labels(part, extraction.schema)
        return parts[-1] if parts else ""

    def matches(self, instance: Instance, passage: Passage) -> bool:
        """Whether a demonstration of the same task has a fact type in common, or both have none."""
        other = passage.instance
        if other is None or not instance.answers or not other.answers:
            return False
        if (instance.task, _asked(instance).kind) != (other.task, _asked(other).kind):
            return False
        mine, theirs = _types(instance), _types(other)
        return bool(mine & theirs) or mine == theirs

    def matching_rows(
        self, instances: Sequence[Instance], passages: Sequence[Passage]
    ) -> list[NDArray[np.int64]]:
        """Group the rows by task and type once; instances of equal types share one array."""
        by_type: dict[tuple[str, str, str | None], list[int]] = {}
        for row, passage in enumerate(passages):
            other = passage.instance
            if other is not None and other.answers:
                for kind in _types(other) or (None,):
                    by_type.setdefault((other.task, _asked(other).kind, kind), []).append(row)
        found: dict[tuple[str, str, frozenset[str]], NDArray[np.int64]] = {}
        rows = []
        for instance in instances:
            if not instance.answers:
                rows.append(as_rows(()))
                continue
            task, asked, types = instance.task, _asked(instance).kind, _types(instance)
            if (task, asked, types) not in found:
                groups = [by_type.get((task, asked, kind), []) for kind in types or (None,)]
                found[task, asked, types] = as_rows({row for group in groups for row in group})
            rows.append(found[task, asked, types])
        return rows

    def metrics(self, ks: Sequence[int]) -> MetricCollection:
        """Return the figures of `ExtractionF1`, among them f1, and the retrieval metrics."""
        extraction: dict[str, Metric] = {"extraction": ExtractionF1(_record_text, self.per_type)}
        return collect({**extraction, **retrieval_metrics(ks)})


def _record_text(instance: Instance) -> str:
    return record(instance.text, _asked(instance)).text


def _anchored(answered: Rendered) -> Rendered:
    """Return a record that an encoder cuts at its beginning, and at the end of a long answer.

    The range of the answer would forbid a cut in it, and a sentence can have more facts than fit.
    """
    return Rendered(answered.text, {"cue": answered.spans["cue"]})


def _asked(instance: Instance) -> Extraction:
    """Return what is asked of an instance.

    Raises:
        UserError: nothing is.
    """
    if instance.extraction is None:
        raise UserError(
            f"instance {instance.id!r} has no schema to extract by; legal: a data set that is read "
            "for extraction (CrossNER, say), or the task that the data set is made for"
        )
    return instance.extraction


def _types(instance: Instance) -> frozenset[str]:
    return frozenset(fact.type for fact in _asked(instance).facts)


def _parts(output: str) -> list[str]:
    """Return the parts of a text between empty lines, none of them blank."""
    parts: list[list[str]] = [[]]
    for line in output.splitlines():
        if line.strip():
            parts[-1].append(line)
        else:
            parts.append([])
    return ["\n".join(lines) for lines in parts if lines]


def _check_schema(instance: Instance, schema: tuple[str, ...]) -> None:
    """Refuse labels that cannot be told apart or from what separates facts."""
    if not schema:
        raise UserError(f"instance {instance.id!r} has an empty schema; legal: one label or more")
    for label in schema:
        if is_blank(label) or ";" in label or len(label.splitlines()) > 1:
            raise UserError(
                f"instance {instance.id!r} has the label {label!r} in its schema; legal: labels "
                'that are not blank, without ";" and line breaks, which separate facts'
            )
    twice = sorted({label for label in schema if schema.count(label) > 1})
    if twice:
        raise UserError(
            f"instance {instance.id!r} has label {twice[0]!r} in its schema twice; legal: once"
        )


def _check_facts(instance: Instance, extraction: Extraction) -> None:
    """Refuse facts that do not fit what is asked, and an answer that does not say them."""
    if (extraction.trigger is None) != (extraction.kind != "arguments"):
        raise UserError(
            f"instance {instance.id!r} asks for {extraction.kind} and has "
            f"{'no' if extraction.trigger is None else 'a'} trigger; legal: a trigger with "
            "arguments, and with nothing else"
        )
    for fact in extraction.facts:
        if fact.type not in extraction.schema:
            raise UserError(
                f"instance {instance.id!r} has a fact of type {fact.type!r}; legal: "
                f"{', '.join(extraction.schema)}"
            )
        _check_mentions(instance, fact, MENTIONS[extraction.kind])
    if extraction.trigger is not None:
        _check_mentions(instance, extraction.trigger, 1)
    if instance.answers and instance.answers != (linearize(extraction),):
        raise UserError(
            f"instance {instance.id!r} has the answers {list(instance.answers)}; legal: the text "
            f"of its facts, {linearize(extraction)!r}"
        )


def _check_mentions(instance: Instance, fact: Fact, count: int) -> None:
    """Refuse a fact with too many or too few mentions, or with a blank one."""
    texts = [mention.text for mention in fact.mentions]
    if len(texts) != count or any(map(is_blank, texts)):
        raise UserError(
            f"instance {instance.id!r} has the mentions {texts} of {fact.type!r}; legal: {count}, "
            "none of them blank"
        )
