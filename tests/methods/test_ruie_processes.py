"""RUIE's distillation in two processes of gloo, against the whole batch in one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("distil_process.py")
WORLD = 2


@pytest.fixture(scope="module")
def found(in_processes, tmp_path_factory):
    """What each process found."""
    folder = tmp_path_factory.mktemp("shared")
    in_processes(SCRIPT, [(folder, rank, WORLD) for rank in range(WORLD)])
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("number", [0, 1], ids=["half of them each", "one has no query to learn"])
def test_loss_and_gradients_are_those_of_one_process(found, number):
    whole = found[0]["whole"]
    assert whole["loss"] > 0.1
    assert float(whole["left_out"]) == 0.5
    for rank in range(WORLD):
        shared = found[rank]["shared"][number]
        assert shared.keys() == whole.keys()
        for name, value in whole.items():
            torch.testing.assert_close(shared[name], value, atol=2e-6, rtol=1e-5, msg=name)
    assert sum(value.abs().max() > 1e-4 for value in whole.values()) > 10
