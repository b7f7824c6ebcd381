"""Scores of unified information extraction: facts read from generated text, as sets.

Two scorers stand side by side. "clean" is ours; "official" does as the released code of RUIE
(OStars/RUIE, src/evaluation/metrics.py), so that figures can be compared with published ones. Both
compare label and words of a fact, not its place, and count a repeated fact once. For relations that
is what universal-ie/UIE calls the boundary score by strings: entity types do not count.

What the official one does that the clean one does not:

- It compares names without spaces around punctuation to the query with them, so entities such as
  `Mr. Webb` and `O 'Brien` never count as predicted, and looks for a name in the schema too.
- Labels are part of a regular expression as they are: one with brackets or a plus matches other
  texts than itself, or makes the code fail, and a label counts within another word.
- It reads the schema between the first two square brackets and splits it at commas, so a trigger
  with a bracket or a label with a comma destroys it.
- `location` becomes `located`, in names too, and a `;` in a gold name makes two facts of it.
- Under EET and EEA it merges files of one data set, and its average counts both the merged file and
  its parts. This is of its summary, which has no counterpart here: our means are over tasks.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from lightning_rag.metrics.base import CountedMetric, answered
from lightning_rag.metrics.counts import MEAN, MICRO_F1, Aggregation, Count, columns
from lightning_rag.metrics.relation import PrecisionRecallF1
from lightning_rag.types import Extraction, ExtractionKind, Instance, Predictions, RagBatch

ClassifiedFact = tuple[str, str]  # a label of the schema, and the normalised words behind it
Counts = tuple[int, int, int]  # correct, predicted, gold
Fact = TypeVar("Fact", bound=Hashable)

SCHEMAS_KEPT = 4096  # distinct schemas whose patterns stay in memory
_LEADS = {"clean": "", "official": "official_"}  # scorer -> what its figures' names begin with
MEAN_OF_TASKS = Aggregation("f1", "macro")

_WORDS = r":[^;\n]+"  # what follows a label in the released pattern


def extraction_f1(
    predictions: Sequence[Collection[Hashable]], targets: Sequence[Collection[Hashable]]
) -> PrecisionRecallF1:
    """Return micro precision, recall and F1 of the facts of all records.

    A fact counts once in a record, however often it is predicted or gold.

    Args:
        predictions: the facts read from each output, anything that can be compared.
        targets: the gold facts of each record, in the same order.

    Returns:
        The three scores, each 0 where its denominator is.

    Raises:
        ValueError: the two lists differ in length.
    """
    if len(predictions) != len(targets):
        raise ValueError(
            f"predictions: expected {len(targets)}, as many as targets, got {len(predictions)}"
        )
    pairs = [(set(p), set(t)) for p, t in zip(predictions, targets, strict=True)]
    return _scores(
        (
            sum(len(predicted & gold) for predicted, gold in pairs),
            sum(len(predicted) for predicted, _ in pairs),
            sum(len(gold) for _, gold in pairs),
        )
    )


def normalise(text: str) -> str:
    """Return a text as the official scorer compares it (released code of RUIE).

    Single spaces, none around `, : ( ) . _ ; ' -`, lower case, no braces, no repeated `,`, `.` and
    `;`, straight apostrophes, and "located" for "location".
    """
    return _released_form(text).replace("location", "located")


def clean_form(text: str) -> str:
    """Return a text as the clean scorer compares it, on both sides.

    What a tokeniser may lose makes no difference: case, accents, and spaces beside any punctuation.
    Else it is the official form, but "location" stays.
    """
    decomposed = unicodedata.normalize("NFKD", text)
    bare = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return _released_form(re.sub(r"\s*([^\w\s]|_)\s*", r"\1", bare)).casefold()


def _released_form(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ?([,:().;_'-]) ?", r"\1", text).lower()
    text = re.sub(r"[{}]", "", text)
    return re.sub(r"([,.;])\1+", r"\1", text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")


def says_nothing(text: str) -> bool:
    """Whether an output says that there is nothing to extract."""
    return clean_form(text).rstrip(".") == "none"


def clean_facts(
    text: str, schema: Sequence[str], kind: ExtractionKind, *, sentence: str | None = None
) -> frozenset[ClassifiedFact]:
    """Return the facts that an output states, as the clean scorer reads it.

    Facts stand between ";" or line breaks, each as a label of the schema, a colon and words.
    Anything else is no fact. A ";" belongs to the words where the sentence has it at this place.

    Args:
        text: the output.
        schema: the labels, any characters in them.
        kind: of the extraction.
        sentence: what the facts are extracted from, None if it shall not matter. With it, entities
            whose words it does not have are left out, as the official scorer leaves them out: they
            count neither as correct nor as wrong.
    """
    labels, pattern = _reader(tuple(schema))
    context = "" if sentence is None else clean_form(sentence)
    found: list[ClassifiedFact] = []
    for line in text.splitlines():
        open_ended = False  # whether the fact before may go on
        for piece in filter(None, clean_form(line).split(";")):
            match = pattern.fullmatch(piece)
            if match is not None:
                found.append((labels[match[1]], match[2]))
            elif open_ended and _goes_on(found[-1][1], piece, context):
                label, words = found.pop()
                found.append((label, f"{words};{piece}"))
            open_ended = match is not None or (open_ended and found[-1][1].endswith(piece))
    if kind == "entities" and sentence is not None:
        return frozenset((label, words) for label, words in found if words in context)
    return frozenset(found)


def clean_gold(extraction: Extraction) -> frozenset[ClassifiedFact]:
    """Return the gold facts in the form of `clean_facts`."""
    return frozenset(
        (fact.type, clean_form(", ".join(mention.text for mention in fact.mentions)))
        for fact in extraction.facts
    )


@lru_cache(maxsize=SCHEMAS_KEPT)
def _reader(schema: tuple[str, ...]) -> tuple[Mapping[str, str], re.Pattern[str]]:
    """Return what stands for each label, and the pattern of a fact, longer labels first."""
    labels: dict[str, str] = {}
    for label in schema:
        labels.setdefault(clean_form(label), label)
    longest_first = sorted(labels, key=len, reverse=True)
    return labels, re.compile(rf"({'|'.join(map(re.escape, longest_first))}):\s*(.+)")


def _goes_on(words: str, piece: str, sentence: str) -> bool:
    """Whether the sentence has a ";" between the last word of a fact and the next piece's first."""
    last, first = re.split(r"[\s,]", words)[-1], re.split(r"[\s,]", piece)[0]
    return f"{last};{first}" in sentence


def official_facts(text: str, record: str, kind: ExtractionKind) -> frozenset[str]:
    """Return the facts that an output states, as the released code reads it, its errors included.

    Source: OStars/RUIE, src/evaluation/metrics.py. Where labels make that code fail there are none.

    Args:
        text: the output.
        record: the query as the generator read it, four lines ending in "Output:"; the labels are
            read from it.
        kind: of the extraction.
    """
    schema = re.search(r"\[(.*?)\]", record, re.DOTALL)
    if schema is None:
        return frozenset()
    names = [_located(label.strip()) for label in schema[1].split(",")]
    names.sort(key=len, reverse=True)
    try:
        found = re.findall(f"({'|'.join(name + _WORDS for name in names)})", _located(text))
    except re.error:
        return frozenset()
    if any(not isinstance(item, str) for item in found):  # a label had a group in it
        return frozenset()
    facts = frozenset(map(normalise, found))
    if kind == "events":
        return facts
    if kind == "relations":
        return frozenset(fact for fact in facts if ":" in fact)
    facts = frozenset(fact for fact in facts if fact.split(":")[0] in names)
    if kind == "arguments":
        return facts
    query = record.lower()
    return frozenset(fact for fact in facts if fact.partition(":")[2].split(":")[0] in query)


def official_gold(answer: str, kind: ExtractionKind) -> frozenset[str]:
    """Return the gold facts in the form of `official_facts`, from the text of an answer."""
    if kind == "arguments":
        facts = frozenset(map(normalise, answer.split(";")))
    else:
        facts = frozenset(map(normalise, normalise(answer).split(";")))
    if kind == "entities":
        return frozenset() if facts == {"none"} else facts
    return frozenset(fact for fact in facts if ":" in fact)


def _located(text: str) -> str:
    return text.lower().replace("location", "located")


def _scores(counts: Counts) -> PrecisionRecallF1:
    correct, predicted, gold = counts
    return {
        "precision": correct / predicted if predicted else 0.0,
        "recall": correct / gold if gold else 0.0,
        "f1": 2 * correct / (predicted + gold) if predicted + gold else 0.0,
    }


class ScoredOutput(NamedTuple):
    """What the scorers make of one output: for each scorer, label -> counts, and what is wrong."""

    counts: Mapping[str, Mapping[str, Counts]]
    unparsed: bool


def score_output(text: str, instance: Instance, record: str) -> ScoredOutput:
    """Compare an output with the gold facts by both scorers.

    Args:
        text: the output, as the task's `parse` returns it.
        instance: the query, with its answer.
        record: the query as the generator read it, for the official scorer.

    Raises:
        ValueError: the instance has no extraction.
    """
    asked = instance.extraction
    if asked is None:
        raise ValueError(f"instance {instance.id!r} has no facts to compare a prediction with")
    clean = clean_facts(text, asked.schema, asked.kind, sentence=instance.text)
    official = official_facts(text, record, asked.kind)
    longest_first = sorted(asked.schema, key=len, reverse=True)
    forms = [(normalise(label), label) for label in longest_first]

    def official_label(fact: str) -> str:  # "" where something else stands in its place
        return next((label for form, label in forms if fact.startswith(f"{form}:")), "")

    nothing = clean_facts(text, asked.schema, asked.kind) == frozenset()
    return ScoredOutput(
        {
            "clean": _by_label(clean, clean_gold(asked), lambda fact: fact[0]),
            "official": _by_label(
                official, official_gold(instance.answers[0], asked.kind), official_label
            ),
        },
        nothing and not says_nothing(text),
    )


def _by_label(
    predicted: frozenset[Fact], gold: frozenset[Fact], label: Callable[[Fact], str]
) -> dict[str, Counts]:
    """Count the facts of each label."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for place, facts in enumerate((predicted & gold, predicted, gold)):
        for fact in facts:
            counts[label(fact)][place] += 1
    return {name: (c[0], c[1], c[2]) for name, c in counts.items()}


class ExtractionF1(CountedMetric):
    """The figures of both scorers, for each task and on average; all shares in [0, 1].

    - "f1" and "official_f1": micro F1 of each task (`Instance.task`), averaged over the tasks;
    - "f1/<task>" and "official_f1/<task>", where instances name their task;
    - "held_in_f1" and "held_out_f1", with "official_" too: the means over the tasks that training
      queries come from and over the others (`Instance.held_out`), where there are others;
    - "unparsed_rate": the share of outputs that do not say "None" and from which the clean scorer
      can read no fact of the schema;
    - with `per_type` also precision, recall and F1 of each task, "precision/<task>" and so on, and
      of each label that was predicted or gold, "f1/<task>/<label>" and so on, by both scorers.

    The official mean over data sets is the mean of their micro F1 too, but for its errors.

    Args:
        record: an instance -> the record that the generator read, for the official scorer.
        per_type: report the labels.
    """

    def __init__(self, record: Callable[[Instance], str], per_type: bool = False) -> None:
        super().__init__(["unparsed_rate", *(f"{lead}f1" for lead in _LEADS.values())])
        self.record = record
        self.per_type = per_type

    def counts(self, predictions: Predictions, batch: RagBatch) -> dict[str, list[Count]]:
        """Return the facts of each query: by task, and those of a task by label.

        A label "" stands for what the official scorer takes for a fact of no label of the schema.

        Raises:
            ValueError: an instance has no answer or no extraction, or the predictions do not fit.
        """
        pairs = list(zip(answered(predictions, batch), batch.instances, strict=True))
        found: dict[str, list[Count]] = defaultdict(lambda: [None] * len(pairs))
        for row, ((text, _), instance) in enumerate(pairs):
            scored = score_output(text, instance, self.record(instance))
            found["unparsed_rate"][row] = int(scored.unparsed)
            where = "held_out_f1" if instance.held_out else "held_in_f1"
            path = f"{instance.task}/" if instance.task else ""
            for scorer, lead in _LEADS.items():
                labels = scored.counts[scorer]
                for name in ("f1", where):
                    found[f"{lead}{name}"][row] = {instance.task: _sum(labels.values())}
                if instance.task:
                    found[f"{lead}f1/{instance.task}"][row] = labels
                for label, counts in labels.items() if self.per_type else ():
                    if label:
                        found[f"{lead}f1/{path}{label}"][row] = {label: counts}
        return dict(found)

    def aggregation(self, name: str) -> Aggregation:
        """Return that of a mean over tasks, or of the micro F1 of one task or label."""
        if name == "unparsed_rate":
            return MEAN
        return MICRO_F1 if "/" in name else MEAN_OF_TASKS

    def rows(self) -> dict[str, list[Count]]:
        """Return the counts of the figures that there are, without those of tasks held in alone."""
        found = super().rows()
        alone = "held_out_f1" not in found
        return {
            name: found[name]
            for name in sorted(found)
            if not (alone and name.endswith("held_in_f1") and "/" not in name)
        }

    def compute(self) -> dict[str, Tensor]:
        """Return the figures, 0 where there was nothing to count."""
        found = super().compute()
        for name, rows in self.rows().items() if self.per_type else ():
            lead, slash, group = name.partition("f1/")
            if slash:
                correct, predicted, gold = columns(MICRO_F1, rows).sum(axis=0).tolist()
                scores = _scores((correct, predicted, gold))
                for score in ("precision", "recall"):
                    value = torch.tensor(scores[score], device=self.device)
                    found[f"{lead}{score}/{group}"] = value
        return found


def _sum(counts: Iterable[Counts]) -> Counts:
    total = [0, 0, 0]
    for group in counts:
        total = [a + b for a, b in zip(total, group, strict=True)]
    return total[0], total[1], total[2]
