"""What all selectors share: offers, drawing without replacement, names."""

import itertools

import pytest
import torch

from lightning_rag.retrieval.selector import (
    Drawing,
    Offer,
    available,
    check_lists,
    numbered,
)
from lightning_rag.types import Rendered

LOGITS = torch.tensor([0.3, -1.0, 1.2, 0.6])


def naive_choice(logits, taken, temperature, top_p):
    """Probabilities of the next candidate, in plain Python."""
    left = [i for i in range(len(logits)) if i not in taken]
    raw = {i: float(torch.exp(logits[i].double() / temperature)) for i in left}
    total = sum(raw.values())
    kept, mass = [], 0.0
    for i in sorted(left, key=lambda i: -raw[i]):
        if mass >= top_p:
            break
        kept.append(i)
        mass += raw[i] / total
    total = sum(raw[i] for i in kept)
    return {i: raw[i] / total if i in kept else 0.0 for i in left}


def naive_probability(logits, places, temperature=1.0, top_p=1.0):
    product = 1.0
    for number, place in enumerate(places):
        product *= naive_choice(logits, places[:number], temperature, top_p)[place]
    return product


@pytest.mark.parametrize(("temperature", "top_p"), [(1, 1), (0.5, 1), (1, 0.6), (2.0, 0.8)])
def test_drawing_knows_both_distributions(temperature, top_p, frequencies_agree):
    torch.manual_seed(0)
    drawing = Drawing(torch.ones(20_000, 4, dtype=torch.bool), temperature, top_p)
    for _ in range(2):
        drawing.take(LOGITS.expand(20_000, 4))
    sampled = drawing.sampled(1)
    assert sampled.positions.shape == (1, 20_000, 2)
    lists = list(itertools.permutations(range(4), 2))
    proposal = [naive_probability(LOGITS, places, temperature, top_p) for places in lists]
    assert sum(proposal) == pytest.approx(1)
    offer = Offer([Rendered("")], [[Rendered("")] * 4], 4)
    frequencies_agree(sampled, offer, torch.tensor([proposal]))
    # Both log-probabilities of what was drawn, list by list.
    for places in set(lists[::3]):
        drawn = (sampled.positions[0] == torch.tensor(places)).all(dim=-1)
        if not drawn.any():
            continue
        row = int(drawn.nonzero()[0])
        expected = naive_probability(LOGITS, places)
        assert sampled.log_prob[0, row].exp().item() == pytest.approx(expected, abs=1e-6)
        expected = naive_probability(LOGITS, places, temperature, top_p)
        assert sampled.log_proposal[0, row].exp().item() == pytest.approx(expected, abs=1e-6)
    assert sampled.valid.all()


def test_drawing_at_temperature_0_takes_the_best():
    there = torch.tensor([[True, True, False, True], [False, False, False, True]])
    drawing = Drawing(there, 0, 1.0)
    taken = [drawing.take(LOGITS.expand(2, 4)).tolist() for _ in range(3)]
    assert taken == [[3, 3], [0, -1], [1, -1]]
    assert drawing.log_prob[0].exp().item() == pytest.approx(
        naive_probability(LOGITS[[0, 1, 3]], (2, 0, 1))
    )
    assert drawing.log_prob[1].item() == drawing.log_proposal[1].item() == 0
    assert there.tolist()[0] == [True, True, False, True]  # the argument stays as it was


def test_drawing_refuses_what_is_no_number():
    drawing = Drawing(torch.ones(1, 2, dtype=torch.bool), 1.0, 1.0)
    with pytest.raises(ValueError, match="got NaN"):
        drawing.take(torch.tensor([[0.0, torch.nan]]))


def test_drawing_from_the_fewest_that_reach_top_p():
    logits = torch.tensor([0.125, 0.5, 0.125, 0.25]).log()
    for top_p, kept in ((1.0, 4), (0.9, 4), (0.8, 3), (0.6, 2), (0.4, 1)):
        drawing = Drawing(torch.ones(500, 4, dtype=torch.bool), 1.0, top_p)
        assert len(set(drawing.take(logits.expand(500, 4)).tolist())) == kept


def test_available(offer):
    assert available(offer, torch.device("cpu")).tolist() == [
        [True, True, True, True],
        [True, False, False, False],
        [True, True, True, False],
    ]


def test_check_lists_leaves_out_what_is_nothing(offer):
    positions = torch.tensor([[[3, 0]], [[-1, 0]], [[-1, -1]]])
    assert check_lists(offer, positions) == [[[3, 0]], [[0]], [[]]]


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([[[0, 0]], [[0, -1]], [[0, 1]]], r"0 to 3 for query 0.*got \[0, 0\]"),
        ([[[0, 1]], [[0, 1]], [[0, 1]]], r"0 to 0 for query 1.*got \[0, 1\]"),
        ([[[0, 1]], [[0, -2]], [[0, 1]]], r"got \[0, -2\]"),
        ([[[0, 1]], [[0, -1]]], r"positions must be \(B=3, S, K\), got \(2, 1, 2\)"),
        ([[0, 1], [0, -1], [0, 1]], r"positions must be \(B=3, S, K\), got \(3, 2\)"),
    ],
)
def test_bad_lists(offer, positions, message):
    with pytest.raises(ValueError, match=message):
        check_lists(offer, torch.tensor(positions))


def test_bad_offers():
    with pytest.raises(ValueError, match="for each of 1 queries, got 0 lists"):
        Offer([Rendered("a")], [], 2)
    with pytest.raises(ValueError, match=r"one list of up to 1 passages .* lists of up to 2"):
        Offer([Rendered("a")], [[Rendered("b")] * 2], 1)


def test_numbered_shifts_spans_and_protects_the_name():
    passage = numbered(Rendered("alba borks cimo", {"head": (0, 4), "tail": (11, 15)}), "12")
    assert passage.text == "[12] alba borks cimo"
    marked = {name: passage.text[start:end] for name, (start, end) in passage.spans.items()}
    assert marked == {"name": "[12]", "head": "alba", "tail": "cimo"}
