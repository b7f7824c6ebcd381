"""Synthetic information extraction: five small tasks, one of them held out."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import NamedTuple

from lightning_rag.data.splits import Splits
from lightning_rag.data.synthetic.words import (
    MAX_VERBS,
    SPLITS,
    check_range,
    city_name,
    distinct,
    verb,
)
from lightning_rag.errors import UserError
from lightning_rag.tasks.information_extraction import linearize
from lightning_rag.types import Extraction, ExtractionKind, Fact, Instance, Mention, Passage

# They come back in all tasks and splits, so that a name says nothing. Few and short: a small model
# has to learn to copy them.
NAMES = ("Ann", "Bob", "Eva", "Jim", "Mia", "Tom")
TOWNS = 1000  # rare words that some demonstrations share with a query, for retrievers by words
_NOUNS = ("fair", "hunt", "race")  # few, or those that match would outweigh the key word
_OPENERS = (
    "Today", "Once", "Soon", "Later", "Now", "Then", "Often", "Here",
    "There", "Again", "Maybe", "Still", "First", "Last", "Twice", "Surely",
)  # fmt: skip


class _Task(NamedTuple):
    kind: ExtractionKind
    schema: tuple[str, ...]
    form: str  # of a sentence, with the names of its words in braces
    asked: tuple[str, ...]  # words that are to be extracted
    held_out: bool = False


TASKS: Mapping[str, _Task] = {
    "NER_guild": _Task(
        "entities",
        ("baker", "weaver", "miller", "smith"),
        "{opener} {key} {first} came to {town}.",
        ("first",),
    ),
    "RE_guild": _Task(
        "relations",
        ("teacher", "rival", "partner", "debtor"),
        "{opener} {first} {key} {second} in {town}.",
        ("first", "second"),
    ),
    "EET_guild": _Task(
        "events",
        ("contest", "meeting", "sale", "escape"),
        "{opener} {first} saw a {key} {noun} in {town}.",
        ("noun",),
    ),
    "EEA_guild": _Task(
        "arguments",
        ("guest", "judge", "owner", "winner"),
        "{opener} a {noun} {key} {first} in {town}.",
        ("first",),
    ),
    # Its labels are other tasks' too, its sentences are of a kind of their own.
    "RE_harbour": _Task(
        "relations",
        ("owner", "rival", "judge", "partner"),
        "{opener} by ship {first} {key} {second} in {town}.",
        ("first", "second"),
        held_out=True,
    ),
}
"""The tasks; the last one has no training queries."""


@dataclass(frozen=True)
class ExtractionSizes:
    """The size and the difficulty of the extraction data.

    Args:
        train: training queries, shared out among the held-in tasks as evenly as can be.
        validation: validation queries, of the held-in tasks too.
        test: test queries, of all tasks.
        demonstrations: relevant demonstrations of each query (the same key word and people, another
            town).
        distractors: demonstrations of each query with its town and other key words.
        copies: probability that a distractor shares all but the key word, which puts it before the
            relevant demonstration for a retriever by words. The larger, the harder.
        nothing: share of the key words which mean that there is nothing to extract.

    Raises:
        UserError: if a value is not legal.
    """

    train: int = 1600
    validation: int = 200
    test: int = 400
    demonstrations: int = 1
    distractors: int = 3
    copies: float = 0.15
    nothing: float = 0.1

    def __post_init__(self) -> None:
        for name in (*SPLITS, "demonstrations"):
            check_range(name, getattr(self, name), 1, MAX_VERBS)
        check_range("distractors", self.distractors, 0, MAX_VERBS)
        check_range("copies", self.copies, 0.0, 1.0)
        check_range("nothing", self.nothing, 0.0, 1.0)
        words = (self.train + self.validation + self.test) * (1 + self.distractors)
        if words > MAX_VERBS:
            raise UserError(
                f"(train + validation + test) * (1 + distractors) is {words}; "
                f"legal: at most {MAX_VERBS}, the made-up words that there are"
            )


def extraction_splits(sizes: ExtractionSizes, seed: int) -> Splits:
    """Make the extraction data.

    Each sentence has a key word of its own, made up: "Soon Ann zelozzed Tom in Stadham." Which
    mentions a sentence has is known from its form; what they are hangs on the key word alone, so it
    can only be read off the demonstration with the same key word: "teacher: Ann, Tom", or that
    there is nothing to extract. That demonstration has the same people, so that its whole answer
    can be copied: models of some hundred steps learn little more. The store holds the
    demonstrations and distractors of all queries, each of its query's task, in an order that says
    nothing.

    Args:
        sizes: how much of what.
        seed: what everything is drawn from.

    Returns:
        Queries with the ids of their relevant demonstrations; those of "RE_harbour" are held out.
    """
    rng = random.Random(f"extraction {seed}")
    towns = distinct(rng, TOWNS, city_name)
    counts = {split: getattr(sizes, split) for split in SPLITS}
    total = sum(counts.values())
    keys = iter(distinct(rng, total * (1 + sizes.distractors), verb))
    numbers = list(range(total * (sizes.demonstrations + sizes.distractors)))
    rng.shuffle(numbers)
    places = iter(numbers)
    queries: dict[str, list[Instance]] = {}
    store: dict[int, Instance] = {}
    for split, count in counts.items():
        queries[split] = []
        tasks = [name for name, task in TASKS.items() if split == "test" or not task.held_out]
        for row, task in enumerate(_balanced(rng, tasks, count)):
            key = next(keys)
            label = _label(rng, task, sizes.nothing)
            words = _words(rng, towns)
            relevant = []
            for _ in range(sizes.demonstrations):
                relevant.append(next(places))
                other = {name: _words(rng, towns)[name] for name in ("opener", "town")}
                store[relevant[-1]] = _record(task, {**words, **other}, key, label)
            for _ in range(sizes.distractors):
                shown = {**_words(rng, towns), "town": words["town"]}
                shown = words if rng.random() < sizes.copies else shown
                wrong = _label(rng, task, sizes.nothing)
                store[next(places)] = _record(task, shown, next(keys), wrong)
            query = _record(task, words, key, label)
            known = tuple(map(_demonstration, relevant))
            queries[split].append(replace(query, id=f"{task}/{split}/{row}", relevant=known))
    return Splits(
        train=tuple(queries["train"]),
        validation=tuple(queries["validation"]),
        test=tuple(queries["test"]),
        passages=tuple(_passage(number, store[number]) for number in sorted(store)),
    )


def _label(rng: random.Random, task: str, nothing: float) -> str:
    """Draw a label of the task, or "" for nothing to extract."""
    return "" if rng.random() < nothing else rng.choice(TASKS[task].schema)


def _words(rng: random.Random, towns: Sequence[str]) -> dict[str, str]:
    """Draw the words of a sentence but for the key word."""
    first, second = rng.sample(NAMES, 2)
    return {
        "opener": rng.choice(_OPENERS),
        "first": first,
        "second": second,
        "noun": rng.choice(_NOUNS),
        "town": rng.choice(towns),
    }


def _record(name: str, words: Mapping[str, str], key: str, label: str) -> Instance:
    """Write a sentence with the key word, and what is to be extracted from it; no id yet."""
    task = TASKS[name]
    words = {**words, "key": key}
    text = ""
    mentions = {}
    for before, word, _, _ in Formatter().parse(task.form):
        text += before
        if word:
            mentions[word] = Mention(words[word], len(text), len(text) + len(words[word]))
            text += words[word]
    asked = tuple(mentions[word] for word in task.asked)
    # A relation is one fact of its two names, all else a fact of each.
    groups = (asked,) if task.kind == "relations" else tuple((mention,) for mention in asked)
    facts = tuple(Fact(label, group) for group in groups) if label else ()
    trigger = Fact("event", (mentions["noun"],)) if task.kind == "arguments" else None
    extraction = Extraction(task.kind, task.schema, facts, trigger)
    return Instance(
        id="",
        text=text,
        answers=(linearize(extraction),),
        task=name,
        extraction=extraction,
        held_out=task.held_out,
    )


def _passage(number: int, instance: Instance) -> Passage:
    identity = _demonstration(number)
    return Passage(identity, instance.text, instance=replace(instance, id=identity))


def _demonstration(number: int) -> str:
    return f"demonstration-{number:06d}"


def _balanced(rng: random.Random, names: Sequence[str], count: int) -> Iterator[str]:
    """Return `count` names in random order, each as often as the others but for one."""
    drawn = [name for _ in range(count // len(names)) for name in names]
    drawn += rng.sample(names, count % len(names))
    rng.shuffle(drawn)
    return iter(drawn)
