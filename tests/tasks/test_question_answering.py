import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_rag import cli
from lightning_rag.errors import UserError
from lightning_rag.tasks.question_answering import QuestionAnswering, normalised_words
from lightning_rag.types import Instance, Passage, Predictions, RagBatch

METRICS = ("exact_match", "f1")
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


@pytest.mark.parametrize("tags", ["none", "untyped", "typed"])
def test_a_reward_model_reads_the_answer_and_there_is_nothing_to_tag(task, tags):
    assert task.tagged_query(QUESTION, tags).text == "Who wrote it? Émile Zola"
    assert task.tagged_key(PASSAGE, tags) == task.key(PASSAGE)
    with pytest.raises(ValueError, match="'q2' has no answer"):
        task.tagged_query(Instance("q2", "Who?"), tags)


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
    with pytest.raises(UserError, match="the data set has a, b; legal"):
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


def test_equal_answers_share_their_rows(task):
    """A frequent answer stands in a large part of a store, and many questions have it."""
    queries = [
        Instance(f"q{i}", "?", answers) for i, answers in enumerate([("a", "b"), ("b", "a")])
    ]
    one, other = task.matching_rows(queries, [Passage("p1", "a"), Passage("p2", "b, a")])
    assert one is other
    assert one.tolist() == [0, 1]
    with pytest.raises(ValueError, match="read-only"):
        one[0] = 1


def test_relevant_rows_of_known_matches(task):
    passages = [PASSAGE, Passage("p2", "Zola"), Passage("p3", "nothing")]
    queries = [QUESTION, Instance("q2", "?", ("Zola",), relevant=("p3",))]
    matching = task.matching_rows(queries, passages)
    rows = task.relevant_rows(queries, passages, matching=matching)
    assert [found.tolist() for found in rows] == [[0, 1], [2]]
    assert rows[0] is matching[0]
    assert [found.tolist() for found in task.relevant_rows(queries, passages)] == [[0, 1], [2]]


def test_normalised_words():
    assert normalised_words("The  Café's 3rd-best!") == " the cafe s 3rd best "
    assert normalised_words("?!") == normalised_words("") == ""


def two_queries():
    return RagBatch(
        rows=torch.arange(2),
        instances=[QUESTION, Instance("q2", "Where?", ("New York",))],
        candidate_ids=torch.arange(3).repeat(2, 1),
        candidate_scores=torch.zeros(2, 3),
        relevance=torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]),
        relevant_rows=[torch.tensor([0]), torch.tensor([1])],
        answer_rows=[torch.tensor([0, 1]), torch.tensor([2])],
        excluded_rows=[torch.tensor([]), torch.tensor([])],
    )


def test_metrics(task):
    metrics, batch = task.metrics((1, 2)), two_queries()
    metrics.update(Predictions(["zola", "York"], torch.tensor([[3.0, 2, 1]] * 2)), batch)
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values == pytest.approx(
        {
            "exact_match": 0.5,
            "f1": (1 + 2 / 3) / 2,
            "kilt_exact_match": 0.5,
            "kilt_f1": (1 + 2 / 3) / 2,
            "answer_recall@1": 0.5,  # the second query's answer stands in its last candidate
            "answer_recall@2": 0.5,
            "recall@1": 0.5,
            "recall@2": 1.0,
            "success@1": 0.5,
            "success@2": 1.0,
            "mrr": 0.75,
            "ndcg@2": (1 + 1 / np.log2(3)) / 2,
        }
    )
    assert task.monitor in values


@pytest.mark.parametrize(
    ("scorers", "names"),
    [
        (("squad",), {"exact_match", "f1"}),
        (("dro", "kilt"), {"dro_exact_match", "dro_f1", "kilt_exact_match", "kilt_f1"}),
        (("squad", "kilt", "dro"), {f"{v}{m}" for v in ("", "kilt_", "dro_") for m in METRICS}),
    ],
)
def test_scorers(scorers, names):
    task = QuestionAnswering(scorers=scorers)
    assert {n for n in task.metrics(()) if n.endswith(METRICS)} == names
    assert task.monitor in task.metrics(())
    assert task.monitor == {"squad": "f1", "dro": "dro_f1"}[scorers[0]]


def test_scorers_differ_where_the_scripts_do():
    """Punctuation is deleted by SQuAD and KILT, and a space for DRO's code."""
    task, batch = QuestionAnswering(scorers=("squad", "kilt", "dro")), two_queries()
    batch.instances = [Instance("q1", "?", ("1,000",)), Instance("q2", "?", ("x y",))]
    metrics = task.metrics(())
    metrics.update(Predictions(["1000", "x-y"], torch.zeros(2, 3)), batch)
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert (values["exact_match"], values["kilt_exact_match"], values["f1"]) == (0.5, 0.5, 0.5)
    assert (values["dro_exact_match"], values["dro_f1"]) == (0.5, 0.5)
    metrics.reset()
    metrics.update(Predictions(["1000", "of it"], torch.zeros(2, 3)), batch)
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert (values["exact_match"], values["kilt_f1"], values["dro_exact_match"]) == (0.5, 0.5, 0.0)


@pytest.mark.parametrize("scorers", [(), ("squad", "bleu"), ("kilt", "kilt")])
def test_unknown_scorers(scorers):
    with pytest.raises(UserError, match=r"task.scorers is .*; legal: one or more of squad, kilt"):
        QuestionAnswering(scorers=scorers)


class TestClosedAnswers:
    @pytest.fixture
    def task(self):
        task = QuestionAnswering(answers=["yes", "no", "maybe"])
        task.prepare(())
        return task

    def test_options(self, task):
        question = Instance("q", "Does it?", ("no",))
        assert task.options(question) == ("yes", "no", "maybe")
        assert task.option_target(question, "maybe") == "maybe"
        assert task.target(question) == "no"

    @pytest.mark.parametrize(
        ("output", "answer"),
        [(" no", "no"), ("Maybe.", "maybe"), ("YES!", "yes"), ("no  idea", "no idea"), ("", "")],
    )
    def test_parse(self, task, output, answer):
        assert task.parse(output, Instance("q", "?")) == answer

    def test_metrics(self, task):
        batch = two_queries()
        batch.instances = [Instance("q1", "?", ("yes",)), Instance("q2", "?", ("maybe",))]
        metrics = task.metrics((1,))
        metrics.update(Predictions(["yes", "perhaps"], torch.tensor([[3.0, 2, 1]] * 2)), batch)
        values = {name: float(value) for name, value in metrics.compute().items()}
        assert set(values) == {
            *("accuracy", "invalid_rate", "macro_f1"),
            *("recall@1", "success@1", "mrr", "ndcg@1"),
        }
        assert (values["accuracy"], values["invalid_rate"], values["macro_f1"]) == (0.5, 0.5, 0.5)
        assert task.monitor == "accuracy"

    @pytest.mark.parametrize("answers", [("probably",), ("yes", "no"), ("No",)])
    def test_other_answers_of_an_instance(self, task, answers):
        fine, wrong = Instance("q1", "?", ("yes",)), Instance("q2", "?", answers)
        with pytest.raises(UserError, match=r"'q2' has the answers .*exactly one of task.answers"):
            task.check_answers([fine, wrong])
        with pytest.raises(UserError, match="'q2' has the answers"):
            task.target(wrong)
        task.check_answers([fine, Instance("q3", "to predict on")])

    @pytest.mark.parametrize("answers", [[], ["yes"], ["yes", " "], ["yes", "no", " YES"]])
    def test_bad_lists(self, answers):
        with pytest.raises(UserError, match=r"task.answers is \[.*legal: null, or two or more"):
            QuestionAnswering(answers=answers)


class TestInstruction:
    def test_question_comes_last_and_the_task_survives_a_cut(self, task):
        asked = QuestionAnswering(prompt="instruction")
        source = asked.source(QUESTION)
        assert source.text.endswith("\nQuestion: Who wrote it?")
        start, end = source.spans["task"]
        assert source.text[start:end] + QUESTION.text == source.text
        assert "shortest answer" in source.text[start:end]
        assert asked.query(QUESTION) == task.query(QUESTION)  # for the retriever
        assert asked.passage(PASSAGE) == task.passage(PASSAGE)

    def test_closed_list_is_told(self):
        asked = QuestionAnswering(prompt="instruction", answers=["yes", "no"])
        assert "exactly one of these: yes, no.\n" in asked.source(QUESTION).text

    def test_legal_values(self):
        with pytest.raises(UserError, match=r"task.prompt is 'chat'; legal: plain, instruction"):
            QuestionAnswering(prompt="chat")


@pytest.mark.parametrize("blank", ["", "  ", "\t\n", "\u200b", "\x00", "\u00a0\ufeff"])
def test_blank_answers(task, blank):
    """An answer that tokenises to nothing can be neither learned nor scored."""
    for answers in ((blank,), ("Zola", blank)):
        wrong = Instance("q7", "Who?", answers)
        with pytest.raises(UserError, match=r"'q7' has the answer .*; legal: answers with a char"):
            task.check_answers([QUESTION, wrong])
        with pytest.raises(UserError, match="'q7' has the answer"):
            task.target(wrong)
    task.check_answers([QUESTION, Instance("q8", "?", ("$", "é")), Instance("q9", "?")])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Train and test a small model by the command line; return the test metrics."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    root = Path(__file__).resolve().parents[2]

    def start(data, *flags):
        files = ("base", f"data/{data}", "backbone/tiny", "method/rag4re")
        paths = [root / "configs" / f"{name}.yaml" for name in files]
        paths.append(root / "tests" / "small.yaml")
        configs = [word for path in paths for word in ("--config", str(path))]
        assert cli.main(["fit", *configs, "--model.epochs=1", *flags]) == 0
        (metrics,) = (tmp_path / "runs").rglob("metrics.json")
        return json.loads(metrics.read_text())["test"]

    return start


def test_the_figures_of_a_run(run):
    """The command line takes the arguments, and metrics.json has each figure under its name."""
    sizes = ("train=16", "validation=8", "test=8", "two_hop=0")
    test = run(
        "synthetic_questions",
        *(f"--data.reader.init_args.{size}" for size in sizes),
        "--data.retrieval_ks=[1, 3]",
        "--data.task.scorers=[squad, kilt, dro]",
        "--data.task.prompt=instruction",
        "--generator.max_source_length=256",
    )
    names = {f"{lead}{name}" for lead in ("", "kilt_", "dro_") for name in METRICS}
    ranked = {f"{name}@{k}" for name in ("recall", "success", "answer_recall") for k in (1, 3)}
    assert set(test) == names | ranked | {"mrr", "ndcg@3"}
    assert 0 < test["success@3"] <= test["answer_recall@3"] <= 1  # gold passages hold the answer


def test_a_run_with_closed_answers(run, tmp_path):
    """Decoding chooses among the allowed answers, of which training shows only two."""
    said = {"train": ["yes", "no"] * 4, "test": ["yes", "no", "maybe"], "corpus": ["x"] * 8}
    for name, answers in said.items():
        lines = [
            {"id": f"{name}{i}", "question": f"Is it {i}?", "answers": [answer]}
            if name != "corpus"
            else {"id": f"p{i}", "text": f"It is {i}."}
            for i, answer in enumerate(answers)
        ]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    test = run(
        "question_jsonl",
        f"--data.root={tmp_path}",
        "--data.reader.init_args.validation_fraction=0.25",
        '--data.task.answers=["yes", "no", maybe]',
    )
    assert test["invalid_rate"] == 0
    assert set(test) >= {"accuracy", "macro_f1", "recall@1"}
    assert not set(test) & {"f1", "exact_match", "kilt_f1", "answer_recall@1"}
    (predictions,) = (tmp_path / "runs").rglob("predictions.jsonl")
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert {row["prediction"] for row in rows} <= {"yes", "no", "maybe"}
