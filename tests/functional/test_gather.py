"""Two processes of gloo on the CPU, against the whole batch in one."""

import json
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("gather_process.py")
WORLD = 2
SHARES = ([2, 2], [3, 1], [0, 3])  # rows of a batch that each process has


def wide(values):
    return torch.tensor(values, dtype=torch.float64)


def random_batch(shares):
    torch.manual_seed(sum(shares) + shares[0])
    count = sum(shares)
    rest = torch.cat([torch.randn(count, 3), torch.arange(count).unsqueeze(-1) % 2], dim=-1)
    tensors = {"queries": torch.randn(count, 4), "passages": torch.randn(3 * count, 4)}
    return {name: t.tolist() for name, t in (*tensors.items(), ("rest", rest))} | {"shares": shares}


@pytest.fixture(scope="module")
def released(golden):
    """The golden cases, none where the file is absent: the other tests need no file."""
    try:
        file = golden("ruie_contrastive")
    except pytest.skip.Exception:
        return []
    return [case for case in file["cases"] if case["kind"] == "biencoder_loss_two_ranks"]


@pytest.fixture(scope="module")
def found(released, in_processes, tmp_path_factory):
    """What each process found."""
    folder = tmp_path_factory.mktemp("shared")
    given = {
        "batches": [random_batch(shares) for shares in SHARES],
        "released": [case["inputs"] for case in released],
    }
    (folder / "batches.json").write_text(json.dumps(given))
    in_processes(SCRIPT, [(folder, rank, WORLD) for rank in range(WORLD)])
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.parametrize("number", range(len(SHARES)), ids=map(str, SHARES))
def test_loss_and_gradients_are_those_of_one_process(found, number):
    want = found[0]["whole"][number]
    assert want["loss"] > 0.1
    for rank in range(WORLD):
        got = found[rank]["shared"][number]
        assert got["loss"] == pytest.approx(want["loss"], rel=1e-12)
        for one, other in zip(got["gradients"], want["gradients"], strict=True):
            assert wide(other).abs().max() > 1e-4
            torch.testing.assert_close(wide(one), wide(other), rtol=1e-9, atol=1e-12)


def test_anything_can_be_gathered(found):
    for rank in range(WORLD):
        assert found[rank]["ids"] == [0, 10, 11]
        assert found[rank]["images"] == [3, 3, 4]


def test_golden_losses_and_gradients_of_each_process(released, found):
    if not released:
        pytest.skip("no golden values of RUIE's losses")
    (case,) = released
    want = case["outputs"]
    for rank in range(WORLD):
        (got,) = found[rank]["released"]
        assert got["loss"] == pytest.approx(want["loss_per_rank"][rank], rel=1e-9, abs=1e-9)
        for name in ("grad_query", "grad_passages"):
            gradient = wide(got[name])
            rows = slice(rank * len(gradient), (rank + 1) * len(gradient))
            local = wide(want[f"{name}_per_rank_local"])[rows]
            whole = wide(want[f"{name}_single_process"])[rows]
            torch.testing.assert_close(gradient, local, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(gradient / WORLD, whole, rtol=1e-9, atol=1e-9)
