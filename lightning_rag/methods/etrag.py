"""ETRAG (arXiv 2406.03790): soft nearest neighbours among training instances, as soft prompts."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig
from lightning_rag.data.store import exclusions
from lightning_rag.errors import UserError
from lightning_rag.functional.soft_knn import (
    soft_knn_weights,
    soft_neighbours,
    span_cosine_distance,
    span_squared_distance,
)
from lightning_rag.methods.base import Method, nothing_retrieved
from lightning_rag.methods.optimization import OptimizerConfig
from lightning_rag.methods.phase import Phase
from lightning_rag.retrieval.instances import InstanceRetriever, Vectors
from lightning_rag.types import LossTerms, Passage, Prompt, RagBatch, Rendered, Retrieved

DISTANCES = {"cosine": span_cosine_distance, "l2": span_squared_distance}
ENCODED_AT_ONCE = 64  # instances, when the index is refreshed


class Etrag(Method):
    """Trains retriever and generator end to end by the generator's loss alone.

    A query and the labelled instances of the database are V vectors each (head, tail, label). With
    the distance d averaged over the slots, soft neighbour j of query q is

        s_i = -d(q, x_i),   w^j = softmax(s^j / t),   z^j = sum_i w^j_i x_i,
        s^(j+1)_i = s^j_i + log(1 - w^j_i),           j = 1 … k,

    and [q; z^1; …; z^k], mapped linearly into the generator's space, is a soft prompt of (1 + k) V
    vectors. The gradient reaches the retriever through weights, neighbours and query. In training
    the candidates are encoded anew, with gradient; in evaluation they are the whole database, as
    `refresh_index` last encoded it. An instance is never a neighbour of itself, which the released
    code does not rule out. With k = 0 there is no soft prompt, and no retriever to train.

    Args:
        generator: the model that writes the answer; `soft_prompt_position` is its setting.
        encoder: the retriever's encoder.
        optimizer: learning rates of `generator`, `retriever`, `projection`; and their schedule.
        k: K, neighbours of a query.
        selection: "soft" neighbours; "hard", the nearest instances as they are (the gradient then
            reaches the retriever through their vectors only); "random" instances.
        temperature: t; the paper's is 1. The lower, the fewer instances share a neighbour's weight.
        learned_temperature: learn log t, from `temperature` on.
        variant: "etrag" divides by t in every round, as above; "n3" only once, as Plötz and Roth
            2018 do (`functional.soft_knn` tells the difference).
        distance: "cosine" or squared "l2".
        vectors: "spans", or one vector a text: the "mean" over its tokens or the "first" token's.
        query_label: a query's vector in the slot of the label, "separator" or "learned"
            (`InstanceRetriever`).
        candidates: in training, "random" instances, or the "nearest" of the batch's queries by the
            index, in either case the same for the whole batch; or "first_stage", each query's own,
            in evaluation too.
        pool_size: N, candidates in training, at most as many as there are; the paper's is 32.
        replaced: share of the nearest that random instances replace, 0 to 1.
        evaluation_pool: in evaluation, only so many of the nearest; None = all, as in the paper.
        database_size: use a random part of a larger store, drawn by seed; the paper's is 5,000.
        exclude_self: keep a training query and its copies out of its own candidates.
        train_retriever: False leaves the encoder as it is and trains the projection alone.
        refresh_every: steps between two refreshes of the index, if training reads it.
        retriever_first_steps: steps that train retriever and projection before all; 0 = none.
        epochs: passes over the training queries that train everything.
        monitor: what selects the weights: the "task"'s metric, or the "loss" on validation queries.
        patience: stop after so many validations without a better value; None = never.
        decoding: "options" scores the task's allowed answers, "free" generates text.
    """

    def __init__(
        self,
        generator: GeneratorConfig,
        encoder: EncoderConfig,
        optimizer: OptimizerConfig | None = None,
        k: int = 5,
        selection: Literal["soft", "hard", "random"] = "soft",
        temperature: float = 0.02,
        learned_temperature: bool = False,
        variant: Literal["etrag", "n3"] = "etrag",
        distance: Literal["cosine", "l2"] = "cosine",
        vectors: Vectors = "spans",
        query_label: Literal["separator", "learned"] = "separator",
        candidates: Literal["random", "nearest", "first_stage"] = "random",
        pool_size: int = 32,
        replaced: float = 0.0,
        evaluation_pool: int | None = None,
        database_size: int | None = None,
        exclude_self: bool = True,
        train_retriever: bool = True,
        refresh_every: int = 100,
        retriever_first_steps: int = 0,
        epochs: int = 10,
        monitor: Literal["task", "loss"] = "task",
        patience: int | None = None,
        decoding: Literal["options", "free"] = "options",
    ) -> None:
        super().__init__(generator, optimizer, k=k, decoding=decoding)
        if not 0 < temperature < math.inf:
            raise UserError(f"model.temperature is {temperature}; legal: above 0")
        if not 0 <= replaced <= 1:
            raise UserError(f"model.replaced is {replaced}; legal: 0 to 1")
        for name, value, least in (
            ("pool_size", pool_size, max(1, k)),
            ("evaluation_pool", evaluation_pool, max(1, k)),
            ("database_size", database_size, max(1, k)),
            ("retriever_first_steps", retriever_first_steps, 0),
            ("refresh_every", refresh_every, 0),
        ):
            if value is not None and value < least:
                raise UserError(f"model.{name} is {value}; legal with k = {k}: {least} or more")
        if candidates == "first_stage" and (database_size or evaluation_pool):
            raise UserError(
                "model.candidates is 'first_stage', which says what is searched; legal with it: "
                "database_size and evaluation_pool null"
            )
        self.encoder_config = encoder
        self.selection = selection
        self.temperature = temperature
        self.learned_temperature = learned_temperature
        self.variant: Literal["etrag", "n3"] = variant
        self.distance = DISTANCES[distance]
        self.vectors: Vectors = vectors
        self.query_label: Literal["separator", "learned"] = query_label
        self.candidates = candidates
        self.pool_size = pool_size
        self.replaced = replaced
        self.evaluation_pool = evaluation_pool
        self.database_size = database_size
        self.exclude_self = exclude_self
        self.train_retriever = train_retriever
        if k > 0:  # only the nearest are looked up in the index while training
            self.refresh_every = refresh_every if candidates == "nearest" else 0
        self.retriever_first_steps = retriever_first_steps
        self.epochs = epochs
        self.monitor = None if monitor == "task" else monitor
        self.patience = patience

    def build(self) -> None:
        """Make generator, retriever and projection; choose the database."""
        super().build()
        if self.k == 0:
            return
        data = self.data
        labelled = all(passage.instance is not None for passage in data.store)
        self.retriever = InstanceRetriever(
            self.encoder_config,
            data.task.slots if labelled else (),
            self.vectors,
            self.query_label,
            data.corpus(),
        )
        width, size = self.retriever.encoder.dimension, self.retriever.size
        self.projection = Projection(
            width, self.generator.hidden_size, self.temperature, self.learned_temperature
        )
        self.generator.check_soft_prompt((1 + self.k) * size)
        rows = torch.arange(len(data.store))
        if self.database_size is not None and self.database_size < len(rows):
            rows = torch.randperm(len(rows))[: self.database_size].sort().values
        self.database: Tensor  # (M,) rows of the store
        self.register_buffer("database", rows)
        self.index: Tensor  # (M, V, D) as last refreshed
        self.register_buffer("index", torch.zeros(len(rows), size, width))
        self._texts = [
            data.task.labelled_key(data.store[row], self.retriever.separator)
            for row in rows.tolist()
        ]
        self._check_database()

    def _check_database(self) -> None:
        """Refuse instances that do not fit the encoder, and a database too small for a query."""
        self.retriever.encoder.check(self._texts, self.retriever.slots)
        queries = [self.data.task.query(instance) for instance in self.data.splits.train]
        self.retriever.encoder.check(queries, self.retriever.query_slots)
        if not self.exclude_self or self.candidates == "first_stage":
            return
        train = self.data.splits.train
        most, query = 0, train[0].id
        for instance, rows in zip(train, exclusions(train, self.data.store), strict=True):
            own = int(torch.isin(self.database, torch.from_numpy(rows)).sum())
            most, query = max((most, query), (own, instance.id))
        size = len(self.database)
        if size - most < self.k:
            raise UserError(
                f"model.k is {self.k}, but the query {query!r} may have only {size - most} of the "
                f"{size} instances of the database (not itself and its copies); legal: up to "
                f"{size - most}, or a larger database"
            )
        if min(self.pool_size, size) - most < self.k:
            raise UserError(
                f"model.pool_size is {self.pool_size}, of which the query {query!r} may not have "
                f"{most} (itself and its copies); legal with k = {self.k}: {self.k + most} or more"
            )

    def groups(self) -> dict[str, nn.Module]:
        """Return the three groups, or the generator alone with k = 0."""
        if self.k == 0:
            return super().groups()
        return {
            "generator": self.generator,
            "retriever": self.retriever,
            "projection": self.projection,
        }

    def phases(self) -> list[Phase]:
        """`retriever_first`, if it has steps, and `joint`."""
        new = (("retriever",) if self.train_retriever else ()) + ("projection",)
        new = new if self.k else ()
        joint = Phase(
            "joint",
            trains=(*new, "generator"),
            loss=self.loss,
            epochs=self.epochs,
            monitor=self.monitor,
            mode="min" if self.monitor == "loss" else "max",
            patience=self.patience,
        )
        if not new or self.retriever_first_steps == 0:
            return [joint]
        steps = self.retriever_first_steps
        return [Phase("retriever_first", trains=new, loss=self.loss, steps=steps), joint]

    def loss(self, batch: RagBatch) -> LossTerms:
        """Mean token NLL of the target, the only loss; how sharp the first neighbour is beside it.

        `perplexity` is exp(H(w^1)): 1 for a single instance, N for the mean of all candidates.
        """
        retrieved = self.retrieve(batch, self.k)
        loss = self.generator_loss(batch, retrieved)
        if retrieved.weights is not None:
            entropy = torch.special.entr(retrieved.weights[:, 0].detach()).sum(dim=-1)  # (B,)
            loss.terms["perplexity"] = entropy.exp().mean()
        if self.learned_temperature:
            loss.terms["temperature"] = self.projection.temperature.detach()
        return loss

    def prompts(self, batch: RagBatch, retrieved: Retrieved) -> list[Prompt]:
        """Return the queries alone: what was retrieved is in the soft prompt."""
        return [Prompt(self.data.task.source(instance)) for instance in batch.instances]

    def render(self, passage: Passage) -> Rendered:
        """Return an instance as the retriever reads it."""
        return self.data.task.labelled_key(passage, self.retriever.separator)

    @torch.no_grad()
    def refresh_index(self) -> None:
        """Encode the database again."""
        self.index.copy_(self.retriever.encode(self._texts, ENCODED_AT_ONCE))

    def retrieve(self, batch: RagBatch, k: int) -> Retrieved:
        """Return soft or hard neighbours of each query, and the soft prompt made of them."""
        if k == 0:
            return nothing_retrieved(batch)
        texts = [self.data.task.query(instance) for instance in batch.instances]
        queries = self.retriever.queries(texts)  # (B, V, D)
        # A temperature of 0.02 magnifies distances by 50: too much for half precision.
        with torch.autocast(queries.device.type, enabled=False):
            queries = queries.float()
            places, vectors = self._candidates(batch, queries.detach())
            rows = torch.where(places >= 0, self.database[places], -1)  # (B, N)
            allowed = (rows >= 0) & ~self._excluded(batch, rows)
            scores = -self.distance(queries, vectors)  # (B, N)
            scores = scores.masked_fill(~allowed, -torch.inf)
            positions = self._choose(batch, scores.detach(), k)  # (B, K)
            weights = None
            if self.selection == "soft":
                temperature = self.projection.temperature
                weights = soft_knn_weights(
                    scores, k, temperature, mask=allowed, variant=self.variant
                )  # (B, K, N)
                neighbours = soft_neighbours(weights, vectors)  # (B, K, V, D)
            else:
                neighbours = _gather(vectors, positions)  # (B, K, V, D)
            prompt = torch.cat([queries[:, None], neighbours], dim=1).flatten(1, 2)
        return Retrieved(rows, scores, positions, weights, self.projection(prompt))

    def _candidates(self, batch: RagBatch, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the candidates of B queries (B, V, D): places in the database, and vectors.

        Returns:
            Places (B, N), -1 = padding; vectors (B, N, V, D), or (N, V, D) if all queries have the
            same. With gradient in training, out of the index in evaluation.
        """
        if not self.training and not self.index[0].any():
            raise RuntimeError("Etrag: refresh_index() must come before evaluation")
        if self.candidates == "first_stage":  # the database is the store, in its order
            places = batch.candidate_ids[:, : self.pool_size if self.training else None]
        elif self.training:
            pool = self._pool(batch, queries)
            vectors = self.retriever.instances([self._texts[place] for place in pool.tolist()])
            return pool.expand(len(queries), -1), vectors.float()
        elif self.evaluation_pool is None:
            everything = torch.arange(len(self.database), device=queries.device)
            return everything.expand(len(queries), -1), self.index
        else:
            places = self._nearest(batch, queries, self.evaluation_pool)
        if not self.training:
            return places, self.index[places.clamp(min=0)]
        distinct, inverse = torch.unique(places.clamp(min=0), return_inverse=True)
        vectors = self.retriever.instances([self._texts[place] for place in distinct.tolist()])
        return places, vectors.float()[inverse]

    def _pool(self, batch: RagBatch, queries: Tensor) -> Tensor:
        """Return the places (N,) of the candidates that a training batch shares.

        The nearest are those of all its queries, the first of each, then the second, and so on.
        """
        size = min(self.pool_size, len(self.database))
        others = torch.randperm(len(self.database)).tolist()
        near: list[int] = []
        if self.candidates == "nearest" and self.replaced < 1:
            ranked = self._nearest(batch, queries, size).T.flatten().tolist()  # rank by rank
            kept = size - round(self.replaced * size)
            near = [place for place in dict.fromkeys(ranked) if place >= 0][:kept]
        pool = list(dict.fromkeys([*near, *others]))[:size]
        return torch.tensor(pool, device=queries.device)

    def _nearest(self, batch: RagBatch, queries: Tensor, size: int) -> Tensor:
        """Return the places (B, size) of the nearest by the index, best first.

        What a query may not have is left out; if too few remain, -1 pads.
        """
        scores = -self.distance(queries, self.index)  # (B, M)
        forbidden = self._excluded(batch, self.database.expand(len(queries), -1))
        scores = scores.masked_fill(forbidden, -torch.inf)
        best, places = scores.topk(min(size, scores.shape[1]))
        return places.masked_fill(best == -torch.inf, -1)

    def _excluded(self, batch: RagBatch, rows: Tensor) -> Tensor:
        """Say which of the store's rows (B, N) a query must not have: (B, N)."""
        excluded = torch.zeros_like(rows, dtype=torch.bool)
        for number, own in enumerate(batch.excluded_rows if self.exclude_self else ()):
            if len(own):
                excluded[number] = torch.isin(rows[number], own.to(rows.device))
        return excluded

    def _choose(self, batch: RagBatch, scores: Tensor, k: int) -> Tensor:
        """Return the columns (B, K) of the nearest, or of random candidates, best first."""
        order = scores
        if self.selection == "random":
            # An evaluation draws by its queries alone, whatever was drawn before.
            seed = self.data.seed * 1_000_003 + int(batch.rows[0])
            seed = int(torch.randint(2**40, ())) if self.training else seed
            noise = torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed))
            drawn = noise.to(scores).masked_fill(scores == -torch.inf, -1.0).topk(k).indices
            order = torch.full_like(scores, -torch.inf).scatter(1, drawn, scores.gather(1, drawn))
        best, positions = order.topk(k)
        return positions.masked_fill(best == -torch.inf, -1)


class Projection(nn.Module):
    """The map from the retriever's space to the generator's, and the temperature.

    Args:
        width: D of the retriever.
        hidden_size: D of the generator's input embeddings.
        temperature: t, to begin with.
        learned: whether t learns, as its logarithm.
    """

    def __init__(self, width: int, hidden_size: int, temperature: float, learned: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, hidden_size)
        # There in either case, so that the same learning rates serve both.
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(temperature)), requires_grad=learned
        )

    @property
    def temperature(self) -> Tensor:
        """t, ()."""
        return self.log_temperature.exp()

    def forward(self, vectors: Tensor) -> Tensor:
        """Map vectors (..., D) to the generator's (..., D)."""
        mapped: Tensor = self.linear(vectors)
        return mapped


def _gather(vectors: Tensor, positions: Tensor) -> Tensor:
    """Return the vectors (B, K, V, D) at the columns `positions` (B, K); zeros at -1."""
    shared = vectors.ndim == 3
    places = positions.clamp(min=0)
    rows = torch.arange(len(positions), device=positions.device)[:, None]
    chosen = vectors[places] if shared else vectors[rows, places]
    return chosen * (positions >= 0)[:, :, None, None]
