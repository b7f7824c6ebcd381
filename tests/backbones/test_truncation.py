import random

import pytest

from lightning_rag.backbones.truncation import Piece, fit
from lightning_rag.errors import UserError
from lightning_rag.types import Rendered


def piece(count, spans=(), first=0):
    """A text of `count` one-letter tokens; `spans` are ranges of tokens."""
    text = " ".join("x" * count)
    names = {f"s{i}": (2 * a, 2 * b - 1) for i, (a, b) in enumerate(spans)}
    offsets = [(2 * i, 2 * i + 1) for i in range(count)]
    return Piece([first + i for i in range(count)], offsets, Rendered(text, names))


def test_without_spans_the_head_stays():
    assert piece(10).cut(4).ids == [0, 1, 2, 3]


def test_the_farthest_tokens_go_first():
    assert piece(10, [(6, 8)]).cut(4).ids == [5, 6, 7, 8]
    assert piece(10, [(1, 2), (8, 9)]).cut(6).ids == [0, 1, 2, 7, 8, 9]


def test_the_start_may_be_kept_too():
    """Its characters, and then the tokens nearest to the spans, as if it were not there."""
    assert piece(10, [(6, 8)]).cut(6, first=3).ids == [0, 1, 5, 6, 7, 8]
    assert piece(10, [(0, 1), (8, 9)]).cut(4, first=4).ids == [0, 1, 7, 8]
    assert piece(10).cut(4, first=4).ids == [0, 1, 2, 3]
    assert piece(4).cut(4, first=8).ids == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"need 4 tokens, the limit leaves 3"):
        piece(10, [(6, 8)]).cut(3, first=3)


def test_random_cuts_against_the_definition():
    rng = random.Random(0)
    for _ in range(300):
        count = rng.randint(1, 25)
        starts = [rng.randrange(count) for _ in range(rng.randint(0, 3))]
        spans = [(s, min(count, s + rng.randint(1, 4))) for s in starts]
        protected = {i for a, b in spans for i in range(a, b)}
        limit = rng.randint(1, 25)
        whole = piece(count, spans)
        if len(protected) > min(limit, count):
            with pytest.raises(UserError, match=f"need {len(protected)} tokens.*leaves {limit}"):
                whole.cut(limit)
            continue
        ids = whole.cut(limit).ids
        assert ids == sorted(ids)
        assert len(ids) == min(limit, count)
        assert protected <= set(ids)
        away = {i: min(abs(i - p) for p in protected or {0}) for i in range(count)}
        lost = set(range(count)) - set(ids)
        assert all(away[gone] >= away[kept] for gone in lost for kept in ids)


def test_passages_are_cut_before_the_query_and_the_last_first():
    query, passages = piece(5), [piece(5, first=10), piece(5, first=20)]
    fitted = fit(query, passages, 15, separator=1)
    assert [p.ids for p in fitted.passages] == [[10, 11, 12, 13, 14], [20, 21, 22]]
    assert fitted.truncated == 1
    fitted = fit(query, passages, 10, separator=1)
    assert [p.ids for p in fitted.passages] == [[10, 11, 12, 13]]
    assert fitted.truncated == 2
    fitted = fit(query, passages, 3, separator=1)
    assert fitted.query.ids == [0, 1, 2]
    assert fitted.passages == []
    assert fitted.truncated == 3


def test_nothing_is_cut_at_the_limit():
    fitted = fit(piece(5), [piece(4), piece(4)], 15, separator=1)
    assert fitted.truncated == 0
    assert [len(p.ids) for p in fitted.passages] == [4, 4]


def test_a_passage_that_would_lose_its_label_is_dropped():
    passages = [piece(3, first=10), piece(6, [(0, 1), (4, 6)], first=20)]
    kept = fit(piece(2), passages, 8 + 1, separator=1).passages
    assert [p.ids for p in kept] == [[10, 11, 12]]  # two places left, three tokens protected
    kept = fit(piece(2), passages, 10, separator=1).passages
    assert [p.ids for p in kept] == [[10, 11, 12], [20, 24, 25]]


def test_limit_of_a_single_passage():
    fitted = fit(piece(2), [piece(6), piece(3)], 20, separator=1, passage_limit=4)
    assert [len(p.ids) for p in fitted.passages] == [4, 3]
    assert fitted.truncated == 1


def test_a_query_whose_spans_do_not_fit():
    with pytest.raises(UserError, match="need 4 tokens, the limit leaves 3"):
        fit(piece(9, [(0, 4)]), [piece(3)], 3, separator=1)
