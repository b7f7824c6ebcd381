"""`validation` of `summary.json`: the point of the curve whose weights are `best.ckpt`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_rag.callbacks.run_files import RunFiles
from lightning_rag.methods.base import Method
from lightning_rag.methods.phase import Phase

STEPS = 5  # batches in an epoch

Make = Callable[[Method], Phase]


def phase(name: str, **settings: object) -> Make:
    settings = {"epochs": 1, "monitor": "score", **settings}
    return lambda method: Phase(name, ("first",), method.loss, **settings)


SERIES = [phase(f"em_{number}", series="em") for number in (1, 2, 3)]


@pytest.mark.parametrize(
    ("phases", "scores", "kept"),
    [
        pytest.param([phase("a", epochs=3)], [0.2, 0.5, 0.1], 1, id="best of the only phase"),
        pytest.param([phase("a", epochs=3)], [0.2, 0.5, 0.5], 1, id="first of equal ones"),
        pytest.param([phase("a", mode="min", epochs=3)], [0.2, 0.1, 0.5], 1, id="least"),
        pytest.param([phase("a"), phase("b")], [0.9, 0.1], 1, id="not that of a phase before"),
        pytest.param([phase("a"), *SERIES], [0.9, 0.1, 0.3, 0.2], 2, id="best of a series"),
        pytest.param(
            [phase("a"), *(phase(f"em_{i}", series="em", series_patience=1) for i in (1, 2, 3))],
            [0.9, 0.4, 0.3],
            1,
            id="best of a series that ended by its patience",
        ),
    ],
)
def test_it_is_the_one_that_was_saved(
    fit, tmp_path: Path, phases: list[Make], scores: list[float], kept: int
) -> None:
    folder = tmp_path / "run"
    method, _ = fit(*phases, scores=scores, callbacks=[RunFiles(folder, {})])
    point = json.loads((folder / "summary.json").read_text())["validation"]
    assert point["step"] == STEPS * (kept + 1)
    assert point["score"] == pytest.approx(scores[kept])
    saved = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    there = method.validations[kept]
    assert all(torch.equal(saved[name], there[name]) for name in there)


def test_a_training_cut_short_keeps_the_best_of_the_phase_it_was_in(fit, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    files = RunFiles(folder, {})
    fit(phase("a"), phase("b", epochs=9), scores=[0.9, 0.4, 0.6, 0.5], callbacks=[files],
        max_epochs=4)  # fmt: skip
    point = json.loads((folder / "summary.json").read_text())["validation"]
    assert (point["phase"], point["step"]) == ("b", 3 * STEPS)


def test_without_a_validation_there_is_none(fit, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fit(phase("a", epochs=None, steps=2), callbacks=[RunFiles(folder, {})], max_steps=1,
        check_val_every_n_epoch=99)  # fmt: skip
    assert json.loads((folder / "summary.json").read_text())["validation"] is None
