"""The records that every part of the project exchanges: fields with shapes, no logic.

Letters of the shapes: B queries, N candidates per query, M passages in the store, K selected,
S samples, V vectors per text, D dimensions, P soft-prompt vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from torch import Tensor


@dataclass(frozen=True)
class Span:
    """An entity mention: the characters [start, end) of its sentence."""

    start: int
    end: int
    type: str = ""  # entity type as the data set names it, "" where it has none


@dataclass(frozen=True)
class Mention:
    """A piece of a sentence that an extracted fact is about."""

    text: str
    start: int | None = None  # its characters [start, end) in the sentence; None = place unknown
    end: int | None = None
    type: str = ""  # entity type, where the data set has it for the arguments of relations


@dataclass(frozen=True)
class Fact:
    """An entity, event trigger or event argument: one mention; a relation: its head and tail."""

    type: str
    mentions: tuple[Mention, ...]


ExtractionKind = Literal["entities", "relations", "events", "arguments"]


@dataclass(frozen=True)
class Extraction:
    """What unified information extraction asks about a text, and the gold facts.

    The kinds are RUIE's (arXiv 2409.11673) NER, RE, EET (event detection) and EEA (the arguments of
    a given event).
    """

    kind: ExtractionKind
    schema: tuple[str, ...]  # labels that may be extracted, in a fixed order
    facts: tuple[Fact, ...] = ()  # gold, in the order of the annotation
    trigger: Fact | None = None  # of kind "arguments": the event's type and trigger


@dataclass(frozen=True)
class Instance:
    """One labelled record: a sentence with two entities, a question, or a text.

    A text is what unified information extraction reads; `extraction` then says what it looks for.
    """

    id: str
    text: str
    answers: tuple[str, ...] = ()  # the gold label, or every accepted answer; () when unlabelled
    head: Span | None = None
    tail: Span | None = None
    relevant: tuple[str, ...] = ()  # ids of the passages known to be relevant
    group: str = ""  # document or article it comes from; a split never cuts through a group
    # "<NER, RE, EET or EEA>_<data set>", such as "NER_crossner_ai"; "" where a data set is one task
    task: str = ""
    extraction: Extraction | None = None
    held_out: bool = False  # of a task whose records are never training queries


@dataclass(frozen=True)
class Passage:
    """The unit of retrieval. A demonstration is a passage made of a labelled training instance."""

    id: str
    text: str
    title: str = ""
    instance: Instance | None = None  # set if and only if the passage is a demonstration


@dataclass(frozen=True)
class Rendered:
    """A text that a model reads, with the character ranges that must survive truncation.

    The names of the ranges are "head", "tail" and "label" in relation extraction. Two names of a
    query's ranges say where a decoder-only prompt has them: "lead", its beginning, comes before the
    passages, and a query with the range "cue" brings what the answer follows, so that the
    generator's own answer cue is left out.
    """

    text: str
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Prompt:
    """What a generator is given: the query and the passages chosen for it, best first.

    What does not fit is cut from the last passages, whichever way round they are written.
    """

    query: Rendered
    passages: tuple[Rendered, ...] = ()
    best_last: bool = False  # one input of all passages is written in the reverse order


@dataclass
class RagBatch:
    """B queries with their N candidates: raw records and ids, because the backbones tokenise."""

    rows: Tensor  # (B,) long; row of each query in its split: the bank's key
    instances: list[Instance]  # B
    candidate_ids: Tensor  # (B, N) long; rows in the passage store, -1 = padding
    candidate_scores: Tensor  # (B, N) float; the first-stage retriever's score, -inf = padding
    relevance: Tensor  # (B, N) float in {0, 1}; for metrics, unless a method says so
    # For each query rows of the whole store, on the CPU: a method may rank other passages than the
    # first stage's candidates.
    relevant_rows: list[Tensor]  # B of (R_b,) long, ascending; all relevant passages
    # What the task's `matches` accepts, whatever ids the data set gives: in question answering all
    # passages that hold an answer, in relation extraction all demonstrations of the gold label.
    answer_rows: list[Tensor]  # B of (A_b,) long, ascending
    excluded_rows: list[Tensor]  # B of (E_b,) long; what the query must never retrieve
    # Of several processes, one for which nothing is left of a batch takes part with a query of
    # another one: what it finds is not counted.
    idle: bool = False

    @property
    def counted(self) -> int:
        """How many queries count: B, or 0."""
        return 0 if self.idle else len(self.instances)

    def to(self, device: object) -> RagBatch:
        """Return the batch with its tensors on `device`; the records stay as they are."""
        return RagBatch(
            rows=self.rows.to(device),  # type: ignore[call-overload]
            instances=self.instances,
            candidate_ids=self.candidate_ids.to(device),  # type: ignore[call-overload]
            candidate_scores=self.candidate_scores.to(device),  # type: ignore[call-overload]
            relevance=self.relevance.to(device),  # type: ignore[call-overload]
            relevant_rows=self.relevant_rows,
            answer_rows=self.answer_rows,
            excluded_rows=self.excluded_rows,
            idle=self.idle,
        )


@dataclass
class Retrieved:
    """What a method retrieved for B queries."""

    candidate_ids: Tensor  # (B, N) long; what was ranked, -1 = padding
    scores: Tensor  # (B, N) larger is better; differentiable where the method needs it
    positions: Tensor  # (B, K) long; columns of the hard choice, best first, -1 = nothing
    weights: Tensor | None = None  # (B, K, N); row j is the distribution of the j-th soft neighbour
    soft_prompt: Tensor | None = None  # (B, P, D) vectors put into the generator's input embeddings


@dataclass
class PermutationSamples:
    """S ordered lists of K candidates for each of B queries, and what they are worth."""

    positions: Tensor  # (B, S, K) ordered, without replacement; -1 = nothing was left
    log_prob: Tensor  # (B, S) of the list under the selector
    log_proposal: Tensor  # (B, S) of the list under what it was drawn from
    valid: Tensor  # (B, S) bool; False = a selector's output that had to be mended
    log_likelihood: Tensor  # (B, S) of the answer given the list
    weights: Tensor  # (B, S) no gradient; rows sum to 1 (self-normalised), or 0 (left out)


@dataclass
class LossTerms:
    """A loss and the parts that it is made of."""

    total: Tensor  # ()
    terms: dict[str, Tensor] = field(default_factory=dict)  # each (), logged as train/<name>


@dataclass
class Predictions:
    """All that metrics see of a method's answer to a batch."""

    texts: list[str]  # B; parsed answers: a label of the task, or a short answer
    ranking: Tensor  # (B, N) rank score of each candidate, in the order of batch.candidate_ids


class Evaluated(TypedDict):
    """What an evaluation step hands to the callbacks."""

    predictions: Predictions
    retrieved: Retrieved
