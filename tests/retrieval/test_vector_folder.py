"""Embeddings in shards on disk: exact search, each shard encoded once."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_rag.data import room
from lightning_rag.errors import UserError
from lightning_rag.retrieval import vector_folder as module
from lightning_rag.retrieval.vector_folder import nearest, vector_folder, vectors_room

DIMENSION = 6


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, size in (("SHARD", 40), ("BLOCK", 15), ("QUERIES", 7)):
        monkeypatch.setattr(module, name, size)


@pytest.fixture
def vectors() -> torch.Tensor:
    return torch.randn(213, DIMENSION, generator=torch.Generator().manual_seed(0))


def stored(parent, vectors, kind="float32", encode=None):
    texts = [str(row) for row in range(len(vectors))]

    def look_up(some):
        return vectors[[int(text) for text in some]]

    return vector_folder(parent, {"encoder": "e"}, texts, DIMENSION, encode or look_up, kind=kind)


def test_exact_search(tmp_path, vectors):
    found = stored(tmp_path, vectors)
    assert len(found) == 213
    assert found.dimension == DIMENSION
    assert torch.cat([block for _, block in found.blocks()]).equal(vectors)
    generator = np.random.default_rng(0)
    queries = torch.randn(30, DIMENSION, generator=torch.Generator().manual_seed(1))
    sizes = [0, 1, 50, 210]
    exclude = [np.sort(generator.choice(213, sizes[q % 4], replace=False)) for q in range(30)]
    scores, rows = nearest(found.blocks(), queries, 9, exclude=exclude)
    expected = queries.double() @ vectors.double().T
    for query, gone in enumerate(exclude):
        expected[query, torch.from_numpy(gone)] = -torch.inf
    values, order = expected.topk(9)
    torch.testing.assert_close(scores, values.float())
    assert rows.equal(order.masked_fill(values.isinf(), -1))
    assert nearest(found.blocks(), queries, 9, exclude=None)[1].equal(
        (queries @ vectors.T).topk(9).indices
    )


def test_equal_scores_stand_in_the_order_of_the_rows(tmp_path):
    found = stored(tmp_path, torch.ones(100, DIMENSION))
    exclude = [np.arange(95)]
    rows = nearest(found.blocks(), torch.ones(1, DIMENSION), 7, exclude=exclude)[1]
    assert rows.tolist() == [[95, 96, 97, 98, 99, -1, -1]]


def test_a_shard_is_encoded_once(tmp_path, vectors):
    asked: list[int] = []

    def until_third(texts):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(int(texts[0]))
        return vectors[[int(text) for text in texts]]

    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path, vectors, encode=until_third)

    def rest(texts):
        asked.append(int(texts[0]))
        return vectors[[int(text) for text in texts]]

    found = stored(tmp_path, vectors, encode=rest)
    assert asked == [0, 40, 80, 120, 160, 200]
    stored(tmp_path, vectors, encode=rest)
    assert len(asked) == 6
    assert torch.cat([block for _, block in found.blocks()]).equal(vectors)


def test_float16(tmp_path, vectors):
    whole, half = stored(tmp_path, vectors), stored(tmp_path, vectors, "float16")
    assert torch.cat([block for _, block in half.blocks()]).equal(vectors.half().float())
    (one, other) = (
        sum(f.stat().st_size for f in e.glob("shard*")) for e in tmp_path.glob("v*[!k]")
    )
    assert {one, other} == {213 * 24 + 6 * 128, 213 * 12 + 6 * 128}
    assert whole.dimension == half.dimension


@pytest.mark.parametrize(("kind", "value"), [("float32", float("nan")), ("float16", 1e5)])
def test_a_value_that_cannot_be_kept(tmp_path, vectors, kind, value):
    vectors[50, 3] = value
    with (
        np.errstate(over="ignore"),
        pytest.raises(UserError, match=f"passages 41 to 80 have a value .* not finite as {kind}"),
    ):
        stored(tmp_path, vectors, kind)


def test_few_files_are_open_however_many_shards(tmp_path, vectors, monkeypatch, open_files):
    monkeypatch.setattr(module, "SHARD", 2)
    before = open_files()
    found = stored(tmp_path, vectors)
    assert all(open_files() - before < 10 for _ in found.blocks())
    assert len(found.drawn(50, seed=0)) == 50
    assert open_files() - before < 10


def test_drawn(tmp_path, vectors):
    found = stored(tmp_path, vectors)
    drawn = found.drawn(100, seed=0)
    rows = (drawn[:, None] == vectors).all(dim=-1).nonzero()[:, 1]
    assert len(rows.unique()) == 100
    assert found.drawn(1000, seed=0).equal(vectors)


def test_room(tmp_path, vectors, monkeypatch, caplog):
    assert vectors_room(21_015_324, 384, "float16").disk == 21_015_324 * 384 * 2
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: SimpleNamespace(free=4000))
    with pytest.raises(UserError, match=r"the embeddings needs? about 0\.0 MB of disk.* free"):
        stored(tmp_path, vectors)
    monkeypatch.undo()
    monkeypatch.setattr(room, "available_memory", lambda: 1000)
    with caplog.at_level(logging.WARNING):
        stored(tmp_path, vectors)
    assert "of memory, and 0.0 MB are available" in caplog.text
