"""What every method must do: run over each file of configs/method, and over two harder ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_rag import cli
from lightning_rag.methods.base import Method
from lightning_rag.metrics.counts import Aggregation, aggregate
from lightning_rag.types import Evaluated, RagBatch

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"
DELIVERED = sorted((CONFIGS / "method").glob("*.yaml"))
METHODS = [
    *DELIVERED,
    HERE / "etrag_stale.yaml",
    HERE / "etrag_frozen_generator.yaml",
    HERE / "ruie_reader.yaml",
    HERE / "two_phases.yaml",
]
SMALL = (
    "--data.reader.init_args.train=40",
    "--data.reader.init_args.validation=16",
    "--data.reader.init_args.test=16",
    "--data.batch_size=8",
    "--data.num_candidates=8",
    "--generator.tiny.vocab_size=400",
    "--generator.tiny.hidden_size=16",
    "--generator.tiny.heads=2",
    "--generator.tiny.layers=1",
    "--generator.tiny.dropout=0.1",
    "--encoder.tiny.vocab_size=400",
    "--encoder.tiny.hidden_size=16",
    "--encoder.tiny.heads=2",
    "--encoder.tiny.layers=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
)


def arguments(
    method: Path, folder: Path, command: str = "fit", data: str = "synthetic_relations"
) -> list[str]:
    files = [
        CONFIGS / "base.yaml",
        CONFIGS / "data" / f"{data}.yaml",
        CONFIGS / "backbone" / "tiny.yaml",
        method,
    ]
    configs = [part for file in files for part in ("--config", str(file))]
    here = (f"--runs={folder / 'runs'}", f"--data.cache_dir={folder / 'cache'}")
    return [command, *configs, *SMALL, *here]


def epochs(method: Path, number: int) -> list[str]:
    """Set the length of the training, under whatever name the method has for it."""
    dro = ["--model.warm_up_epochs=1", f"--model.iterations={number}", "--model.epochs=1"]
    ruie = ["--model.reward_epochs=1", f"--model.distil_epochs={number}"]
    reader = [f"--model.reader_epochs={number}"]
    known = {"two_phases": [], "dro": dro, "dro_listwise": dro, "ruie": ruie, "ruie_reader": reader}
    return known.get(method.stem, [f"--model.epochs={number}"])


def run_folder(folder: Path) -> Path:
    (config,) = (folder / "runs").rglob("config.yaml")
    return config.parent


def weights(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    path = run_folder(folder) / "checkpoints" / name
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def assert_equal_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def predictions(folder: Path) -> list[dict[str, Any]]:
    text = (run_folder(folder) / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def check_records(folder: Path) -> dict[str, float]:
    """Compute every test figure again from the rows of a run, compare, and return them.

    And see that the rows say what was retrieved, and that passages.jsonl has its texts.
    """
    run = next((folder / "runs").rglob("predictions.jsonl")).parent
    lines = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    summary = json.loads((run / "summary.json").read_text())
    test: dict[str, float] = json.loads((run / "metrics.json").read_text())["test"]
    known = summary["metrics"]["aggregations"]
    assert set(known) == set(test)
    for name, how in known.items():
        counts = [row["counts"].get(name) for row in rows]
        again = aggregate(Aggregation.from_json(how), counts)
        assert again == pytest.approx(test[name], abs=1e-6), name
    text = (run / "passages.jsonl").read_text(encoding="utf-8").splitlines()
    passages = {passage["id"]: passage["text"] for passage in map(json.loads, text)}
    assert len(passages) == len(text)
    assert passages.keys() == {id_ for row in rows for id_ in row["retrieved"]}
    for row in rows:
        assert row["text"]
        assert len(row["ranked"]) == len(row["ranked_relevant"])
        assert set(row["retrieved"]) <= set(row["ranked"])
        if any(row["ranked_relevant"]):
            first = 1 + row["ranked_relevant"].index(1)
            assert row["counts"]["mrr"] == pytest.approx(1 / first, abs=1e-6)
        else:  # the rows hold the first 50 of a ranking
            assert row["counts"]["mrr"] < 1 / max(len(row["ranked"]), 1)
        hits = sum(row["ranked_relevant"][:5])
        expected = hits / row["relevant"] if row["relevant"] else 0
        assert row["counts"]["recall@5"] == pytest.approx(expected, abs=1e-6)
    return test


@pytest.fixture
def half_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every second test query a gold answer: untrained models answer nothing right."""
    step = Method.test_step

    def mended(self: Method, batch: RagBatch, batch_idx: int) -> Evaluated:
        found = step(self, batch, batch_idx)
        for row in range(0, len(batch.instances), 2):
            found["predictions"].texts[row] = batch.instances[row].answers[0]
        return found

    monkeypatch.setattr(Method, "test_step", mended)


@pytest.fixture(params=METHODS, ids=lambda path: path.stem)
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    path: Path = request.param
    return path


@pytest.fixture
def attached(method: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Method:
    """The method with models and data, as `fit` would have it before the first step."""
    built = []
    monkeypatch.setattr(
        cli.RagCLI, "after_instantiate_classes", lambda self: built.append(self), raising=False
    )
    assert cli.main([*arguments(method, tmp_path), "--trainer.fast_dev_run=1"]) == 0
    model = built[0].model
    assert isinstance(model, Method)
    return model


def first_batch(model: Method) -> RagBatch:
    batch = next(iter(model.data.train_dataloader()))
    assert isinstance(batch, RagBatch)
    return batch


def test_fast_dev_run(method: Path, tmp_path: Path) -> None:
    assert cli.main([*arguments(method, tmp_path), "--trainer.fast_dev_run=2"]) == 0


@pytest.mark.parametrize("method", DELIVERED, ids=lambda path: path.stem, indirect=True)
@pytest.mark.parametrize("data", ["synthetic_questions", "synthetic_extraction"])
def test_every_task(method: Path, data: str, tmp_path: Path, half_right: None) -> None:
    """It trains on every task, and what a test writes gives the figures again."""
    command, *given = arguments(method, tmp_path, data=data)
    lengths = ["--generator.max_source_length=256", "--encoder.max_length=256"]
    assert cli.main([command, *given, *lengths, "--trainer.fast_dev_run=1"]) == 0
    assert cli.main(["test", *given, *lengths]) == 0
    test = check_records(tmp_path)
    assert 0 < test["f1"] < 1
    if data == "synthetic_extraction":
        assert 0 < test["held_out_f1"] < 1
        assert 0 < test["official_held_in_f1"] < 1


def test_gradients_reach_exactly_the_groups_of_the_phase(attached: Method) -> None:
    batch = first_batch(attached)
    groups = attached.groups()
    for phase in attached.schedule:
        if phase.estimate is not None:
            size = len(attached.data.splits.train)
            with torch.no_grad():
                for part in attached.data.estimate_dataloader():
                    attached.bank.put(part.rows, phase.estimate(part), size)
        for name, group in groups.items():
            group.requires_grad_(name in phase.trains)
        attached.zero_grad(set_to_none=True)
        phase.loss(batch).total.backward()
        for name, group in groups.items():
            grads = [p.grad for p in group.parameters() if p.grad is not None]
            moved = any(bool(grad.abs().sum() > 0) for grad in grads)
            assert moved == (name in phase.trains), (phase.name, name)
        in_groups = {id(p) for group in groups.values() for p in group.parameters()}
        assert all(p.grad is None for p in attached.parameters() if id(p) not in in_groups)


def test_a_query_never_retrieves_itself(attached: Method) -> None:
    store = attached.data.store
    for batch in attached.data.train_dataloader():
        found = attached.retrieve(batch, attached.k)
        assert found.positions.shape == (len(batch.instances), attached.k)
        for row, instance in enumerate(batch.instances):
            for position in found.positions[row].tolist():
                passage = store[int(found.candidate_ids[row, position])]
                assert passage.id != instance.id
                assert passage.text != instance.text


def test_checkpoint_gives_the_same_predictions(method: Path, tmp_path: Path) -> None:
    assert cli.main([*arguments(method, tmp_path), *epochs(method, 1)]) == 0
    folder = run_folder(tmp_path)
    before = predictions(tmp_path)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(before) == 16
    counts = [row["counts"] for row in before]
    check_records(tmp_path)
    (folder / "predictions.jsonl").unlink()

    best = str(folder / "checkpoints" / "best.ckpt")
    config = str(folder / "config.yaml")
    assert cli.main(["test", "--config", config, f"--ckpt_path={best}"]) == 0
    assert predictions(tmp_path) == before
    assert json.loads((folder / "metrics.json").read_text())["test"] == metrics["test"]

    assert cli.main(["predict", "--config", config, f"--ckpt_path={best}"]) == 0
    lines = (folder / "predictions-test.jsonl").read_text(encoding="utf-8").splitlines()
    again = [json.loads(line) for line in lines]
    assert [{**row, "counts": c} for row, c in zip(again, counts, strict=True)] == before


def test_seed_decides_everything(method: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        command = arguments(method, tmp_path / name)
        assert cli.main([*command, *epochs(method, 1), f"--seed_everything={seed}"]) == 0
    assert_equal_weights(weights(tmp_path / "a"), weights(tmp_path / "b"))
    other = weights(tmp_path / "c")
    assert any(not torch.equal(w, other[n]) for n, w in weights(tmp_path / "a").items())


@pytest.mark.slow
def test_killed_and_resumed_ends_with_the_same_weights(method: Path, tmp_path: Path) -> None:
    """SIGKILL in every phase, at the step of a checkpoint and between two."""

    def start(folder: Path, *extra: str) -> subprocess.CompletedProcess[str]:
        command = [*arguments(method, folder), *epochs(method, 2), *extra]
        path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
        return subprocess.run(
            [sys.executable, "-m", "lightning_rag.cli", *command],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    done = start(tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    # 40 queries in batches of 8: five steps an epoch; the test method's first phase has five.
    # Steps 3 and 6 lie within an epoch; 5 is the end of one; 0 = checkpoints at epoch ends only.
    for every, step in ((3, 4), (5, 6), (3, 7), (0, 8)):
        folder = tmp_path / f"{every}-{step}"
        kill = (
            "--trainer.callbacks+=interruption.KillAt",
            f"--trainer.callbacks.init_args.step={step}",
        )
        killed = start(folder, f"--checkpoint_every={every}", *kill)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        resumed = start(folder, f"--checkpoint_every={every}", "--ckpt_path=last")
        assert resumed.returncode == 0, resumed.stderr
        for name in ("last.ckpt", "best.ckpt"):
            assert_equal_weights(weights(folder, name), weights(tmp_path / "whole", name))
        assert predictions(folder) == predictions(tmp_path / "whole")
        curves = [
            json.loads((run_folder(f) / "metrics.json").read_text())["validation"]
            for f in (folder, tmp_path / "whole")
        ]
        assert curves[0] == curves[1]
