import random

import numpy as np
import pytest
import torch

from lightning_rag.errors import UserError
from lightning_rag.tasks.question_answering import QuestionAnswering, normalised_words
from lightning_rag.types import Instance, Passage, Predictions, RagBatch

QUESTION = Instance("q1", "Who wrote it?", ("Émile Zola", "Zola"))
PASSAGE = Passage("p1", "A novel by Emile Zola.", title="Germinal")


@pytest.fixture
def task():
    task = QuestionAnswering()
    task.prepare(())
    return task


def test_renderings(task):
    assert task.query(QUESTION).text == task.source(QUESTION).text == "Who wrote it?"
    assert task.key(PASSAGE).text == "Germinal. A novel by Emile Zola."
    assert task.passage(PASSAGE).text == "Germinal: A novel by Emile Zola."
    assert task.passage(PASSAGE) == task.passage(PASSAGE, with_label=False)
    untitled = Passage("p2", "Text.")
    assert task.key(untitled).text == task.passage(untitled).text == "Text."
    assert dict(task.query(QUESTION).spans) == {}


def test_a_plain_passage_is_embedded_whole(task):
    assert task.slots == ()
    assert task.labelled_key(PASSAGE, "</s>") == task.key(PASSAGE)


def test_answers(task):
    assert task.target(QUESTION) == task.option_target(QUESTION, "Émile Zola") == "Émile Zola"
    assert task.options(QUESTION) is None
    assert task.parse("  Émile \n Zola ", QUESTION) == "Émile Zola"
    with pytest.raises(ValueError, match="'q2' has no answer"):
        task.target(Instance("q2", "Why?"))


def test_labels_are_refused():
    with pytest.raises(UserError, match="labels a, b; legal"):
        QuestionAnswering().prepare(("a", "b"))


@pytest.mark.parametrize(
    ("answer", "title", "text", "expected"),
    [
        ("Zola", "", "by ZOLA, 1885", True),
        ("Zola", "", "a gorgonzola", False),
        ("Zola", "Zola", "", True),
        ("New York", "New", "York", False),  # never over from title to text
        ("New York", "", "in new-york.", True),
        ("New York", "", "York, not new", False),
        ("Émile", "", "emile", True),
        ("U.S.", "", "the U.S. army", True),
        ("$", "", "a $ sign", False),
        ("1,000", "", "about 1,000 men", True),
    ],
)
def test_matches(task, answer, title, text, expected):
    instance, passage = Instance("q", "?", (answer,)), Passage("p", text, title)
    assert task.matches(instance, passage) is expected
    assert task.relevant(instance, passage) is expected
    assert task.relevant_rows([instance], [passage])[0].tolist() == ([0] if expected else [])


def test_ids_go_before_contents(task):
    given = Instance("q", "?", ("Zola",), relevant=("p9",))
    assert not task.relevant(given, PASSAGE)
    assert task.relevant(given, Passage("p9", "nothing"))


def test_relevant_rows_equal_the_double_loop(task):
    rng = random.Random(0)
    words = ["Ab", "cd", "é", "ef", "the", "$", "x-y", "42", "B."]

    def text(low, high):
        return " ".join(rng.choice(words) for _ in range(rng.randint(low, high)))

    passages = [Passage(f"p{i % 70}", text(0, 8), title=text(0, 2)) for i in range(80)]
    queries = [
        Instance(
            f"q{i}",
            "?",
            tuple(text(0, 3) for _ in range(rng.randint(0, 3))),
            relevant=rng.choice([(), (), ("p3", "p71", "p3"), ("p60",)]),
        )
        for i in range(80)
    ]
    rows = task.relevant_rows(queries, passages)
    sizes = set()
    for query, found in zip(queries, rows, strict=True):
        expected = [r for r, passage in enumerate(passages) if task.relevant(query, passage)]
        assert found.dtype == np.int64
        assert found.tolist() == expected
        sizes.add(min(len(expected), 2))
    assert sizes == {0, 1, 2}


def test_normalised_words():
    assert normalised_words("The  Café's 3rd-best!") == " the cafe s 3rd best "
    assert normalised_words("?!") == normalised_words("") == ""


def test_metrics(task):
    batch = RagBatch(
        rows=torch.arange(2),
        instances=[QUESTION, Instance("q2", "Where?", ("New York",))],
        candidate_ids=torch.arange(3).repeat(2, 1),
        candidate_scores=torch.zeros(2, 3),
        relevance=torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]),
        relevant_rows=[torch.tensor([0]), torch.tensor([1])],
        excluded_rows=[torch.tensor([]), torch.tensor([])],
    )
    metrics = task.metrics((1, 2))
    metrics.update(Predictions(["zola", "York"], torch.tensor([[3.0, 2, 1]] * 2)), batch)
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values == pytest.approx(
        {
            "exact_match": 0.5,
            "f1": (1 + 2 / 3) / 2,
            "recall@1": 0.5,
            "recall@2": 1.0,
            "success@1": 0.5,
            "success@2": 1.0,
            "mrr": 0.75,
            "ndcg@2": (1 + 1 / np.log2(3)) / 2,
        }
    )
    assert task.monitor in values
