"""What the synthetic questions promise, checked by rules that know nothing of the generator."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import fields
from itertools import pairwise

import bm25s
import pytest

from lightning_rag.data.readers.synthetic import SyntheticQuestions
from lightning_rag.data.splits import Splits
from lightning_rag.data.synthetic import QuestionSizes
from lightning_rag.errors import UserError
from lightning_rag.types import Instance, Passage

SPLITS = ("train", "validation", "test")
HELD_OUT = ("validation", "test")
NAME = r"[A-Z][a-z]+ [A-Z][a-z]+"


@pytest.fixture(scope="module", params=[0, 1, 2])
def data(request: pytest.FixtureRequest) -> Splits:
    return SyntheticQuestions().read(None, request.param)


def questions(data: Splits) -> tuple[Instance, ...]:
    return (*data.train, *data.validation, *data.test)


def gold(data: Splits) -> list[tuple[Instance, list[Passage]]]:
    by_id = {passage.id: passage for passage in data.passages}
    return [(question, [by_id[i] for i in question.relevant]) for question in questions(data)]


def subject(question: Instance) -> str:
    """The company or the person that a question names."""
    (name,) = re.findall(NAME, question.text.partition(" ")[2])
    return str(name)


def kind(question: Instance) -> str:
    """The question without its names and its trade."""
    text = question.text.replace(subject(question), "X")
    return re.sub(r"the \w+ who", "the one who", text)


def names_it(passage: Passage, name: str) -> bool:
    return re.search(rf"\b{name}\b", f"{passage.title}. {passage.text}") is not None


def by_name(data: Splits) -> dict[str, list[Passage]]:
    """Passages by every pair of neighbouring words in title and text."""
    found: dict[str, list[Passage]] = defaultdict(list)
    for passage in data.passages:
        for words in (re.findall(r"\w+", passage.title), re.findall(r"\w+", passage.text)):
            for pair in set(pairwise(words)):
                if passage not in found[" ".join(pair)][-1:]:
                    found[" ".join(pair)].append(passage)
    return found


def read_off(passage: Passage) -> str:
    """The other name in a passage than its title: what a reader takes as the answer."""
    (other,) = re.findall(r"[A-Z][a-z]+(?: [A-Z][a-z]+)?", _without_title(passage))
    return str(other)


def _without_title(passage: Passage) -> str:
    return re.sub(r"^The ", "the ", passage.text.replace(passage.title, "it"))


def test_default_sizes(data: Splits) -> None:
    assert [len(getattr(data, split)) for split in SPLITS] == [800, 200, 400]
    assert len(data.passages) == 350 * 7
    assert data.labels == ()
    for split in SPLITS:
        hops = Counter(len(question.relevant) for question in getattr(data, split))
        assert hops[1] == hops[2] == len(getattr(data, split)) / 2


def test_ids_and_texts_are_unique(data: Splits) -> None:
    asked = [question.text for question in questions(data)]
    assert len(set(asked)) == len(asked)
    assert len({question.id for question in questions(data)}) == len(asked)
    assert len({passage.id for passage in data.passages}) == len(data.passages)
    assert len({passage.text for passage in data.passages}) == len(data.passages)
    assert all(passage.instance is None and passage.title for passage in data.passages)
    assert max(len(text.split()) for text in asked) <= 12
    assert max(len(passage.text.split()) for passage in data.passages) <= 12


def test_oracle_reads_the_answer_off_the_last_gold_passage(data: Splits) -> None:
    for question, passages in gold(data):
        assert question.answers == (read_off(passages[-1]),)


def test_two_hops_go_over_the_bridge_in_this_order(data: Splits) -> None:
    two_hop = [(q, passages) for q, passages in gold(data) if len(passages) == 2]
    assert two_hop
    for question, (first, second) in two_hop:
        company, person = subject(question), read_off(first)
        assert first.title == company
        assert second.title == person
        # neither the question nor the second passage makes the first one superfluous
        assert person not in question.text
        assert not names_it(second, company)
        assert question.answers[0] not in f"{first.title} {first.text}"


def test_one_hop_needs_the_passage_about_its_subject(data: Splits) -> None:
    for question, passages in gold(data):
        if len(passages) == 1:
            assert passages[0].title == subject(question)
            assert question.answers[0] not in question.text


def test_no_other_passage_about_the_same_entities_has_the_answer(data: Splits) -> None:
    found = by_name(data)
    for question, passages in gold(data):
        named = {subject(question), passages[-1].title}
        about = {p.id: p for name in named for p in found[name]}
        answering = {i for i, p in about.items() if names_it(p, question.answers[0])}
        if question.answers[0] in found:  # a person: other passages about that person name it
            answering -= {
                p.id for p in found[question.answers[0]] if p.title == question.answers[0]
            }
        assert answering == {passages[-1].id}
        # and there are distractors: other attributes of the same entities
        assert len(about) >= len(passages) + 2


def test_without_the_bridge_the_trade_leaves_several(data: Splits) -> None:
    """A reader that skips the first passage and goes by trade and attribute alone."""
    words = {passage.id: set(re.findall(r"\w+", passage.text)) for passage in data.passages}
    chances = []
    for question, passages in gold(data):
        if len(passages) == 1:
            continue
        (trade,) = re.findall(r"the (\w+) who", question.text)
        attribute = "born" if "born" in question.text else "lives"
        fitting = [p for p in data.passages if {trade, attribute} <= words[p.id]]
        assert passages[1] in fitting
        chances.append(sum(names_it(p, question.answers[0]) for p in fitting) / len(fitting))
    assert max(chances) <= 0.6  # two of five may be born in the same city
    assert sum(chances) / len(chances) <= 0.25


@pytest.mark.parametrize("split", HELD_OUT)
def test_the_kind_of_question_does_not_tell_the_answer(data: Splits, split: str) -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question in data.train:
        answers[kind(question)][question.answers[0]] += 1
    guesses = {key: counts.most_common(1)[0][0] for key, counts in answers.items()}
    asked: tuple[Instance, ...] = getattr(data, split)
    assert {kind(question) for question in asked} == set(guesses)
    assert len(guesses) == 9  # "was X born" and "does X live" are asked of founders and directors
    right = sum(guesses[kind(question)] in question.answers for question in asked)
    assert right / len(asked) <= 1 / 40 + 0.05


@pytest.mark.parametrize("split", HELD_OUT)
def test_no_word_of_a_question_tells_the_answer(data: Splits, split: str) -> None:
    """Guess by the most telling word: the answer that it had most often in training."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question in data.train:
        for word in question.text.split():
            answers[word][question.answers[0]] += 1
    right = 0
    asked: tuple[Instance, ...] = getattr(data, split)
    for question in asked:
        known = [answers[word] for word in question.text.split() if word in answers]
        best = max(known, key=lambda c: (max(c.values()) / c.total(), c.total()))
        right += best.most_common(1)[0][0] in question.answers
    assert right / len(asked) <= 1 / 40 + 0.05


def test_facts_of_held_out_questions_are_in_no_training_question(data: Splits) -> None:
    groups = [{question.group for question in getattr(data, split)} for split in SPLITS]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 350
    facts: dict[str, set[str]] = {}
    people: dict[str, set[str]] = {}
    for split in SPLITS:
        facts[split] = {identity for q in getattr(data, split) for identity in q.relevant}
        people[split] = {subject(q) for q in getattr(data, split)}
    assert not facts["train"] & (facts["validation"] | facts["test"])
    assert not people["train"] & (people["validation"] | people["test"])
    assert all(passages for _, passages in gold(data))


def test_bm25_finds_the_first_hop_at_once_and_the_second_among_twenty(data: Splits) -> None:
    keys = [f"{passage.title}. {passage.text}" for passage in data.passages]
    asked = gold(data)
    index = bm25s.BM25()
    index.index(bm25s.tokenize(keys, show_progress=False), show_progress=False)
    texts = bm25s.tokenize([question.text for question, _ in asked], show_progress=False)
    rows, _ = index.retrieve(texts, k=20, show_progress=False)
    ranks: dict[tuple[int, int], list[int]] = defaultdict(list)
    for (_, passages), best in zip(asked, rows, strict=True):
        ids = [data.passages[int(row)].id for row in best]
        for hop, passage in enumerate(passages):
            rank = ids.index(passage.id) if passage.id in ids else 99
            ranks[len(passages), hop].append(rank)

    def share(key: tuple[int, int], k: int) -> float:
        return sum(rank < k for rank in ranks[key]) / len(ranks[key])

    assert share((1, 0), 5) > 0.95
    assert share((2, 0), 5) > 0.95
    assert share((2, 1), 1) < 0.1
    assert share((2, 1), 5) < 0.6
    assert share((2, 1), 20) > 0.9


def test_the_text_of_a_seed_stays() -> None:
    """A change of the generator changes every published number: it must be seen here."""
    question = SyntheticQuestions().read(None, 0).test[0]
    assert question.text == "In which city does the tedmonger who directs the Dipox Works live?"
    assert question.answers == ("Septon",)


def test_the_seed_decides_everything() -> None:
    reader = SyntheticQuestions(train=40, validation=20, test=20)
    assert reader.read(None, 3) == SyntheticQuestions(40, 20, 20).read(None, 3)
    one, other = reader.read(None, 3), reader.read(None, 4)
    assert {q.text for q in questions(one)}.isdisjoint(q.text for q in questions(other))
    assert {p.text for p in one.passages}.isdisjoint(p.text for p in other.passages)


@pytest.mark.parametrize(("two_hop", "hops"), [(0.0, {1}), (1.0, {2})])
def test_one_kind_of_questions_alone(two_hop: float, hops: set[int]) -> None:
    data = SyntheticQuestions(train=9, validation=1, test=4, two_hop=two_hop).read(None, 0)
    assert [len(getattr(data, split)) for split in SPLITS] == [9, 1, 4]
    assert len(data.passages) == (3 + 1 + 1) * 7
    assert {len(question.relevant) for question in questions(data)} == hops
    assert len({question.text for question in questions(data)}) == 14


@pytest.mark.parametrize(
    ("name", "value", "legal"),
    [
        ("train", 0, "1 to"),
        ("validation", 0, "1 to"),
        ("test", -3, "1 to"),
        ("two_hop", 1.1, "0.0 to 1.0"),
        ("questions_per_company", 5, "1 to 4"),
        ("questions_per_company", 0, "1 to 4"),
        ("cities", 4, "5 to 400"),
        ("same_trade", 1, "2 to"),
        ("train", 7_900, "at most 2000"),
    ],
)
def test_bad_sizes(name: str, value: float, legal: str) -> None:
    with pytest.raises(UserError, match=legal) as error:
        SyntheticQuestions(**{name: value})
    assert name in str(error.value)


def test_the_reader_has_the_defaults_of_the_sizes() -> None:
    assert SyntheticQuestions().sizes == QuestionSizes()
    arguments = set(SyntheticQuestions.__init__.__annotations__) - {"return"}
    assert {field.name for field in fields(QuestionSizes)} == arguments
