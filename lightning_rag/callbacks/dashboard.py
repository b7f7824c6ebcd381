"""TensorBoard's pages beside the scalars: charts that overlay the methods, and the projector."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_rag.errors import UserError
from lightning_rag.methods.base import Method, as_method
from lightning_rag.types import Passage

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

Layout = dict[str, dict[str, tuple[str, list[str]]]]

# Chart -> regular expression of the scalars in it.
RETRIEVAL = {
    "success@k: a relevant passage among the first k": "val/success@",
    "recall@k": "val/recall@",
    "mean reciprocal rank": "val/mrr$",
    "nDCG@k": "val/ndcg@",
}
INDEX = {"overlap@k of the index with a fresh one": "index/overlap@"}
TRAINING = {
    "loss (its scale is the method's own)": "train/loss$",
    "what the loss is made of, and what was logged with it": "train/(?!loss$)",
}
ESTIMATES = {
    "effective sample size": "estimate/ess(_min)?$",
    "success@k of what was drawn, and of the first stage": "estimate/success@",
    "preference: mean over candidates, and of the best": "estimate/(mean|best)$",
    "share of queries that are left out": "estimate/left_out$",
}
COST = {
    "seconds of training, with estimates, without validations": "cost/training/seconds$",
    "tokens through the generator in training": "cost/training/generator_tokens$",
    "FLOPs of training": "cost/training/flops$",
    "peak memory in bytes": "cost/memory/",
}


class Dashboard(Callback):
    """Writes the layout of TensorBoard's custom-scalars page, with which runs are compared.

    Each chart shows one figure for all runs below the folder that TensorBoard was started with:
    quality, retrieval, training, estimates, and cost. It is written once by each process that
    trains or tests.
    """

    def __init__(self) -> None:
        self.written = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the layout."""
        self._write(trainer, as_method(pl_module))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the layout, if no training did: a method can be tested without one."""
        self._write(trainer, as_method(pl_module))

    def _write(self, trainer: Trainer, method: Method) -> None:
        if self.written or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_custom_scalars(layout(method))
        self.written = True


def layout(method: Method) -> Layout:
    """Return the charts of the custom-scalars page, as `SummaryWriter.add_custom_scalars` takes it.

    TensorBoard merges the layouts of all runs by the titles of categories, and loses charts of
    categories that its first run lacks. So every method has all categories, and charts of what it
    logs in them.
    """
    task = method.data.task.monitor
    monitors = dict.fromkeys([task, *(phase.monitor or task for phase in method.schedule)])
    estimates = any(phase.estimate is not None for phase in method.schedule)
    charts = {
        "Quality": {
            **{f"{name} on validation": f"val/{re.escape(name)}$" for name in monitors},
            f"{task} on test": f"test/{re.escape(task)}$",
        },
        "Retrieval": {**RETRIEVAL, **(INDEX if method.refresh_every else {})},
        "Training": TRAINING,
        "Estimates": ESTIMATES if estimates else {},
        "Cost": COST,
    }
    return {
        category: {title: ("Multiline", [tags]) for title, tags in found.items()}
        for category, found in charts.items()
    }


def write_hyper_parameters(
    writer: SummaryWriter, values: Mapping[str, str | int | float | bool]
) -> None:
    """Write a run's line of the HParams page; the run's scalars are its metrics.

    The logger's own `log_hyperparams` also writes a list of columns, and TensorBoard takes that of
    an arbitrary run for all of them: what other methods have besides would not be shown. Where
    there is no such list, TensorBoard lists the hyper-parameters of all runs, those that differ
    first.

    Args:
        writer: of the run.
        values: the run's hyper-parameters by name.
    """
    # Here, so that the command line's --help does not wait for TensorBoard.
    from torch.utils.tensorboard.summary import hparams

    _, start, end = hparams(dict(values), {})  # type: ignore[no-untyped-call]
    for part in (start, end):
        writer.file_writer.add_summary(part)  # type: ignore[attr-defined]


class Projector(Callback):
    """Shows the vectors of a method's index on TensorBoard's projector page, when it is tested.

    For methods with an index (RUIE, ETRAG); give it by
    `--trainer.callbacks+=lightning_rag.callbacks.dashboard.Projector`. The vectors are those that
    the test retrieves with; each has the passage's id, its label if it is a demonstration, and its
    text. A passage with several vectors is one point, its vectors one behind the other.

    Args:
        passages: points that are shown at most; of a larger store so many are drawn.
        seed: of that draw.

    Raises:
        UserError: less than 2 passages.
    """

    def __init__(self, passages: int = 1000, seed: int = 0) -> None:
        if passages < 2:
            raise UserError(f"Projector.passages is {passages}; legal: 2 or more")
        self.passages = passages
        self.seed = seed

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out before the training whether there will be something to show."""
        _check_index(as_method(pl_module))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out before the test whether there will be something to show."""
        _check_index(as_method(pl_module))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the vectors."""
        method = as_method(pl_module)
        store, index = method.data.store, method.index.flatten(start_dim=1)  # (M, V * D)
        rows = torch.arange(len(store))
        if len(rows) > self.passages:
            draw = torch.Generator().manual_seed(self.seed)
            rows = torch.randperm(len(rows), generator=draw)[: self.passages].sort().values
        described = [_described(store[row]) for row in rows.tolist()]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_embedding(
                    index[rows.to(index.device)].float().cpu(),
                    metadata=described,
                    metadata_header=["id", "label", "text"],
                    global_step=trainer.global_step,
                    tag="index",
                )


def _check_index(method: Method) -> None:
    """Refuse a method whose vectors cannot be shown.

    Raises:
        UserError: it has no index, or the index has other rows than the store.
    """
    name = type(method).__name__
    if method.refresh_every is None:
        raise UserError(
            f"Projector shows the vectors of an index, {name} has none as it is configured"
        )
    if len(method.index) != len(method.data.store):
        raise UserError(
            f"Projector: the index has {len(method.index)} of the store's "
            f"{len(method.data.store)} passages; legal: an index of the whole store"
        )


def _described(passage: Passage) -> list[str]:
    """Return a line of the table beside the vectors: no tab or line break may be in it."""
    label = passage.instance.answers[0] if passage.instance is not None else ""
    return [" ".join(text.split()) or "-" for text in (passage.id, label, passage.text)]
