"""Figures of the retrieval analysis, against hand-made cases and a naive double loop."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch

from lightning_rag.metrics.neighbours import (
    Shared,
    collapse,
    confusion,
    entity_figures,
    label_agreement,
    perplexity,
    random_rows,
    ranked_rows,
    shared,
)
from lightning_rag.types import Instance, Passage, Span

KS = (1, 3, 5)
NAMES = ("Ada", "Bo", "Cy", "Ada Bo", "di")


def sentence(text: str, head: str, tail: str, label: str = "r") -> Instance:
    spans = [Span(text.index(name), text.index(name) + len(name)) for name in (head, tail)]
    return Instance(text, text, (label,), *spans)


def demonstration(text: str, head: str, tail: str, label: str = "r") -> Passage:
    return Passage(text, text, instance=sentence(text, head, tail, label))


QUERY = sentence("Ada met Bo", "Ada", "Bo")


@pytest.mark.parametrize(
    ("passage", "expected"),
    [
        (demonstration("Ada saw Bo", "Ada", "Bo"), (True, True, True, True)),
        # Either role will do for a mention.
        (demonstration("Bo saw Cy", "Cy", "Bo"), (False, True, False, True)),
        (demonstration("Cy saw Ada", "Cy", "Ada"), (True, False, True, False)),
        # In the text, and not among its mentions.
        (demonstration("Cy and di, by Bo", "Cy", "di"), (False, True, False, False)),
        # As they stand: with case, and within words; a mention is compared as a whole.
        (demonstration("ada saw BO", "ada", "BO"), (False, False, False, False)),
        (demonstration("Adam saw Cy", "Adam", "Cy"), (True, False, False, False)),
        (Passage("p", "About Ada"), (True, False, False, False)),
    ],
)
def test_shared(passage: Passage, expected: tuple[bool, ...]) -> None:
    for label in (True, False):
        assert shared(QUERY, passage, label=label) == Shared(label, *expected)


def test_nothing_but_the_label_is_shared_without_mentions() -> None:
    question = Instance("q", "Who?", ("Ada",))
    assert shared(question, demonstration("Ada saw Bo", "Ada", "Bo"), label=True) == Shared(True)
    empty = Instance("e", "Who?", ("r",), Span(0, 0), Span(2, 2))
    assert shared(empty, demonstration("Ada saw Bo", "Ada", "Bo"), label=False) == Shared(False)
    # Nor do two instances share the mentions that they both lack.
    neighbour = Passage("n", "Whom?", instance=question)
    assert shared(question, neighbour, label=False) == Shared(False)


def test_figures_by_hand() -> None:
    """Two queries; the second has one neighbour only."""
    head = Shared(False, head_in_text=True)
    mention = Shared(False, tail_in_text=True, tail_mentioned=True)
    pairs = [[Shared(False), Shared(True), head], [mention]]
    assert label_agreement(pairs, (1, 2, 3)) == {
        "label_agreement@1": 0.0,
        "label_agreement@2": 1 / 3,
        "label_agreement@3": 1 / 4,
    }
    figures = entity_figures(pairs, (1, 3))
    assert figures == {
        "head_inclusion@1": 0.0,
        "pairwise_head_inclusion@1": 0.0,
        "tail_inclusion@1": 0.5,
        "pairwise_tail_inclusion@1": 0.5,
        "entity_inclusion@1": 0.5,
        "pairwise_entity_inclusion@1": 0.5,
        "entity_coverage@1": 0.5,
        "pairwise_entity_coverage@1": 0.5,
        "inclusion_or_label@1": 0.5,
        "pairwise_inclusion_or_label@1": 0.5,
        "coverage_or_label@1": 0.5,
        "pairwise_coverage_or_label@1": 0.5,
        "attribute_share@1": 0.5,
        "head_inclusion@3": 0.5,
        "pairwise_head_inclusion@3": 0.25,
        "tail_inclusion@3": 0.5,
        "pairwise_tail_inclusion@3": 0.25,
        "entity_inclusion@3": 1.0,
        "pairwise_entity_inclusion@3": 0.5,
        "entity_coverage@3": 0.5,
        "pairwise_entity_coverage@3": 0.25,
        "inclusion_or_label@3": 1.0,
        "pairwise_inclusion_or_label@3": 0.75,
        "coverage_or_label@3": 1.0,
        "pairwise_coverage_or_label@3": 0.5,
        "attribute_share@3": 0.75,
    }


def invent(draw: random.Random) -> Instance:
    head, tail = draw.sample(NAMES, 2)
    other = draw.choice(NAMES)
    return sentence(f"{head} and {tail}, not {other}", head, tail, draw.choice("rst"))


def naive(queries: list[Instance], lists: list[list[Passage]], n: int) -> dict[str, float]:
    """The definitions once more, from the records, pair by pair."""
    hits: Counter[str] = Counter()
    pairs = 0
    for query, passages in zip(queries, lists, strict=True):
        head = query.text[query.head.start : query.head.end]
        tail = query.text[query.tail.start : query.tail.end]
        seen: set[str] = set()
        for passage in passages[:n]:
            pairs += 1
            demo = passage.instance
            mentions = [demo.text[s.start : s.end] for s in (demo.head, demo.tail)]
            found = set()
            if demo.answers == query.answers:
                found |= {"label", "inclusion_or_label", "coverage_or_label"}
            if head in passage.text:
                found |= {"head_inclusion", "entity_inclusion", "inclusion_or_label"}
            if tail in passage.text:
                found |= {"tail_inclusion", "entity_inclusion", "inclusion_or_label"}
            if head in mentions or tail in mentions:
                found |= {"entity_coverage", "coverage_or_label"}
            hits["attribute_share"] += bool(found)
            hits["label_agreement"] += "label" in found
            hits.update(f"pairwise_{name}" for name in found)
            seen |= found
        hits.update(seen)
    names = [
        *("head_inclusion", "tail_inclusion", "entity_inclusion", "entity_coverage"),
        *("inclusion_or_label", "coverage_or_label"),
    ]
    figures = {f"{name}@{n}": hits[name] / len(queries) for name in names}
    over_pairs = ["label_agreement", "attribute_share", *(f"pairwise_{name}" for name in names)]
    return figures | {f"{name}@{n}": hits[name] / pairs for name in over_pairs}


@pytest.mark.parametrize("seed", range(10))
def test_figures_against_a_naive_loop(seed: int) -> None:
    draw = random.Random(seed)
    queries = [invent(draw) for _ in range(12)]
    lists: list[list[Passage]] = []
    for number in range(12):  # the first one has all five neighbours, others may have fewer
        demos = [invent(draw) for _ in range(5 if number == 0 else draw.randint(0, 5))]
        lists.append([Passage(d.id, d.text, instance=d) for d in demos])
    pairs = [
        [shared(q, p, label=p.instance.answers == q.answers) for p in found]
        for q, found in zip(queries, lists, strict=True)
    ]
    figures = label_agreement(pairs, KS) | entity_figures(pairs, KS)
    expected = {name: value for n in KS for name, value in naive(queries, lists, n).items()}
    assert figures == pytest.approx(expected)


def test_first_n_are_neighbours_and_not_queries() -> None:
    """The release's pairwise figures of the first n take the first n queries."""
    pairs = [[Shared(False), Shared(True)], [Shared(False), Shared(True)]]
    assert label_agreement(pairs, (1,)) == {"label_agreement@1": 0.0}
    assert entity_figures(pairs, (1,))["attribute_share@1"] == 0.0


@pytest.mark.parametrize("function", [label_agreement, entity_figures])
def test_depths_that_no_query_reaches_are_left_out(function) -> None:
    pairs = [[Shared(True)] * 2, [], [Shared(True)]]
    assert {name.partition("@")[2] for name in function(pairs, (1, 2, 3, 10))} == {"1", "2"}
    assert function([[], []], (1,)) == {}
    assert function([], (1,)) == {}
    with pytest.raises(ValueError, match=r"ks: expected positive numbers, got \[1, 0\]"):
        function(pairs, (1, 0))


def test_a_query_without_neighbours_counts_among_the_queries() -> None:
    figures = entity_figures([[Shared(False, head_in_text=True)], []], (1,))
    assert figures["head_inclusion@1"] == 0.5
    assert figures["pairwise_head_inclusion@1"] == 1.0


def test_collapse() -> None:
    assert collapse([4, 4, 4, 7, 1]) == {"distinct_top1": 3.0, "most_frequent_top1": 0.6}
    assert collapse([2]) == {"distinct_top1": 1.0, "most_frequent_top1": 1.0}
    assert collapse([]) == {}


def test_confusion() -> None:
    counts = confusion([("b", "a"), ("a", "a"), ("b", "b"), ("b", "a")])
    assert counts == {"a": {"a": 1}, "b": {"a": 2, "b": 1}}
    assert list(counts) == ["a", "b"]
    assert confusion([]) == {}


def test_perplexity_in_closed_form() -> None:
    weights = torch.tensor(
        [
            [[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]],
            [[0.5, 0.0, 0.5, 0.0], [0.75, 0.25, 0.0, 0.0]],
        ]
    )
    last = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert torch.allclose(perplexity(weights), torch.tensor([[1, 4], [2, last]]).double())


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.960), (0.1, 0.272), (0.02, 0.0544)])
def test_perplexity_of_even_scores(temperature: float, share: float) -> None:
    """Scores spread evenly over [0, 1]: the density a e^(ax) / (e^a - 1), with a = 1 / t."""
    scores = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    a = 1 / temperature
    mean = (math.exp(a) * (a - 1) + 1) / (a * math.expm1(a))
    expected = math.exp(-(math.log(a / math.expm1(a)) + a * mean))
    assert expected == pytest.approx(share, rel=2e-3)
    found = perplexity(torch.softmax(scores / temperature, dim=0)) / len(scores)
    assert found.item() == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_perplexity_of_what_is_no_distribution(bad: float) -> None:
    with pytest.raises(ValueError, match="weights: expected distributions"):
        perplexity(torch.tensor([0.5, bad]))


def test_ranked_rows_by_hand() -> None:
    ids = torch.tensor([[5, 3, 9, -1], [2, 4, 6, 8], [1, 0, 7, 3]])
    low = -math.inf
    scores = torch.tensor([[0.1, 0.7, low, 9.0], [1.0, 2.0, 2.0, 1.0], [low, low, low, low]])
    assert ranked_rows(ids, scores, 3) == [[3, 5], [4, 6, 2], []]
    assert ranked_rows(ids, scores, 1) == [[3], [4], []]
    assert ranked_rows(ids, scores, 9) == [[3, 5], [4, 6, 2, 8], []]


def test_ranked_rows_take_minus_zero_for_zero() -> None:
    ids = torch.arange(64)[None]
    scores = torch.zeros(1, 64)
    scores[0, ::2] = -0.0
    assert ranked_rows(ids, scores, 64) == [list(range(64))]


@pytest.mark.parametrize("seed", range(5))
def test_ranked_rows_against_sorting(seed: int) -> None:
    torch.manual_seed(seed)
    ids = torch.stack([torch.randperm(40)[:20] for _ in range(6)]) - 3  # some below 0
    ids = ids.clamp(min=-1)
    scores = torch.randint(0, 6, (6, 20)).float()
    scores[scores == 0] = -math.inf
    for row, found in enumerate(ranked_rows(ids, scores, 7)):
        there = [c for c in range(20) if ids[row, c] >= 0 and scores[row, c] > -math.inf]
        there.sort(key=lambda c: (-float(scores[row, c]), c))
        assert found == [int(ids[row, c]) for c in there[:7]]


def test_ranked_rows_refuse() -> None:
    with pytest.raises(ValueError, match=r"one shape \(B, N\), got \(1, 2\) and \(1, 3\)"):
        ranked_rows(torch.zeros(1, 2), torch.zeros(1, 3), 1)
    with pytest.raises(ValueError, match="got NaN"):
        ranked_rows(torch.zeros(1, 2).long(), torch.tensor([[0.0, math.nan]]), 1)


def test_random_rows_are_even_and_keep_off_the_excluded() -> None:
    draw = random.Random(0)
    counts: Counter[int] = Counter()
    for _ in range(3000):
        rows = random_rows(10, 3, [2, 9], draw)
        assert len(set(rows)) == 3
        counts.update(rows)
    # 8 rows, each drawn with 3/8: 1125 times, with a standard deviation of 26.5
    assert set(counts) == set(range(10)) - {2, 9}
    assert all(abs(count - 1125) < 5 * 26.5 for count in counts.values())


def test_random_rows_of_a_small_store() -> None:
    assert sorted(random_rows(4, 10, [1], random.Random(0))) == [0, 2, 3]
    assert random_rows(2, 1, [0, 1], random.Random(0)) == []


def test_random_rows_repeat_with_their_seed() -> None:
    one, other, third = (random_rows(10**6, 5, [], random.Random(s)) for s in (1, 1, 2))
    assert one == other != third
