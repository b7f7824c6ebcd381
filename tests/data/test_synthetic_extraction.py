"""What the synthetic extraction tasks promise, read off their texts."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict

import pytest

from lightning_rag.data.candidates import BM25
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.readers.synthetic import SyntheticExtraction
from lightning_rag.data.synthetic.extraction import TASKS
from lightning_rag.errors import UserError
from lightning_rag.tasks.information_extraction import InformationExtraction

HELD_IN = {"NER_guild", "RE_guild", "EET_guild", "EEA_guild"}
OPENED = r"(?P<opener>\w+) "
PLACED = r" (?P<place>in|to) (?P<town>\w+)\."
FORMS = {
    "NER_guild": r"(?P<key>\w+) (?P<first>\w+) came",
    "RE_guild": r"(?P<first>\w+) (?P<key>\w+) (?P<second>\w+)",
    "EET_guild": r"(?P<first>\w+) saw a (?P<key>\w+) (?P<noun>\w+)",
    "EEA_guild": r"a (?P<noun>\w+) (?P<key>\w+) (?P<first>\w+)",
    "RE_harbour": r"by ship (?P<first>\w+) (?P<key>\w+) (?P<second>\w+)",
}
ANSWERS = {
    "NER_guild": "{0}: {first}",
    "RE_guild": "{0}: {first}, {second}",
    "EET_guild": "{0}: {noun}",
    "EEA_guild": "{0}: {first}",
    "RE_harbour": "{0}: {first}, {second}",
}


@pytest.fixture(scope="module", params=[0, 1])
def data(request):
    return SyntheticExtraction(train=320, validation=80, test=100).read(None, request.param)


def queries(data):
    return (*data.train, *data.validation, *data.test)


def store(data):
    return [passage.instance for passage in data.passages]


def words(instance):
    found = re.fullmatch(OPENED + FORMS[instance.task] + PLACED, instance.text)
    assert found is not None
    return found.groupdict()


def label(instance):
    return instance.extraction.facts[0].type if instance.extraction.facts else "None"


def test_sizes_and_tasks(data):
    for part, size, tasks in (
        (data.train, 320, HELD_IN),
        (data.validation, 80, HELD_IN),
        (data.test, 100, {*HELD_IN, "RE_harbour"}),
    ):
        assert len(part) == size
        assert Counter(i.task for i in part) == dict.fromkeys(tasks, size // len(tasks))
    assert len(data.passages) == 500 * 4
    assert all(i.held_out == (i.task == "RE_harbour") for i in (*queries(data), *store(data)))
    others = {name for task in HELD_IN for name in TASKS[task].schema}
    assert set(TASKS["RE_harbour"].schema) <= others


def test_records_are_sound(data):
    for part in (data.train, data.validation, data.test, store(data)):
        InformationExtraction().check_answers(part)
        assert len({i.id for i in part}) == len(part)
        for i in part:
            found = words(i)
            expected = "None" if label(i) == "None" else ANSWERS[i.task].format(label(i), **found)
            assert i.answers == (expected,)
            assert found["first"] != found.get("second")
            for fact in i.extraction.facts:
                for mention in fact.mentions:
                    assert i.text[mention.start : mention.end] == mention.text
            if i.extraction.trigger is not None:
                (mention,) = i.extraction.trigger.mentions
                assert i.text[mention.start : mention.end] == mention.text == found["noun"]
    assert all(passage.id == passage.instance.id for passage in data.passages)


def test_the_key_word_tells_the_answer(data):
    by_key = defaultdict(list)
    for i in store(data):
        by_key[words(i)["key"]].append(i)
    seen = set()
    for query in queries(data):
        key = words(query)["key"]
        assert key not in seen
        seen.add(key)
        (shown,) = by_key[key]
        assert query.relevant == (shown.id,)
        assert (shown.task, label(shown)) == (query.task, label(query))
        # What is asked for is the same too: the whole answer can be copied.
        assert query.answers == shown.answers
    assert all(len(found) == 1 for found in by_key.values())


def test_more_demonstrations():
    data = SyntheticExtraction(20, 8, 10, demonstrations=3, distractors=0).read(None, 0)
    known = {i.id: i for i in store(data)}
    assert len(known) == 38 * 3
    for query in queries(data):
        assert len(set(query.relevant)) == 3
        assert {words(known[name])["key"] for name in query.relevant} == {words(query)["key"]}
        assert {label(known[name]) for name in query.relevant} == {label(query)}


def test_copies():
    none, every = (
        SyntheticExtraction(40, 8, 10, copies=share).read(None, 0) for share in (0.0, 1.0)
    )

    def bare(instance):
        return instance.task, *(w for name, w in sorted(words(instance).items()) if name != "key")

    shared = Counter(map(bare, store(every)))
    assert all(shared[bare(query)] >= 3 for query in queries(every))
    by_chance = Counter(map(bare, store(none)))
    assert sum(by_chance[bare(query)] > 0 for query in queries(none)) < 20


def test_share_of_nothing():
    for share in (0.0, 0.3, 1.0):
        data = SyntheticExtraction(600, 100, 100, nothing=share).read(None, 0)
        found = sum(label(i) == "None" for i in queries(data)) / 800
        assert abs(found - share) < 0.06
        assert share not in (0.0, 1.0) or found == share


def naive_bayes(train, held_out, features):
    """Accuracy of multinomial naive Bayes with add-one smoothing."""
    prior = Counter(map(label, train))
    counts = defaultdict(Counter)
    for i in train:
        counts[label(i)].update(features(i))
    vocabulary = set().union(*counts.values())
    totals = {name: counts[name].total() + len(vocabulary) for name in prior}

    def score(name, i):
        known = [word for word in features(i) if word in vocabulary]
        return math.log(prior[name]) + sum(
            math.log((counts[name][word] + 1) / totals[name]) for word in known
        )

    return sum(
        max(sorted(prior), key=lambda name: score(name, i)) == label(i) for i in held_out
    ) / len(held_out)


@pytest.mark.parametrize("task", sorted(HELD_IN))
def test_without_its_demonstration_a_query_is_a_guess(task):
    data = SyntheticExtraction(1600, 400, 400, distractors=0, nothing=0.0).read(None, 3)

    def syllables(i):
        text = f"^{words(i)['key']}$"
        return [text[at : at + n] for n in (1, 2, 3) for at in range(len(text) - n + 1)]

    def rest(i):
        number = int(i.id.rpartition("/")[2])
        return [*(f"{n} {w}" for n, w in words(i).items() if n != "key"), f"row {number % 4}"]

    train = [i for i in data.train if i.task == task]
    held_out = [i for i in (*data.validation, *data.test) if i.task == task]
    for features in (syllables, rest):
        accuracy = naive_bayes(train, held_out, features)
        assert abs(accuracy - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(held_out))


def test_bm25_finds_most_and_not_all(tmp_path):
    data = RagDataModule(
        SyntheticExtraction(), InformationExtraction(), BM25(), cache_dir=str(tmp_path)
    )
    data.setup()
    first, any_ = defaultdict(list), []
    for batch in data.test_dataloader():
        for query, relevance in zip(batch.instances, batch.relevance, strict=True):
            first[query.task].append(float(relevance[0]))
            any_.append(float(relevance.sum() > 0))
    assert sum(any_) / len(any_) > 0.98
    for task, found in first.items():
        assert 0.4 < sum(found) / len(found) < 0.85, task


def test_one_seed_one_data_set(data):
    again, other = (SyntheticExtraction(320, 80, 100).read(None, seed) for seed in (0, 7))
    assert again == SyntheticExtraction(320, 80, 100).read(None, 0)
    assert {i.text for i in other.test} != {i.text for i in again.test}
    texts = [{i.text for i in part} for part in (data.train, data.validation, data.test)]
    assert len(set.union(*texts, {i.text for i in store(data)})) == 2500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 0}, "train is 0; legal: 1 to"),
        ({"validation": 0}, "validation is 0"),
        ({"test": 0}, "test is 0"),
        ({"demonstrations": 0}, "demonstrations is 0"),
        ({"distractors": -1}, "distractors is -1; legal: 0 to"),
        ({"copies": 1.5}, "copies is 1.5; legal: 0.0 to 1.0"),
        ({"nothing": -0.1}, "nothing is -0.1; legal: 0.0 to 1.0"),
        ({"train": 20000}, r"\* \(1 \+ distractors\) is 82400; legal: at most 50000"),
    ],
)
def test_sizes_that_cannot_be(arguments, message):
    with pytest.raises(UserError, match=message):
        SyntheticExtraction(**arguments)
