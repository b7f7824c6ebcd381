"""When the index is refreshed, and that what is searched then fits the weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_rag import cli
from lightning_rag.methods.base import Method, as_method

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL = Path(__file__).resolve().parents[1] / "small.yaml"
TRAIN = 24  # queries, in batches of 8: three steps an epoch


class Watcher(Callback):
    """Notes the steps of the refreshes, and compares the index with a fresh one when it is read."""

    seen: Watcher

    def __init__(self) -> None:
        self.refreshes: list[int] = []
        self.fresh: list[bool] = []
        Watcher.seen = self

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        method = as_method(pl_module)
        if hasattr(method, "unwatched"):
            return
        method.unwatched = method.refresh_index  # type: ignore[assignment]

        def noted() -> None:
            self.refreshes.append(trainer.global_step)
            method.unwatched()  # type: ignore[operator]

        method.refresh_index = noted  # type: ignore[method-assign]

    def compare(self, method: Method) -> None:
        if method.refresh_every is None:
            return
        searched = method.index.clone()
        method.unwatched()  # type: ignore[operator]
        self.fresh.append(torch.equal(searched, method.index))
        method.index.copy_(searched)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.compare(as_method(pl_module))

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.compare(as_method(pl_module))


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Train and test ETRAG from the command line; return the watcher."""
    monkeypatch.setattr(sys, "argv", ["lightning_rag"])
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def start(*extra: str) -> Watcher:
        files = ("base.yaml", "data/synthetic_relations.yaml", "method/etrag.yaml")
        paths = [*(CONFIGS / name for name in files), SMALL]
        configs = [part for path in paths for part in ("--config", str(path))]
        sizes = (f"--data.reader.init_args.train={TRAIN}", "--data.reader.init_args.test=8")
        more = ("--data.reader.init_args.validation=8", "--model.k=2", "--model.epochs=3")
        here = (f"--runs={tmp_path / 'runs'}", f"--data.cache_dir={tmp_path / 'cache'}")
        watcher = "--trainer.callbacks+=test_index_refresh.Watcher"
        assert cli.main(["fit", *configs, *sizes, *more, *here, watcher, *extra]) == 0
        module = sys.modules["test_index_refresh"]
        seen: Watcher = module.Watcher.seen
        return seen

    return start


def test_training_that_reads_the_index(watched) -> None:
    """Every two steps, from the first on, and before each of three validations and the test."""
    seen = watched("--model.candidates=nearest", "--model.refresh_every=2")
    assert seen.refreshes[:-1] == [0, 2, 3, 4, 6, 8, 9]
    assert len(seen.refreshes) == 8
    assert seen.fresh == [True] * 4


def test_training_that_does_not(watched) -> None:
    """Before each validation and the test alone."""
    seen = watched("--model.candidates=random", "--model.refresh_every=2")
    assert seen.refreshes[:-1] == [3, 6, 9]
    assert seen.fresh == [True] * 4


def test_the_best_weights_of_a_phase_have_an_index_of_their_own(watched) -> None:
    """The phase ends at step 3, its best weights may be older: the next step searches anew."""
    seen = watched(
        "--model.candidates=nearest",
        "--model.refresh_every=100",
        "--model.retriever_first_steps=4",
        "--trainer.val_check_interval=1",
    )
    assert seen.refreshes[0] == 0
    assert all(seen.fresh)


def test_a_method_without_an_index(watched) -> None:
    seen = watched("--model.k=0")
    assert seen.refreshes == []
    assert seen.fresh == []
