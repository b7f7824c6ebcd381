"""How stale an index was when it was refreshed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_rag import cli
from lightning_rag.callbacks.index_refresh import IndexRefresh
from lightning_rag.callbacks.staleness import PROBE, overlap, probe
from lightning_rag.methods.base import Method

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = Path(__file__).resolve().parents[1] / "small.yaml"
LENGTHS = (
    "--model.epochs=3",
    "--model.refresh_every=2",
    "--optimizer.learning_rates={retriever: 0.05, projection: 0.01, generator: 1e-3}",
)


def test_overlap_by_hand() -> None:
    assert overlap([[1, 2, 3], [4, 5, 6]], [[3, 2, 1], [4, 7, 8]]) == pytest.approx(2 / 3)
    assert overlap([[1, 2]], [[3, 4]]) == 0
    assert overlap([[1], []], [[1, 2], []]) == 0.5  # a query without passages does not count
    assert overlap([[]], [[]]) == overlap([], []) == 1
    with pytest.raises(ValueError, match="zip"):
        overlap([[1]], [])


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Train and test ETRAG from the command line; return the run's folder and its command line."""
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    built = []
    monkeypatch.setattr(
        cli.RagCLI, "after_instantiate_classes", lambda self: built.append(self), raising=False
    )

    def run(*extra: str) -> tuple[Path, cli.RagCLI]:
        files = ("base.yaml", "data/synthetic_relations.yaml", "method/etrag.yaml")
        paths = [*(CONFIGS / name for name in files), SMALL]
        configs = [part for path in paths for part in ("--config", str(path))]
        sizes = [f"--data.reader.init_args.{s}={n}" for s, n in (("train", 96), ("test", 8))]
        more = ("--data.reader.init_args.validation=8", "--data.batch_size=32", "--model.k=2")
        here = (f"--runs={tmp_path / 'runs'}", f"--data.cache_dir={tmp_path / 'cache'}")
        assert cli.main(["fit", *configs, *sizes, *more, *here, *extra]) == 0
        (config,) = (tmp_path / "runs").rglob("config.yaml")
        return config.parent, built[-1]

    return run


def test_staleness_is_recorded_and_logged(start) -> None:
    folder, run = start("--model.candidates=nearest", *LENGTHS)
    points = json.loads((folder / "summary.json").read_text())["staleness"]
    # Three steps an epoch: every two steps, and before each validation but that at a refresh.
    assert [(point["since"], point["step"]) for point in points] == [
        (0, 2),
        (2, 3),
        (3, 4),
        (4, 6),
        (6, 8),
        (8, 9),
    ]
    shares = [point["overlap@2"] for point in points]
    assert all(0 <= share <= 1 for share in shares)
    assert min(shares) < 1  # a learning rate that moves the encoder
    logged = []
    for path in folder.glob("events.*"):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        if "index/overlap@2" in events.Tags()["scalars"]:
            logged += [(event.step, event.value) for event in events.Scalars("index/overlap@2")]
    expected = [(point["step"], pytest.approx(point["overlap@2"])) for point in points]
    assert logged == expected
    cost = json.loads((folder / "summary.json").read_text())["cost"]["joint"]
    assert cost["seconds/refresh"] > 0

    method = run.model
    assert isinstance(method, Method)
    found = probe(method.eval())
    assert len(found) == PROBE
    assert all(len(rows) == 2 for rows in found)
    rows = [number * 96 // PROBE for number in range(PROBE)]
    batch = method.data.queries("train").batch(rows)
    for passages, instance in zip(found, batch.instances, strict=True):
        assert instance.id not in {method.data.store[row].id for row in passages}
    assert overlap(found, probe(method)) == 1
    (callback,) = [c for c in run.trainer.callbacks if isinstance(c, IndexRefresh)]
    again = IndexRefresh()
    again.load_state_dict(
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"][
            "IndexRefresh"
        ]
    )
    assert again.staleness == callback.staleness


def test_an_index_of_an_encoder_that_stays_is_never_stale(start) -> None:
    folder, _ = start("--model.candidates=nearest", *LENGTHS, "--model.train_retriever=false")
    points = json.loads((folder / "summary.json").read_text())["staleness"]
    assert {point["overlap@2"] for point in points} == {1}


def test_a_method_without_an_index_has_no_staleness(start) -> None:
    folder, _ = start("--model.k=0", "--model.epochs=1")
    summary = json.loads((folder / "summary.json").read_text())
    assert "staleness" not in summary
    assert summary["trained"] == ["generator"]
