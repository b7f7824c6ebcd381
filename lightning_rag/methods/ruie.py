"""RUIE (arXiv 2409.11673): a retriever taught by what a frozen generator prefers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig
from lightning_rag.backbones.cross_encoder import CrossEncoder, build_cross_encoder
from lightning_rag.backbones.encoder import Encoder, build_encoder
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.preference_files import write_preferences
from lightning_rag.errors import UserError
from lightning_rag.functional.contrastive import (
    BLOCKS,
    Block,
    gather,
    info_nce,
    listwise_cross_entropy,
    own_scores,
)
from lightning_rag.functional.distillation import kl_distillation
from lightning_rag.functional.processes import shared_mean
from lightning_rag.methods.base import Method
from lightning_rag.methods.candidate_scores import Preferences, Rewards
from lightning_rag.methods.choice import first_stage_choice, given, nothing_retrieved, rows_of
from lightning_rag.methods.demonstrations import Choice, Turns, false_negatives
from lightning_rag.methods.optimization import OptimizerConfig
from lightning_rag.methods.phase import Phase
from lightning_rag.methods.preferences import agreement, drawn, figures, off_task, summary
from lightning_rag.retrieval.demonstration_search import DemonstrationSearch
from lightning_rag.retrieval.pool import best_columns
from lightning_rag.tasks.keywords import Tags
from lightning_rag.types import LossTerms, Prompt, RagBatch, Retrieved


class Ruie(Method):
    """Trains a retriever on a frozen generator's preferences, through a reward model.

    With a query x, its gold answer y and a labelled demonstration c_i (a plain passage serves too),

        preference   r_i = (1 / T) sum_t log p(y_t | c_i, x, y_<t)     of the frozen generator
        reward       s_i = cross-encoder(x', y, c_i')                  ' = with keywords tagged
        retriever    z_i = e(x) . e(c_i')                              of unit vectors

    1. Phase `reward`: the generator scores some of the first stage's candidates (the estimate), and
       the cross-encoder learns which of P passages, one of the best and P - 1 of the worst, is the
       best: L = -s_0 + log sum_m exp(s_m).
    2. Phase `distil`: the reward model scores all candidates (the estimate), and the encoder learns
       from P of them, again by rank: L = w_c L_InfoNCE + w_d KL(softmax(s / T) || softmax(z / t)),
       the former with the passages of all queries of the batch, and of all processes, as negatives.
    3. Phase `reader`, with `reader_epochs` only: the retriever, which stays, gives each training
       query its k passages (the estimate), and the generator learns to answer from them by its NLL.

    The retriever reads no gold answer, so it serves where there is none: the best k passages of the
    store go into the prompt, the best of them last. RUIE itself ends with phase 2, and its
    generator never learns; begin with one that can, a pretrained model or another method's
    (`--initial_weights`). Phase 3 asks what a generator that knows this retriever is worth. Where
    specification and released code differ, each argument says which is followed; the equations are
    the code's, for the paper's text was not available.

    Args:
        generator: the frozen model that prefers, and answers.
        encoder: what the retriever is made of; `extra_tokens` gives keyword tags their own tokens.
        optimizer: learning rates of `reward` and `retriever`, and their schedule in each phase.
        k: demonstrations in the prompt.
        reward_encoder: what the reward model is made of; None = as `encoder`.
        tags: how the mentions of gold facts are tagged; "none" is an ablation.
        subsample: how many of a query's candidates the generator scores.
        subsample_from: any of them, drawn by seed ("random"), or the first stage's best ("top").
        off_task_penalty: taken off the preference of demonstrations of another task.
        penalize_reward: off the reward model's scores too; not so in the released code.
        preferences: file of the training queries' preferences, computed elsewhere
            (`data/preference_files.py`; `subsample` does not apply). None = computed here.
        preferences_to: file to write them to.
        tagged_preferences: the generator scores tagged texts, as in the released code, where gold
            mentions of the query leak into the preference.
        reward_epochs: passes over the training queries in phase `reward`.
        reward_steps: so many optimiser steps instead.
        distil_epochs: the same for phase `distil`.
        distil_steps: so many optimiser steps instead.
        reader_epochs: the same for phase `reader`; 0 = the generator stays as it is. It learns from
            the retriever's passages, whatever `ranker` is.
        train_retriever: False leaves out phases `reward` and `distil`, so that the generator learns
            with the retriever as it began.
        reward_size: P in phase `reward`.
        distil_size: P in phase `distil`.
        positives: the best so many of a query's candidates are positives; they take turns with the
            epochs. A query with fewer scored candidates of its own task is left out.
        negatives: the worst so many are negatives, and take turns too.
        teacher: what the retriever learns from: the "reward" model, or the "preference" itself,
            without a reward model: an ablation.
        contrastive_weight: w_c.
        distillation_weight: w_d.
        blocks: pairs that InfoNCE compares (`functional.contrastive`); "qp" alone is the usual.
        temperature: t.
        teacher_temperature: T.
        mask_false_negatives: "same_answer" leaves passages of other queries out of the negatives
            that answer as the query does; the released code's filter has no effect.
        monitor: what selects the retriever's weights: the "task"'s metric, or the "agreement" of
            its order of the candidates with the generator's, which needs no answers. It is the
            agreement in any case where answers do not show the retriever: with k = 0, or a `ranker`
            other than "retriever".
        ranker: what ranks in evaluation; one checkpoint can be tested with each. "reward" and
            "preference" rank the first stage's candidates and read the gold answer, so they show
            what the retriever could reach at most.
        searches: the "retriever" ranks the whole "store", or the first stage's "candidates";
            `data.scope` says whether those of other tasks are among either.
        decoding: "options" scores the task's allowed answers, if it has some; "free" generates.
    """

    def __init__(
        self,
        generator: GeneratorConfig,
        encoder: EncoderConfig,
        optimizer: OptimizerConfig | None = None,
        k: int = 8,
        reward_encoder: EncoderConfig | None = None,
        tags: Tags = "untyped",
        subsample: int = 32,
        subsample_from: Literal["random", "top"] = "random",
        off_task_penalty: float = 100.0,
        penalize_reward: bool = True,
        preferences: str | None = None,
        preferences_to: str | None = None,
        tagged_preferences: bool = False,
        reward_epochs: int = 3,
        reward_steps: int | None = None,
        distil_epochs: int = 3,
        distil_steps: int | None = None,
        reader_epochs: int = 0,
        train_retriever: bool = True,
        reward_size: int = 8,
        distil_size: int = 4,
        positives: int = 3,
        negatives: int = 16,
        teacher: Literal["reward", "preference"] = "reward",
        contrastive_weight: float = 0.2,
        distillation_weight: float = 1.0,
        blocks: tuple[Block, ...] = BLOCKS,
        temperature: float = 0.01,
        teacher_temperature: float = 1.0,
        mask_false_negatives: Literal["none", "same_answer"] = "none",
        monitor: Literal["task", "agreement"] = "task",
        ranker: Literal["retriever", "first_stage", "reward", "preference"] = "retriever",
        searches: Literal["store", "candidates"] = "store",
        decoding: Literal["options", "free"] = "free",
    ) -> None:
        super().__init__(generator, optimizer, k=k, decoding=decoding)
        for name, value, least in (
            ("subsample", subsample, 1),
            ("reward_epochs", reward_epochs, 1),
            ("reward_steps", reward_steps, 1),
            ("distil_epochs", distil_epochs, 1),
            ("distil_steps", distil_steps, 1),
            ("reader_epochs", reader_epochs, 0),
            ("reward_size", reward_size, 2),
            ("distil_size", distil_size, 2),
            ("positives", positives, 1),
            ("negatives", negatives, 1),
            ("off_task_penalty", off_task_penalty, 0),
            ("contrastive_weight", contrastive_weight, 0),
            ("distillation_weight", distillation_weight, 0),
        ):
            if value is not None and not least <= value < math.inf:
                raise UserError(f"model.{name} is {value}; legal: {least} or more")
        temperatures = {"temperature": temperature, "teacher_temperature": teacher_temperature}
        for name, value in temperatures.items():
            if not 0 < value < math.inf:
                raise UserError(f"model: {name} is {value}; legal: above 0")
        weightless = contrastive_weight == distillation_weight == 0
        unpaired = "qp" not in blocks or len(set(blocks)) < len(blocks)
        without_model = teacher == "preference" and ranker == "reward"
        untagged = tagged_preferences and tags == "none"
        both = preferences is not None and preferences_to is not None
        idle = not train_retriever and reader_epochs == 0
        for clash, rule in (
            (weightless, "contrastive_weight or distillation_weight must be above 0"),
            (unpaired, f"blocks is {list(blocks)}; legal: qp and any of pq, qq, pp, each once"),
            (without_model, "teacher: preference has no reward model, which ranker: reward needs"),
            (untagged, "tagged_preferences: true needs tags: untyped or typed"),
            (both, "legal: preferences, which are read, or preferences_to, not both"),
            (idle, "something must train; legal: train_retriever: true, or reader_epochs above 0"),
        ):
            if clash:
                raise UserError(f"model: {rule}")
        self.encoder_config = encoder
        self.reward_config = reward_encoder or encoder
        self.tags: Tags = tags
        self.subsample = subsample
        self.subsample_from = subsample_from
        self.off_task_penalty = off_task_penalty
        self.penalize_reward = penalize_reward
        self.preferences = preferences
        self.preferences_to = preferences_to
        self.tagged_preferences = tagged_preferences
        self.reward_length = (None if reward_steps else reward_epochs, reward_steps)
        self.distil_length = (None if distil_steps else distil_epochs, distil_steps)
        self.reader_epochs = reader_epochs
        self.train_retriever = train_retriever
        self.reward_size = reward_size
        self.distil_size = distil_size
        self.positives = positives
        self.negatives = negatives
        self.teacher = teacher
        self.contrastive_weight = contrastive_weight
        self.distillation_weight = distillation_weight
        self.blocks = blocks
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature
        self.mask_false_negatives = mask_false_negatives
        self.monitor = monitor
        self.ranker = ranker
        self.searches = searches
        self.refresh_every = 0 if ranker == "retriever" and k else None

    def build(self) -> None:
        """Make generator, retriever and, if it is the teacher, the reward model."""
        super().build()
        self.prefers = Preferences(
            self.generator,
            self.data,
            count=self.subsample,
            at_random=self.subsample_from == "random",
            tags=self.tags if self.tagged_preferences else "none",
            file=None if self.preferences is None else Path(self.preferences).expanduser(),
        )
        corpus, task, store = self.data.corpus(), self.data.task, self.data.store
        self.retriever: Encoder = build_encoder(self.encoder_config, corpus)
        self.search = DemonstrationSearch(self.retriever, task, store, self.tags)
        self.turns = Turns(self.data, self.positives, self.negatives)
        if self.teacher == "reward":
            self.reward: CrossEncoder = build_cross_encoder(self.reward_config, corpus)
            self.rewards = Rewards(self.reward, self.data, self.tags)
        # (M, D) as last refreshed. A checkpoint holds the weights: they serve any store.
        empty = torch.zeros(len(store), self.retriever.dimension)
        self.register_buffer("index", empty, persistent=False)

    def groups(self) -> dict[str, nn.Module]:
        """Return generator, retriever and, if it is the teacher, the reward model."""
        found: dict[str, nn.Module] = {"generator": self.generator, "retriever": self.retriever}
        return {**found, "reward": self.reward} if self.teacher == "reward" else found

    def phases(self) -> list[Phase]:
        """The phases that teach the retriever, and `reader`, if it has epochs."""
        taught = self._teaching() if self.train_retriever else []
        if not self.reader_epochs:
            return taught
        reader = Phase(
            "reader",
            trains=("generator",),
            loss=self.reader_loss,
            estimate=self.estimate_demonstrations if self.k else None,
            epochs=self.reader_epochs,
        )
        return [*taught, reader]

    def _teaching(self) -> list[Phase]:
        """`reward`, unless the preferences teach the retriever themselves, and `distil`."""
        reward = Phase(
            "reward",
            trains=("reward",),
            loss=self.reward_loss,
            estimate=self.estimate_preferences,
            summarize=self.summarize,
            epochs=self.reward_length[0],
            steps=self.reward_length[1],
            validate=self.reward_agreement,
            monitor="agreement",
        )
        learned = self.teacher == "reward"
        by_agreement = self.monitor == "agreement" or self.refresh_every is None
        distil = Phase(
            "distil",
            trains=("retriever",),
            loss=self.distil_loss,
            estimate=self.estimate_rewards if learned else self.estimate_preferences,
            summarize=self.summarize,
            epochs=self.distil_length[0],
            steps=self.distil_length[1],
            validate=self.retriever_agreement if by_agreement else None,
            monitor="agreement" if by_agreement else None,
        )
        return [reward, distil] if learned else [distil]

    # --- what the bank holds

    def estimate_preferences(self, batch: RagBatch) -> dict[str, Tensor]:
        """The generator's mean log-likelihood of the answer given each drawn candidate alone."""
        return self._estimated("preference", batch, self.prefers.of_training(batch))

    def estimate_rewards(self, batch: RagBatch) -> dict[str, Tensor]:
        """The reward model's score of every candidate."""
        return self._estimated("reward", batch, self.rewards.score(batch, batch.candidate_ids >= 0))

    def _estimated(self, name: str, batch: RagBatch, scores: Tensor) -> dict[str, Tensor]:
        """Return scores (B, N) and figures of them, (B,) each."""
        usable = self._choice(batch, scores, self.positives + 1, name).usable
        other = off_task(batch, self.data.store)
        return {name: scores, **figures(scores, other, batch.candidate_scores, usable)}

    def estimate_demonstrations(self, batch: RagBatch) -> dict[str, Tensor]:
        """The retriever's choice for each query: rows (B, K) of the store, best first, -1 = none.

        By the index, as in evaluation, made anew of the weights that the retriever keeps.
        """
        if self.refreshed_at != self.trainer.global_step:
            self.refresh_index()
            self.refreshed_at = self.trainer.global_step
        return {"demonstrations": rows_of(self._by_index(batch, self.k))}

    def wanted(self, data: RagDataModule) -> Tensor:
        """Return which candidates of the training queries the generator scores: (Q, N) bool."""
        if self.tagged_preferences:
            raise UserError("model.tagged_preferences is true; legal with `request`: false")
        count, at_random = self.subsample, self.subsample_from == "random"
        batches = data.estimate_dataloader()
        return torch.cat([drawn(b, count, data.seed, at_random=at_random) for b in batches])

    def summarize(self, rows: Mapping[str, Tensor]) -> dict[str, float]:
        """Average an estimate's figures; write the preferences, if they are to be kept."""
        rehearsed = self.trainer.fast_dev_run  # type: ignore[attr-defined]
        writes = self.global_rank == 0 and not rehearsed and "preference" in rows
        if self.preferences_to is not None and writes:
            queries, path = self.data.queries("train"), Path(self.preferences_to).expanduser()
            write_preferences(path, queries, self.data.store, rows["preference"])
        return summary(rows, self.data.splits.train, self.positives)

    # --- losses

    def reward_loss(self, batch: RagBatch) -> LossTerms:
        """Listwise cross-entropy of the positive among P tagged pairs (spec section 6)."""
        scores = self.bank.get("preference", batch.rows)  # (B, N)
        choice = self._choice(batch, scores, self.reward_size, "preference")
        # The mean over the usable queries of all processes; one that has none takes part in the
        # backward pass of the others.
        rewards = self.rewards.of_choice(batch, choice.rows)[choice.usable]  # (U, P)
        terms = {
            "accuracy": shared_mean((rewards.argmax(dim=1) == 0).float()),
            "left_out": shared_mean(1 - choice.usable.float(), counts=not batch.idle),
        }
        return self._terms(shared_mean(listwise_cross_entropy(rewards)), terms)

    def distil_loss(self, batch: RagBatch) -> LossTerms:
        """InfoNCE over all processes' passages, and KL to the teacher (spec section 8)."""
        scores = self.bank.get(self.teacher, batch.rows)  # (B, N)
        choice = self._choice(batch, scores, self.distil_size, self.teacher)
        own = self.search.queries(batch)  # (B, D)
        shown = self.search.passages(choice.rows, own)  # (B, P, D)
        # With several processes B is from here on the queries of all of them.
        queries, passages = gather(own), gather(shown)
        rows, chosen = gather(batch.rows), gather(choice.rows)  # (B,), (B, P)
        there, usable = chosen >= 0, chosen[:, 0] >= 0
        ignore = ~there.flatten().expand(len(rows), -1)  # (B, B P)
        if self.mask_false_negatives == "same_answer":
            train, store = self.data.queries("train"), self.data.store
            ignore = ignore | false_negatives(rows, chosen, train, store)
        flat = passages.flatten(0, 1)  # (B P, D)
        contrastive = info_nce(
            queries, flat, temperature=self.temperature, blocks=self.blocks, ignore=ignore
        )
        student = own_scores(queries, flat).masked_fill(~there, -torch.inf)  # (B, P)
        distillation = kl_distillation(
            student,
            gather(choice.teacher),  # (B, P)
            student_temperature=self.temperature,
            teacher_temperature=self.teacher_temperature,
        )
        weights = usable / usable.sum().clamp(min=1)  # (B,): the mean over the usable queries
        terms = {
            "contrastive": (weights * contrastive).sum(),
            "distillation": (weights * distillation).sum(),
        }
        total = self.contrastive_weight * terms["contrastive"]
        total = total + self.distillation_weight * terms["distillation"]
        terms["accuracy"] = (weights * (student.argmax(dim=1) == 0)).sum()
        counted = gather(batch.rows.new_full(batch.rows.shape, not batch.idle, dtype=torch.bool))
        return self._terms(total, {**terms, "left_out": 1 - usable[counted].float().mean()})

    def reader_loss(self, batch: RagBatch) -> LossTerms:
        """Mean token NLL of the answer given the retriever's passages."""
        if self.k == 0:
            return self.generator_loss(batch, nothing_retrieved(batch))
        return self.generator_loss(batch, given(self.bank.get("demonstrations", batch.rows)))

    def _choice(self, batch: RagBatch, scores: Tensor, size: int, name: str) -> Choice:
        """Return the passages that queries learn from at this epoch, by the scores (B, N)."""
        spared = name == "reward" and not self.penalize_reward
        penalty = 0.0 if spared else self.off_task_penalty
        return self.turns.choose(batch, scores, size, epoch=self.current_epoch, penalty=penalty)

    def _terms(self, total: Tensor, terms: Mapping[str, Tensor]) -> LossTerms:
        return LossTerms(total, {name: value.detach() for name, value in terms.items()})

    # --- validation without answers

    def reward_agreement(self, batch: RagBatch) -> dict[str, Tensor]:
        """Share of pairs of candidates that the reward model orders as the generator does."""
        preferences = self.prefers.of_validation(batch)
        scores = self.rewards.score(batch, preferences.isfinite())
        return {"agreement": agreement(scores, preferences)}

    def retriever_agreement(self, batch: RagBatch) -> dict[str, Tensor]:
        """Share of pairs of candidates that the retriever orders as the generator does."""
        scores = self.search.scores(batch)
        return {"agreement": agreement(scores, self.prefers.of_validation(batch))}

    # --- retrieval

    def retrieve(self, batch: RagBatch, k: int) -> Retrieved:
        """Rank as `ranker` and `searches` say; in training the first stage's candidates."""
        if k == 0:
            return nothing_retrieved(batch)
        if self.ranker == "first_stage":
            return first_stage_choice(batch, k)
        if self.ranker == "retriever" and not self.training:
            return self._by_index(batch, k)
        if self.ranker == "retriever":
            scores = self.search.scores(batch)
        else:
            score = self.rewards.score if self.ranker == "reward" else self.prefers.score
            scores = score(batch, batch.candidate_ids >= 0)
            scores = scores - self.off_task_penalty * off_task(batch, self.data.store)
            scores = scores.masked_fill(~scores.isfinite(), -torch.inf)
        return Retrieved(batch.candidate_ids, scores, best_columns(scores, k))

    def _by_index(self, batch: RagBatch, k: int) -> Retrieved:
        """Rank what `searches` says by the vectors of the last refresh."""
        if not self.index[0].any():
            raise RuntimeError("Ruie: refresh_index() must come before the index is read")
        if self.searches == "candidates":
            rows, scores = batch.candidate_ids, self.search.scores(batch, self.index)
        else:
            rows, scores = self.search.nearest(batch, self.index, k)
        return Retrieved(rows, scores, best_columns(scores, k))

    def prompts(self, batch: RagBatch, retrieved: Retrieved) -> list[Prompt]:
        """Return the queries with their demonstrations, the best last, beside the query."""
        prompts = super().prompts(batch, retrieved)
        return [dataclasses.replace(prompt, best_last=True) for prompt in prompts]

    def refresh_index(self) -> None:
        """Encode the store again."""
        self.index.copy_(self.search.index())
