"""From rendered texts to padded rows of token ids."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import pad as zeros_behind

from lightning_rag.backbones.truncation import Piece
from lightning_rag.types import Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


RowKey = tuple[tuple[int, ...], tuple[int, ...]]

# A CPU takes time for padding too, so inputs of similar length go through a model together.
# Sentences of SemEval-2010 Task 8, forward and backward, took 1.0 s and not 1.55 in an encoder (32
# at a time), 1.09 s and not 1.26 in a MiniLM warm start (16 with one passage each); small models
# from scratch gain as much.
CPU_GROUP = 8


@dataclass(frozen=True)
class Layout:
    """The special tokens that a tokeniser puts around one text and between two."""

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]


@dataclass
class Row:
    """One input of a model."""

    ids: list[int]
    segments: list[int]  # token type ids

    @property
    def key(self) -> RowKey:
        """What equal inputs have in common."""
        return tuple(self.ids), tuple(self.segments)


@dataclass
class Padded:
    """B inputs padded to the longest of them."""

    ids: Tensor  # (B, L) long
    mask: Tensor  # (B, L) long; 1 = token, 0 = padding
    segments: Tensor  # (B, L) long


def length_groups(
    lengths: Sequence[int], device: torch.device, limit: int | None = None
) -> list[list[int]]:
    """Group inputs that shall go through a model together.

    Args:
        lengths: of each input.
        device: where the model is.
        limit: at most so many in a group.

    Returns:
        places of the inputs, in groups of similar length, shortest first. On a CPU the groups are
        small; elsewhere one large call is quicker than several, and the limit alone parts them.
        A single group is in the order given.
    """
    size = CPU_GROUP if device.type == "cpu" else len(lengths)
    size = size if limit is None else min(size, limit)
    if len(lengths) <= size:
        return [list(range(len(lengths)))]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + size] for start in range(0, len(order), size)]


def way_back(groups: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return the place (inputs,) of each input among the rows of all groups."""
    return torch.tensor([i for group in groups for i in group], device=device).argsort()


def in_order(parts: Sequence[Tensor], back: Tensor) -> Tensor:
    """Join what a model made of groups, in the order of the inputs.

    Args:
        parts: for each group a tensor (inputs of the group, ...). A length in the second dimension
            may differ between them; shorter ones get zeros behind.
        back: (inputs,) as `way_back` returns it.

    Returns:
        (inputs, ...).
    """
    if len(parts) == 1:  # a single group is in the order given: nothing has to be copied
        return parts[0]
    if parts[0].dim() > 1:
        longest = max(part.shape[1] for part in parts)
        others = (0, 0) * (parts[0].dim() - 2)
        parts = [zeros_behind(part, (*others, 0, longest - part.shape[1])) for part in parts]
    return torch.cat(list(parts))[back]


def text_key(text: Rendered) -> tuple[object, ...]:
    """Return what equal texts have in common; those with other spans are cut in another way."""
    return text.text, tuple(sorted(text.spans.items()))


def read_layout(tokenizer: PreTrainedTokenizerBase) -> Layout:
    """Learn a tokeniser's special tokens from what it makes of two letters."""
    encoded = tokenizer("a", "b", return_special_tokens_mask=True)
    ids: list[int] = list(encoded["input_ids"])
    special: list[int] = list(encoded["special_tokens_mask"])
    runs = [
        (flag, tuple(token for _, token in group))
        for flag, group in itertools.groupby(
            zip(special, ids, strict=True), key=lambda pair: pair[0]
        )
    ]
    prefix = runs[0][1] if runs[0][0] else ()
    suffix = runs[-1][1] if runs[-1][0] else ()
    inner = runs[bool(prefix) : len(runs) - bool(suffix)]
    middle = next((tokens for flag, tokens in inner if flag), ())
    return Layout(prefix, middle, suffix)


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Rendered]) -> list[Piece]:
    """Return the tokens of each text, without special tokens."""
    if not texts:
        return []
    encoded = tokenizer(
        [text.text for text in texts],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # longer than the model's limit is a matter of truncation.py
    )
    ids: list[list[int]] = encoded["input_ids"]
    offsets: list[list[tuple[int, int]]] = encoded["offset_mapping"]
    return [Piece(*parts) for parts in zip(ids, offsets, texts, strict=True)]


def pad(rows: Sequence[Row], pad_id: int, device: torch.device, *, left: bool = False) -> Padded:
    """Pad rows to the longest of them, on the right or on the left."""
    longest = max(len(row.ids) for row in rows)
    ids, mask, segments = [], [], []
    for row in rows:
        missing = longest - len(row.ids)
        before, after = (missing, 0) if left else (0, missing)
        ids.append([pad_id] * before + row.ids + [pad_id] * after)
        mask.append([0] * before + [1] * len(row.ids) + [0] * after)
        segments.append([0] * before + row.segments + [0] * after)
    stacked = torch.tensor([ids, mask, segments], device=device)  # (3, B, L): one transfer
    return Padded(stacked[0], stacked[1], stacked[2])


def input_embeddings(model: PreTrainedModel) -> nn.Embedding:
    """Return a model's table of word embeddings."""
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    return embeddings


def place_soft_prompt(embeddings: Tensor, soft_prompt: Tensor, first: Tensor) -> Tensor:
    """Write each query's soft prompt over the placeholders of its row.

    Args:
        embeddings: (B, L, D) embeddings of the tokens and placeholders.
        soft_prompt: (B, P, D).
        first: (B,) column of each row's first placeholder.

    Returns:
        (B, L, D) embeddings; the gradient reaches the soft prompt.
    """
    columns = first[:, None] + torch.arange(soft_prompt.shape[1], device=first.device)  # (B, P)
    index = columns[:, :, None].expand(-1, -1, embeddings.shape[-1])  # (B, P, D)
    return embeddings.scatter(1, index, soft_prompt.to(embeddings.dtype))
