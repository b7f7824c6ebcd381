"""Cross-encoder: a query and a passage, read together, to one score."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_rag.backbones.backbone import Backbone, check_length
from lightning_rag.backbones.config import EncoderConfig
from lightning_rag.backbones.inputs import Row, in_order, length_groups, tokenize, way_back
from lightning_rag.backbones.prepare import prepare
from lightning_rag.backbones.sources import load_cross_encoder, load_tokenizer
from lightning_rag.backbones.tiny import tiny_cross_encoder, train_tokenizer
from lightning_rag.backbones.truncation import Fitted, fit
from lightning_rag.types import Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class CrossEncoder(Backbone):
    """Scores pairs of query and passage with a transformer that ends in one logit.

    The query has token type 0 and the passage has 1, where the model knows token types. A pair that
    is too long loses tokens of its passage first.

    Args:
        model: a sequence classifier with one label.
        tokenizer: its fast tokeniser.
        config: the limit of a pair; `pooling` and `normalize` mean nothing here, because the
            model's own head reads the states, and the prefixes neither.
    """

    config: EncoderConfig

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: EncoderConfig,
    ) -> None:
        super().__init__(model, tokenizer, config)
        check_length("max_length", config.max_length, model)
        # A model without token types has no parameter for them, or only one row of embeddings; one
        # that was trained without has a tokeniser that gives none.
        self._segments = (
            config.token_types
            and "token_type_ids" in tokenizer.model_input_names
            and "token_type_ids" in inspect.signature(model.forward).parameters
            and getattr(model.config, "type_vocab_size", 0) > 1
        )
        if model.config.pad_token_id is None:  # a decoder's head looks for the last other token
            model.config.pad_token_id = self.pad_id

    def forward(self, queries: Sequence[Rendered], passages: Sequence[Rendered]) -> Tensor:
        """Score P pairs, the i-th query with the i-th passage.

        Args:
            queries: P queries.
            passages: P passages.

        Returns:
            (P,) float32 logits, larger for the better passage; differentiable in the weights.

        Raises:
            ValueError: no pair, or numbers that differ.
            UserError: a query whose protected spans alone exceed the limit.
        """
        if not queries or len(queries) != len(passages):
            raise ValueError(
                f"{len(queries)} queries need as many passages, at least one, got {len(passages)}"
            )
        rows = self._rows(queries, passages)
        chunk = self.config.encode_chunk if torch.is_grad_enabled() else None
        recompute = chunk is not None and chunk < len(rows)
        groups = length_groups([len(row.ids) for row in rows], self.device, chunk)
        logits, since = [], self.tokens
        for group in groups:
            batch = self._pad([rows[i] for i in group])
            inputs = (batch.ids, batch.mask, batch.segments)
            if recompute:
                logits.append(checkpoint(self._logits, *inputs, use_reentrant=False))
            else:
                logits.append(self._logits(*inputs))
        self._differentiate(since, *logits)
        return in_order(logits, way_back(groups, self.device))

    def _logits(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        """Score padded pairs (P, L), each of the three: logits (P,) in float32."""
        types = {"token_type_ids": segments} if self._segments else {}
        output = self.model(input_ids=ids, attention_mask=mask, **types)
        logits: Tensor = output.logits[:, 0].float()
        return logits

    def _rows(self, queries: Sequence[Rendered], passages: Sequence[Rendered]) -> list[Row]:
        """Tokenise pairs and cut them to the limit."""
        layout = self.layout
        limit = self.config.max_length - len(layout.prefix) - len(layout.suffix)
        pieces = tokenize(self.tokenizer, [*queries, *passages])
        rows = []
        for query, passage in zip(pieces[: len(queries)], pieces[len(queries) :], strict=True):
            fitted = fit(query, [passage], limit, separator=len(layout.middle))
            self.truncated += fitted.truncated
            rows.append(self._row(fitted))
        return rows

    def _row(self, fitted: Fitted) -> Row:
        """Lay out one input: special tokens, query, passage unless it was dropped whole."""
        layout = self.layout
        first = [*layout.prefix, *fitted.query.ids]
        if not fitted.passages:
            ids = [*first, *layout.suffix]
            return Row(ids, [0] * len(ids))
        first += layout.middle
        second = [*fitted.passages[0].ids, *layout.suffix]
        return Row([*first, *second], [0] * len(first) + [1] * len(second))


def build_cross_encoder(config: EncoderConfig, corpus: Iterable[str]) -> CrossEncoder:
    """Build a cross-encoder.

    A checkpoint's own head with one logit is kept. A checkpoint without one gets a fresh head, and
    what that needs besides, drawn from torch's global random generator.

    Args:
        config: what it is made of.
        corpus: texts for the tokeniser of a tiny model; not read for other sources.

    Raises:
        UserError: a source that cannot be had, a head with several labels, or a setting that is
            not legal.
    """
    if config.source == "tiny":
        tiny = train_tokenizer(config.tiny, corpus)
        model = tiny_cross_encoder(config.tiny, tiny)
        prepare(model, tiny, config)
        return CrossEncoder(model, tiny, config)
    tokenizer = load_tokenizer(config.source, trust_remote_code=config.trust_remote_code)
    model = load_cross_encoder(
        config.source, trust_remote_code=config.trust_remote_code, dtype=config.dtype
    )
    prepare(model, tokenizer, config)
    return CrossEncoder(model, tokenizer, config)
