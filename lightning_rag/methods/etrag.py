"""ETRAG (arXiv 2406.03790): soft nearest neighbours among training instances, as soft prompts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig
from lightning_rag.data.store import exclusions
from lightning_rag.errors import UserError
from lightning_rag.functional.contrastive import gather
from lightning_rag.functional.processes import from_first, query_mean
from lightning_rag.functional.soft_knn import (
    soft_knn_weights,
    soft_neighbours,
    span_cosine_distance,
    span_squared_distance,
)
from lightning_rag.methods.base import Method
from lightning_rag.methods.choice import nothing_retrieved
from lightning_rag.methods.optimization import OptimizerConfig
from lightning_rag.methods.phase import Phase
from lightning_rag.retrieval.instances import InstanceRetriever, Projection, Vectors
from lightning_rag.retrieval.pool import (
    best_columns,
    listed,
    random_columns,
    shared_pool,
    take,
)
from lightning_rag.types import LossTerms, Passage, Prompt, RagBatch, Rendered, Retrieved

DISTANCES = {"cosine": span_cosine_distance, "l2": span_squared_distance}
ENCODED_AT_ONCE = 64  # instances, when the index is refreshed
GIVEN = (
    "candidates: first_stage leaves to the first stage what is searched; legal with it: "
    "database_size: null, evaluation_pool: null, exclude_self: true"
)


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
        learned_temperature: learn log t, from `temperature` on; it acts on soft neighbours alone.
        variant: "etrag" divides by t in every round, as above; "n3" only once, as Plötz and Roth
            2018 do (`functional.soft_knn` tells the difference).
        distance: "cosine", or squared "l2", which grows with D and needs a temperature of its own.
        vectors: "spans", or one vector a text: the "mean" over its tokens or the "first" token's.
        query_label: a query's vector in the slot of the label, "separator" or "learned"
            (`InstanceRetriever`).
        candidates: in training, "random" instances, or the "nearest" of the batch's queries by the
            index, in either case the same for the whole batch; or "first_stage", the first of each
            query's own, in evaluation too.
        pool_size: N, the number of these candidates, if there are as many; the paper's is 32. All
            are encoded with gradient: N texts a batch, with "first_stage" up to B N.
        replaced: share of the nearest that random instances replace, 0 to 1.
        evaluation_pool: in evaluation, only so many of the nearest; None = all, as in the paper.
        database_size: use a random part of a larger store, drawn by seed; the paper's is 5,000.
        exclude_self: keep a training query and its copies out of its own candidates.
        train_retriever: False leaves the encoder as it is; the projection still learns.
        train_generator: False leaves the generator as it is, as `retriever_first_steps` does for a
            while: what learns is taught by a reader that stays. Begin with one that can answer, a
            pretrained model or another run's (`--initial_weights`).
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
        train_generator: bool = True,
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
            ("refresh_every", refresh_every, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"model.{name} is {value}; legal with k = {k}: {least} or more")
        given = candidates == "first_stage"
        for clash, rule in (
            (given and (database_size, evaluation_pool) != (None, None), GIVEN),
            (given and not exclude_self, GIVEN),
            (replaced > 0 and candidates != "nearest", "replaced needs candidates: nearest"),
            (
                query_label == "learned" and not train_retriever,
                "a learned query_label needs train_retriever: true",
            ),
            (k == 0 and not train_generator, "something must train; with k = 0 the generator"),
        ):
            if clash:
                raise UserError(f"model: {rule}")
        self.encoder_config = encoder
        self.selection = selection
        self.temperature = temperature
        self.learned_temperature = learned_temperature
        self.variant: Literal["etrag", "n3"] = variant
        self.distance = DISTANCES[distance]
        self.vectors: Vectors = vectors
        self.query_label: Literal["separator", "learned"] = query_label
        self.candidates = candidates
        self.reads_candidates = candidates == "first_stage"
        self.pool_size = pool_size
        self.replaced = replaced
        self.evaluation_pool = evaluation_pool
        self.database_size = database_size
        self.exclude_self = exclude_self
        self.train_retriever = train_retriever
        self.train_generator = train_generator
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
            draw = torch.Generator().manual_seed(data.seed)  # the same whatever the models are
            rows = torch.randperm(len(rows), generator=draw)[: self.database_size].sort().values
        self.database: Tensor  # (M,) rows of the store
        self.register_buffer("database", rows, persistent=False)
        # (M, V, D) as last refreshed. A checkpoint holds the weights: they serve any store.
        self.register_buffer("index", torch.zeros(len(rows), size, width), persistent=False)
        self._check_texts()
        self._check_database()

    def _check_texts(self) -> None:
        """Refuse instances and queries, of any split, whose spans do not fit the encoder."""
        retriever, splits, task = self.retriever, self.data.splits, self.data.task
        queries = [*splits.train, *splits.validation, *splits.test]
        try:
            retriever.encoder.check(self._texts(range(len(self.database))), retriever.slots)
            retriever.encoder.check([task.query(one) for one in queries], retriever.query_slots)
        except UserError as error:
            limit = self.encoder_config.max_length
            raise UserError(f"encoder.max_length is {limit}, and {error}") from error

    def _check_database(self) -> None:
        """Refuse a database, or a pool, that leaves a query with fewer than k instances."""
        tasks = {instance.task for instance in self.data.splits.train}
        if not self.exclude_self and len(tasks) > 1:
            raise UserError(
                "model.exclude_self is false, and the data are of several tasks, some of whose "
                "instances a query must not have (data.scope); legal: true"
            )
        if not self.exclude_self or self.candidates == "first_stage":
            return
        train = self.data.splits.train
        own = [
            int(torch.isin(self.database, torch.from_numpy(rows)).sum())
            for rows in exclusions(train, self.data.store)
        ]
        most = max(own)
        query, size = train[own.index(most)].id, len(self.database)
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
            trains=(*new, "generator") if self.train_generator else new,
            loss=self.loss,
            epochs=self.epochs,
            monitor=self.monitor,
            mode="min" if self.monitor == "loss" else "max",
            patience=self.patience,
        )
        if not new or self.retriever_first_steps == 0:
            return [joint]
        first = Phase(
            "retriever_first",
            trains=new,
            loss=self.loss,
            steps=self.retriever_first_steps,
            monitor="loss",  # of a frozen generator it tells more than its score
            mode="min",
        )
        return [first, joint]

    def loss(self, batch: RagBatch) -> LossTerms:
        """Mean token NLL of the target, the only loss; how sharp the first neighbour is beside it.

        `perplexity` is exp(H(w^1)): 1 for a single instance, N for the mean of all candidates. A
        query without any candidate has zeros for weights and neighbours, and counts as 1.
        """
        retrieved = self.retrieve_once(batch)
        loss = self.generator_loss(batch, retrieved)
        if retrieved.weights is not None:
            if self.learned_temperature:
                loss.terms["temperature"] = self.projection.temperature.detach()
            entropy = torch.special.entr(retrieved.weights[:, 0].detach()).sum(dim=-1)  # (B,)
            loss.terms["perplexity"], _ = query_mean(entropy.exp(), counts=not batch.idle)
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
        texts = self._texts(range(len(self.database)))
        self.index.copy_(self.retriever.encode(texts, ENCODED_AT_ONCE))

    def retrieve(self, batch: RagBatch, k: int) -> Retrieved:
        """Return the neighbours of each query, and the soft prompt made of them."""
        if k == 0:
            return nothing_retrieved(batch)
        texts = [self.data.task.query(instance) for instance in batch.instances]
        queries = self.retriever.queries(texts)  # (B, V, D)
        places, vectors = self._candidates(batch, queries.detach())  # (B, N), ([B,] N, V, D)
        rows = torch.where(places >= 0, self.database[places], -1)  # (B, N)
        allowed = (rows >= 0) & ~listed(rows, self._excluded(batch))
        scores = self._scores(queries, vectors).masked_fill(~allowed, -torch.inf)  # (B, N)
        weights = None
        if self.selection == "random":
            # A query's draw: in training the step's, in evaluation always the same.
            base = self.data.seed * 1_000_003
            if self.training:
                base = int(from_first(torch.randint(2**40, ()).to(self.device)))
            positions = random_columns(
                scores.detach(), k, [base + row for row in batch.rows.tolist()]
            )
        else:
            positions = best_columns(scores.detach(), k)  # (B, K)
        if self.selection == "soft":
            t = self.projection.temperature
            weights = soft_knn_weights(scores, k, t, mask=allowed, variant=self.variant)
            neighbours = soft_neighbours(weights, vectors.float())  # (B, K, V, D)
        else:
            neighbours = take(vectors, positions)  # (B, K, V, D)
        prompt = torch.cat([queries[:, None].to(neighbours), neighbours], dim=1).flatten(1, 2)
        return Retrieved(rows, scores, positions, weights, self.projection(prompt))

    def _candidates(self, batch: RagBatch, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the candidates of B queries (B, V, D): places in the database, and vectors.

        Returns:
            Places (B, N), -1 = padding; vectors (B, N, V, D), or (N, V, D) if all queries have the
            same. With gradient in training, out of the index in evaluation.
        """
        size = min(self.pool_size, len(self.database))
        if self.candidates == "first_stage":  # the database is the store, in its order
            places = batch.candidate_ids[:, : self.pool_size]
        elif self.training:
            pool = self._pool(batch, queries, size)
            return pool.expand(len(queries), -1), self.retriever.instances(self._texts(pool))
        elif self.evaluation_pool is None:
            everything = torch.arange(len(self.database), device=queries.device)
            return everything.expand(len(queries), -1), self._fresh_index()
        else:
            places = self._nearest(batch, queries, min(self.evaluation_pool, len(self.database)))
        if not self.training:
            return places, self._fresh_index()[places.clamp(min=0)]
        distinct, inverse = torch.unique(places.clamp(min=0), return_inverse=True)
        return places, self.retriever.instances(self._texts(distinct))[inverse]

    def _pool(self, batch: RagBatch, queries: Tensor, size: int) -> Tensor:
        """Return the places (N,) that all queries of a batch share, those of all processes."""
        ranked = queries.new_zeros(1, 0)
        if self.candidates == "nearest":
            own = self._nearest(batch, queries, size)  # (B, N)
            ranked = gather(own[: batch.counted])
        # What is random differs between the processes; the first one's pool is everybody's.
        return from_first(shared_pool(ranked, len(self.database), size, self.replaced))

    def _nearest(self, batch: RagBatch, queries: Tensor, size: int) -> Tensor:
        """Return the places (B, size) of the nearest by the index that a query may have."""
        scores = self._scores(queries, self._fresh_index())  # (B, M)
        forbidden = listed(self.database.expand(len(queries), -1), self._excluded(batch))
        return best_columns(scores.masked_fill(forbidden, -torch.inf), size)

    def _scores(self, queries: Tensor, vectors: Tensor) -> Tensor:
        """Return minus the distance (B, N), in full precision: 1 / t magnifies its errors."""
        with torch.autocast(queries.device.type, enabled=False):
            return -self.distance(queries.float(), vectors.float())

    def _excluded(self, batch: RagBatch) -> list[Tensor]:
        """Return the store's rows that each query must not have."""
        if self.exclude_self:
            return batch.excluded_rows
        return [rows[:0] for rows in batch.excluded_rows]

    def _fresh_index(self) -> Tensor:
        if not self.index[0].any():
            raise RuntimeError("Etrag: refresh_index() must come before the index is read")
        return self.index

    def _texts(self, places: Iterable[int] | Tensor) -> list[Rendered]:
        """Return the instances at places of the database, as the retriever reads them."""
        rows = self.database[torch.as_tensor(list(places))].tolist()
        return [self.render(self.data.store[row]) for row in rows]
