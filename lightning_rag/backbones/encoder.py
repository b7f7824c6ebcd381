"""Bi-encoder: texts to vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from lightning_rag.backbones.backbone import Backbone, check_length
from lightning_rag.backbones.config import EncoderConfig, Role
from lightning_rag.backbones.inputs import Padded, Row, in_order, length_groups, tokenize, way_back
from lightning_rag.backbones.prepare import prepare
from lightning_rag.backbones.sentence_folder import read_folder
from lightning_rag.backbones.sources import load_model, load_tokenizer, resolve
from lightning_rag.backbones.tiny import tiny_encoder, train_tokenizer
from lightning_rag.backbones.truncation import Piece, inside
from lightning_rag.errors import UserError
from lightning_rag.types import Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

END = "</end>"  # in place of a span's name: the special tokens that close an input


class _Inputs(NamedTuple):
    """B padded inputs in groups of similar length.

    A tuple, for `checkpoint` looks into tuples for the devices whose random state it must keep.
    """

    groups: list[Padded]
    back: Tensor  # (B,) the place of each input among the rows of all groups


class Encoder(Backbone):
    """Embeds texts, whole or at the spans that they name.

    Args:
        model: a transformer encoder.
        tokenizer: its fast tokeniser.
        config: pooling, limit and normalisation.

    Attributes:
        dimension: D, the width of the embeddings.
    """

    config: EncoderConfig

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: EncoderConfig,
    ) -> None:
        if config.pooling not in ("mean", "first"):
            raise UserError(f"pooling must be 'mean' or 'first', got {config.pooling!r}")
        super().__init__(model, tokenizer, config)
        check_length("max_length", config.max_length, model)
        self.dimension: int = model.config.hidden_size

    def forward(self, texts: Sequence[Rendered], role: Role = "none") -> Tensor:
        """Embed whole texts.

        Args:
            texts: B texts.
            role: what they are: queries and passages get the prefix of the configuration.

        Returns:
            (B, D), of unit length if so configured.
        """
        return self._embed(self._pieces(texts, role), self._whole)

    def spans(self, texts: Sequence[Rendered], names: Sequence[str], role: Role = "none") -> Tensor:
        """Embed the named spans of texts: the mean over the tokens of each.

        Args:
            texts: B texts, each with all of the spans `names`.
            names: V names of spans, such as "head" and "tail"; `END` is the closing special tokens.
            role: what the texts are, as for `forward`; a prefix moves the spans along.

        Returns:
            (B, V, D), each vector of unit length if so configured.

        Raises:
            ValueError: a text without one of the spans.
            UserError: a span without tokens, or `END` with a tokeniser that closes with nothing.
        """

        def embed(pieces: Sequence[Piece], inputs: _Inputs) -> Tensor:
            states, _ = self._states(inputs)
            weights = torch.zeros(len(pieces), len(names), states.shape[1], dtype=states.dtype)
            for row, piece in enumerate(pieces):
                for column, name in enumerate(names):
                    tokens = self._span_tokens(piece, name)
                    weights[row, column, tokens] = 1.0 / len(tokens)
            return self._normalize(weights.to(states.device) @ states)

        return self._embed(self._pieces(texts, role), embed)

    @torch.no_grad()
    def encode(
        self,
        texts: Sequence[Rendered],
        batch_size: int,
        names: Sequence[str] = (),
        role: Role = "none",
    ) -> Tensor:
        """Embed many texts without gradient or dropout, batched by length.

        Args:
            texts: n texts.
            batch_size: texts embedded at once.
            names: V names of spans to embed, as for `spans`; () embeds whole texts.
            role: what the texts are, as for `forward`.

        Returns:
            (n, D), or (n, V, D) with `names`; float32 on the CPU, in the order of `texts`.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        order = sorted(range(len(texts)), key=lambda i: len(texts[i].text), reverse=True)
        shape = (len(names), self.dimension) if names else (self.dimension,)
        vectors = torch.empty(len(texts), *shape)
        training = self.training
        self.eval()
        try:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                batch = [texts[i] for i in rows]
                found = self.spans(batch, names, role) if names else self(batch, role)
                vectors[rows] = found.float().cpu()
        finally:
            self.train(training)
        return vectors

    def check(self, texts: Sequence[Rendered], names: Sequence[str], role: Role = "none") -> None:
        """Check that the spans `names` of all texts fit into the limit and have tokens.

        Raises:
            UserError: naming the first text that does not.
        """
        truncated = self.truncated
        for piece in self._pieces(texts, role):
            for name in names:
                self._span_tokens(piece, name)
        self.truncated = truncated

    def _pieces(self, texts: Sequence[Rendered], role: Role) -> list[Piece]:
        """Tokenise texts with their prefix and cut them to the limit; the prefix stays whole."""
        if not texts:
            raise ValueError("at least one text is needed, got none")
        config = self.config
        limit = config.max_length - len(self.layout.prefix) - len(self.layout.suffix)
        prefix = {"query": config.query_prefix, "passage": config.passage_prefix, "none": ""}[role]
        if prefix:
            texts = [_prefixed(text, prefix) for text in texts]
        pieces = []
        for piece in tokenize(self.tokenizer, texts):
            self.truncated += len(piece.ids) > limit
            pieces.append(piece.cut(limit, first=len(prefix.rstrip())))
        return pieces

    def _embed(
        self, pieces: Sequence[Piece], embed: Callable[[Sequence[Piece], _Inputs], Tensor]
    ) -> Tensor:
        """Embed pieces, in chunks of similar length where gradients shall cost little memory."""
        size, since = self.config.encode_chunk, self.tokens
        if size is None or len(pieces) <= size or not torch.is_grad_enabled():
            whole = embed(pieces, self._inputs(pieces))
            self._differentiate(since, whole)
            return whole
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i].ids))
        vectors = []
        for start in range(0, len(order), size):
            chunk = [pieces[i] for i in order[start : start + size]]
            # Padded outside: tokens are counted once, as they are without chunks.
            inputs = self._inputs(chunk)
            vectors.append(checkpoint(embed, chunk, inputs, use_reentrant=False))
        self._differentiate(since, *vectors)
        back = torch.tensor(order, device=self.device).argsort()
        return torch.cat(vectors)[back]

    def _whole(self, pieces: Sequence[Piece], inputs: _Inputs) -> Tensor:
        """Return the pooled states of whole texts (B, D)."""
        states, mask = self._states(inputs)
        if self.config.pooling == "first":
            return self._normalize(states[:, 0])
        weights = mask.unsqueeze(-1).to(states.dtype)  # (B, L, 1)
        return self._normalize((states * weights).sum(dim=1) / weights.sum(dim=1))

    def _inputs(self, pieces: Sequence[Piece]) -> _Inputs:
        """Pad texts, those of similar length together on a CPU."""
        rows = []
        for piece in pieces:
            ids = [*self.layout.prefix, *piece.ids, *self.layout.suffix]
            rows.append(Row(ids, [0] * len(ids)))
        groups = length_groups([len(row.ids) for row in rows], self.device)
        padded = [self._pad([rows[i] for i in group]) for group in groups]
        return _Inputs(padded, way_back(groups, self.device))

    def _states(self, inputs: _Inputs) -> tuple[Tensor, Tensor]:
        """Return the last hidden states (B, L, D) and the mask (B, L)."""
        states = [
            self.model(input_ids=group.ids, attention_mask=group.mask).last_hidden_state
            for group in inputs.groups
        ]  # (group, L, D)
        masks = [group.mask for group in inputs.groups]
        return in_order(states, inputs.back), in_order(masks, inputs.back)

    def _span_tokens(self, piece: Piece, name: str) -> list[int]:
        """Return the columns of a span's tokens in the padded batch."""
        shift = len(self.layout.prefix)
        if name == END:
            if not self.layout.suffix:
                raise UserError(
                    "this encoder's tokeniser puts no special token after a text; legal with it: "
                    "model.query_label: learned, or model.vectors: mean"
                )
            end = shift + len(piece.ids)
            return list(range(end, end + len(self.layout.suffix)))
        span = piece.rendered.spans.get(name)
        if span is None:
            raise ValueError(
                f"the text has no span {name!r}, only {sorted(piece.rendered.spans)}: "
                f"{piece.rendered.text[:80]!r}"
            )
        tokens = [shift + i for i, offset in enumerate(piece.offsets) if inside(offset, span)]
        if not tokens:
            raise UserError(
                f"the span {name!r} at {span} of a text has no tokens: it needs a character that "
                f"the tokeniser knows; text: {piece.rendered.text[:80]!r}"
            )
        return tokens

    def _normalize(self, vectors: Tensor) -> Tensor:
        if not self.config.normalize:
            return vectors
        return normalize(vectors, dim=-1)


def _prefixed(text: Rendered, prefix: str) -> Rendered:
    """Put a prefix before a text; its spans move along."""
    moved = len(prefix)
    spans = {name: (start + moved, end + moved) for name, (start, end) in text.spans.items()}
    return Rendered(prefix + text.text, spans)


def build_encoder(config: EncoderConfig, corpus: Iterable[str]) -> Encoder:
    """Build an encoder.

    Args:
        config: what it is made of.
        corpus: texts for the tokeniser of a tiny model; not read for other sources.

    Raises:
        UserError: a source that cannot be had, or a setting that is not legal.
    """
    if config.source == "tiny":
        tiny = train_tokenizer(config.tiny, corpus)
        model = tiny_encoder(config.tiny, tiny)
        prepare(model, tiny, config)
        return Encoder(model, tiny, config)
    config = read_folder(resolve(config.source), config)
    tokenizer = load_tokenizer(config.source, trust_remote_code=config.trust_remote_code)
    model = load_model(
        config.source,
        "encoder",
        trust_remote_code=config.trust_remote_code,
        dtype=config.dtype,
    )
    prepare(model, tokenizer, config)
    return Encoder(model, tokenizer, config)
