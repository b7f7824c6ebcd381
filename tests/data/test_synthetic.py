"""What the synthetic relations promise, checked by learners that know nothing of the generator."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields

import bm25s
import pytest

from lightning_rag.data.readers.synthetic import SyntheticRelations
from lightning_rag.data.splits import Splits, normalise
from lightning_rag.data.synthetic import RelationSizes
from lightning_rag.errors import UserError
from lightning_rag.types import Instance

HELD_OUT = ("validation", "test")
Features = Callable[[Instance], Iterable[str]]


@pytest.fixture(scope="module", params=[0, 1, 2])
def data(request: pytest.FixtureRequest) -> Splits:
    return SyntheticRelations().read(None, request.param)


def queries(data: Splits) -> tuple[Instance, ...]:
    return (*data.train, *data.validation, *data.test)


def demonstrations(data: Splits) -> list[Instance]:
    found = [passage.instance for passage in data.passages]
    assert None not in found
    return [instance for instance in found if instance is not None]


def verb(instance: Instance) -> str:
    """The first word between the two entities, read off the text."""
    assert instance.head is not None
    assert instance.tail is not None
    return instance.text[instance.head.end : instance.tail.start].split()[0]


def entities(instance: Instance) -> tuple[str, str]:
    assert instance.head is not None
    assert instance.tail is not None
    head, tail = instance.head, instance.tail
    return instance.text[head.start : head.end], instance.text[tail.start : tail.end]


def words(instance: Instance) -> list[str]:
    return instance.text.casefold().rstrip(".").split()


def syllables(instance: Instance) -> list[str]:
    """Where the verb's letters and their groups of two and three stand."""
    text = f"^{verb(instance)}$"
    return [text[i : i + n] for n in (1, 2, 3) for i in range(len(text) - n + 1)]


def surroundings(instance: Instance) -> list[str]:
    """Everything about an instance but its verb."""
    assert instance.head is not None
    assert instance.tail is not None
    rest = [word for word in words(instance) if word != verb(instance)]
    types = f"{instance.head.type} {instance.tail.type}"
    place = f"{instance.head.start} {instance.tail.start - instance.head.end}"
    number = int(instance.id.rpartition("-")[2])
    return [
        *rest, *entities(instance), types, f"at {place}", f"{len(instance.text)} characters",
        f"{len(rest)} words", f"row {number % 8} of 8", f"begins {rest[0]}", f"ends {rest[-1]}",
    ]  # fmt: skip


def naive_bayes(
    train: Sequence[Instance], held_out: Sequence[Instance], features: Features
) -> float:
    """Return the accuracy of multinomial naive Bayes with add-one smoothing."""
    prior = Counter(instance.answers[0] for instance in train)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for instance in train:
        counts[instance.answers[0]].update(features(instance))
    vocabulary = set().union(*counts.values())
    totals = {label: counts[label].total() + len(vocabulary) for label in prior}

    def score(label: str, instance: Instance) -> float:
        known = [word for word in features(instance) if word in vocabulary]
        return math.log(prior[label]) + sum(
            math.log((counts[label][word] + 1) / totals[label]) for word in known
        )

    guesses = (max(sorted(prior), key=lambda label: score(label, i)) for i in held_out)
    pairs = zip(guesses, held_out, strict=True)
    return sum(guess == instance.answers[0] for guess, instance in pairs) / len(held_out)


def bm25(keys: Sequence[str], texts: Sequence[str], k: int) -> list[list[int]]:
    """Return the rows of the k best keys for each text."""
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(keys), show_progress=False), show_progress=False)
    rows, _ = index.retrieve(
        bm25s.tokenize(list(texts), show_progress=False), k=k, show_progress=False
    )
    return [[int(row) for row in best] for best in rows]


def copied(store: Sequence[Instance], split: Sequence[Instance]) -> float:
    """Return how often the label of BM25's first hit is right."""
    best = bm25([i.text for i in store], [i.text for i in split], 1)
    hits = [store[rows[0]].answers == i.answers for rows, i in zip(best, split, strict=True)]
    return sum(hits) / len(split)


@pytest.mark.parametrize("features", [words, syllables, surroundings])
@pytest.mark.parametrize("split", HELD_OUT)
def test_without_retrieval_at_chance(data: Splits, split: str, features: Features) -> None:
    accuracy = naive_bayes(data.train, getattr(data, split), features)
    assert abs(accuracy - 1 / len(data.labels)) <= 0.05


@pytest.mark.parametrize("split", HELD_OUT)
def test_a_learner_by_words_does_learn_where_there_is_something(data: Splits, split: str) -> None:
    """The control of the test above: the store teaches the same learner what the queries do not."""
    assert naive_bayes(demonstrations(data), getattr(data, split), words) > 0.5


@pytest.mark.parametrize("split", HELD_OUT)
def test_labels_are_balanced(data: Splits, split: str) -> None:
    counts = Counter(i.answers[0] for i in getattr(data, split))
    assert set(counts) == set(data.labels)
    assert max(counts.values()) - min(counts.values()) <= 1
    majority = Counter(i.answers[0] for i in data.train).most_common(1)[0][0]
    assert abs(counts[majority] / counts.total() - 1 / len(data.labels)) <= 0.05


@pytest.mark.parametrize("split", HELD_OUT)
def test_similar_training_queries_tell_nothing(data: Splits, split: str) -> None:
    assert abs(copied(data.train, getattr(data, split)) - 1 / len(data.labels)) <= 0.06


@pytest.mark.parametrize("split", ["train", *HELD_OUT])
def test_oracle_copies_the_label(data: Splits, split: str) -> None:
    by_id = {i.id: i for i in demonstrations(data)}
    for query in getattr(data, split):
        assert query.relevant
        assert all(by_id[identity].answers == query.answers for identity in query.relevant)


@pytest.mark.parametrize("split", ["train", *HELD_OUT])
def test_bm25_lies_clearly_between_chance_and_oracle(data: Splits, split: str) -> None:
    store = demonstrations(data)
    asked: tuple[Instance, ...] = getattr(data, split)
    assert 0.45 <= copied(store, asked) <= 0.75
    best = bm25([i.text for i in store], [i.text for i in asked], 5)
    found = [
        bool(set(query.relevant) & {store[row].id for row in rows})
        for query, rows in zip(asked, best, strict=True)
    ]
    assert sum(found) / len(found) > 0.9


def test_random_demonstrations_tell_nothing(data: Splits) -> None:
    store = demonstrations(data)
    for split in HELD_OUT:
        asked = getattr(data, split)
        pairs = [(store[(7919 * n) % len(store)], query) for n, query in enumerate(asked)]
        share = sum(one.answers == query.answers for one, query in pairs) / len(pairs)
        assert abs(share - 1 / len(data.labels)) <= 0.06


def test_verbs_of_the_splits_are_disjoint(data: Splits) -> None:
    seen = [{verb(i) for i in split} for split in (data.train, data.validation, data.test)]
    assert sum(map(len, seen)) == len(set().union(*seen)) == len(queries(data))
    training_words = {word for i in data.train for word in words(i)}
    assert not training_words & (seen[1] | seen[2])


def test_relevant_are_exactly_the_demonstrations_with_the_verb(data: Splits) -> None:
    with_verb: dict[str, set[str]] = defaultdict(set)
    for demonstration in demonstrations(data):
        with_verb[verb(demonstration)].add(demonstration.id)
    for query in queries(data):
        assert len(query.relevant) == 1
        assert set(query.relevant) == with_verb[verb(query)]


def test_a_verb_always_has_the_same_label(data: Splits) -> None:
    labels: dict[str, set[str]] = defaultdict(set)
    for instance in (*queries(data), *demonstrations(data)):
        labels[verb(instance)].add(instance.answers[0])
    assert all(len(found) == 1 for found in labels.values())


def test_distractors_share_entities_and_mislead(data: Splits) -> None:
    at: dict[tuple[str, str], list[Instance]] = defaultdict(list)
    for demonstration in demonstrations(data):
        head, tail = entities(demonstration)
        at["head", head].append(demonstration)
        at["tail", tail].append(demonstration)
    both = 0
    for query in data.test:
        head, tail = entities(query)
        near = {i.id: i for i in (*at["head", head], *at["tail", tail]) if verb(i) != verb(query)}
        assert sum(i.answers != query.answers for i in near.values()) >= 3
        both += any(entities(i) == (head, tail) for i in near.values())
        relevant = [i for i in demonstrations(data) if i.id in query.relevant]
        assert not {head, tail} & {name for i in relevant for name in entities(i)}
    assert 0.25 < both / len(data.test) < 0.6  # 1 - 0.85 ** 3 = 0.39 by design


def test_no_query_is_in_the_store_and_ids_are_unique(data: Splits) -> None:
    stored = {normalise(passage.text) for passage in data.passages}
    asked = [normalise(query.text) for query in queries(data)]
    assert not stored & set(asked)
    assert len(set(asked)) == len(asked)
    assert len(stored) == len(data.passages)
    ids = [i.id for i in (*queries(data), *demonstrations(data))]
    assert len(set(ids)) == len(ids)
    assert [p.id for p in data.passages] == [i.id for i in demonstrations(data)]


def test_sentences_are_short_and_spans_are_right(data: Splits) -> None:
    for instance in (*queries(data), *demonstrations(data)):
        head, tail = entities(instance)
        assert head.isalpha()
        assert tail.isalpha()
        assert head[0].isupper()
        assert tail[0].isupper()
        assert head != tail
        assert verb(instance).endswith("ed")
        assert len(words(instance)) <= 6
        assert instance.head is not None
        assert instance.head.type in {"person", "organisation", "place"}
        assert not set(words(instance)) & set(data.labels)


def test_default_sizes() -> None:
    data = SyntheticRelations().read(None, 0)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [800, 200, 400]
    assert len(data.passages) == 1400 * 4
    assert len(data.labels) == 8


def test_the_seed_decides_everything() -> None:
    reader = SyntheticRelations(train=40, validation=20, test=20)
    assert reader.read(None, 3) == SyntheticRelations(40, 20, 20).read(None, 3)
    one, other = reader.read(None, 3), reader.read(None, 4)
    assert not {verb(i) for i in one.test} & {verb(i) for i in other.test}
    assert {i.text for i in one.train}.isdisjoint(i.text for i in other.train)


def test_the_text_of_a_seed_stays() -> None:
    """A change of the generator changes every published number: it must be seen here."""
    query = SyntheticRelations().read(None, 0).test[0]
    assert query.text == "The Rivox donanked Brugov."
    assert query.answers == ("debtor",)


def test_several_demonstrations_and_no_distractors() -> None:
    data = SyntheticRelations(
        train=5, validation=3, test=2, relations=16, demonstrations=2, distractors=0
    ).read(None, 0)
    assert len(data.passages) == 20
    assert all(len(query.relevant) == 2 for query in queries(data))
    assert len(data.labels) == 16


def test_the_smallest_set() -> None:
    data = SyntheticRelations(train=1, validation=1, test=1, relations=2).read(None, 0)
    assert len(queries(data)) == 3
    assert len(data.passages) == 12


def test_more_shared_entities_are_harder() -> None:
    right = []
    for both in (0.0, 0.15, 0.5):
        data = SyntheticRelations(both_entities=both).read(None, 0)
        right.append(copied(demonstrations(data), data.test))
    assert right[0] > right[1] + 0.1 > right[2] + 0.2


@pytest.mark.parametrize(
    ("name", "value", "legal"),
    [
        ("train", 0, "1 to"),
        ("validation", -1, "1 to"),
        ("test", 0, "1 to"),
        ("relations", 1, "2 to 16"),
        ("relations", 17, "2 to 16"),
        ("demonstrations", 0, "1 to"),
        ("distractors", -1, "0 to"),
        ("both_entities", 1.5, "0.0 to 1.0"),
        ("both_entities", float("nan"), "0.0 to 1.0"),
        ("train", 20_000, "at most 50000"),
    ],
)
def test_bad_sizes(name: str, value: float, legal: str) -> None:
    with pytest.raises(UserError, match=legal) as error:
        SyntheticRelations(**{name: value})
    assert name in str(error.value)


def test_the_reader_has_the_defaults_of_the_sizes() -> None:
    assert SyntheticRelations().sizes == RelationSizes()
    arguments = set(SyntheticRelations.__init__.__annotations__) - {"return"}
    assert {field.name for field in fields(RelationSizes)} == arguments
