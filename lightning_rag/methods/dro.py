"""DRO (arXiv 2505.03075): importance-weighted EM over ordered lists of candidates."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig
from lightning_rag.errors import UserError
from lightning_rag.functional.processes import query_mean, shared_mean, shared_ratio
from lightning_rag.methods.base import Method
from lightning_rag.methods.optimization import OptimizerConfig
from lightning_rag.methods.phase import Phase
from lightning_rag.methods.weighting import (
    FIGURE,
    WeightingConfig,
    figures,
    merge_equal,
    selector_baseline,
    summary,
)
from lightning_rag.retrieval import lists
from lightning_rag.retrieval.pool import best_columns
from lightning_rag.retrieval.selector import Offer, numbered
from lightning_rag.retrieval.selectors import SelectorConfig, build_selector
from lightning_rag.retrieval.teacher import Teacher
from lightning_rag.types import (
    Instance,
    LossTerms,
    PermutationSamples,
    Predictions,
    Prompt,
    RagBatch,
    Retrieved,
)

log = logging.getLogger(__name__)

RECALL_AT = (1, 3, 5)  # the cut-offs of the paper's Figure 3


class Dro(Method):
    """Trains a selector and a generator by EM; the choice of passages is the latent variable.

    A selector p(z|x) draws an ordered list z of K of a query's N candidates, and the generator
    p(y|x,d_z) answers from it. To raise log p(y|x) = log Σ_z p(z|x) p(y|x,d_z), an iteration

    1. estimates (E-step): draws z_1 … z_S from the selector, scores l_i = log p(y|x,d_{z_i}), and
       weighs w_i = exp(l_i) / Σ_j exp(l_j), the posterior over the prior up to a constant
       (Eqs. 6, 7 and 19); all is kept in the bank;
    2. maximises (M-step): the weights stay as they are, and both models learn from their own part
       of -Σ_i w_i (log p(z_i|x) + log p(y|x,d_{z_i})) (Eqs. 10 and 11).

    Before, both are warmed up: the selector on a teacher's lists, the generator on relevant
    passages followed by retrieved ones. Several choices follow the specification rather than the
    released code; each argument says which.

    Args:
        generator: the model that writes the answer.
        encoder: what a selector is made of that is no language model.
        optimizer: learning rates by parameter name, and their schedule, anew in each phase.
        k: K, passages that the generator reads.
        selector: what chooses them.
        num_samples: S, sampled lists of a query (m in the paper).
        weighting: how the samples count.
        warm_up_epochs: epochs before the first iteration; 0 = none.
        teacher: what the selector is warmed up on: the order of the "first_stage", "gold_first" =
            relevant candidates and then the others in that order, or a JSONL file of lists (see
            `data/teacher_lists.py`). Lists are cut to K (A12).
        teacher_share: share of the training queries that the teacher has a list for, drawn by seed;
            the others teach the selector nothing in the warm-up.
        warm_up_gold: relevant passages at the head of the generator's warm-up prompts.
        iterations: T, EM iterations; 0 = the warm-up alone.
        epochs: epochs of each M-step over the samples; the released code's are 3 (A9).
        patience: stop after so many iterations without a better validation score; None = never.
            The best pair is kept, the warm-up's included (A17).
        train_selector: False leaves the selector as it is in the iterations (the paper's Figure 5).
            The warm-up trains it all the same; only with `warm_up_epochs: 0` it never learns.
        train_generator: the same for the generator.
        online: draw and weigh anew in every training step instead of once an iteration.
        sequential: train the generator, estimate again, then train the selector (A11).
        reinit: begin every M-step with the warm-up's weights (A10).
        baseline: "mean" subtracts the mean of the samples' weights in the selector's loss (of the
            other samples' for raw weights), which changes no expectation but the variance; for
            `online` only, with samples of the selector itself (A18).
        generator_order: the generator reads the list as "selected", or in the order of the first
            stage, so that only the set counts ("retrieved").
        shuffle_candidates: show the selector the candidates of a training query in a random order
            that stays the same, against a bias to first places (A13).
        inject_gold: put so many relevant passages that the data set names among a training query's
            candidates if they are missing, in place of the last ones (A15).
        numbered: passages carry their place in the list, "[1] …", as in the released prompts.
        decoding: "options" scores the task's allowed answers, "free" generates text.
    """

    def __init__(
        self,
        generator: GeneratorConfig,
        encoder: EncoderConfig,
        optimizer: OptimizerConfig | None = None,
        k: int = 5,
        selector: SelectorConfig | None = None,
        num_samples: int = 8,
        weighting: WeightingConfig | None = None,
        warm_up_epochs: int = 1,
        teacher: str = "gold_first",
        teacher_share: float = 1.0,
        warm_up_gold: int = 2,
        iterations: int = 5,
        epochs: int = 1,
        patience: int | None = 1,
        train_selector: bool = True,
        train_generator: bool = True,
        online: bool = False,
        sequential: bool = False,
        reinit: bool = False,
        baseline: Literal["none", "mean"] = "none",
        generator_order: Literal["selected", "retrieved"] = "selected",
        shuffle_candidates: bool = False,
        inject_gold: int = 0,
        numbered: bool = True,
        decoding: Literal["options", "free"] = "free",
    ) -> None:
        super().__init__(generator, optimizer, k=k, decoding=decoding)
        self.encoder_config = encoder
        self.selector_config = selector or SelectorConfig()
        self.weighting = weights = weighting or WeightingConfig()
        for name, value, least in (
            ("k", k, 1),
            ("num_samples", num_samples, 1),
            ("warm_up_epochs", warm_up_epochs, 0),
            ("warm_up_gold", warm_up_gold, 0),
            ("iterations", iterations, 0),
            ("epochs", epochs, 1),
            ("inject_gold", inject_gold, 0),
            ("patience", 1 if patience is None else patience, 1),
        ):
            if value < least:
                raise UserError(f"model.{name} is {value}; legal: {least} or more")
        if not 0 < teacher_share <= 1:
            raise UserError(f"model.teacher_share is {teacher_share}; legal: above 0, up to 1")
        on_policy = self.selector_config.on_policy
        plain = weights.kind in ("self_normalized", "raw") and weights.duplicates == "keep"
        unknown = self.selector_config.decoding == "string" and not on_policy
        learns = {"selector": train_selector, "generator": train_generator}
        both = all(learns.values())
        for clash, rule in (
            (warm_up_epochs + iterations == 0, "warm_up_epochs or iterations must be above 0"),
            (not any(learns.values()), "something must train"),
            (
                baseline == "mean" and not (online and on_policy),
                "baseline: mean needs online: true, and samples of the selector itself "
                "(selector.proposal_temperature: 1, selector.top_p: 1)",
            ),
            (
                baseline == "mean" and not plain,
                "baseline: mean needs weighting.kind: self_normalized or raw, duplicates: keep",
            ),
            (online and sequential, "online: true has no sequential: true"),
            (reinit and not warm_up_epochs, "reinit: true needs warm_up_epochs above 0"),
            (reinit and (online or sequential), "reinit: true has no online or sequential: true"),
            (sequential and not both, "sequential: true needs train_selector and train_generator"),
            (
                unknown and weights.corrects,
                "selector.decoding: string gives no probability of a tempered output; legal: "
                "weighting.proposal_correction: false, or proposal_temperature: 1 and top_p: 1",
            ),
        ):
            if clash:
                raise UserError(f"model: {rule}")
        if num_samples == 1 and iterations and train_selector:
            log.warning(
                "model.num_samples is 1: its weight is always 1, so the selector's expected "
                "gradient is zero and it learns from noise; 4 or more are usual"
            )
        if warm_up_epochs and iterations and not both:
            frozen = "generator" if train_selector else "selector"
            log.warning(
                "model.train_%s is false for the iterations alone: the warm-up trains it; "
                "model.warm_up_epochs: 0 leaves it as the run begins",
                frozen,
            )
        self.num_samples = num_samples
        self.warm_up_epochs = warm_up_epochs
        self.teacher = teacher
        self.teacher_share = teacher_share
        self.warm_up_gold = warm_up_gold
        self.iterations = iterations
        self.epochs = epochs
        self.patience = patience
        self.trained = tuple(name for name, wanted in learns.items() if wanted)
        self.online = online
        self.sequential = sequential
        self.reinit = reinit
        self.baseline = baseline
        self.generator_order = generator_order
        self.shuffle_candidates = shuffle_candidates
        self.inject_gold = inject_gold
        self.numbered = numbered

    def build(self) -> None:
        """Make generator and selector, and read the teacher's lists."""
        super().build()
        self.selector = build_selector(
            self.selector_config,
            self.generator_config,
            self.encoder_config,
            self.data.corpus(),
            self.k,
            self.data.num_candidates,
        )
        if self.warm_up_epochs:
            self._teacher = Teacher(self.teacher, self.data, self.teacher_share)
        if self.inject_gold and not any(query.relevant for query in self.data.splits.train):
            raise UserError(
                f"model.inject_gold is {self.inject_gold}, but no training query of this data set "
                "names its relevant passages; legal: 0"
            )

    def groups(self) -> dict[str, nn.Module]:
        """Return selector and generator."""
        return {"selector": self.selector, "generator": self.generator}

    def phases(self) -> list[Phase]:
        """`warm_up`, then `em_1` to `em_T`; `sequential` cuts each of these in two."""
        phases = []
        if self.warm_up_epochs:
            phases.append(
                Phase(
                    "warm_up",
                    trains=("selector", "generator"),
                    loss=self.warm_up_loss,
                    epochs=self.warm_up_epochs,
                    series="em",
                )
            )
        # name's end, what learns, phases without a better score that end the series after it
        steps = [("", self.trained, self.patience)]
        if self.sequential:
            patience = None if self.patience is None else 2 * self.patience
            steps = [("_generator", ("generator",), None), ("_selector", ("selector",), patience)]
        for iteration in range(1, self.iterations + 1):
            for suffix, trains, patience in steps:
                phases.append(
                    Phase(
                        f"em_{iteration}{suffix}",
                        trains=trains,
                        loss=self.online_loss if self.online else self.em_loss,
                        estimate=None if self.online else self.estimate,
                        summarize=None if self.online else self.summarize,
                        epochs=self.epochs,
                        series="em",
                        series_patience=patience,
                        start_from="warm_up" if self.reinit else None,
                    )
                )
        return phases

    def warm_up_loss(self, batch: RagBatch) -> LossTerms:
        """NLL of the teacher's lists under the selector, of the answers under the generator."""
        batch = self._training_candidates(batch)
        taught = {n: self._teacher.columns(batch, n, self.k) for n in range(len(batch.instances))}
        taught = {row: columns for row, columns in taught.items() if len(columns)}
        counts = not batch.idle
        selector = torch.zeros(0, device=self.device)
        if taught:
            offer = self._offer(batch)
            queries = [offer.queries[row] for row in taught]
            passages = [offer.passages[row] for row in taught]
            padded = nn.utils.rnn.pad_sequence([*taught.values()], True, padding_value=-1)
            positions = padded[:, None].to(batch.rows.device)  # (B, 1, K)
            selector = -self.selector.log_prob(Offer(queries, passages, offer.size), positions)
        store, gold = self.data.store, self.warm_up_gold
        prompts = [
            self._prompt(instance, lists.gold_first(batch, row, store, gold)[: self.k])
            for row, instance in enumerate(batch.instances)
        ]
        targets = [self.data.task.target(instance) for instance in batch.instances]
        log_likelihood = self.generator.log_likelihood(
            prompts, targets, reduction=self.weighting.reduction
        )
        return _sum(
            {
                "selector": shared_mean(selector.flatten(), counts=counts),
                "generator": -shared_mean(log_likelihood, counts=counts),
            }
        )

    def estimate(self, batch: RagBatch) -> dict[str, Tensor]:
        """Draw S lists of each query, score and weigh them (E-step, Eqs. 6, 7 and 19)."""
        batch = self._training_candidates(batch)
        samples = self._sample(batch)
        found = figures(samples)
        first = lists.first_stage(batch.candidate_scores)[:, None, : self.k]  # (B, 1, K)
        for name, positions in (("selector", samples.positions), ("first_stage", first)):
            hits = lists.relevance(batch, positions)  # (B, S or 1, K)
            for k in RECALL_AT:
                if k <= self.k:
                    found[f"success@{k}/{name}"] = hits[..., :k].amax(dim=-1).mean(dim=-1)
        return {
            "positions": samples.positions,
            "weights": merge_equal(samples.positions, samples.weights),
            **{FIGURE + name: values for name, values in found.items()},
        }

    def summarize(self, rows: Mapping[str, Tensor]) -> dict[str, float]:
        """Average the figures of an estimate, and name the queries that it left out."""
        return summary(rows, self.data.splits.train)

    def em_loss(self, batch: RagBatch) -> LossTerms:
        """Weighted NLL of the banked lists under the selector, and of the answers (M-step)."""
        batch = self._training_candidates(batch)
        positions = self.bank.get("positions", batch.rows)  # (B, S, K)
        weights = self.bank.get("weights", batch.rows)  # (B, S)
        return self._weighted(batch, positions, weights, weights)

    def online_loss(self, batch: RagBatch) -> LossTerms:
        """Estimate and maximise in one step, with the same expected gradient at θ^t."""
        batch = self._training_candidates(batch)
        with torch.no_grad():
            samples = self._sample(batch)
        weights = selector_weights = samples.weights
        if self.baseline == "mean":
            selector_weights = weights - selector_baseline(self.weighting.kind, weights)
        loss = self._weighted(batch, samples.positions, weights, selector_weights)
        found = figures(samples)
        for name in ("ess", "distinct"):
            loss.terms[name], _ = query_mean(found[name], counts=not batch.idle)
        return loss

    def _weighted(
        self, batch: RagBatch, positions: Tensor, weights: Tensor, selector_weights: Tensor
    ) -> LossTerms:
        """Return L_S + L_G (Eqs. 10 and 11) for lists (B, S, K) and weights (B, S).

        The sum over a query's lists is not divided by S: the weights have that in them (A7).
        """
        terms, size = {}, batch.counted
        if "selector" in self.phase.trains:
            log_prob = self.selector.log_prob(self._offer(batch), positions)  # (B, S)
            terms["selector"] = -shared_ratio((selector_weights * log_prob).sum(), size)
        if "generator" in self.phase.trains:
            # Lists without weight, such as those merged with an equal one, are not read.
            counted = weights.nonzero()  # (C, 2) query and sample
            if not len(counted):  # nothing to learn: one list, for a gradient of zero
                counted = counted.new_zeros(1, 2)
            log_p = self.generator.log_likelihood(
                *self._pairs(batch, positions, counted), reduction=self.weighting.reduction
            )
            counts = weights[counted[:, 0], counted[:, 1]]  # (C,)
            terms["generator"] = -shared_ratio((counts * log_p).sum(), size)
        return _sum(terms)

    def _sample(self, batch: RagBatch) -> PermutationSamples:
        """Draw S lists of each query, and score and weigh them, without dropout."""
        sampled = self.selector.sample(self._offer(batch), self.num_samples)
        shape = sampled.positions.shape[:2]
        every = torch.ones(shape).nonzero()  # (B * S, 2)
        prompts, targets = self._pairs(batch, sampled.positions, every)
        scores = self.generator.score(prompts, targets, reduction=self.weighting.reduction)
        log_likelihood = scores.view(shape).to(sampled.log_prob)
        return PermutationSamples(
            positions=sampled.positions,
            log_prob=sampled.log_prob,
            log_proposal=sampled.log_proposal,
            valid=sampled.valid,
            log_likelihood=log_likelihood,
            weights=self.weighting.weights(sampled, log_likelihood),
        )

    def retrieve(self, batch: RagBatch, k: int) -> Retrieved:
        """Rank the candidates by the selector, greedily."""
        scores = self.selector.rank(self._offer(batch))  # (B, N)
        return Retrieved(batch.candidate_ids, scores, best_columns(scores.detach(), k))

    def predict(self, batch: RagBatch) -> tuple[Predictions, Retrieved]:
        """Retrieve and answer; log the share of a selector's outputs that were no list (A19)."""
        before = self.selector.mended
        predicted = super().predict(batch)
        if self.selector_config.decoding == "string" and not self.trainer.predicting:
            size = len(batch.instances)
            stage = "test" if self.trainer.testing else "val"
            share = (self.selector.mended - before) / size
            self.log_queries(f"{stage}/mended_lists", torch.full((size,), share), batch)
        return predicted

    def prompts(self, batch: RagBatch, retrieved: Retrieved) -> list[Prompt]:
        """Return the queries with their chosen passages, numbered."""
        chosen = [self._rows(batch, row, c) for row, c in enumerate(retrieved.positions)]
        return [
            self._prompt(instance, rows)
            for instance, rows in zip(batch.instances, chosen, strict=True)
        ]

    def _pairs(
        self, batch: RagBatch, positions: Tensor, pairs: Tensor
    ) -> tuple[list[Prompt], list[str]]:
        """Return prompts and targets of pairs (C, 2) of query and sample, for lists (B, S, K)."""
        prompts, targets = [], []
        for row, sample in pairs.tolist():
            instance = batch.instances[row]
            prompts.append(self._prompt(instance, self._rows(batch, row, positions[row, sample])))
            targets.append(self.data.task.target(instance))
        return prompts, targets

    def _rows(self, batch: RagBatch, row: int, columns: Tensor) -> list[int]:
        """Return the store's rows of a query's list (K,), as the generator reads them."""
        columns = columns[columns >= 0]
        if self.generator_order == "retrieved":
            columns = columns[lists.first_stage(batch.candidate_scores[row, columns])]
        rows: list[int] = batch.candidate_ids[row, columns].tolist()
        return rows

    def _prompt(self, instance: Instance, rows: Sequence[int]) -> Prompt:
        """Return what the generator reads: the query and the passages at rows of the store."""
        passages = [self.render(self.data.store[row]) for row in rows]
        if self.numbered:
            passages = [numbered(text, str(place)) for place, text in enumerate(passages, start=1)]
        return Prompt(self.data.task.source(instance), tuple(passages))

    def _offer(self, batch: RagBatch) -> Offer:
        """Return what the selector reads."""
        task, store = self.data.task, self.data.store
        # Embeddings are compared as the first stage would compare them.
        embeds = self.selector_config.kind in ("bi-encoder", "multi-hop")
        shown = task.key if embeds else self.render
        return Offer(
            queries=[task.query(instance) for instance in batch.instances],
            passages=[
                [shown(store[row]) for row in rows if row >= 0]
                for rows in batch.candidate_ids.tolist()
            ],
            size=batch.candidate_ids.shape[1],
        )

    def _training_candidates(self, batch: RagBatch) -> RagBatch:
        """Return the batch with the candidates that training shows: as they are, by default."""
        if self.inject_gold:
            batch = lists.with_gold(batch, self.data.store, self.inject_gold)
        return lists.shuffled(batch, self.data.seed) if self.shuffle_candidates else batch


def _sum(terms: dict[str, Tensor]) -> LossTerms:
    """Return the sum of the models' own losses."""
    return LossTerms(torch.stack(list(terms.values())).sum(), terms)
