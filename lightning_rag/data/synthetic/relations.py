"""Synthetic relation extraction: only the demonstration with the query's verb tells the label."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lightning_rag.data.splits import Splits
from lightning_rag.data.synthetic.words import (
    MAX_VERBS,
    SPLITS,
    check_range,
    city_name,
    company_name,
    distinct,
    last_name,
    verb,
)
from lightning_rag.errors import UserError
from lightning_rag.types import Instance, Passage, Span

RELATIONS = (
    "owner", "leader", "supplier", "teacher", "rival", "guest", "debtor", "keeper",
    "builder", "critic", "tenant", "patron", "founder", "partner", "guardian", "buyer",
)  # fmt: skip
"""The labels; a data set of R relations has the first R. No word of a sentence is among them."""

NAMES = 50  # of each entity type; measured: BM25 gets about 60 % right with the default sizes
# A sentence has at most one filler, so that it stays within six words.
_OPENERS = ("Today", "Once", "Soon", "Later")
_CLOSERS = ("today", "once", "soon", "later")


@dataclass(frozen=True)
class RelationSizes:
    """The size and the difficulty of the relation extraction data.

    Args:
        train: training queries.
        validation: validation queries.
        test: test queries.
        relations: labels, R.
        demonstrations: relevant demonstrations of each query (the same verb, other entities).
        distractors: demonstrations of each query that share its entities, not its verb and label.
        both_entities: probability that a distractor shares both entities, which puts it before the
            relevant demonstration for a retriever by words, and not one. The larger, the harder.

    Raises:
        UserError: if a value is not legal.
    """

    train: int = 800
    validation: int = 200
    test: int = 400
    relations: int = 8
    demonstrations: int = 1
    distractors: int = 3
    both_entities: float = 0.15

    def __post_init__(self) -> None:
        for name in (*SPLITS, "demonstrations"):
            check_range(name, getattr(self, name), 1, MAX_VERBS)
        check_range("relations", self.relations, 2, len(RELATIONS))
        check_range("distractors", self.distractors, 0, MAX_VERBS)
        check_range("both_entities", self.both_entities, 0.0, 1.0)
        verbs = (self.train + self.validation + self.test) * (1 + self.distractors)
        if verbs > MAX_VERBS:
            raise UserError(
                f"(train + validation + test) * (1 + distractors) is {verbs}; "
                f"legal: at most {MAX_VERBS}, the made-up verbs that there are"
            )


def relation_splits(sizes: RelationSizes, seed: int) -> Splits:
    """Make the relation extraction data.

    A sentence is "Soon the Stadine zelozzed Tretham." Its label hangs on the verb alone, and every
    query has a verb of its own: the label of a verb not met in training can only be read off the
    demonstration with the same verb. The store holds, for each query of each split, its relevant
    demonstrations and its distractors, in an order that says nothing; names, entity types and
    fillers are drawn without regard to the label.

    Args:
        sizes: how much of what.
        seed: what everything is drawn from.

    Returns:
        Queries of balanced labels (their counts differ by at most one in each split), with the ids
        of their relevant demonstrations.
    """
    rng = random.Random(f"relations {seed}")
    labels = RELATIONS[: sizes.relations]
    names = _Names(rng)
    counts = {split: getattr(sizes, split) for split in SPLITS}
    total = sum(counts.values())
    verbs = iter(distinct(rng, total * (1 + sizes.distractors), verb))
    numbers = list(range(total * (sizes.demonstrations + sizes.distractors)))
    rng.shuffle(numbers)
    ids = (f"demonstration-{number:06d}" for number in numbers)
    queries: dict[str, list[Instance]] = {}
    store: list[Instance] = []
    for split, count in counts.items():
        queries[split] = []
        for row, label in enumerate(_balanced(rng, labels, count)):
            head, tail = names.pair(rng)
            word = next(verbs)
            relevant = [
                _sentence(rng, next(ids), *names.pair(rng, (head, tail)), word, label)
                for _ in range(sizes.demonstrations)
            ]
            store += relevant
            others = [other for other in labels if other != label]
            for _ in range(sizes.distractors):
                pair = _shared(rng, names, head, tail, sizes.both_entities)
                store.append(_sentence(rng, next(ids), *pair, next(verbs), rng.choice(others)))
            known = tuple(demonstration.id for demonstration in relevant)
            query = _sentence(rng, f"{split}-{row:06d}", head, tail, word, label, known)
            queries[split].append(query)
    passages = (Passage(id=i.id, text=i.text, instance=i) for i in store)
    return Splits(
        train=tuple(queries["train"]),
        validation=tuple(queries["validation"]),
        test=tuple(queries["test"]),
        passages=tuple(sorted(passages, key=lambda passage: passage.id)),
        labels=labels,
    )


class _Entity(NamedTuple):
    name: str
    type: str


class _Names:
    """The names of the entities of the sentences, `NAMES` for each type.

    Few, single words on purpose: they come back in all splits, so that a name is known and says
    nothing, and that for a retriever by words one shared entity weighs less than the verb, and two
    weigh about as much or more.
    """

    def __init__(self, rng: random.Random) -> None:
        kinds = (("person", last_name), ("organisation", company_name), ("place", city_name))
        self._entities = [
            [_Entity(name, kind) for name in distinct(rng, NAMES, make)] for kind, make in kinds
        ]

    def other(self, rng: random.Random, taken: Sequence[_Entity]) -> _Entity:
        """Draw an entity of any type that is not taken."""
        while (entity := rng.choice(rng.choice(self._entities))) in taken:
            pass
        return entity

    def pair(self, rng: random.Random, taken: Sequence[_Entity] = ()) -> tuple[_Entity, _Entity]:
        """Draw a head and a tail that are not taken."""
        head = self.other(rng, taken)
        return head, self.other(rng, (*taken, head))


def _shared(
    rng: random.Random, names: _Names, head: _Entity, tail: _Entity, both_entities: float
) -> tuple[_Entity, _Entity]:
    """Return both entities of a query, or one of them in its role and a new one."""
    if rng.random() < both_entities:
        return head, tail
    other = names.other(rng, (head, tail))
    return (head, other) if rng.random() < 0.5 else (other, tail)


def _sentence(
    rng: random.Random,
    identity: str,
    head: _Entity,
    tail: _Entity,
    word: str,
    label: str,
    relevant: tuple[str, ...] = (),
) -> Instance:
    """Write a sentence about the verb `word`, with a filler before it, behind it or none."""
    place = rng.choice(("before", "behind", "none"))
    opener = rng.choice(_OPENERS) + " " if place == "before" else ""
    closer = " " + rng.choice(_CLOSERS) if place == "behind" else ""
    subject, thing = ("the " if e.type == "organisation" else "" for e in (head, tail))
    before = opener + subject if opener else subject.capitalize()
    between = f" {word} {thing}"
    head_end = len(before) + len(head.name)
    tail_start = head_end + len(between)
    return Instance(
        id=identity,
        text=f"{before}{head.name}{between}{tail.name}{closer}.",
        answers=(label,),
        head=Span(len(before), head_end, head.type),
        tail=Span(tail_start, tail_start + len(tail.name), tail.type),
        relevant=relevant,
    )


def _balanced(rng: random.Random, labels: Sequence[str], count: int) -> Iterator[str]:
    """Return `count` labels in random order, each as often as the others but for one."""
    drawn = [label for _ in range(count // len(labels)) for label in labels]
    drawn += rng.sample(labels, count % len(labels))
    rng.shuffle(drawn)
    return iter(drawn)
