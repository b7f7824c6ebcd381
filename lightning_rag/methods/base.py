"""The base of all methods: phases, steps, optimiser groups and logging, once for all of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, Strategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.backbones.factory import build_generator
from lightning_rag.backbones.generator import Generator
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.errors import UserError
from lightning_rag.functional.processes import process_count, query_mean, shared_mean, summed
from lightning_rag.methods.optimization import OptimizerConfig
from lightning_rag.methods.phase import Bank, Phase, check_schedule
from lightning_rag.methods.weights import check_weights
from lightning_rag.types import (
    Evaluated,
    LossTerms,
    Passage,
    Predictions,
    Prompt,
    RagBatch,
    Rendered,
    Retrieved,
)

DIVERGED = (
    "a smaller learning rate or trainer.gradient_clip_val usually helps; "
    "the last checkpoint is untouched"
)


class Method(LightningModule, ABC):
    """A way of training a retriever and a generator: a list of phases over one data module.

    A method names its parameter groups (`groups`), lists its `phases`, and says what it retrieves
    (`retrieve`); the default answer puts the retrieved passages into the generator's prompt.

    Several processes each get a part of every batch, and DistributedDataParallel averages their
    gradients. A loss, and each of its terms, is therefore such that its mean over the processes is
    what one process finds for the whole batch: `functional.processes.shared_mean` makes it so.

    Args:
        generator: the model that writes the answer.
        optimizer: learning rates by parameter name, and their schedule.
        k: K, passages that the generator is given.
        decoding: "options" scores the task's allowed answers over a token trie (where the task has
            a closed set), "free" generates text and parses it.

    Attributes:
        reads_candidates: whether the method chooses among the first stage's candidates.
        refresh_every: optimiser steps between two refreshes of the index; 0 = before evaluation
            only; None = the method has no index.
        refreshed_at: global step of the last refresh; -1 = the index does not fit the weights.
        stopped: whether no further step may be taken, though phases are left (a used up budget).
        learned: names of the phases that have taken a step.
        index: (M, …) the vectors of the store as last refreshed, a buffer that is not persistent.
    """

    reads_candidates: bool = True
    refresh_every: int | None = None
    index: Tensor

    def __init__(
        self,
        generator: GeneratorConfig,
        optimizer: OptimizerConfig | None = None,
        k: int = 0,
        decoding: Literal["options", "free"] = "options",
    ) -> None:
        super().__init__()
        if k < 0:
            raise UserError(f"model.k is {k}; legal: 0 or more")
        self.generator_config = generator
        self.optimizer_config = optimizer or OptimizerConfig()
        self.k = k
        self.decoding = decoding
        self.generator: Generator
        self.bank = Bank()
        self.phase_index = 0
        self.phase_start = 0  # global step at which the phase began
        self.refreshed_at = -1
        self.stopped = False
        self.learned: list[str] = []
        self._kept: list[Retrieved] | None = None  # None = nothing is to be kept
        self._data: RagDataModule | None = None
        self._phases: list[Phase] | None = None

    @property
    def data(self) -> RagDataModule:
        """The data module that this method was set up with."""
        if self._data is None:
            raise RuntimeError(f"{type(self).__name__}.data before setup()")
        return self._data

    @property
    def schedule(self) -> list[Phase]:
        """The phases, listed once."""
        if self._phases is None:
            self._phases = check_schedule(self.phases())
        return self._phases

    @property
    def phase(self) -> Phase:
        """The current phase; the last one when training is over."""
        return self.schedule[min(self.phase_index, len(self.schedule) - 1)]

    @property
    def finished(self) -> bool:
        """Whether the last phase has ended."""
        return self.phase_index >= len(self.schedule)

    @abstractmethod
    def phases(self) -> list[Phase]:
        """List the phases of the training, in order."""

    @abstractmethod
    def retrieve(self, batch: RagBatch, k: int) -> Retrieved:
        """Rank the candidates of each query and choose `k` of them."""

    def groups(self) -> dict[str, nn.Module]:
        """Return the named parameter groups that phases can train."""
        return {"generator": self.generator}

    def refresh_index(self) -> None:
        """Encode the passage store again into `index` (`IndexRefresh` calls this, and keeps it)."""

    def build(self) -> None:
        """Make the models; a method with more than a generator extends this."""
        self.generator = build_generator(self.generator_config, self.data.corpus())

    def attach(self, data: RagDataModule) -> None:
        """Take task, store and queries from `data` and make the models, unless that was done."""
        if self._data is data:
            return
        if self._data is not None:
            raise UserError("a method belongs to one data module: build another for other data")
        self._data = data
        if self.reads_candidates and self.k > data.num_candidates:
            raise UserError(
                f"model.k is {self.k}, but data.num_candidates is {data.num_candidates}; "
                "legal: k up to num_candidates"
            )
        # The weights depend on the seed alone, whatever was drawn before (a cache hit, say).
        torch.manual_seed(data.seed)
        self.build()
        self._rehearse()
        self.train()  # checkpoints load in evaluation mode; phases freeze what they do not train

    def _rehearse(self) -> None:
        """Score one query's allowed answers: what cannot work fails before an epoch is spent."""
        task, query = self.data.task, self.data.splits.train[0]
        options = task.options(query)
        if self.decoding == "options" and options is not None:
            texts = [task.option_target(query, option) for option in options]
            with torch.no_grad():
                self.generator.choose([Prompt(task.source(query))], [texts])
            self.generator.tokens = self.generator.truncated = 0

    def setup(self, stage: str) -> None:
        """Lightning's hook: attach the trainer's data module."""
        if self.trainer.world_size > 1 and not _data_parallel(self.trainer.strategy):
            raise UserError(
                f"trainer.strategy is {type(self.trainer.strategy).__name__} for "
                f"{self.trainer.world_size} processes (trainer.devices, trainer.num_nodes); legal: "
                "auto, ddp or ddp_find_unused_parameters_true: each process holds the whole models"
            )
        self.attach(self.trainer.datamodule)  # type: ignore[attr-defined]

    def prompts(self, batch: RagBatch, retrieved: Retrieved) -> list[Prompt]:
        """Return the generator's input of each query, with its chosen passages, best first."""
        ids = retrieved.candidate_ids.tolist()
        prompts = []
        for row, (instance, positions) in enumerate(
            zip(batch.instances, retrieved.positions.tolist(), strict=True)
        ):
            passages = [self.data.store[ids[row][p]] for p in positions if p >= 0]
            rendered = tuple(self.render(passage) for passage in passages)
            prompts.append(Prompt(self.data.task.source(instance), rendered))
        return prompts

    def render(self, passage: Passage) -> Rendered:
        """Return a passage as the generator reads it."""
        return self.data.task.passage(passage)

    def generator_loss(self, batch: RagBatch, retrieved: Retrieved | None = None) -> LossTerms:
        """Mean token NLL of the target given the query and what was retrieved for it."""
        retrieved = retrieved or self.retrieve_once(batch)
        targets = [self.data.task.target(instance) for instance in batch.instances]
        log_p = self.generator.log_likelihood(
            self.prompts(batch, retrieved),
            targets,
            soft_prompt=retrieved.soft_prompt,
            reduction="mean",
        )
        return LossTerms(total=-shared_mean(log_p, counts=not batch.idle))

    def generator_phase(self, epochs: int, patience: int | None) -> Phase:
        """Return the phase that trains the generator alone, by its loss."""
        return Phase(
            "fit",
            trains=("generator",),
            loss=self.generator_loss,
            epochs=epochs,
            patience=patience,
        )

    def answer(self, batch: RagBatch, retrieved: Retrieved) -> list[str]:
        """Return the answer to each query: the best allowed one, or generated text, parsed."""
        task = self.data.task
        prompts = self.prompts(batch, retrieved)
        options = [task.options(instance) for instance in batch.instances]
        if self.decoding == "free" or any(allowed is None for allowed in options):
            outputs = self.generator.generate(prompts, soft_prompt=retrieved.soft_prompt)
            return [
                task.parse(output, instance)
                for output, instance in zip(outputs, batch.instances, strict=True)
            ]
        closed = [allowed for allowed in options if allowed is not None]
        texts = [
            [task.option_target(instance, option) for option in allowed]
            for instance, allowed in zip(batch.instances, closed, strict=True)
        ]
        log_p = self.generator.choose(prompts, texts, soft_prompt=retrieved.soft_prompt)
        return [
            allowed[int(scores.argmax())] for allowed, scores in zip(closed, log_p, strict=True)
        ]

    def predict(self, batch: RagBatch) -> tuple[Predictions, Retrieved]:
        """Retrieve and answer."""
        retrieved = self.retrieve_once(batch)
        texts = self.answer(batch, retrieved)
        return Predictions(texts=texts, ranking=retrieved.scores.detach()), retrieved

    def retrieve_once(self, batch: RagBatch) -> Retrieved:
        """Retrieve K passages; in a validation step once for all that ask."""
        if self._kept is None:
            return self.retrieve(batch, self.k)
        if not self._kept:
            self._kept.append(self.retrieve(batch, self.k))
        return self._kept[0]

    @contextmanager
    def _retrieving_once(self) -> Iterator[None]:
        self._kept = []
        try:
            yield
        finally:
            self._kept = None

    def on_train_batch_start(self, batch: RagBatch, batch_idx: int) -> int | None:
        """Draw the step's randomness from (seed, step) alone, so that a resumed run repeats it.

        Of several processes each draws its own, by its rank too; the first draws as one would.

        Returns -1, Lightning's word for leaving the epoch, if the last phase has just ended, or no
        further one can begin.
        """
        if self.finished or self.stopped:
            return -1
        # Batches whose gradients are accumulated share a step, and must not share their dropout.
        seed = (self.data.seed * 1_000_003 + self.global_step) * 1_000_003 + batch_idx
        if self.global_rank:
            seed = (seed + self.global_rank * 0x9E3779B97F4A7C15) % 2**64
        torch.manual_seed(seed)
        return None

    def training_step(self, batch: RagBatch, batch_idx: int) -> Tensor:
        """Lightning's hook: the loss of the current phase."""
        if self.phase.name not in self.learned:
            self.learned.append(self.phase.name)
        loss = self.phase.loss(batch)
        if not torch.isfinite(loss.total):
            ids = ", ".join(instance.id for instance in batch.instances[:5])
            raise UserError(
                f"the loss of phase {self.phase.name!r} is {loss.total.item()} at step "
                f"{self.global_step} (queries {ids}, …); {DIVERGED}"
            )
        size = len(batch.instances)
        self.log("train/loss", loss.total, prog_bar=True, batch_size=size, sync_dist=True)
        terms = {f"train/{name}": value for name, value in loss.terms.items()}
        self.log_dict(terms, batch_size=size, sync_dist=True)
        return loss.total

    @property
    def judges_itself(self) -> bool:
        """Whether the phase's own figures take the place of answers in this validation."""
        return self.phase.validate is not None and self.trainer.state.fn == "fit"

    def validation_step(self, batch: RagBatch, batch_idx: int) -> Evaluated | None:
        """Lightning's hook: predictions for the callbacks, or the phase's figures; its loss."""
        with self._retrieving_once():
            if self.phase.monitor == "loss":
                # Each process has a part of the whole batch, which all count by its size.
                queries = int(summed(torch.tensor(batch.counted, device=self.device)))
                loss = summed(self.phase.loss(batch).total) / process_count()
                self.log("val/loss", loss, batch_size=queries)
            if self.phase.validate is None or not self.judges_itself:
                return self._evaluation_step(batch)
        for name, values in self.phase.validate(batch).items():
            self.log_queries(f"val/{name}", values, batch, prog_bar=True)
        return None

    def log_queries(
        self, name: str, values: Tensor, batch: RagBatch, *, prog_bar: bool = False
    ) -> None:
        """Log the mean of a figure over the queries of an evaluation, those of all processes.

        Args:
            name: with its stage.
            values: (B,), NaN for queries that have none.
            batch: the queries.
            prog_bar: show it beside the progress bar too.
        """
        mean, known = query_mean(values, counts=not batch.idle)
        if known:  # all processes log, or none
            self.log(name, mean, batch_size=known, prog_bar=prog_bar, on_step=False, on_epoch=True)

    def test_step(self, batch: RagBatch, batch_idx: int) -> Evaluated:
        """Lightning's hook: predictions for the callbacks."""
        return self._evaluation_step(batch)

    def predict_step(self, batch: RagBatch, batch_idx: int) -> Evaluated:
        """Lightning's hook: predictions for the callbacks."""
        return self._evaluation_step(batch)

    def _evaluation_step(self, batch: RagBatch) -> Evaluated:
        predictions, retrieved = self.predict(batch)
        return {"predictions": predictions, "retrieved": retrieved}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW over all parameters that some phase trains, and the schedule within the phase."""
        config = self.optimizer_config
        trained = {name for phase in self.schedule for name in phase.trains}
        legal = self.groups()
        if unknown := trained - legal.keys():
            raise ValueError(f"phases train {sorted(unknown)}; legal: {sorted(legal)}")
        for name, parameter in self.named_parameters():
            if not any(name == g or name.startswith(g + ".") for g in trained):
                parameter.requires_grad_(False)
        optimizer = torch.optim.AdamW(
            [dict(g) for g in config.parameter_groups(dict(self.named_parameters()), legal)],
            betas=config.betas,
            eps=config.epsilon,
            # Lightning cannot clip gradients that a gradient scaler hands to a fused step.
            fused="mixed" not in str(self.trainer.precision),
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _rate_factor(self, step: int) -> float:
        taken = max(0, step - self.phase_start)  # a resumed run makes its schedule at step 0
        return self.optimizer_config.factor(taken, self.phase_steps(self.phase))

    def phase_steps(self, phase: Phase) -> int:
        """Return how many optimiser steps `phase` lasts if it is not stopped early."""
        if phase.steps is not None:
            return phase.steps
        if phase.epochs is None:
            raise ValueError(f"phase {phase.name!r} has neither epochs nor steps")
        batches = math.ceil(len(self.data.splits.train) / self.data.batch_size)
        limit = self.trainer.limit_train_batches
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
        in_epoch = math.ceil(batches / self.trainer.accumulate_grad_batches)
        # A phase that begins within an epoch gets the rest of it besides.
        return phase.epochs * in_epoch + -self.phase_start % in_epoch

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook: phase and bank go with the weights.

        Raises:
            UserError: a weight is not finite (a finite loss can have a gradient that is not).
        """
        for name, weight in self.named_parameters():
            if weight.is_floating_point() and not torch.isfinite(weight).all():
                raise UserError(
                    f"the weights {name} are not finite after step {self.global_step}; {DIVERGED}"
                )
        checkpoint["method"] = type(self).__name__
        checkpoint["phase_index"] = self.phase_index
        checkpoint["phase_start"] = self.phase_start
        checkpoint["bank"] = self.bank.state_dict()
        checkpoint["learned"] = list(self.learned)

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Lightning's hook: take phase and bank back.

        Raises:
            UserError: the checkpoint is of another method, or of models of another shape.
        """
        name, where = type(self).__name__, f"ckpt_path: {self.trainer.ckpt_path}"
        if checkpoint.get("method", name) != name:
            raise UserError(f"{where} was trained as {checkpoint['method']}; legal: one of {name}")
        check_weights(self.state_dict(), checkpoint["state_dict"], where)
        self.phase_index = checkpoint["phase_index"]
        self.phase_start = checkpoint["phase_start"]
        self.bank.load_state_dict(checkpoint["bank"])
        names = [phase.name for phase in self.schedule[: self.phase_index + 1]]
        self.learned = checkpoint.get("learned", names)  # older ones do not say

    def load_groups(self, state: Mapping[str, Tensor], where: str) -> list[str]:
        """Take the weights of all parameter groups that are in `state`; return their names.

        Args:
            state: the state dictionary of a method, this one or another.
            where: what it came from, for errors.

        Raises:
            UserError: no group in common, or models of another shape.
        """
        theirs = {name.split(".")[0] for name in state}
        groups = [name for name in self.groups() if name in theirs]
        if not groups:
            raise UserError(
                f"{where} has weights of {', '.join(sorted(theirs)) or 'nothing'}; legal: of at "
                f"least one of {', '.join(self.groups())}"
            )
        kept = {name: weight for name, weight in state.items() if name.split(".")[0] in groups}
        ours = {n: w for n, w in self.state_dict().items() if n.split(".")[0] in groups}
        check_weights(ours, kept, where)
        self.load_state_dict(kept, strict=False)
        return groups


def _data_parallel(strategy: Strategy) -> bool:
    """Whether every process holds all weights, so that any of them can be read and loaded."""
    return isinstance(strategy, DDPStrategy) and not isinstance(
        strategy, FSDPStrategy | DeepSpeedStrategy
    )


def as_method(module: LightningModule) -> Method:
    """Return `module` as the method it is; callbacks are handed plain LightningModules."""
    if not isinstance(module, Method):
        raise TypeError(f"this callback serves methods, got {type(module).__name__}")
    return module
