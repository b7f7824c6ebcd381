from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import pytest

from lightning_rag.data.candidates import (
    BM25,
    STOP_WORDS,
    BM25Index,
    FirstStage,
    Oracle,
    Random,
    SearchRequest,
    best_rows,
)
from lightning_rag.errors import UserError

KEYS = [
    "The brakes caused the accident.",
    "A river runs through the old town.",
    "The accident was caused by brakes, and brakes again.",
    "The brakes caused the accident.",
    "",
    "Bees make honey in the garden.",
    "The town lies on a river.",
]


def request(
    queries: Sequence[str],
    count: int,
    *,
    keys: Sequence[str] = KEYS,
    exclude: Sequence[Sequence[int]] | None = None,
    relevant: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
) -> SearchRequest:
    def rows(given: Sequence[Sequence[int]] | None) -> list[np.ndarray]:
        return [np.array(row, dtype=np.int64) for row in given or [[]] * len(queries)]

    return SearchRequest(queries, keys, count, rows(exclude), rows(relevant), seed)


def naive_bm25(passages, query, k1, b):
    """Lucene's BM25 from its formula, word by word."""
    mean = sum(map(len, passages)) / len(passages)
    scores = []
    for passage in passages:
        score = 0.0
        for word in query:
            holding = sum(word in other for other in passages)
            idf = math.log(1 + (len(passages) - holding + 0.5) / (holding + 0.5))
            tf = passage.count(word)
            score += idf * tf / (tf + k1 * (1 - b + b * len(passage) / mean))
        scores.append(score)
    return scores


def test_bm25_scores_equal_the_golden_ones(golden):
    values = golden("bm25")
    passages, queries = values["shared"]["corpus_tokens"], values["shared"]["query_tokens"]
    seen = 0
    for case in values["cases"]:
        if case["kind"] != "bm25s":
            continue
        index = BM25Index(passages, **case["inputs"])
        found = np.array([index.scores(query) for query in queries])
        np.testing.assert_allclose(found, case["outputs"]["scores"], rtol=0, atol=1e-9)
        for scores, top in zip(found, case["outputs"]["top5"], strict=True):
            nothing = np.empty(0, dtype=np.int64)
            assert best_rows(scores.astype(np.float32), 5, nothing).tolist() == top
        seen += 1
    assert seen == 7


def test_retriv_is_lucene_times_k1_plus_1(golden):
    values = golden("bm25")
    for case in (case for case in values["cases"] if case["kind"] == "retriv"):
        k1, b = case["inputs"]["k1"], case["inputs"]["b"]
        index = BM25Index(values["shared"]["corpus_tokens"], k1=k1, b=b, method="lucene")
        found = [index.scores(query) * (k1 + 1) for query in values["shared"]["query_tokens"]]
        np.testing.assert_allclose(found, case["outputs"]["scores"], rtol=0, atol=2e-5)


def test_bm25_search_equals_the_formula():
    generator = np.random.default_rng(3)
    words = ["aa", "bb", "cc", "dd", "ee", "ff", "gg"]
    keys = [" ".join(generator.choice(words, 9)) for _ in range(60)]
    queries = [" ".join(generator.choice([*words, "zz"], 4)) for _ in range(20)]
    exclude = [generator.choice(60, 5, replace=False) for _ in queries]
    found = BM25(stemmer=None, stop_words=None).search(
        request(queries, 7, keys=keys, exclude=exclude)
    )
    passages = [key.split() for key in keys]
    for row, query in enumerate(queries):
        scores = np.array(naive_bm25(passages, query.split(), 1.2, 0.75), dtype=np.float32)
        order = sorted(set(range(60)) - set(exclude[row].tolist()), key=lambda i: -scores[i])[:7]
        np.testing.assert_allclose(found.scores[row], scores[order], rtol=1e-6)
        np.testing.assert_allclose(scores[found.ids[row]], found.scores[row], rtol=1e-6)
        assert not set(found.ids[row]) & set(exclude[row])
    assert found.ids.dtype == np.int64
    assert found.scores.dtype == np.float32


def test_bm25_breaks_ties_by_row_and_excludes_exactly():
    found = BM25().search(request(["brakes cause accidents"] * 2, 6, exclude=[[], [0, 2]]))
    assert set(found.ids[0, :3].tolist()) == {0, 2, 3}
    twins = [column for column, row in enumerate(found.ids[0].tolist()) if row in (0, 3)]
    assert found.ids[0, twins].tolist() == [0, 3]
    assert found.scores[0, twins[0]] == found.scores[0, twins[1]]
    # Rows that share nothing have score 0 and come in the order of the store.
    assert found.ids[1].tolist() == [3, 1, 4, 5, 6, -1]
    assert found.scores[1].tolist()[1:] == [0, 0, 0, 0, -np.inf]


@pytest.mark.parametrize("query", ["", "   ", "the and of", "zyxwv", "?!", "\ud800"])
def test_a_query_without_known_words_gets_the_first_allowed_rows(query):
    found = BM25().search(request([query], 3, exclude=[[1]]))
    assert found.ids.tolist() == [[0, 2, 3]]
    assert found.scores.tolist() == [[0, 0, 0]]


def test_a_store_without_any_word():
    found = BM25().search(request(["river"], 2, keys=["", "the", "?"]))
    assert found.ids.tolist() == [[0, 1]]


def test_stemming_and_stop_words_are_options():
    keys = ["he causes it", "nothing here", "the the the"]
    assert BM25().search(request(["caused"], 1, keys=keys)).scores[0, 0] > 0
    assert BM25(stemmer=None).search(request(["caused"], 1, keys=keys)).scores[0, 0] == 0
    plain = BM25(stop_words=None).search(request(["the"], 1, keys=keys))
    assert plain.ids[0, 0] == 2
    assert plain.scores[0, 0] > 0


@pytest.mark.parametrize("language", STOP_WORDS)
def test_every_list_of_stop_words_exists(language):
    found = BM25(stop_words=language).search(request(["a word"], 1))
    assert found.ids.shape == found.scores.shape == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k1": -0.1}, "k1 is -0.1"),
        ({"b": 1.5}, "b is 1.5; legal: 0 to 1"),
        ({"method": "okapi"}, "'okapi'; legal: lucene, robertson, atire"),
        ({"stemmer": "klingon"}, "'klingon'; legal: null, .*english"),
        ({"stop_words": "klingon"}, "'klingon'; legal: null, english"),
    ],
)
def test_bm25_refuses_bad_values(arguments, message):
    with pytest.raises(UserError, match=message):
        BM25(**arguments)


STAGES = [BM25(), Random(), Oracle()]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
def test_every_first_stage_gives_all_that_is_allowed(stage: FirstStage):
    generator = np.random.default_rng(0)
    keys = [f"word{generator.integers(9)} and word{generator.integers(9)}" for _ in range(40)]
    exclude = [generator.choice(40, n, replace=False) for n in (0, 1, 20, 25, 30, 38, 40)]
    relevant = [generator.choice(40, n, replace=False) for n in (40, 3, 20, 0, 9, 9, 9)]
    found = stage.search(request(keys[:7], 15, keys=keys, exclude=exclude, relevant=relevant))
    for row, rows in enumerate(found.ids):
        valid = rows[rows >= 0]
        assert len(valid) == min(15, 40 - len(exclude[row]))
        assert len(set(valid.tolist())) == len(valid)
        assert not set(valid.tolist()) & set(exclude[row].tolist())
        assert (rows[len(valid) :] == -1).all()
        assert np.isneginf(found.scores[row, len(valid) :]).all()
        assert (np.diff(found.scores[row, : len(valid)]) <= 0).all()
        assert np.isfinite(found.scores[row, : len(valid)]).all()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
def test_every_first_stage_is_a_function_of_its_request(stage: FirstStage):
    relevant = [[0, 2, 3], [1, 6]]
    once = stage.search(request(["accident", "river"], 5, relevant=relevant, seed=4))
    again = stage.search(request(["accident", "river"], 5, relevant=relevant, seed=4))
    np.testing.assert_array_equal(once.ids, again.ids)
    np.testing.assert_array_equal(once.scores, again.scores)
    alone = stage.search(request(["river"], 5, relevant=relevant[1:], seed=4))
    np.testing.assert_array_equal(once.ids[1:], alone.ids)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
def test_no_queries(stage: FirstStage):
    found = stage.search(request([], 3))
    assert found.ids.shape == found.scores.shape == (0, 3)


def test_random_is_uniform_and_depends_on_the_seed():
    queries = [f"query {i}" for i in range(3000)]
    found = Random().search(request(queries, 2))
    counts = np.bincount(found.ids[:, 0], minlength=len(KEYS))
    expected = 3000 / len(KEYS)
    # Chi-square with 6 degrees of freedom: above 22.5 with probability 0.001.
    assert ((counts - expected) ** 2 / expected).sum() < 22.5
    other = Random().search(request(queries, 2, seed=1))
    assert (found.ids != other.ids).mean() > 0.5


def test_oracle_puts_relevant_passages_first():
    relevant = [[6, 1, 3], []]
    found = Oracle().search(request(["a", "b"], 6, exclude=[[3], [0]], relevant=relevant))
    assert set(found.ids[0, :2].tolist()) == {1, 6}
    assert set(found.ids[0, 2:].tolist()) <= {0, 2, 4, 5}
    assert len(set(found.ids[1].tolist())) == 6
    orders = {
        tuple(Oracle().search(request(["a"], 2, relevant=[[1, 6]], seed=s)).ids[0].tolist())
        for s in range(20)
    }
    assert orders == {(1, 6), (6, 1)}


def test_more_candidates_than_the_store_can_give():
    with pytest.raises(UserError, match=r"8 candidates .* more than the 7 passages"):
        request(["a"], 8)
    with pytest.raises(UserError, match=r"7 candidates .* more than the 6 passages"):
        request(["a", "b"], 7, exclude=[[0], [1]])
    with pytest.raises(UserError, match="0 candidates for each query; legal: 1 or more"):
        request(["a"], 0)
    with pytest.raises(ValueError, match="equally long"):
        SearchRequest(["a"], KEYS, 1, [], [], 0)


def test_fingerprints_tell_requests_apart():
    requests = [
        request(["a", "b"], 2),
        request(["a", "c"], 2),
        request(["ab", ""], 2),
        request(["a", "b"], 3),
        request(["a", "b"], 2, seed=1),
        request(["a", "b"], 2, keys=KEYS[::-1]),
        request(["a", "b"], 2, exclude=[[0], [1]]),
        request(["a", "b"], 2, exclude=[[0, 1], []]),
        request(["a", "b"], 2, relevant=[[0], [1]]),
    ]
    assert len({str(sorted(r.fingerprint().items())) for r in requests}) == len(requests)
    assert request(["a"], 2).fingerprint() == request(["a"], 2).fingerprint()
    stages = [*STAGES, BM25(k1=1.5), BM25(b=0.5), BM25(stemmer=None), BM25(stop_words=None)]
    assert len({str(stage.fingerprint()) for stage in stages}) == len(stages)


def test_best_rows_equals_a_full_sort():
    generator = np.random.default_rng(1)
    for _ in range(200):
        scores = generator.integers(0, 5, 30).astype(np.float32)
        exclude = generator.choice(30, generator.integers(0, 31), replace=False)
        count = int(generator.integers(1, 31))
        allowed = [row for row in range(30) if row not in exclude]
        expected = sorted(allowed, key=lambda row: (-scores[row], row))[:count]
        assert best_rows(scores, count, exclude).tolist() == expected


def test_long_searches_report_progress(monkeypatch, caplog):
    seconds = iter(range(0, 1000, 11))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))
    with caplog.at_level("INFO"):
        BM25().search(request(["river", "town"], 1))
    assert "BM25: 1 of 2 queries" in caplog.text
