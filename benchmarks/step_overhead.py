"""What a `fit` step costs beyond a bare PyTorch loop over the same batches and the same model.

Both train a model of their own, from equal weights, with the same AdamW, schedule, clipping and
batches. They take turns, a step of `fit` and a step of the bare loop, in one process, so that a
busy machine slows both down. All that `fit` does between the ends of two steps counts: the loop,
the callbacks, logging. The steps around an epoch's end (validation, checkpoint) do not. The figure
is the ratio of the medians; its spread is the middle half of the ratios of neighbouring steps.
Target: at most 1.03. On a busy machine take --cpu_time and OMP_NUM_THREADS=1: the seconds that the
process computes, instead of those that pass.

    python benchmarks/step_overhead.py [--cpu_time] [--epochs N] [--hidden D] [--layers L] …
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_rag.backbones.config import GeneratorConfig, TinyConfig
from lightning_rag.callbacks.checkpoints import ResumePoint
from lightning_rag.callbacks.cost_ledger import CostLedger
from lightning_rag.callbacks.evaluator import Evaluator
from lightning_rag.callbacks.phases import PhaseSchedule
from lightning_rag.callbacks.predictions import PredictionWriter
from lightning_rag.callbacks.run_files import RunFiles
from lightning_rag.data.candidates import BM25
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.readers.synthetic import SyntheticRelations
from lightning_rag.methods.base import Method
from lightning_rag.methods.optimization import OptimizerConfig
from lightning_rag.methods.rag4re import Rag4re
from lightning_rag.tasks.relation_extraction import RelationExtraction
from lightning_rag.types import RagBatch

TARGET = 1.03
CLIP = 1.0


class BareLoop:
    """The training that a script without this project would hold."""

    def __init__(self, method: Method, total: int, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.data = method.data
        self.generator = copy.deepcopy(method.generator).train()
        config = method.optimizer_config
        decayed = [p for p in self.generator.parameters() if p.ndim > 1]
        others = [p for p in self.generator.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=config.learning_rates["generator"],
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: config.factor(step, total)
        )
        self.method = method

        self.batches: Iterator[RagBatch] = iter(())

    def step(self) -> float:
        """Train on the next batch; return the seconds."""
        start = self.clock()
        device = self.method.device
        batch = next(self.batches).to(device)
        retrieved = self.method.retrieve(batch, self.method.k)
        prompts = self.method.prompts(batch, retrieved)
        targets = [self.data.task.target(instance) for instance in batch.instances]
        loss = -self.generator.log_likelihood(prompts, targets, reduction="mean").mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.generator.parameters(), CLIP)
        self.optimizer.step()
        self.schedule.step()
        wait_for(device)
        return self.clock() - start


class TakeTurns(Callback):
    """Times the project's steps, and lets the bare loop take one after each of them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.project: list[float] = []
        self.bare: list[float] = []
        self.loop: BareLoop | None = None
        self.last: float | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Method) -> None:
        """Open the same batches for the bare loop."""
        if self.loop is None:
            self.loop = BareLoop(pl_module, pl_module.phase_steps(pl_module.phase), self.clock)
        self.loop.batches = iter(pl_module.data.train_dataloader())
        self.last = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Method, outputs: object, batch: RagBatch, batch_idx: int
    ) -> None:
        """Stop the clock, and start it again when the bare loop has had its step."""
        wait_for(pl_module.device)
        now = self.clock()
        bare = self.loop.step()
        if self.last is not None:
            self.project.append(now - self.last)
            self.bare.append(bare)
        self.last = self.clock()


def wait_for(device: torch.device) -> None:
    """Let the work end that a GPU still has."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def train(arguments: argparse.Namespace, folder: Path) -> TakeTurns:
    """Run `fit` with everything that the command line puts into it, progress bar left out."""
    tiny = TinyConfig(hidden_size=arguments.hidden, layers=arguments.layers)
    method = Rag4re(
        GeneratorConfig(tiny=tiny),
        OptimizerConfig(learning_rates={"generator": 1e-4}),
        k=1,
        epochs=arguments.epochs,
    )
    data = RagDataModule(
        reader=SyntheticRelations(train=arguments.batch * arguments.steps),
        task=RelationExtraction(scorer="accuracy", negative_label=None),
        first_stage=BM25(),
        batch_size=arguments.batch,
        validation_size=8,
        bucket_by_length=False,
        cache_dir=str(folder / "cache"),
    )
    turns = TakeTurns(time.process_time if arguments.cpu_time else time.perf_counter)
    trainer = Trainer(
        devices=1,
        max_epochs=-1,
        gradient_clip_val=CLIP,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=TensorBoardLogger(folder, name="", version="", default_hp_metric=False),
        callbacks=[
            *(CostLedger(), PhaseSchedule(folder / "checkpoints"), Evaluator()),
            *(
                PredictionWriter(folder),
                RunFiles(folder, {}),
                ResumePoint(folder / "checkpoints", 0),
            ),
            turns,
        ],
    )
    trainer.fit(method, datamodule=data)
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=12, help="steps in an epoch")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--cpu_time", action="store_true")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        turns = train(arguments, Path(folder))
    # The first epoch warms up: allocator, threads, caches of the tokeniser.
    project, bare = (steps[arguments.steps - 1 :] for steps in (turns.project, turns.bare))
    ratios = sorted(p / b for p, b in zip(project, bare, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    fit, loop = statistics.median(project), statistics.median(bare)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {vars(arguments)}")
    print(f"{len(ratios)} steps: fit {1000 * fit:.1f} ms, bare loop {1000 * loop:.1f} ms")
    print(f"ratio {fit / loop:.3f}, of neighbouring steps {low:.3f}-{high:.3f}")
    print(f"target: {TARGET}")


if __name__ == "__main__":
    main()
