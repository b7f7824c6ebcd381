"""BM25 with its postings on disk scores as BM25 in memory, to the bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lightning_rag.data import bm25_folder as module
from lightning_rag.data.bm25_folder import bm25_folder, bm25_room
from lightning_rag.data.candidates import BM25, BM25Index, SearchRequest
from lightning_rag.errors import DataError

NOTHING = np.empty(0, dtype=np.int64)


def split(texts):
    return [text.split() for text in texts]


def cut(texts):
    names = sorted({word for words in split(texts) for word in words} | {"never"}, reverse=True)
    numbers = {name: number for number, name in enumerate(names)}
    return [[numbers[word] for word in words] for words in split(texts)], names


@pytest.fixture
def corpus(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 17)
    generator = np.random.default_rng(0)
    words = [f"w{n}" for n in range(60)]
    # Zipf: some words in almost every passage, some in one; and passages without a word.
    share = 1 / np.arange(1, 61)
    share /= share.sum()
    return [
        " ".join(generator.choice(words, generator.integers(0, 20), p=share)) for _ in range(200)
    ]


@pytest.mark.parametrize("method", ["lucene", "robertson", "atire"])
@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.0, 0.3), (2.0, 0.0), (0.9, 1.0)])
def test_scores_are_those_in_memory(tmp_path, corpus, method, k1, b):
    disk = bm25_folder(tmp_path, {}, corpus, cut, k1=k1, b=b, method=method)
    memory = BM25Index(split(corpus), k1=k1, b=b, method=method)
    for query in (["w0"], ["w5", "w0", "w59"], ["w3", "w3", "zz"], ["zz"], []):
        np.testing.assert_array_equal(disk.scores(query), memory.scores(query))


def test_one_index_serves_every_variant(tmp_path, corpus):
    def fail(texts):
        raise AssertionError("counted again")

    bm25_folder(tmp_path, {}, corpus, cut, k1=1.2, b=0.75, method="lucene")
    other = bm25_folder(tmp_path, {}, corpus, fail, k1=0.9, b=0.4, method="atire")
    expected = BM25Index(split(corpus), k1=0.9, b=0.4, method="atire").scores(["w1", "w7"])
    np.testing.assert_array_equal(other.scores(["w1", "w7"]), expected)


def test_blocks_of_another_size_are_another_index(tmp_path, corpus, monkeypatch):
    found = []
    for size in (17, 60):
        monkeypatch.setattr(module, "BLOCK", size)
        disk = bm25_folder(tmp_path, {}, corpus, cut, k1=1.2, b=0.75, method="lucene")
        found.append(disk.scores(["w7"]))
    np.testing.assert_array_equal(*found)


def test_few_files_are_open_however_many_blocks(tmp_path, corpus, monkeypatch, open_files):
    monkeypatch.setattr(module, "BLOCK", 2)
    before = open_files()
    disk = bm25_folder(tmp_path, {}, corpus, cut, k1=1.2, b=0.75, method="lucene")
    assert open_files() - before < 10
    assert disk.scores(["w0"]).any()


def test_search_is_that_in_memory(tmp_path, corpus):
    generator = np.random.default_rng(1)
    queries = [" ".join(f"w{n}" for n in generator.integers(0, 62, 5)) for _ in range(30)]
    exclude = [np.sort(generator.choice(200, 9, replace=False)) for _ in queries]
    request = SearchRequest(queries, corpus, 12, exclude, [NOTHING] * 30, 0)
    for stage in (BM25(), BM25(k1=0.5, method="atire", stemmer=None, stop_words=None)):
        memory = stage.search(request)
        disk = stage.search(replace(request, folder=tmp_path))
        np.testing.assert_array_equal(disk.ids, memory.ids)
        np.testing.assert_array_equal(disk.scores, memory.scores)


@pytest.mark.parametrize("texts", [["", ""], ["", "one", ""]])
def test_passages_without_words(tmp_path, texts, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1)
    disk = bm25_folder(tmp_path, {}, texts, cut, k1=1.2, b=0.75, method="lucene")
    memory = BM25Index(split(texts), k1=1.2, b=0.75, method="lucene")
    np.testing.assert_array_equal(disk.scores(["one"]), memory.scores(["one"]))


def test_a_word_that_cannot_be_counted(tmp_path):
    with pytest.raises(DataError, match="one word 70000 times; legal: up to 65535"):
        bm25_folder(tmp_path, {}, ["a " * 70_000], cut, k1=1.2, b=0.75, method="lucene")


def test_the_expected_size_is_near_the_size(tmp_path):
    generator = np.random.default_rng(2)
    texts = [" ".join(f"w{n}" for n in generator.zipf(1.3, 60) % 10**6) for _ in range(6000)]
    bm25_folder(tmp_path, {}, texts, cut, k1=1.2, b=0.75, method="lucene")
    found = sum(path.stat().st_size for path in tmp_path.rglob("*.npy"))
    found += sum(path.stat().st_size for path in tmp_path.rglob("*.bin"))
    found += sum(path.stat().st_size for path in tmp_path.rglob("words.json"))
    assert bm25_room(texts, cut).disk == pytest.approx(found, rel=0.2)
