import numpy as np
import pytest

from lightning_rag.comparison.examples import most_divided, score, section
from lightning_rag.comparison.runs import System
from lightning_rag.metrics.counts import Aggregation, aggregate


@pytest.mark.parametrize(
    "count",
    [
        {"a": [1, 1, 1]},
        {"a": [0, 0, 1], "b": [0, 1, 0]},
        {"a": [1, 2, 3], "b": [0, 0, 1], "c": [2, 2, 2]},
        0.25,
        0,
    ],
)
def test_a_query_s_score_is_the_figure_of_this_query_alone(count):
    kind = "f1" if isinstance(count, dict) else "mean"
    assert score(count) == pytest.approx(aggregate(Aggregation(kind), [count]))


def test_the_score_of_a_query_without_anything():
    assert score({}) == 1  # nothing to find, and nothing was found
    assert score({"a": [0, 0, 0]}) == 1
    assert np.isnan(score(None))


def test_the_most_divided_come_first():
    scores = np.array([[0.0, 1, 0.5, 1, 0], [0.0, 0, 0.7, 0.9, 0], [0.0, 1, 0.5, 1, np.nan]])
    assert most_divided(scores, list("abcde")) == [1, 2, 3]


def test_equal_variances_alternate_between_the_ways_to_divide():
    first_right = np.array([1.0, 0.0])[:, None].repeat(10, 1)
    scores = np.concatenate([first_right, 1 - first_right[:, :4], np.ones((2, 3))], axis=1)
    ids = [f"q{n}" for n in range(17)]
    places = most_divided(scores, ids)
    assert sorted(places) == list(range(14))
    firsts = [scores[0, place] for place in places]
    assert sorted(firsts[:2]) == sorted(firsts[6:8]) == [0, 1]
    assert firsts[8:] == [1] * 6
    # the choice is that of the ids, not of their order
    turned = most_divided(scores[:, ::-1], ids[::-1])
    assert [ids[::-1][place] for place in turned] == [ids[place] for place in places]


@pytest.fixture
def make_system(make_run):
    """A system with rows (prediction, count, retrieved) for each seed."""

    def make(name, *seeds):
        runs = []
        for seed, answers in enumerate(seeds):
            rows = [
                {
                    "id": f"q{n}",
                    "text": f"question {n}",
                    "target": ["yes", "yeah"],
                    "prediction": prediction,
                    "retrieved": retrieved,
                    "ranked": ["p1", "p2", *(f"x{i}" for i in range(9))],
                    "ranked_relevant": [0, 1, *([0] * 9)],
                    "counts": {"f1": count},
                }
                for n, (prediction, count, retrieved) in enumerate(answers)
            ]
            runs.append(make_run(name, seed=seed, rows=rows, passages={"p1": "one", "p2": "two"}))
        return System(name, tuple(runs))

    return make


YES, NO = ("yes", 1.0, ["p1", "p2"]), ("no", 0.0, ["p2"])


def test_a_card_shows_query_target_answers_and_passages(make_system):
    systems = [
        make_system("dro", [YES, YES], [NO, YES]),
        make_system("etrag", [NO, NO], [NO, YES]),
        make_system("ruie", [NO, NO], [NO, YES]),
    ]
    made = section(systems, "f1", 5)
    assert [card.title for card in made.cards] == ["q0: yes | yeah", "q1: yes | yeah"]
    assert made.cards[0].fields == (
        ("query", "question 0"),
        ("target", "yes | yeah"),
        ("dro", "yes\nright with 1 of 2 seeds\n1. one\n2. ✓ two"),
        ("etrag, ruie", "no\nright with 0 of 2 seeds\n1. ✓ two"),
    )
    assert "differ for 2 of 2 queries" in made.paragraphs[0]
    assert "seed 0" in made.paragraphs[0]


def test_the_number_of_cards_is_what_was_asked_for(make_system):
    systems = [make_system("dro", [YES] * 9), make_system("etrag", [NO] * 9)]
    assert len(section(systems, "f1", 4).cards) == 4
    assert section(systems, "f1", 0).cards == ()
    assert len(section(systems, "f1", 99).cards) == 9
    assert section(systems[:1], "f1", 4) is None


def test_partial_scores_are_not_called_right(make_system):
    half = ("yes", 0.5, [])
    systems = [make_system("dro", [half], [half]), make_system("etrag", [NO], [NO])]
    (card,) = section(systems, "f1", 1).cards
    assert dict(card.fields)["dro"] == "yes\nf1 0.50, mean over the seeds"
    (card,) = section([make_system("dro", [half]), make_system("etrag", [YES])], "f1", 1).cards
    assert dict(card.fields)["dro"] == "yes\nf1 0.50"
    assert dict(card.fields)["etrag"].startswith("yes\nright\n")


def test_long_lists_and_texts_are_cut(make_system):
    many = ("", 1.0, [f"x{n}" for n in range(9)])
    systems = [make_system("dro", [many]), make_system("etrag", [NO])]
    for run in (system.runs[0] for system in systems):
        run.rows[0]["text"] = "a" * 5000
    (card,) = section(systems, "f1", 1).cards
    fields = dict(card.fields)
    assert fields["query"] == "a" * 1499 + "…"
    assert fields["dro"].splitlines() == [
        "(no answer)",
        "right",
        *(f"{n}. x{n - 1}" for n in range(1, 6)),
        "… and 4 more",
    ]


def test_who_is_alone_right_or_wrong(make_system):
    void = ("", None, [])
    systems = [
        make_system("a", [YES, YES, NO, NO, YES, void]),
        make_system("b", [YES, NO, NO, YES, NO, YES]),
        make_system("c", [YES, NO, NO, YES, YES, NO]),
    ]
    table = section(systems, "f1", 0).tables[0]
    assert table.rows == (("a", 3, 1, 1), ("b", 2, 0, 1), ("c", 3, 0, 0))
    assert "of 5;" in table.note  # one does not count
    assert "right for 1, none for 1." in table.note
