"""What an encoder's configuration changes in a model: its tokens, and what of it learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from lightning_rag.backbones.config import EncoderConfig
from lightning_rag.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What transformers calls tables of learned position embeddings: BERT and its relatives, GPT-2, OPT.
POSITIONS = ("position_embeddings", "wpe", "embed_positions")


def prepare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: EncoderConfig
) -> None:
    """Add the extra tokens and freeze the position embeddings, in place, as `config` says.

    Raises:
        UserError: position embeddings to freeze, and a model that learns none.
    """
    if config.extra_tokens:
        _add_tokens(model, tokenizer, config)
    if config.freeze_positions:
        tables = [
            module
            for name, module in model.named_modules()
            if name.rpartition(".")[2] in POSITIONS and isinstance(module, nn.Embedding)
        ]
        if not tables:
            raise UserError(
                f"freeze_positions is true, and the model of {config.source!r} learns no position "
                "embeddings; legal: false"
            )
        for table in tables:
            table.weight.requires_grad_(False)


def _add_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: EncoderConfig
) -> None:
    """Give the tokeniser words that it keeps whole, and the model rows for them."""
    from transformers import AddedToken

    # As they stand in the text, before a tokeniser lowers its case.
    words = [AddedToken(word, normalized=False) for word in config.extra_tokens]
    tokenizer.add_tokens(words)
    rows: int = model.config.vocab_size
    if config.source == "tiny":
        # Not by the tokeniser's size, which follows from the corpus: a checkpoint must fit.
        rows = config.tiny.vocab_size + len(config.extra_tokens)
    rows = max(rows, len(tokenizer))
    if rows > model.config.vocab_size:
        # The default draws all new rows beside the mean of the old ones, which makes an opening and
        # a closing tag the same at first.
        model.resize_token_embeddings(rows, mean_resizing=False)
