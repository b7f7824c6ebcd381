"""What a trained retriever finds: `retrieval.json`, beside an untrained and a random retriever."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lightning_rag.callbacks.cost_ledger import booked
from lightning_rag.callbacks.index_refresh import evaluating
from lightning_rag.errors import UserError
from lightning_rag.files import Json, write_json
from lightning_rag.methods.base import Method, as_method
from lightning_rag.metrics.neighbours import (
    collapse,
    confusion,
    entity_figures,
    label_agreement,
    perplexity,
    random_rows,
    ranked_rows,
    shared,
)
from lightning_rag.types import Instance, RagBatch, Retrieved

log = logging.getLogger(__name__)

SPLITS = ("validation", "test")
COLUMNS = ("untrained", "trained", "random")

Found = list[tuple[Instance, list[int]]]  # queries with the rows of their neighbours, best first
Measured = dict[str, dict[str, Any]]  # plain numbers alone: it goes into checkpoints


class RetrievalAnalysis(Callback):
    """Says what the neighbours of the queries have in common with them, before and after training.

    The analysis of ETRAG (arXiv 2406.03790, the release's evaluation of its retriever), for any
    method: three retrievers over the same queries. "trained" is the method at the end of `fit`,
    with its best weights; "untrained" the method before its first step (a resumed run has it from
    its checkpoint); "random" draws passages of the store. A method ranks its candidates, and a
    depth that it has fewer candidates for is left out.

    `retrieval.json` in the run's folder holds `split`, `queries`, `ks` and `retrievers`; each of
    these has `figures`, named as in `metrics.neighbours` and here:

    - `candidates`: how many passages the retriever ranks, mean over the queries;
    - `perplexity_j`: of the weights of the j-th soft neighbour, mean over the queries, for methods
      that have such weights;

    and, where the task has labels, `confusion`: {query's label: {label of its best neighbour:
    count}}. Figures about entities are there if every query has a head and a tail. TensorBoard
    shows the figures before and after training as `retrieval/<figure>`, and a table.

    The run itself goes on as if nothing had been measured.

    Args:
        ks: numbers of neighbours that are looked at.
        split: the queries. Those of "test" are never looked at in `fit`; they are measured when the
            method is tested, and "untrained" is not. Nothing that is tuned should see them.
        seed: seed of the random retriever.

    Raises:
        UserError: no number of neighbours or one below 1, or another split.
    """

    def __init__(
        self,
        ks: tuple[int, ...] = (1, 3, 5, 10),
        split: Literal["validation", "test"] = "validation",
        seed: int = 0,
    ) -> None:
        if not ks or any(n < 1 for n in ks):
            raise UserError(
                f"RetrievalAnalysis.ks is {list(ks)}; legal: one number or more, each 1 or more"
            )
        if split not in SPLITS:
            raise UserError(f"RetrievalAnalysis.split is {split!r}; legal: {', '.join(SPLITS)}")
        self.ks = tuple(sorted(set(ks)))
        self.split = split
        self.seed = seed
        self.untrained: Measured | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured before the first step, which a resumed run cannot repeat."""
        return {"untrained": self.untrained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self.untrained = state_dict["untrained"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget another method's measurement; that of a checkpoint is loaded after this."""
        if stage == "fit":
            self.untrained = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the untrained retriever."""
        if self.split != "validation" or self.untrained is not None:
            return
        if trainer.global_step > 0:
            log.warning(
                "retrieval analysis: the run was begun without it, so the untrained retriever "
                "cannot be measured any more"
            )
            return
        method = as_method(pl_module)
        self.untrained = self._of_method(trainer, method, "untrained")
        _log_figures(trainer, self.untrained)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Measure the trained retriever after `fit`.

        Only now the best weights are in the method, whatever the order of the callbacks; but
        Lightning has taken it off its device already.
        """
        if stage != "fit" or self.split != "validation":
            return
        method = as_method(pl_module)
        home = method.device
        method.to(trainer.strategy.root_device)
        self._report(trainer, method)
        method.to(home)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the method that is tested, if it is the test split that is asked for."""
        if self.split == "test":
            self._report(trainer, as_method(pl_module))

    def _report(self, trainer: Trainer, method: Method) -> None:
        """Measure the method as it is and the random retriever; write all that there is."""
        retrievers: dict[str, Measured] = {}
        if self.untrained is not None:
            retrievers["untrained"] = self.untrained
        trained = retrievers["trained"] = self._of_method(trainer, method, "trained")
        retrievers["random"] = self._at_random(trainer, method)
        if trainer.fast_dev_run or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        content: dict[str, Json] = {
            "split": self.split,
            "queries": len(getattr(method.data.splits, self.split)),
            "ks": list(self.ks),
            "retrievers": dict(retrievers),
        }
        write_json(Path(trainer.default_root_dir) / "retrieval.json", content)
        _log_figures(trainer, trained)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                table = _markdown(retrievers)
                logger.experiment.add_text("retrieval", table, trainer.global_step)

    def _of_method(self, trainer: Trainer, method: Method, name: str) -> Measured:
        """Measure what `method` retrieves, with a fresh index."""
        found: Found = []
        candidates: list[Tensor] = []  # (B,) each
        spread: list[Tensor] = []  # (B', K) each
        with booked(method, "analysis"), _undisturbed(method):
            if method.refresh_every is not None:
                method.refresh_index()
            for batch in self._batches(trainer, method, name):
                given = method.retrieve(batch.to(method.device), method.k)
                rows = ranked_rows(given.candidate_ids, given.scores, max(self.ks))
                found += zip(batch.instances, rows, strict=True)
                candidates.append(_available(given))
                if given.weights is not None:
                    spread.append(perplexity(given.weights.cpu()[candidates[-1] > 0]))
            measured = self._measured(method, found, torch.cat(candidates))
        perplexities = torch.cat(spread) if spread else torch.empty(0, 0)  # (Q, K)
        if len(perplexities):
            means = perplexities.mean(dim=0).tolist()  # (K,)
            measured["figures"].update({f"perplexity_{j}": m for j, m in enumerate(means, 1)})
        return measured

    def _at_random(self, trainer: Trainer, method: Method) -> Measured:
        """Measure a retriever that draws from the store what a query may have."""
        draw, size = random.Random(self.seed), len(method.data.store)
        found: Found = []
        candidates: list[int] = []
        with booked(method, "analysis"), isolate_rng():
            for batch in self._batches(trainer, method, "random"):
                for query, gone in zip(batch.instances, batch.excluded_rows, strict=True):
                    found.append((query, random_rows(size, max(self.ks), gone.tolist(), draw)))
                    candidates.append(size - len(gone))
            return self._measured(method, found, torch.tensor(candidates))

    def _batches(self, trainer: Trainer, method: Method, name: str) -> Iterable[RagBatch]:
        """Return the queries in order; a rehearsal sees as many batches as it trains on."""
        data = method.data
        loader = data.whole_dataloader(self.split)
        batches: Iterable[RagBatch] = loader
        if rehearsed := trainer.fast_dev_run:  # type: ignore[attr-defined]
            batches = islice(loader, int(rehearsed))
        hidden = trainer.progress_bar_callback is None
        shown: Iterable[RagBatch] = tqdm(
            batches, desc=f"Retrieval, {name}", disable=hidden, leave=False
        )
        return shown

    def _measured(self, method: Method, found: Found, candidates: Tensor) -> Measured:
        """Compare the queries with their neighbours, and count the candidates, (Q,)."""
        task, store = method.data.task, method.data.store
        pairs = [
            [shared(query, store[row], label=task.matches(query, store[row])) for row in rows]
            for query, rows in found
        ]
        figures = label_agreement(pairs, self.ks)
        if all(query.head is not None and query.tail is not None for query, _ in found):
            figures |= entity_figures(pairs, self.ks)
        figures |= collapse([rows[0] for _, rows in found if rows])
        figures["candidates"] = candidates.double().mean().item()
        measured: Measured = {"figures": figures}
        if method.data.splits.labels:
            best = [(query, store[rows[0]].instance) for query, rows in found if rows]
            measured["confusion"] = confusion(
                (query.answers[0], neighbour.answers[0])
                for query, neighbour in best
                if query.answers and neighbour is not None and neighbour.answers
            )
        return measured


@contextmanager
def _undisturbed(method: Method) -> Iterator[None]:
    """Evaluate inside; then modes, random generators and index are as before."""
    with evaluating(method), isolate_rng():
        index = method.index.clone() if method.refresh_every is not None else None
        try:
            yield
        finally:
            if index is not None:
                method.index.copy_(index)


def _available(given: Retrieved) -> Tensor:
    """Return how many candidates each query can have, (B,) on the CPU."""
    return ((given.candidate_ids >= 0) & (given.scores > -torch.inf)).sum(dim=1).cpu()


def _log_figures(trainer: Trainer, measured: Measured) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(
            {f"retrieval/{name}": value for name, value in measured["figures"].items()},
            step=trainer.global_step,
        )


def _markdown(retrievers: Mapping[str, Measured]) -> str:
    """Render the figures, which are our own words and numbers, for TensorBoard's text page."""
    columns = [name for name in COLUMNS if name in retrievers]
    names = dict.fromkeys(name for column in columns for name in retrievers[column]["figures"])
    lines = [" | ".join(["", "figure", *columns, ""]), "|---" * (len(columns) + 1) + "|"]
    for name in names:
        values = [retrievers[column]["figures"].get(name) for column in columns]
        shown = ["" if value is None else f"{value:.4g}" for value in values]
        lines.append(" | ".join(["", f"`{name}`", *shown, ""]))
    return "\n".join(line.strip() for line in lines)
