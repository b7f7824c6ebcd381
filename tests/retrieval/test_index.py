from __future__ import annotations

import subprocess
import sys

import faiss
import numpy as np
import pytest
import torch

from lightning_rag.errors import UserError
from lightning_rag.retrieval.index import BLOCK, PassageIndex


def unit(rows: int, dimension: int, seed: int = 0) -> torch.Tensor:
    vectors = torch.randn(rows, dimension, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


def built(vectors: torch.Tensor, factory: str = "Flat", parameters: str = "") -> PassageIndex:
    index = PassageIndex(vectors.shape[1], factory, parameters)
    index.build(vectors)
    return index


def exact(queries, passages, k, exclude):
    """The k largest inner products in float64, excluded rows left out, padded."""
    scores = queries.double() @ passages.double().T
    for row, gone in enumerate(exclude):
        scores[row, torch.from_numpy(gone)] = -torch.inf
    values, rows = scores.topk(k)
    return values, rows.masked_fill(values == -torch.inf, -1)


@pytest.mark.parametrize("sizes", [[0], [1], [0, 3, 50], [200], [195, 198, 0]])
def test_flat_equals_exact_search_with_exclusions(sizes):
    passages, queries = unit(200, 12), unit(30, 12, seed=1)
    generator = np.random.default_rng(0)
    exclude = [generator.choice(200, sizes[i % len(sizes)], replace=False) for i in range(30)]
    scores, rows = built(passages).search(queries, 9, exclude=exclude)
    expected_scores, expected_rows = exact(queries, passages, 9, exclude)
    assert rows.tolist() == expected_rows.tolist()
    torch.testing.assert_close(scores.double(), expected_scores, rtol=0, atol=1e-6)
    assert scores.dtype == torch.float32
    assert rows.dtype == torch.long


def test_more_queries_than_a_block():
    passages, queries = unit(50, 4), unit(BLOCK + 7, 4, seed=1)
    exclude = [np.array([i % 50]) for i in range(len(queries))]
    _, rows = built(passages).search(queries, 3, exclude=exclude)
    assert rows.tolist() == exact(queries, passages, 3, exclude)[1].tolist()


def test_all_passages_and_no_exclusion():
    passages = unit(20, 5)
    scores, rows = built(passages).search(passages, 20, exclude=None)
    assert rows[:, 0].tolist() == list(range(20))
    assert rows.sort(dim=1).values.tolist() == [list(range(20))] * 20
    assert (scores.diff(dim=1) <= 0).all()


def test_equal_scores_stand_in_the_order_of_the_rows():
    passages = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    _, rows = built(passages).search(torch.tensor([[1.0, 0.5]]), 4, exclude=None)
    assert rows.tolist() == [[1, 3, 0, 2]]


def test_no_queries():
    scores, rows = built(unit(5, 3)).search(torch.empty(0, 3), 2, exclude=[])
    assert scores.shape == rows.shape == (0, 2)


def test_building_again_replaces():
    index = built(unit(20, 5))
    passages = unit(7, 5, seed=3)
    index.build(passages)
    assert len(index) == 7
    _, rows = index.search(passages, 1, exclude=None)
    assert rows[:, 0].tolist() == list(range(7))


def test_ivf_is_trained_and_probes_as_asked():
    passages, queries = unit(1000, 16), unit(100, 16, seed=1)
    truth = exact(queries, passages, 10, [np.empty(0, dtype=np.int64)] * 100)[1]

    def recall(parameters: str) -> float:
        _, rows = built(passages, "IVF16,Flat", parameters).search(queries, 10, exclude=None)
        hits = (rows.unsqueeze(2) == truth.unsqueeze(1)).any(dim=2)
        return hits.float().mean().item()

    default, half, everything = recall(""), recall("nprobe=8"), recall("nprobe=16")
    assert 0.1 < default < half < everything
    assert half > 0.8
    assert everything == 1.0


def test_ivf_excludes_and_pads_what_it_does_not_find():
    passages = unit(400, 8)
    exclude = [np.arange(row, 400, 2) for row in range(2)]
    _, rows = built(passages, "IVF8,Flat").search(passages[:2], 400, exclude=exclude)
    for row, gone in zip(rows.numpy(), exclude, strict=True):
        found = row[row >= 0]
        assert 0 < len(found) < 200
        assert not np.isin(found, gone).any()


@pytest.mark.parametrize("factory", ["Flatt", "", "PQ3", "LSH"])
def test_a_bad_factory_string(factory):
    with pytest.raises(UserError, match=f"index {factory!r} .* 8 dimensions .*'IVF64,Flat'"):
        PassageIndex(8, factory)


@pytest.mark.parametrize("parameters", ["nprobe", "nprobes=3", "nprobe=many"])
def test_bad_search_parameters(parameters):
    with pytest.raises(UserError, match=f"set {parameters!r} on an index 'IVF4,Flat'"):
        PassageIndex(8, "IVF4,Flat", parameters)


def test_too_few_embeddings_to_train():
    with pytest.raises(UserError, match=r"'IVF64,Flat' from 5 embeddings .*'Flat' works"):
        built(unit(5, 8), "IVF64,Flat")


@pytest.mark.parametrize("k", [0, 6])
def test_more_neighbours_than_passages(k):
    with pytest.raises(UserError, match=f"{k} neighbours from an index of 5 passages"):
        built(unit(5, 8)).search(unit(1, 8), k, exclude=None)


def test_wrong_tensors():
    index = built(unit(5, 8))
    with pytest.raises(ValueError, match=r"queries must have shape \(n, 8\), got \(1, 7\)"):
        index.search(unit(1, 7), 1, exclude=None)
    with pytest.raises(ValueError, match="1 lists of excluded rows for 2 queries"):
        index.search(unit(2, 8), 1, exclude=[np.array([0])])
    with pytest.raises(ValueError, match="vectors must be finite"):
        index.build(torch.full((2, 8), torch.nan))


def test_gradients_and_half_precision_are_accepted():
    passages = unit(5, 8).requires_grad_()
    _, rows = built(passages).search(passages.to(torch.bfloat16), 1, exclude=None)
    assert rows[:, 0].tolist() == list(range(5))


def test_an_index_goes_to_the_gpu_where_faiss_has_one(monkeypatch, caplog):
    moved = []

    def to_gpu(resources: str, device: int, index: faiss.Index) -> faiss.Index:
        moved.append((resources, device, type(index).__name__))
        if "HNSW" in type(index).__name__:
            raise RuntimeError("Error in clone_Index at x.cpp: not implemented on GPU")
        return index

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
    PassageIndex(8)
    assert [(r, device) for r, device, _ in moved] == [("resources", 0)]
    with caplog.at_level("INFO"):
        PassageIndex(8, "HNSW8")
    assert "stays on the CPU: not implemented on GPU" in caplog.text


def test_importing_without_faiss_names_the_two_extras():
    program = """
import sys
sys.modules["faiss"] = None
from lightning_rag.errors import UserError
try:
    import lightning_rag.retrieval.index
except UserError as error:
    assert isinstance(error, ImportError)
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "lightning_rag[cpu]" in done.stdout
    assert "lightning_rag[gpu]" in done.stdout
