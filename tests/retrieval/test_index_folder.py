"""An index in parts on disk finds what the index in memory finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_rag.errors import UserError
from lightning_rag.retrieval import index_folder as module
from lightning_rag.retrieval import vector_folder
from lightning_rag.retrieval.index import PassageIndex
from lightning_rag.retrieval.index_folder import index_folder, index_room


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_folder, "SHARD", 100)
    monkeypatch.setattr(vector_folder, "BLOCK", 50)
    monkeypatch.setattr(module, "PART", 300)
    vectors = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    texts = [str(row) for row in range(1000)]
    made = vector_folder.vector_folder(
        tmp_path, {}, texts, 8, lambda some: vectors[[int(text) for text in some]]
    )
    return vectors, made


@pytest.fixture
def queries():
    return torch.randn(40, 8, generator=torch.Generator().manual_seed(1))


def excluded(size: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [np.sort(generator.choice(1000, size, replace=False)) for _ in range(40)]


def test_all_lists_probed_is_exact(tmp_path, stored, queries):
    vectors, made = stored
    index = index_folder(tmp_path, {}, made, "IVF8,Flat", "nprobe=8")
    assert len(index) == 1000
    for size in (0, 30):
        exclude = excluded(size)
        scores, rows = index.search(queries, 12, exclude=exclude)
        expected = queries @ vectors.T
        for query, gone in enumerate(exclude):
            expected[query, torch.from_numpy(gone)] = -torch.inf
        torch.testing.assert_close(scores, expected.topk(12).values)
        assert rows.equal(expected.topk(12).indices)


def test_parts_of_one_training_are_the_whole_index(tmp_path, stored, queries):
    vectors, made = stored
    index = index_folder(tmp_path, {}, made, "IVF8,Flat", "nprobe=2")
    whole = PassageIndex(8, "IVF8,Flat", "nprobe=2")
    whole.build(vectors)
    scores, rows = index.search(queries, 5, exclude=None)
    expected = whole.search(queries, 5, exclude=None)
    torch.testing.assert_close(scores, expected[0])
    assert rows.equal(expected[1])


def test_padding_where_little_is_found(tmp_path, stored):
    _, made = stored
    index = index_folder(tmp_path, {}, made, "IVF64,Flat", "nprobe=1")
    scores, rows = index.search(torch.ones(1, 8), 900, exclude=None)
    assert (rows < 0).any()
    assert (scores[rows < 0] == -torch.inf).all()
    assert (scores[rows >= 0] > -torch.inf).all()
    assert len(rows[rows >= 0].unique()) == (rows >= 0).sum()


def test_a_killed_build_is_gone_on_from(tmp_path, stored, queries, monkeypatch):
    _, made = stored
    written, save = [], module._save

    def killed(index, path):
        if len(written) == 3:  # the training and two parts
            raise KeyboardInterrupt
        written.append(path.name)
        save(index, path)

    monkeypatch.setattr(module, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        index_folder(tmp_path, {}, made, "IVF8,Flat", "nprobe=8")
    monkeypatch.setattr(
        module, "_save", lambda index, path: (written.append(path), save(index, path))
    )
    index = index_folder(tmp_path, {}, made, "IVF8,Flat", "nprobe=8")
    assert len(written) == 5
    assert len(index) == 1000


@pytest.mark.parametrize(
    ("factory", "parameters", "message"),
    [
        ("Nonsense", "", "cannot make an index 'Nonsense'"),
        ("IVF8,Flat", "nonsense=1", "cannot set 'nonsense=1'"),
        ("IVF2000,Flat", "", "cannot train an index 'IVF2000,Flat' on 1000 embeddings"),
    ],
)
def test_strings_that_faiss_does_not_take(tmp_path, stored, factory, parameters, message):
    with pytest.raises(UserError, match=message):
        index_folder(tmp_path, {}, stored[1], factory, parameters)


def test_the_expected_size_is_the_size(tmp_path, stored):
    _, made = stored
    index_folder(tmp_path, {}, made, "IVF8,PQ4x4", "")
    found = sum(path.stat().st_size for path in tmp_path.rglob("*.faiss"))
    (trained,) = tmp_path.rglob("trained.faiss")
    empty = module.faiss.read_index(str(trained))
    assert index_room(empty, made).disk == pytest.approx(found, rel=0.05)
